//! etcd's Maintenance service.

use std::pin::Pin;

use futures_util::stream::Stream;
use kvasir_api::etcdserverpb::maintenance_server::Maintenance;
use kvasir_api::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use tonic::{Request, Response, Status};

use super::{Door, save};

#[tonic::async_trait]
impl Maintenance for Door {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        Ok(Response::new(self.engine.alarm(&self.caller, request.into_inner()).await?))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.engine.status(&self.caller, request.into_inner()).await?))
    }

    async fn defragment(&self, request: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        Ok(Response::new(self.engine.defragment(&self.caller, request.into_inner()).await?))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Ok(Response::new(self.engine.hash(&self.caller, request.into_inner()).await?))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        Ok(Response::new(self.engine.hash_kv(&self.caller, request.into_inner()).await?))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let saving = self.engine.snapshot(&self.caller, request.into_inner()).await?;
        Ok(Response::new(Box::pin(save::messages(self.clone(), saving))))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        Ok(Response::new(self.engine.move_leader(&self.caller, request.into_inner()).await?))
    }
}
