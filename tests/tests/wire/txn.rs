//! Transactions: one revision, their own writes, compares, and what is refused.

use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::response_op::Response;
use kvasir_api::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest};
use kvasir_api::mvccpb::event::EventType;
use tonic::Code;

use super::*;

#[tokio::test]
async fn a_transaction_is_one_revision_and_sees_its_own_writes() {
    let (_node, client) = shared().await;
    client.put("txn/a", "1").await.unwrap();
    let request = TxnRequest {
        compare: vec![compare("txn/a", CompareResult::Equal, CompareTarget::Value, TargetUnion::Value("1".into()))],
        success: vec![put_op("txn/b", "2"), range_op(single("txn/b")), delete_op("txn/a"), range_op(prefix("txn/"))],
        failure: vec![put_op("txn/c", "3")],
    };
    let answer = client.txn(request).await.unwrap();
    let at = revision(&answer.header);
    assert!(answer.succeeded);
    let ranges: Vec<_> = answer
        .responses
        .iter()
        .filter_map(|response| match response.response.as_ref().unwrap() {
            Response::ResponseRange(range) => Some(range),
            _ => None,
        })
        .collect();
    assert_eq!((ranges[0].kvs[0].value.as_ref(), ranges[0].kvs[0].mod_revision), (&b"2"[..], at));
    assert_eq!(keys(&ranges[1].kvs), ["txn/b"]);
    let mut watching =
        client.watch(WatchCreateRequest { range_end: "txn0".into(), start_revision: at, ..watch("txn/") }).await.unwrap();
    let both = watching.next().await.unwrap();
    let told: Vec<_> = both.events.iter().map(|event| (event.r#type(), event.kv.as_ref().unwrap().mod_revision)).collect();
    assert_eq!(told, [(EventType::Put, at), (EventType::Delete, at)], "one revision comes in one response, in order");
}

#[tokio::test]
async fn a_transaction_that_changes_nothing_makes_no_revision() {
    let (_node, client) = shared().await;
    // Other tests write to the same store, so the proof is that the header's revision has events that are not this one's.
    let request = TxnRequest { success: vec![delete_op("nop/absent")], failure: vec![], compare: vec![] };
    let answer = client.txn(request).await.unwrap();
    assert!(answer.succeeded);
    let at = revision(&answer.header);
    let events = client.history(at, at).await.unwrap();
    assert!(events.iter().all(|event| !event.kv.as_ref().unwrap().key.starts_with(b"nop/")));
    let failing = compare("nop/absent", CompareResult::Greater, CompareTarget::Version, TargetUnion::Version(0));
    let failed =
        client.txn(TxnRequest { compare: vec![failing], success: vec![put_op("nop/a", "1")], failure: vec![] }).await.unwrap();
    assert!(!failed.succeeded && failed.responses.is_empty());
}

#[tokio::test]
async fn compares_of_a_missing_key_see_zero_and_never_a_value() {
    let (_node, client) = shared().await;
    let holds = |compare: Compare| {
        let client = client.clone();
        async move { client.txn(TxnRequest { compare: vec![compare], ..TxnRequest::default() }).await.unwrap().succeeded }
    };
    use {CompareResult as R, CompareTarget as T, TargetUnion as U};
    let key = "mis/absent";
    assert!(holds(compare(key, R::Equal, T::Version, U::Version(0))).await);
    assert!(holds(compare(key, R::Equal, T::Create, U::CreateRevision(0))).await);
    assert!(holds(compare(key, R::Less, T::Mod, U::ModRevision(1))).await);
    assert!(holds(compare(key, R::Equal, T::Lease, U::Lease(0))).await);
    assert!(!holds(compare(key, R::Equal, T::Value, U::Value("".into()))).await);
    assert!(!holds(compare(key, R::NotEqual, T::Value, U::Value("x".into()))).await);
    client.put("mis/a", "1").await.unwrap();
    client.put("mis/b", "2").await.unwrap();
    let all = |value: &'static str| Compare {
        range_end: "mis0".into(),
        ..compare("mis/", R::Less, T::Value, U::Value(value.into()))
    };
    assert!(holds(all("3")).await && !holds(all("2")).await, "a compare of a range holds for each of its keys");
}

#[tokio::test]
async fn nested_compares_look_at_the_state_before_the_transaction() {
    let (_node, client) = shared().await;
    let inner = TxnRequest {
        compare: vec![compare("nst/a", CompareResult::Greater, CompareTarget::Version, TargetUnion::Version(0))],
        success: vec![put_op("nst/saw", "the outer put")],
        failure: vec![put_op("nst/saw", "the state before")],
    };
    let outer = TxnRequest { success: vec![put_op("nst/a", "1"), txn_op(inner)], ..TxnRequest::default() };
    let answer = client.txn(outer).await.unwrap();
    assert!(answer.succeeded);
    assert_eq!(client.get("nst/saw").await.unwrap().unwrap(), "the state before");
}

#[tokio::test]
async fn transactions_that_cannot_be_are_refused_before_anything_is_written() {
    let (_node, client) = shared().await;
    let duplicate = "etcdserver: duplicate key given in txn request";
    let then = |ops: Vec<RequestOp>| client.txn(TxnRequest { success: ops, ..TxnRequest::default() });
    refused(then(vec![put_op("bad/a", "1"), put_op("bad/a", "2")]).await, Code::InvalidArgument, duplicate);
    refused(then(vec![put_op("bad/a", "1"), delete_op("bad/a")]).await, Code::InvalidArgument, duplicate);
    then(vec![delete_op("bad/x"), delete_op("bad/x")]).await.expect("deletes may overlap");
    let many = (0..129).map(|n| put_op(&format!("bad/{n}"), "x")).collect();
    refused(then(many).await, Code::InvalidArgument, "etcdserver: too many operations in txn request");
    let lease = PutRequest { key: "bad/l".into(), lease: 0x7777, ..PutRequest::default() };
    let lease = RequestOp { request: Some(Request::RequestPut(lease)) };
    refused(then(vec![put_op("bad/first", "1"), lease]).await, Code::NotFound, "etcdserver: requested lease not found");
    let future = RangeRequest { revision: i64::MAX, ..single("bad/a") };
    let words = "etcdserver: mvcc: required revision is a future revision";
    refused(then(vec![put_op("bad/first", "1"), range_op(future)]).await, Code::OutOfRange, words);
    assert_eq!(client.prefix("bad/").await.unwrap(), [], "nothing of them was written");
    let branches = TxnRequest {
        success: vec![txn_op(TxnRequest {
            success: vec![put_op("bra/a", "1")],
            failure: vec![put_op("bra/a", "2")],
            compare: vec![],
        })],
        ..TxnRequest::default()
    };
    client.txn(branches).await.expect("the two branches of a nested transaction may put the same key");
}
