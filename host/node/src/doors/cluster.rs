//! etcd's Cluster service.

use kvasir_api::etcdserverpb::cluster_server::Cluster;
use kvasir_api::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest, MemberPromoteResponse,
    MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use super::Door;

#[tonic::async_trait]
impl Cluster for Door {
    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        Ok(Response::new(self.engine.member_add(&self.caller, request.into_inner()).await?))
    }

    async fn member_remove(&self, request: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        Ok(Response::new(self.engine.member_remove(&self.caller, request.into_inner()).await?))
    }

    async fn member_update(&self, request: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        Ok(Response::new(self.engine.member_update(&self.caller, request.into_inner()).await?))
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        Ok(Response::new(self.engine.member_list(&self.caller, request.into_inner()).await?))
    }

    async fn member_promote(&self, request: Request<MemberPromoteRequest>) -> Result<Response<MemberPromoteResponse>, Status> {
        Ok(Response::new(self.engine.member_promote(&self.caller, request.into_inner()).await?))
    }
}
