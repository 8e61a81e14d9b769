//! etcd's lock service.

use kvasir_api::v3lockpb::lock_server::Lock;
use kvasir_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status};

use super::Door;

#[tonic::async_trait]
impl Lock for Door {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let mut stopping = self.stopping.clone();
        // A lock may be waited for without end, but not by a node that stops.
        tokio::select! {
            held = self.engine.lock(&self.caller, request.into_inner()) => Ok(Response::new(held?)),
            () = super::stopped(&mut stopping) => Err(kvasir_api::Error::Stopped.into()),
        }
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        Ok(Response::new(self.engine.unlock(&self.caller, request.into_inner()).await?))
    }
}
