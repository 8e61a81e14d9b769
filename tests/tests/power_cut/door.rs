//! The engine as the oracle's door: the same requests as on the wire, without the wire.

use bytes::Bytes;
use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use kvasir_api::mvccpb::Event;
use kvasir_engine::{Caller, Engine};
use kvasir_tests::oracle::{Door, Refusal};
use prost::Message as _;
use tonic::Status;

#[derive(Clone)]
pub(crate) struct EngineDoor(pub(crate) Engine);

fn told<T>(answer: Result<T, kvasir_api::Error>) -> Result<T, Refusal> {
    answer.map_err(|error| Refusal::from(Status::from(error)))
}

impl Door for EngineDoor {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Refusal> {
        told(self.0.range(&Caller::client(), request).await)
    }

    async fn put(&self, request: PutRequest) -> Result<PutResponse, Refusal> {
        told(self.0.put(&Caller::client(), request).await)
    }

    async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Refusal> {
        told(self.0.delete_range(&Caller::client(), request).await)
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Refusal> {
        told(self.0.txn(&Caller::client(), request).await)
    }

    async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse, Refusal> {
        told(self.0.compact(&Caller::client(), request).await)
    }

    async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Refusal> {
        told(self.0.lease_grant(&Caller::client(), request).await)
    }

    async fn lease_revoke(&self, request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Refusal> {
        told(self.0.lease_revoke(&Caller::client(), request).await)
    }

    async fn lease_time_to_live(&self, request: LeaseTimeToLiveRequest) -> Result<LeaseTimeToLiveResponse, Refusal> {
        told(self.0.lease_time_to_live(&Caller::client(), request).await)
    }

    async fn history(&self, from: i64, to: i64) -> Result<Vec<Event>, Refusal> {
        let mut events: Vec<Event> = Vec::new();
        if from > to {
            return Ok(events);
        }
        let every = Bytes::from_static(b"\0");
        let create = WatchCreateRequest { key: every.clone(), range_end: every, start_revision: from, ..Default::default() };
        let mut stream = self.0.watch_stream(Caller::client());
        told(stream.request(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }).await)?;
        while events.last().and_then(|event| event.kv.as_ref()).is_none_or(|kv| kv.mod_revision < to) {
            let frame = tokio::time::timeout(kvasir_tests::DEADLINE, stream.next()).await;
            let Ok(Some(frame)) = frame else { return Err(Refusal::Unknown("the watch does not go on".to_owned())) };
            let response = WatchResponse::decode(frame.0).expect("a watch response");
            if response.canceled {
                return Err(Refusal::Definite(response.cancel_reason));
            }
            events.extend(response.events);
        }
        events.retain(|event| event.kv.as_ref().is_none_or(|kv| kv.mod_revision <= to));
        Ok(events)
    }
}
