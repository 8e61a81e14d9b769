//! Takers of locks: they take a lock by etcd's lock service and write under it, each write fenced by the lock key's create revision.
//!
//! Some overstay: they rest until the lease is over and write all the same, which must come to nothing once another holds the lock.

use std::time::Duration;

use bytes::Bytes;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request as Op;
use kvasir_api::etcdserverpb::{Compare, PutRequest, RangeRequest, TxnRequest};
use kvasir_api::v3lockpb::{LockRequest, UnlockRequest};

use super::keys::op;
use super::leases::lease_id;
use super::recorder::PATIENCE;
use super::{FENCED, LOCKS, Recorder};
use crate::history::{Operation, Request, Response};

/// The names that are locked.
const NAMES: [&str; 2] = ["a", "b"];
const TTL_S: i64 = 4;
/// How long a taker waits in the queue before it gives up.
const QUEUE_MAX: Duration = Duration::from_secs(12);

pub(super) async fn run(mut recorder: Recorder) -> Vec<Operation> {
    while recorder.goes_on() {
        one(&mut recorder).await;
    }
    recorder.finish()
}

/// One turn: take, write, let go.
async fn one(recorder: &mut Recorder) {
    let name = *recorder.random.pick(&NAMES);
    let lease = lease_id(recorder);
    if recorder.ask(Request::Grant { id: lease, ttl: TTL_S }).await.is_none() {
        return;
    }
    if let Some(key) = take(recorder, name, lease).await {
        write(recorder, name, lease, &key).await;
        if recorder.random.chance(70) {
            // The lease is left to itself: revoked now, its end and the unlock would look the same in the history.
            return unlock(recorder, key).await;
        }
    }
    recorder.ask(Request::Revoke { id: lease }).await;
}

/// Queues up, keeping the lease alive meanwhile; answers with the lock's key.
async fn take(recorder: &mut Recorder, name: &str, lease: i64) -> Option<Bytes> {
    let client = recorder.client().await?;
    let request = LockRequest { name: format!("{LOCKS}{name}").into(), lease };
    let mut queued = std::pin::pin!(async { client.lock.clone().lock(request).await });
    let end = tokio::time::Instant::now() + QUEUE_MAX;
    loop {
        tokio::select! {
            answer = &mut queued => match answer {
                Ok(answer) => return Some(answer.into_inner().key),
                Err(_) => {
                    recorder.leave();
                    return None;
                }
            },
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                let over = tokio::time::Instant::now() >= end || !recorder.goes_on();
                if over || recorder.ask(Request::KeepAlive { id: lease }).await.is_none() {
                    return None;
                }
            }
        }
    }
}

async fn write(recorder: &mut Recorder, name: &str, lease: i64, key: &Bytes) {
    let read = RangeRequest { key: key.clone(), ..RangeRequest::default() };
    let Some(Response::Range(range)) = recorder.ask(Request::Range(read)).await else { return };
    // The lease may be over already.
    let Some(created) = range.kvs.first().map(|kv| kv.create_revision) else { return };
    let overstays = recorder.random.chance(20);
    for _ in 0..1 + recorder.random.below(6) {
        let held = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::CreateRevision(created)),
            ..Compare::default()
        };
        // Who writes, so that it can be judged: the lock's key and its create revision, and something that makes it unique.
        let value = format!("{} {created} {}", String::from_utf8_lossy(key), recorder.value());
        let put = PutRequest { key: format!("{FENCED}{name}").into(), value: value.into(), ..PutRequest::default() };
        let txn = TxnRequest { compare: vec![held], success: vec![op(Op::RequestPut(put))], ..TxnRequest::default() };
        recorder.ask(Request::Txn(txn)).await;
        let rest_ms = if overstays { TTL_S as u64 * 700 } else { recorder.random.below(300) };
        tokio::time::sleep(Duration::from_millis(rest_ms)).await;
        if !overstays {
            recorder.ask(Request::KeepAlive { id: lease }).await;
        }
        if !recorder.goes_on() {
            return;
        }
    }
}

async fn unlock(recorder: &mut Recorder, key: Bytes) {
    if let Some(client) = recorder.client().await {
        // Whether it worked is seen in the history.
        let _ = tokio::time::timeout(PATIENCE, async { client.lock.clone().unlock(UnlockRequest { key }).await }).await;
    }
}
