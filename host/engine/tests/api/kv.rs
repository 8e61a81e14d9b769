//! Keys and values through the engine, on disk: what etcd's clients see of puts, ranges, deletes, transactions and compaction.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{get, put, put_request, range_request, scan, start};
use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::response_op::Response;
use kvasir_api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, MemberListRequest, PutRequest, RangeRequest, RequestOp,
    StatusRequest, TxnRequest,
};
use kvasir_engine::{Caller, KeyRange};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_read_back_with_its_revisions_and_the_empty_store_is_at_revision_one() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    assert_eq!(scan(&engine, "").await.header.unwrap().revision, 1);
    assert_eq!(put(&engine, "a", "1").await, 2);
    assert_eq!(put(&engine, "b", "2").await, 3);
    assert_eq!(put(&engine, "a", "3").await, 4);
    let all = scan(&engine, "").await;
    assert_eq!((all.count, all.more, all.kvs.len()), (2, false, 2));
    let a = &all.kvs[0];
    assert_eq!((a.create_revision, a.mod_revision, a.version, a.value.as_ref()), (2, 4, 2, &b"3"[..]));
    // An old revision's value is fetched from the tail or the state file.
    let old = RangeRequest { revision: 3, ..range_request(&KeyRange::prefix("")) };
    let old = engine.range(&client, old).await.unwrap();
    assert_eq!(old.kvs[0].value.as_ref(), b"1");
    assert_eq!(old.header.unwrap().revision, 4);
    let prev = engine.put(&client, PutRequest { prev_kv: true, ..put_request("a", "4") }).await.unwrap();
    assert_eq!(prev.prev_kv.unwrap().value.as_ref(), b"3");
    let none = DeleteRangeRequest { key: "none".into(), ..DeleteRangeRequest::default() };
    let none = engine.delete_range(&client, none).await.unwrap();
    assert_eq!((none.deleted, none.header.unwrap().revision), (0, 5));
    let both = DeleteRangeRequest { key: "a".into(), range_end: "c".into(), prev_kv: true };
    let both = engine.delete_range(&client, both).await.unwrap();
    assert_eq!((both.deleted, both.prev_kvs.len(), both.header.unwrap().revision), (2, 2, 6));
    assert_eq!(get(&engine, "a").await, None);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_compares_then_runs_one_branch_and_a_read_only_one_writes_no_log_entry() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    let absent = |key: &str| Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.to_owned().into(),
        target_union: Some(TargetUnion::CreateRevision(0)),
        range_end: Bytes::new(),
    };
    let op = |request| RequestOp { request: Some(request) };
    let create = TxnRequest {
        compare: vec![absent("k")],
        success: vec![
            op(Request::RequestPut(put_request("k", "v"))),
            op(Request::RequestRange(range_request(&KeyRange::single("k")))),
        ],
        failure: vec![op(Request::RequestRange(range_request(&KeyRange::single("k"))))],
    };
    let first = engine.txn(&client, create.clone()).await.unwrap();
    assert!(first.succeeded);
    let Some(Response::ResponseRange(seen)) = &first.responses[1].response else { panic!("a range was asked for") };
    assert_eq!(seen.kvs[0].mod_revision, 2);
    let second = engine.txn(&client, create).await.unwrap();
    assert!(!second.succeeded);
    assert_eq!(second.header.unwrap().revision, 2);
    let entries = engine.metrics().log_index;
    let read = TxnRequest {
        compare: vec![absent("k")],
        success: vec![],
        failure: vec![op(Request::RequestRange(range_request(&KeyRange::single("k"))))],
    };
    let read = engine.txn(&client, read).await.unwrap();
    assert_eq!((read.succeeded, read.responses.len()), (false, 1));
    assert_eq!(engine.metrics().log_index, entries);
    let twice = vec![op(Request::RequestPut(put_request("x", "1"))), op(Request::RequestPut(put_request("x", "2")))];
    let twice = TxnRequest { success: twice, ..TxnRequest::default() };
    assert_eq!(engine.txn(&client, twice).await, Err(Error::DuplicateKey));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_carry_etcds_errors() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    assert_eq!(engine.put(&client, PutRequest::default()).await, Err(Error::EmptyKey));
    let ignore = PutRequest { key: "no".into(), ignore_value: true, ..PutRequest::default() };
    assert_eq!(engine.put(&client, ignore).await, Err(Error::KeyNotFound));
    let leased = PutRequest { lease: 77, ..put_request("k", "v") };
    assert_eq!(engine.put(&client, leased).await, Err(Error::LeaseNotFound));
    let huge = PutRequest { value: vec![0; 1_600_000].into(), ..put_request("k", "") };
    assert_eq!(engine.put(&client, huge).await, Err(Error::RequestTooLarge));
    let future = RangeRequest { revision: 99, ..range_request(&KeyRange::single("k")) };
    assert_eq!(engine.range(&client, future).await, Err(Error::FutureRevision));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_hides_the_past_at_once_and_a_physical_one_deletes_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    for round in 0..50 {
        put(&engine, "k", &round.to_string()).await;
    }
    let compact = |revision, physical| CompactionRequest { revision, physical };
    engine.compact(&client, compact(40, true)).await.unwrap();
    let at = |revision| RangeRequest { revision, ..range_request(&KeyRange::single("k")) };
    assert_eq!(engine.range(&client, at(39)).await, Err(Error::Compacted));
    assert_eq!(engine.range(&client, at(40)).await.unwrap().kvs[0].value.as_ref(), b"38");
    assert_eq!(engine.compact(&client, compact(40, false)).await, Err(Error::Compacted));
    assert_eq!(engine.compact(&client, compact(1_000, false)).await, Err(Error::FutureRevision));
    engine.compact(&client, compact(51, true)).await.unwrap();
    assert_eq!(get(&engine, "k").await.as_deref(), Some("49"));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_range_is_one_consistent_revision_while_others_write() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    // More keys than one hold of the lock reads, put by full transactions.
    for batch in 0..80 {
        let success = (0..128)
            .map(|n| RequestOp { request: Some(Request::RequestPut(put_request(&format!("k/{batch:03}/{n:03}"), "0"))) })
            .collect();
        engine.txn(&client, TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
    }
    let writer = {
        let engine = engine.clone();
        tokio::spawn(async move {
            for round in 0..200 {
                put(&engine, &format!("k/{:03}/000", round % 80), &round.to_string()).await;
            }
        })
    };
    for _ in 0..5 {
        let all = scan(&engine, "k/").await;
        let revision = all.header.unwrap().revision;
        assert_eq!((all.count, all.kvs.len()), (80 * 128, 80 * 128));
        assert!(all.kvs.iter().all(|kv| kv.mod_revision <= revision));
        let again = RangeRequest { revision, ..range_request(&KeyRange::prefix("k/")) };
        assert_eq!(engine.range(&client, again).await.unwrap().kvs, all.kvs);
    }
    writer.await.unwrap();
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    for n in 0..300 {
        put(&engine, &format!("k{:02}", n % 50), &n.to_string()).await;
    }
    let before = scan(&engine, "").await;
    let hash = engine.hash_kv(&client, HashKvRequest::default()).await.unwrap().hash;
    let node = engine.node_id();
    engine.shutdown().await;
    drop(engine);
    let engine = start(dir.path()).await;
    assert_eq!(engine.node_id(), node);
    let after = scan(&engine, "").await;
    assert_eq!(after.kvs, before.kvs);
    assert_eq!(after.header.unwrap().revision, before.header.unwrap().revision);
    assert_eq!(engine.hash_kv(&client, HashKvRequest::default()).await.unwrap().hash, hash);
    let old = RangeRequest { revision: 10, ..range_request(&KeyRange::single("k00")) };
    assert_eq!(engine.range(&client, old).await.unwrap().kvs[0].value.as_ref(), b"0");
    assert_eq!(put(&engine, "next", "x").await, 302);
    let status = engine.status(&client, StatusRequest {}).await.unwrap();
    assert_eq!(status.leader, node);
    assert!(status.errors.is_empty());
    let members = engine.member_list(&client, MemberListRequest { linearizable: true }).await.unwrap();
    assert_eq!(members.members.len(), 1);
    assert_eq!(members.members[0].name, "default");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linearizable_read_sees_every_write_that_was_answered_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let engine = engine.clone();
            tokio::spawn(async move {
                let key = format!("w{writer}");
                for round in 0..50 {
                    put(&engine, &key, &round.to_string()).await;
                    assert_eq!(get(&engine, &key).await, Some(round.to_string()));
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let metrics = engine.metrics();
    assert!(metrics.reads_confirmed >= 400 && metrics.read_rounds <= metrics.reads_confirmed);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_the_present_is_not_refused_because_of_compactions() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    // More than two slices.
    for batch in 0..80 {
        let ops = (0..128).map(|n| Request::RequestPut(put_request(&format!("k/{:05}", batch * 128 + n), "v")));
        let success = ops.map(|request| RequestOp { request: Some(request) }).collect();
        engine.txn(&client, TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let compacting = tokio::spawn({
        let (engine, stop) = (engine.clone(), Arc::clone(&stop));
        async move {
            let client = Caller::client();
            while !stop.load(Ordering::SeqCst) {
                let revision = put(&engine, "k/00000", "new").await;
                engine.compact(&client, CompactionRequest { revision, physical: false }).await.unwrap();
            }
        }
    });
    let range = KeyRange::prefix("k/");
    for n in 0..60 {
        let limit = if n % 2 == 0 { 0 } else { 10 };
        let request = RangeRequest { serializable: true, limit, ..range_request(&range) };
        let found = engine.range(&client, request).await.unwrap();
        assert_eq!(found.count, 80 * 128);
    }
    stop.store(true, Ordering::SeqCst);
    compacting.await.unwrap();
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn executed_operations_are_counted_as_etcd_counts_them() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    put(&engine, "a", "1").await;
    assert!(get(&engine, "a").await.is_some());
    assert_eq!(engine.put(&client, PutRequest { lease: 404, ..put_request("a", "2") }).await, Err(Error::LeaseNotFound));
    let op = |request| RequestOp { request: Some(request) };
    let success = vec![
        op(Request::RequestPut(put_request("b", "1"))),
        op(Request::RequestRange(range_request(&KeyRange::single("b")))),
        op(Request::RequestDeleteRange(DeleteRangeRequest { key: "a".into(), ..DeleteRangeRequest::default() })),
    ];
    let failure = vec![op(Request::RequestPut(put_request("c", "1")))];
    engine.txn(&client, TxnRequest { success, failure, ..TxnRequest::default() }).await.unwrap();
    let metrics = engine.metrics();
    assert_eq!((metrics.puts, metrics.ranges, metrics.deletes, metrics.txns), (2, 2, 1, 1));
    assert_eq!(metrics.proposals_failed, 0);
    assert!(metrics.committed_index >= metrics.applied_index && metrics.applied_index > 0);
    engine.shutdown().await;
}
