//! Holders of leases: they keep them alive for a while, then end them or let them go, and look when their keys are gone.

use std::time::Duration;

use bytes::Bytes;
use kvasir_api::etcdserverpb::{PutRequest, RangeRequest};

use super::Recorder;
use crate::history::{Operation, Request, Response};

/// Between two looks whether the key is gone.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn run(mut recorder: Recorder) -> Vec<Operation> {
    while recorder.goes_on() {
        one(&mut recorder).await;
    }
    recorder.finish()
}

/// The life of one lease.
async fn one(recorder: &mut Recorder) {
    let id = lease_id(recorder);
    let ttl = 2 + recorder.random.below(4) as i64;
    if recorder.ask(Request::Grant { id, ttl }).await.is_none() {
        return;
    }
    let key = Bytes::from(format!("/lease/{:02}/{id:x}", recorder.id));
    let value = recorder.value().into();
    recorder.ask(Request::Put(PutRequest { key: key.clone(), value, lease: id, ..PutRequest::default() })).await;
    for _ in 0..recorder.random.below(6) {
        let rest_ms = recorder.random.below(ttl as u64 * 700);
        tokio::time::sleep(Duration::from_millis(rest_ms)).await;
        recorder.ask(Request::KeepAlive { id }).await;
    }
    if !recorder.goes_on() || recorder.random.chance(25) {
        recorder.ask(Request::Revoke { id }).await;
        return;
    }
    while recorder.goes_on() {
        let read = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        if let Some(Response::Range(range)) = recorder.ask(Request::Range(read)).await
            && range.kvs.is_empty()
        {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// An id that nobody else uses.
pub(super) fn lease_id(recorder: &mut Recorder) -> i64 {
    (i64::from(recorder.id) << 40) | (recorder.random.next() >> 25) as i64
}
