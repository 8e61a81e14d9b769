//! etcd's API on the wire, with the generated clients: the options and error strings that are easy to get wrong.
//!
//! Sources: etcd's `server/etcdserver/api/v3rpc`, `server/etcdserver/txn`, `api/v3rpc/rpctypes/error.go`, and the issues named
//! beside the tests. One node serves all tests of this file; each keeps to keys of its own.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

mod kv;
mod lease;
mod txn;
mod watch;

use std::sync::Arc;
use std::sync::{Mutex, Weak};

use bytes::Bytes;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
};
use kvasir_api::mvccpb::event::EventType;
use kvasir_api::mvccpb::{Event, KeyValue};
use kvasir_tests::{Client, Node};
use tonic::{Code, Status};

/// The node that the tests of this file share; it ends with the last of them.
pub(crate) async fn shared() -> (Arc<Node>, Client) {
    static NODE: Mutex<Weak<Node>> = Mutex::new(Weak::new());
    let node = tokio::task::spawn_blocking(|| {
        let mut shared = NODE.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let node = Arc::new(Node::start());
            *shared = Arc::downgrade(&node);
            node
        })
    });
    let node = node.await.unwrap();
    let client = node.client().await;
    (node, client)
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, message: &str) {
    let status = answer.expect_err(message);
    assert_eq!((status.code(), status.message()), (code, message));
}

pub(crate) fn revision(header: &Option<kvasir_api::etcdserverpb::ResponseHeader>) -> i64 {
    header.as_ref().expect("a header").revision
}

pub(crate) fn single(key: &str) -> RangeRequest {
    RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..RangeRequest::default() }
}

pub(crate) fn prefix(prefix: &str) -> RangeRequest {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    RangeRequest { range_end: end.into(), ..single(prefix) }
}

pub(crate) fn keys(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

pub(crate) fn put_op(key: &str, value: &str) -> RequestOp {
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    RequestOp { request: Some(Request::RequestPut(put)) }
}

pub(crate) fn delete_op(key: &str) -> RequestOp {
    let delete = DeleteRangeRequest { key: key.to_owned().into(), ..DeleteRangeRequest::default() };
    RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}

pub(crate) fn range_op(request: RangeRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestRange(request)) }
}

pub(crate) fn txn_op(request: TxnRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestTxn(request)) }
}

pub(crate) fn compare(key: &str, result: CompareResult, target: CompareTarget, union: TargetUnion) -> Compare {
    Compare {
        result: result.into(),
        target: target.into(),
        key: key.to_owned().into(),
        target_union: Some(union),
        ..Compare::default()
    }
}

pub(crate) fn watch(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.to_owned().into(), ..WatchCreateRequest::default() }
}

pub(crate) fn shown(event: &Event) -> (EventType, String, i64) {
    let kv = event.kv.as_ref().unwrap();
    (event.r#type(), String::from_utf8_lossy(&kv.value).into_owned(), kv.mod_revision)
}
