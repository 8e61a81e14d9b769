//! Writers: puts, deletes, transactions and reads on a few keys that all of them share.

use std::time::Duration;

use bytes::Bytes;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request as Op;
use kvasir_api::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

use super::{COUNTED, Recorder};
use crate::client::prefix_end;
use crate::history::{Operation, Request, Response};

/// Keys under each prefix: few, so that clients meet.
const KEYS: u64 = 12;

pub(super) async fn run(mut recorder: Recorder, rest_max: Duration) -> Vec<Operation> {
    // What it read last, to compare with.
    let mut seen: Option<(Bytes, i64)> = None;
    while recorder.goes_on() {
        let request = next(&mut recorder, &mut seen);
        if let Some(Response::Range(range)) = recorder.ask(request).await
            && let Some(kv) = range.kvs.first()
        {
            seen = Some((kv.key.clone(), kv.mod_revision));
        }
        let rest_us = recorder.random.below(1 + rest_max.as_micros() as u64);
        tokio::time::sleep(Duration::from_micros(rest_us)).await;
    }
    recorder.finish()
}

fn next(recorder: &mut Recorder, seen: &mut Option<(Bytes, i64)>) -> Request {
    let key = key(recorder);
    match recorder.random.below(100) {
        0..32 => Request::Put(put(recorder, key)),
        32..40 => Request::Delete(DeleteRangeRequest { key, prev_kv: true, ..DeleteRangeRequest::default() }),
        40..54 => Request::Txn(compare_and_put(recorder, key, seen.take())),
        54..62 => Request::Txn(both(recorder)),
        62..66 => {
            let prefix = if recorder.random.chance(50) { COUNTED } else { "/key/" };
            let (key, range_end) = (Bytes::from_static(prefix.as_bytes()), prefix_end(prefix.as_bytes()));
            Request::Range(RangeRequest { key, range_end, ..RangeRequest::default() })
        }
        66..70 => Request::Range(RangeRequest { key, serializable: true, ..RangeRequest::default() }),
        _ => Request::Range(RangeRequest { key, ..RangeRequest::default() }),
    }
}

fn key(recorder: &mut Recorder) -> Bytes {
    let prefix = if recorder.random.chance(40) { COUNTED } else { "/key/" };
    format!("{prefix}{:02}", recorder.random.below(KEYS)).into()
}

fn put(recorder: &mut Recorder, key: Bytes) -> PutRequest {
    let prev_kv = recorder.random.chance(30);
    PutRequest { key, value: recorder.value().into(), prev_kv, ..PutRequest::default() }
}

/// Puts a key if it is as it was read, and reads it if not.
fn compare_and_put(recorder: &mut Recorder, key: Bytes, seen: Option<(Bytes, i64)>) -> TxnRequest {
    let (key, revision) = seen.unwrap_or((key, 0));
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Compare::default()
    };
    let read = RangeRequest { key: key.clone(), ..RangeRequest::default() };
    TxnRequest {
        compare: vec![compare],
        success: vec![op(Op::RequestPut(put(recorder, key)))],
        failure: vec![op(Op::RequestRange(read))],
    }
}

/// Puts one key under each prefix, at one revision.
fn both(recorder: &mut Recorder) -> TxnRequest {
    let number = recorder.random.below(KEYS);
    let puts = [COUNTED, "/key/"].map(|prefix| {
        let key = format!("{prefix}{number:02}").into();
        op(Op::RequestPut(put(recorder, key)))
    });
    TxnRequest { success: puts.into(), ..TxnRequest::default() }
}

pub(super) fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}
