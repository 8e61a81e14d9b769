//! What holds for every gRPC request before it is routed, and for every answer after: etcd's metadata rules, a deadline for the
//! bodies of requests that are one message, and etcd's words for a message that is too large.
//!
//! **Invariant:** allocates nothing for a request that passes, beyond what routing does, unless it requires a leader.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::future::RouteFuture;
use futures_util::FutureExt;
use futures_util::future::{Either, Map};
use http::{HeaderMap, Request, header};
use kvasir_api::{Error, limits};
use kvasir_engine::Engine;
use tonic::{Code, Status};
use tower::Service;

use super::timely::Timely;

/// The router behind the rules.
#[derive(Clone)]
pub(crate) struct Front {
    router: Router,
    engine: Engine,
    body_timeout: Duration,
}

/// Methods whose requests are streams: they last as long as their clients like.
const STREAMS: [&str; 3] =
    ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive", "/kvasir.plugin.v1.Plugins/Install"];

type Answer = Result<Response, Infallible>;

impl Front {
    pub(super) fn new(router: Router, engine: Engine) -> Front {
        Front { router, engine, body_timeout: Duration::from_millis(limits::REQUEST_BODY_TIMEOUT_MS) }
    }

    #[cfg(test)]
    pub(super) fn with_body_timeout(self, body_timeout: Duration) -> Front {
        Front { body_timeout, ..self }
    }
}

impl<B> hyper::service::Service<Request<B>> for Front
where
    B: hyper::body::Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Answer>, Map<RouteFuture<Infallible>, fn(Answer) -> Answer>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        let leader = || self.engine.has_leader();
        let learner = || self.engine.is_learner();
        if is_grpc(request.headers())
            && let Err(error) = admit(request.headers(), leader).and_then(|()| for_learner(request.uri().path(), learner))
        {
            return Either::Left(ready(Ok(Status::from(error).into_http())));
        }
        let within = (!STREAMS.contains(&request.uri().path())).then_some(self.body_timeout);
        let request = request.map(|body| Timely::new(body, within));
        Either::Right(self.router.clone().call(request).map(in_etcds_words as fn(Answer) -> Answer))
    }
}

/// True for a gRPC request.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// etcd's metadata rules: `client-api-version` is text, `hasleader: true` fails without a leader. While auth is off a `token` is
/// not looked at.
fn admit(headers: &HeaderMap, has_leader: impl FnOnce() -> bool) -> Result<(), Error> {
    if headers.get("client-api-version").is_some_and(|version| std::str::from_utf8(version.as_bytes()).is_err()) {
        return Err(Error::InvalidClientApiVersion);
    }
    if requires_leader(headers) && !has_leader() {
        return Err(Error::NoLeader);
    }
    Ok(())
}

/// Whether the client is not to be served without a leader: clientv3's `WithRequireLeader`. An open stream ends when that comes about.
pub(super) fn requires_leader(headers: &HeaderMap) -> bool {
    headers.get("hasleader").is_some_and(|value| value.as_bytes() == b"true")
}

/// Of etcd's services a member that does not vote serves its status, snapshots and, where they are serializable, ranges.
fn for_learner(path: &str, is_learner: impl FnOnce() -> bool) -> Result<(), Error> {
    const SERVED: [&str; 3] =
        ["/etcdserverpb.KV/Range", "/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot"];
    let is_etcds = ["/etcdserverpb.", "/v3lockpb.", "/v3electionpb."].iter().any(|service| path.starts_with(service));
    if is_etcds && !SERVED.contains(&path) && is_learner() { Err(Error::NotForLearner) } else { Ok(()) }
}

const TOO_LARGE: &str = "decoded message length too large";

/// Puts etcd's words on a request that was refused for its size while it was decoded.
fn in_etcds_words(answer: Answer) -> Answer {
    answer.map(|response| {
        // Only an answer without a message carries its status in the head.
        let code = response.headers().get(Status::GRPC_STATUS).map(http::HeaderValue::as_bytes);
        if code != Some(b"11") {
            return response;
        }
        match Status::from_header_map(response.headers()) {
            Some(status) if status.message().contains(TOO_LARGE) => Status::from(Error::RequestTooLarge).into_http::<Body>(),
            _ => response,
        }
    })
}

/// The same for a message within a stream.
pub(super) fn stream_error(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange if status.message().contains(TOO_LARGE) => Error::RequestTooLarge.into(),
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &[u8]) -> HeaderMap {
        let value = http::HeaderValue::from_bytes(value).expect("a header may carry it");
        HeaderMap::from_iter([(header::HeaderName::from_static(name), value)])
    }

    #[test]
    fn a_client_version_that_is_not_text_is_refused() {
        assert_eq!(admit(&headers("client-api-version", b"\xff\xfe"), || true), Err(Error::InvalidClientApiVersion));
        assert_eq!(admit(&headers("client-api-version", b"3.6.0"), || true), Ok(()));
    }

    #[test]
    fn a_leader_is_asked_for_only_by_those_who_require_one() {
        assert_eq!(admit(&headers("hasleader", b"true"), || false), Err(Error::NoLeader));
        assert_eq!(admit(&headers("hasleader", b"true"), || true), Ok(()));
        assert_eq!(admit(&headers("hasleader", b"false"), || panic!("not asked for")), Ok(()));
        assert_eq!(admit(&headers("token", b"anything"), || panic!("not asked for")), Ok(()));
    }

    #[test]
    fn a_learner_serves_what_etcds_learners_serve() {
        assert_eq!(for_learner("/etcdserverpb.KV/Put", || true), Err(Error::NotForLearner));
        assert_eq!(for_learner("/v3lockpb.Lock/Lock", || true), Err(Error::NotForLearner));
        assert_eq!(for_learner("/etcdserverpb.KV/Put", || false), Ok(()));
        for served in ["/etcdserverpb.KV/Range", "/etcdserverpb.Maintenance/Status", "/kvasir.node.v1.Nodes/Status"] {
            assert_eq!(for_learner(served, || true), Ok(()));
        }
    }

    #[test]
    fn only_the_size_of_a_message_is_put_in_other_words() {
        let answer =
            |status: Status| Status::from_header_map(in_etcds_words(Ok(status.into_http())).expect("infallible").headers());
        let said = |status: Status| answer(status).map(|status| (status.code(), status.message().to_owned()));
        let large = Status::out_of_range("Error, decoded message length too large: found 9 bytes, the limit is: 4 bytes");
        let refused = (Code::InvalidArgument, "etcdserver: request is too large".to_owned());
        assert_eq!(said(large), Some(refused));
        let compacted = (Error::Compacted.code(), Error::Compacted.to_string());
        assert_eq!(said(Error::Compacted.into()), Some(compacted));
    }
}
