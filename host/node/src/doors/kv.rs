//! etcd's KV service.

use kvasir_api::Error;
use kvasir_api::etcdserverpb::kv_server::Kv;
use kvasir_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, TxnRequest, TxnResponse,
};
use tonic::{Request, Response, Status};

use super::Door;

#[tonic::async_trait]
impl Kv for Door {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        if !request.serializable && self.engine.is_learner() {
            return Err(Error::NotForLearner.into());
        }
        Ok(Response::new(self.engine.range(&self.caller, request).await?))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Ok(Response::new(self.engine.put(&self.caller, request.into_inner()).await?))
    }

    async fn delete_range(&self, request: Request<DeleteRangeRequest>) -> Result<Response<DeleteRangeResponse>, Status> {
        Ok(Response::new(self.engine.delete_range(&self.caller, request.into_inner()).await?))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Ok(Response::new(self.engine.txn(&self.caller, request.into_inner()).await?))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Ok(Response::new(self.engine.compact(&self.caller, request.into_inner()).await?))
    }
}
