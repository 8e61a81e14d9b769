//! etcd's Lease service.

use std::pin::Pin;

use futures_util::stream::{self, Stream, StreamExt};
use kvasir_api::etcdserverpb::lease_server::Lease;
use kvasir_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use kvasir_api::limits;
use tonic::{Request, Response, Status, Streaming};

use super::{Door, Leader, front};

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
        let leader = self.leader_for(request.metadata());
        let asked = stream::unfold(Some((self.clone(), leader, request.into_inner())), |asked| async {
            let (mut door, mut leader, mut requests) = asked?;
            let request = door.next_renewal(&mut leader, &mut requests).await?;
            let rest = request.is_ok().then_some((door, leader, requests));
            Some((request, rest))
        });
        // Renewals that wait at the same moment share one entry, those of one stream too; the answers keep the order.
        let door = self.clone();
        let answers = asked.map(move |request| door.clone().renew(request)).buffered(limits::KEEPALIVES_PER_STREAM_MAX);
        // The first error ends the stream.
        let answers = answers.scan(false, |failed, answer| {
            let last = std::mem::replace(failed, answer.is_err());
            std::future::ready((!last).then_some(answer))
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
    /// The next request of a stream; `None` when its client has no more.
    async fn next_renewal(
        &mut self,
        leader: &mut Option<Leader>,
        requests: &mut Streaming<LeaseKeepAliveRequest>,
    ) -> Option<Result<LeaseKeepAliveRequest, Status>> {
        tokio::select! {
            request = requests.message() => request.map_err(front::stream_error).transpose(),
            error = self.ended(leader) => Some(Err(error.into())),
        }
    }

    async fn renew(self, request: Result<LeaseKeepAliveRequest, Status>) -> Result<LeaseKeepAliveResponse, Status> {
        Ok(self.engine.lease_keep_alive(&self.caller, request?.id).await?)
    }
}
