//! etcd's Lease service.

use std::pin::Pin;

use futures_util::stream::{self, Stream};
use kvasir_api::Error;
use kvasir_api::etcdserverpb::lease_server::Lease;
use kvasir_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::{Door, front};

#[tonic::async_trait]
impl Lease for Door {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        Ok(Response::new(self.engine.lease_grant(&self.caller, request.into_inner()).await?))
    }

    async fn lease_revoke(&self, request: Request<LeaseRevokeRequest>) -> Result<Response<LeaseRevokeResponse>, Status> {
        Ok(Response::new(self.engine.lease_revoke(&self.caller, request.into_inner()).await?))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let renewals = Some((self.clone(), request.into_inner()));
        // One renewal after the other, in the order they were asked for; the first error ends the stream.
        let answers = stream::unfold(renewals, |renewals| async {
            let (mut door, mut requests) = renewals?;
            let answer = door.renew(&mut requests).await?;
            let rest = answer.is_ok().then_some((door, requests));
            Some((answer, rest))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        Ok(Response::new(self.engine.lease_time_to_live(&self.caller, request.into_inner()).await?))
    }

    async fn lease_leases(&self, request: Request<LeaseLeasesRequest>) -> Result<Response<LeaseLeasesResponse>, Status> {
        Ok(Response::new(self.engine.lease_leases(&self.caller, request.into_inner()).await?))
    }
}

impl Door {
    /// The next renewal of a stream; `None` when its client has no more.
    async fn renew(
        &mut self,
        requests: &mut Streaming<LeaseKeepAliveRequest>,
    ) -> Option<Result<LeaseKeepAliveResponse, Status>> {
        let request = tokio::select! {
            request = requests.message() => request,
            () = self.stopped() => Err(Error::Stopped.into()),
        };
        match request {
            Ok(Some(request)) => Some(self.engine.lease_keep_alive(&self.caller, request.id).await.map_err(Status::from)),
            Ok(None) => None,
            Err(status) => Some(Err(front::stream_error(status))),
        }
    }
}
