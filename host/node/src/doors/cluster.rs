//! etcd's Cluster service, as far as one node goes: it lists itself and refuses to change.

use kvasir_api::Error;
use kvasir_api::etcdserverpb::cluster_server::Cluster;
use kvasir_api::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest, MemberPromoteResponse,
    MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use super::Door;

impl Door {
    /// Refuses to change a member: an unknown one as etcd does, this one for the reason given.
    fn refuse_member(&self, id: u64, reason: Error) -> Status {
        if id == self.engine.node_id() { reason.into() } else { Error::MemberNotFound.into() }
    }
}

#[tonic::async_trait]
impl Cluster for Door {
    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        Err(Error::NotCapable.into())
    }

    async fn member_remove(&self, request: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(self.refuse_member(request.into_inner().id, Error::UnhealthyForReconfiguration))
    }

    async fn member_update(&self, request: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(self.refuse_member(request.into_inner().id, Error::NotCapable))
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        Ok(Response::new(self.engine.member_list(&self.caller, request.into_inner()).await?))
    }

    async fn member_promote(&self, request: Request<MemberPromoteRequest>) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(self.refuse_member(request.into_inner().id, Error::NotLearner))
    }
}
