//! Watch guarantees (etcd `learning/api_guarantees`): ordered, unique, complete, atomic, resumable; and that a slow watcher loses
//! nothing.
use std::sync::Arc;

use crate::support::{create, delete, events, options, put, put_request, response, start, until, watch_request, within};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::{
    CompactionRequest, RequestOp, TxnRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
};
use kvasir_engine::{Caller, Engine, EngineOptions, Grants, KeyRange, WatchStream};
use kvasir_storage::disk::RealDisk;

async fn ask_progress(stream: &WatchStream) {
    let request = WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) };
    stream.request(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_sees_created_then_put_delete_put_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    put(&engine, "k", "before").await;
    let mut stream = engine.watch_stream(Caller::client());
    create(&stream, WatchCreateRequest { prev_kv: true, ..watch_request(KeyRange::single("k"), 0) }).await;
    let created = response(&mut stream).await;
    assert!(created.created && !created.canceled);
    assert_eq!((created.watch_id, created.header.unwrap().revision), (0, 2));
    put(&engine, "k", "1").await;
    put(&engine, "other", "x").await;
    delete(&engine, "k").await;
    put(&engine, "k", "2").await;
    let mut seen = Vec::new();
    let mut prevs = Vec::new();
    while seen.len() < 3 {
        let next = response(&mut stream).await;
        assert_eq!(next.watch_id, 0);
        prevs.extend(next.events.iter().map(|event| event.prev_kv.as_ref().map(|kv| kv.value.clone())));
        seen.extend(events(&next));
    }
    let k = || "k".to_owned();
    assert_eq!(seen, vec![(3, k(), Some("1".into())), (5, k(), None), (6, k(), Some("2".into()))]);
    assert_eq!(prevs, vec![Some("before".into()), Some("1".into()), None]);
    let cancel = WatchCancelRequest { watch_id: 0 };
    stream.request(WatchRequest { request_union: Some(RequestUnion::CancelRequest(cancel)) }).await.unwrap();
    let canceled = response(&mut stream).await;
    assert!(canceled.canceled && !canceled.created && canceled.cancel_reason.is_empty());
    engine.shutdown().await;
    assert!(within("the stream ends", stream.next()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_start_anywhere_in_history_see_every_event_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    // A ring so small that history must come from the store.
    let few = EngineOptions { watch_ring_bytes_max: 4_000, ..options(dir.path(), Arc::new(RealDisk)) };
    let engine = Engine::start(few).await.unwrap();
    for n in 0..100 {
        put(&engine, &format!("k/{}", n % 7), &n.to_string()).await;
    }
    let mut stream = engine.watch_stream(Caller::client());
    let starts = [2, 17, 60, 101, 150];
    for (id, start) in starts.iter().enumerate() {
        let request = WatchCreateRequest { watch_id: id as i64 + 1, ..watch_request(KeyRange::prefix("k/"), *start) };
        create(&stream, request).await;
    }
    let writer = {
        let engine = engine.clone();
        tokio::spawn(async move {
            for n in 100..300 {
                put(&engine, &format!("k/{}", n % 7), &n.to_string()).await;
            }
        })
    };
    let mut seen: Vec<Vec<i64>> = vec![Vec::new(); starts.len()];
    while seen.iter().any(|revisions| revisions.last() != Some(&301)) {
        let next = response(&mut stream).await;
        assert!(!next.canceled);
        let at = usize::try_from(next.watch_id).unwrap() - 1;
        seen[at].extend(events(&next).iter().map(|(revision, ..)| *revision));
    }
    writer.await.unwrap();
    for (start, revisions) in starts.iter().zip(&seen) {
        assert_eq!(revisions, &(*start..=301).collect::<Vec<i64>>(), "from {start}");
    }
    assert!(engine.metrics().history_reads > 0);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watcher_loses_nothing_and_does_not_slow_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let small =
        EngineOptions { watch_ring_bytes_max: 100_000, watch_stream_queue_max: 2, ..options(dir.path(), Arc::new(RealDisk)) };
    let engine = Engine::start(small).await.unwrap();
    let mut slow = engine.watch_stream(Caller::client());
    create(&slow, watch_request(KeyRange::prefix("k/"), 0)).await;
    let mut fast = engine.watch_stream(Caller::client());
    create(&fast, watch_request(KeyRange::prefix("k/"), 0)).await;
    assert!(response(&mut fast).await.created);
    let value = "v".repeat(1_000);
    for n in 0..400i64 {
        put(&engine, &format!("k/{n}"), &value).await;
        let mut last = 0;
        while last < n + 2 {
            last = events(&response(&mut fast).await).last().map_or(0, |event| event.0);
        }
    }
    // Nothing was read of the slow stream so far; more has gone by than its queue and the ring hold.
    assert!(response(&mut slow).await.created);
    let mut seen = Vec::new();
    while seen.last() != Some(&401) {
        seen.extend(events(&response(&mut slow).await).iter().map(|event| event.0));
    }
    assert_eq!(seen, (2..=401).collect::<Vec<i64>>());
    until("the slow watcher is synced again", || engine.metrics().watchers_behind == 0).await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watchers_of_one_slow_stream_catch_up_in_order_through_a_small_queue() {
    const WATCHERS: i64 = 1_500;
    let dir = tempfile::tempdir().unwrap();
    let small =
        EngineOptions { watch_ring_bytes_max: 10_000, watch_stream_queue_max: 2, ..options(dir.path(), Arc::new(RealDisk)) };
    let engine = Engine::start(small).await.unwrap();
    for n in 0..60 {
        put(&engine, &format!("k/{}", n % 3), &"v".repeat(500)).await;
    }
    let (requests, mut frames) = engine.watch_stream(Caller::client()).split();
    let asking = tokio::spawn(async move {
        for id in 1..=WATCHERS {
            // Every kind of range, so that all parts of the index are used.
            let range = match id % 4 {
                0 => KeyRange::single("k/0"),
                1 => KeyRange::prefix("k/"),
                2 => KeyRange::new("k/0", "k/2"),
                _ => KeyRange::prefix("other/"),
            };
            let request = WatchCreateRequest { watch_id: id, ..watch_request(range, 2) };
            let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) };
            requests.request(request).await.unwrap();
        }
        requests
    });
    let mut seen = vec![Vec::new(); WATCHERS as usize + 1];
    let expected = |id: i64| -> Vec<i64> {
        let of = |n: &i64| match id % 4 {
            0 => n % 3 == 0,
            1 => true,
            2 => n % 3 < 2,
            _ => false,
        };
        (0..60).filter(of).map(|n| n + 2).collect()
    };
    let total: usize = (1..=WATCHERS).map(|id| expected(id).len()).sum();
    let mut got = 0;
    while got < total {
        let next = within("a response", frames.next()).await.unwrap().decode().unwrap();
        assert!(!next.canceled);
        let new = events(&next);
        got += new.len();
        seen[next.watch_id as usize].extend(new.into_iter().map(|event| event.0));
    }
    let _requests = asking.await.unwrap();
    for id in 1..=WATCHERS {
        assert_eq!(seen[id as usize], expected(id), "watcher {id}");
    }
    until("everyone is synced", || engine.metrics().watchers_behind == 0).await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_arrives_whole_in_one_response_live_and_from_history() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let mut live = engine.watch_stream(Caller::client());
    create(&live, watch_request(KeyRange::prefix(""), 0)).await;
    assert!(response(&mut live).await.created);
    let success = (0..100)
        .map(|n| RequestOp { request: Some(Request::RequestPut(put_request(&format!("k{n:03}"), &"x".repeat(5_000)))) })
        .collect();
    engine.txn(&Caller::client(), TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
    assert_eq!(events(&response(&mut live).await).len(), 100);
    let mut late = engine.watch_stream(Caller::client());
    create(&late, watch_request(KeyRange::prefix(""), 2)).await;
    assert!(response(&mut late).await.created);
    assert_eq!(events(&response(&mut late).await).len(), 100);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_start_is_created_then_canceled_with_the_compact_revision() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    for n in 0..9 {
        put(&engine, "k", &n.to_string()).await;
    }
    delete(&engine, "k").await;
    engine.compact(&Caller::client(), CompactionRequest { revision: 11, physical: true }).await.unwrap();
    let mut stream = engine.watch_stream(Caller::client());
    create(&stream, watch_request(KeyRange::single("k"), 3)).await;
    assert!(response(&mut stream).await.created);
    let canceled = response(&mut stream).await;
    assert!(canceled.canceled && !canceled.created);
    assert_eq!(canceled.compact_revision, 11);
    // The tombstone at the compact revision itself is still delivered (etcd issues 18089, 19179).
    create(&stream, watch_request(KeyRange::single("k"), 11)).await;
    assert!(response(&mut stream).await.created);
    assert_eq!(events(&response(&mut stream).await), vec![(11, "k".to_owned(), None)]);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_and_forbidden_watches_are_refused_in_the_stream_with_etcds_words() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let mut stream = engine.watch_stream(Caller::client());
    create(&stream, WatchCreateRequest { watch_id: 7, ..watch_request(KeyRange::single("k"), 0) }).await;
    assert_eq!(response(&mut stream).await.watch_id, 7);
    let refused = [
        (
            WatchCreateRequest { watch_id: 7, ..watch_request(KeyRange::single("k"), 0) },
            "mvcc: duplicate watch ID provided on the WatchStream",
        ),
        (watch_request(KeyRange::new("b", "a"), 0), "mvcc: watcher range is empty"),
        (watch_request(KeyRange::single("k"), -1), "etcdserver: mvcc: required revision has been compacted"),
        (watch_request(KeyRange::new("b", "a"), -1), "etcdserver: mvcc: required revision has been compacted"),
    ];
    for (request, reason) in refused {
        create(&stream, request).await;
        let answer = response(&mut stream).await;
        assert!(answer.created && answer.canceled);
        assert_eq!((answer.watch_id, answer.cancel_reason.as_str()), (-1, reason));
    }
    // A request of no known kind is passed over; an id of the client's own may be any number but 0.
    stream.request(WatchRequest { request_union: None }).await.unwrap();
    create(&stream, WatchCreateRequest { watch_id: -5, ..watch_request(KeyRange::single("k"), 0) }).await;
    let created = response(&mut stream).await;
    assert!(created.created && !created.canceled && created.watch_id == -5);
    put(&engine, "k", "v").await;
    let mut told = [response(&mut stream).await.watch_id, response(&mut stream).await.watch_id];
    told.sort_unstable();
    assert_eq!(told, [-5, 7]);
    let grants = Grants { read: vec![KeyRange::prefix("/mine/")], ..Grants::default() };
    let plugin = Caller { grants: Some(Arc::new(grants)), ..Caller::client() };
    let mut stream = engine.watch_stream(plugin);
    for range in [KeyRange::prefix(""), KeyRange::new("/mine/a", &b"\0"[..]), KeyRange::single("/other")] {
        create(&stream, watch_request(range, 0)).await;
        let answer = response(&mut stream).await;
        assert_eq!((answer.created, answer.canceled, answer.watch_id), (true, true, -1));
        assert!(answer.cancel_reason.contains("permission denied"));
    }
    create(&stream, watch_request(KeyRange::prefix("/mine/"), 0)).await;
    let answer = response(&mut stream).await;
    assert!(answer.created && !answer.canceled);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_told_behind_the_events_and_never_below_a_future_start() {
    let dir = tempfile::tempdir().unwrap();
    let quick = EngineOptions { watch_progress_interval_ms: 100, ..options(dir.path(), Arc::new(RealDisk)) };
    let engine = Engine::start(quick).await.unwrap();
    let mut stream = engine.watch_stream(Caller::client());
    create(&stream, watch_request(KeyRange::prefix("k"), 0)).await;
    assert!(response(&mut stream).await.created);
    for n in 0..20 {
        put(&engine, "k", &n.to_string()).await;
    }
    ask_progress(&stream).await;
    let mut last = 0;
    loop {
        let next = response(&mut stream).await;
        if next.watch_id == -1 {
            assert!(next.events.is_empty());
            assert_eq!((last, next.header.unwrap().revision), (21, 21));
            break;
        }
        last = events(&next).last().unwrap().0;
    }
    // A watcher with a future start silences the stream's progress; an idle one that asked for it is told on its own.
    create(&stream, watch_request(KeyRange::prefix("k"), 1_000)).await;
    assert!(response(&mut stream).await.created);
    ask_progress(&stream).await;
    create(&stream, WatchCreateRequest { progress_notify: true, ..watch_request(KeyRange::prefix("z"), 0) }).await;
    assert!(response(&mut stream).await.created);
    let told = response(&mut stream).await;
    assert_eq!((told.watch_id, told.events.len(), told.header.unwrap().revision), (2, 0, 21));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_leave_out_what_was_not_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let mut stream = engine.watch_stream(Caller::client());
    create(&stream, WatchCreateRequest { filters: vec![0], ..watch_request(KeyRange::single("k"), 0) }).await;
    create(&stream, WatchCreateRequest { filters: vec![1], ..watch_request(KeyRange::single("k"), 0) }).await;
    assert!(response(&mut stream).await.created && response(&mut stream).await.created);
    put(&engine, "k", "1").await;
    delete(&engine, "k").await;
    let (first, second) = (response(&mut stream).await, response(&mut stream).await);
    assert_eq!((first.watch_id, events(&first)[0].0), (1, 2));
    assert_eq!((second.watch_id, events(&second)[0].0), (0, 3));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_resumes_after_a_restart_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    for n in 0..10 {
        put(&engine, "k", &n.to_string()).await;
    }
    engine.shutdown().await;
    drop(engine);
    let engine = start(dir.path()).await;
    let mut stream = engine.watch_stream(Caller::client());
    create(&stream, watch_request(KeyRange::single("k"), 5)).await;
    assert!(response(&mut stream).await.created);
    put(&engine, "k", "new").await;
    let mut seen = Vec::new();
    while seen.last() != Some(&12) {
        seen.extend(events(&response(&mut stream).await).iter().map(|event| event.0));
    }
    assert_eq!(seen, (5..=12).collect::<Vec<i64>>());
    drop(stream);
    until("the stream is gone", || engine.metrics().watch_streams == 0 && engine.metrics().watchers == 0).await;
    engine.shutdown().await;
}
