//! etcd's Watch service, written by hand: the engine hands over responses that are encoded already, each event once for all
//! its watchers, and the generated service would encode them again.
//!
//! **Invariant:** one stream holds at most what the engine's queue for it holds; a slow client slows its own stream only.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BufMut;
use futures_util::future::{Fuse, FutureExt};
use futures_util::stream::{self, Stream};
use kvasir_api::etcdserverpb::WatchRequest;
use kvasir_api::limits;
use kvasir_engine::{WatchFrame, WatchFrames, WatchRequests};
use prost::Message;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::{Door, Leader, front};

/// Serves `/etcdserverpb.Watch/Watch`.
#[derive(Clone)]
pub(super) struct WatchService {
    door: Door,
}

impl WatchService {
    pub(super) fn new(door: Door) -> WatchService {
        WatchService { door }
    }
}

impl NamedService for WatchService {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl tower::Service<http::Request<Body>> for WatchService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/etcdserverpb.Watch/Watch" {
                return Ok(Status::unimplemented("the Watch service has one method, Watch").into_http());
            }
            let mut grpc = Grpc::new(Frames).max_decoding_message_size(limits::GRPC_RECV_BYTES_MAX);
            Ok(grpc.streaming(method, request).await)
        })
    }
}

impl StreamingService<WatchRequest> for WatchService {
    type Response = WatchFrame;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<WatchFrame, Status>> + Send>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let leader = self.door.leader_for(request.metadata());
        let (requests, frames) = self.door.engine.watch_stream((*self.door.caller).clone()).split();
        let (failed, failure) = oneshot::channel();
        let inbound = tokio::spawn(take_requests(request.into_inner(), requests, failed)).abort_handle();
        let outbound =
            Outbound { frames, failure: failure.fuse(), door: self.door.clone(), leader, _inbound: EndOnDrop(inbound) };
        let responses = stream::unfold(Some(outbound), |outbound| async {
            let mut outbound = outbound?;
            let item = outbound.next().await?;
            let rest = item.is_ok().then_some(outbound);
            Some((item, rest))
        });
        std::future::ready(Ok(Response::new(Box::pin(responses))))
    }
}

/// Hands a client's requests to the engine until it has no more. A client that half-closes goes on receiving, as with etcd, so
/// the engine's half is kept until the stream ends.
async fn take_requests(mut inbound: Streaming<WatchRequest>, requests: WatchRequests, failed: oneshot::Sender<Status>) {
    loop {
        let outcome = match inbound.message().await {
            Ok(Some(request)) => requests.request(request).await.map_err(Status::from),
            Ok(None) => std::future::pending().await,
            Err(status) => Err(front::stream_error(status)),
        };
        if let Err(status) = outcome {
            // The other half may be gone already, and with it whoever wanted to know.
            let _ = failed.send(status);
            return;
        }
    }
}

/// The engine's half of a stream towards the client.
struct Outbound {
    frames: WatchFrames,
    failure: Fuse<oneshot::Receiver<Status>>,
    door: Door,
    leader: Option<Leader>,
    _inbound: EndOnDrop,
}

impl Outbound {
    async fn next(&mut self) -> Option<Result<WatchFrame, Status>> {
        tokio::select! {
            // In this order: a stream that fails or is stopped ends with the reason, not as if its client had ended it.
            biased;
            Ok(status) = &mut self.failure => Some(Err(status)),
            error = self.door.ended(&mut self.leader) => Some(Err(error.into())),
            frame = self.frames.next() => frame.map(Ok),
        }
    }
}

/// Ends a task with its owner.
struct EndOnDrop(AbortHandle);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Decodes requests; responses pass through as they are.
struct Frames;

impl Codec for Frames {
    type Encode = WatchFrame;
    type Decode = WatchRequest;
    type Encoder = Frames;
    type Decoder = Frames;

    fn encoder(&mut self) -> Frames {
        Frames
    }

    fn decoder(&mut self) -> Frames {
        Frames
    }
}

impl Encoder for Frames {
    type Item = WatchFrame;
    type Error = Status;

    fn encode(&mut self, frame: WatchFrame, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(frame.0);
        Ok(())
    }
}

impl Decoder for Frames {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        WatchRequest::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
