//! What the oracle asks of a store, whichever door leads to it.

use std::future::Future;

use kvasir_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use kvasir_api::mvccpb::Event;
use tonic::{Code, Status};

use crate::Client;

/// Why a request was not answered with its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The store said no: nothing has changed.
    Definite(String),
    /// Nobody knows: the request may have taken effect, or may not.
    Unknown(String),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let text = format!("{:?}: {}", status.code(), status.message());
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::OutOfRange
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unimplemented => Self::Definite(text),
            _ => Self::Unknown(text),
        }
    }
}

/// A future that may move between threads.
pub trait Answer<T>: Future<Output = Result<T, Refusal>> + Send {}
impl<T, F: Future<Output = Result<T, Refusal>> + Send> Answer<T> for F {}

/// etcd's KV, Lease and Watch as far as the oracle uses them.
#[allow(missing_docs)] // each is etcd's request of that name
pub trait Door: Clone + Send + Sync + 'static {
    fn range(&self, request: RangeRequest) -> impl Answer<RangeResponse>;
    fn put(&self, request: PutRequest) -> impl Answer<PutResponse>;
    fn delete_range(&self, request: DeleteRangeRequest) -> impl Answer<DeleteRangeResponse>;
    fn txn(&self, request: TxnRequest) -> impl Answer<TxnResponse>;
    fn compact(&self, request: CompactionRequest) -> impl Answer<CompactionResponse>;
    fn lease_grant(&self, request: LeaseGrantRequest) -> impl Answer<LeaseGrantResponse>;
    fn lease_revoke(&self, request: LeaseRevokeRequest) -> impl Answer<LeaseRevokeResponse>;
    fn lease_time_to_live(&self, request: LeaseTimeToLiveRequest) -> impl Answer<LeaseTimeToLiveResponse>;
    /// Every event from one revision to another, both included, in order, by way of a watch.
    fn history(&self, from: i64, to: i64) -> impl Answer<Vec<Event>>;
}

impl Door for Client {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Refusal> {
        Ok(self.kv.clone().range(request).await?.into_inner())
    }

    async fn put(&self, request: PutRequest) -> Result<PutResponse, Refusal> {
        Ok(self.kv.clone().put(request).await?.into_inner())
    }

    async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Refusal> {
        Ok(self.kv.clone().delete_range(request).await?.into_inner())
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Refusal> {
        Ok(self.kv.clone().txn(request).await?.into_inner())
    }

    async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, Refusal> {
        Ok(self.kv.clone().compact(request).await?.into_inner())
    }

    async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Refusal> {
        Ok(self.lease.clone().lease_grant(request).await?.into_inner())
    }

    async fn lease_revoke(&self, request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Refusal> {
        Ok(self.lease.clone().lease_revoke(request).await?.into_inner())
    }

    async fn lease_time_to_live(&self, request: LeaseTimeToLiveRequest) -> Result<LeaseTimeToLiveResponse, Refusal> {
        Ok(self.lease.clone().lease_time_to_live(request).await?.into_inner())
    }

    async fn history(&self, from: i64, to: i64) -> Result<Vec<Event>, Refusal> {
        Ok(Client::history(self, from, to).await?)
    }
}
