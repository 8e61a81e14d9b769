//! What the plugin host builds on: history from a cursor, reads at a pinned revision, components, its own commands only.
use std::sync::Arc;

use crate::support::{delete, options, put, put_request, start};
use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::command::{BlobChunk, Origin};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::{CompactionRequest, DeleteRangeRequest, RequestOp, TxnRequest};
use kvasir_api::limits::BLOB_CHUNK_BYTES;
use kvasir_engine::{Caller, Engine, EngineOptions, KeyRange};
use kvasir_machine::{DEFAULT_TENANT, Reply, Rev};
use kvasir_storage::disk::RealDisk;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_given_out_in_order_in_pieces_and_splits_a_large_revision() {
    let dir = tempfile::tempdir().unwrap();
    let few = EngineOptions { watch_ring_bytes_max: 1, ..options(dir.path(), Arc::new(RealDisk)) };
    let from_store = Engine::start(few).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let from_ring = start(other.path()).await;
    for engine in [&from_store, &from_ring] {
        put(engine, "/c/a", "1").await;
        put(engine, "/other", "x").await;
        let success =
            (0..10).map(|n| RequestOp { request: Some(Request::RequestPut(put_request(&format!("/c/{n}"), "t"))) }).collect();
        engine.txn(&Caller::client(), TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
        delete(engine, "/c/a").await;
        put(engine, "/other", "y").await;
        let range = KeyRange::prefix("/c/");
        let mut seen = Vec::new();
        let mut at = Rev { main: 2, sub: 0 };
        loop {
            let batch = engine.history(at, &range, DEFAULT_TENANT, 4, 1 << 20, true).await.unwrap();
            assert!(batch.changes.len() <= 4);
            seen.extend(batch.changes.iter().map(|change| change.row.rev));
            if let Some(change) = batch.changes.iter().find(|change| change.row.tombstone) {
                assert_eq!(change.prev.as_ref().unwrap().value.as_ref(), b"1");
            }
            assert!(batch.next > at || batch.whole);
            at = batch.next;
            if batch.whole {
                assert_eq!((batch.next, batch.revision), (Rev { main: 7, sub: 0 }, 6));
                break;
            }
        }
        let expected: Vec<Rev> = [Rev { main: 2, sub: 0 }]
            .into_iter()
            .chain((0..10).map(|sub| Rev { main: 4, sub }))
            .chain([Rev { main: 5, sub: 0 }])
            .collect();
        assert_eq!(seen, expected);
    }
    let compact = CompactionRequest { revision: 5, physical: true };
    from_store.compact(&Caller::client(), compact).await.unwrap();
    let lost = from_store.history(Rev { main: 2, sub: 0 }, &KeyRange::prefix(""), DEFAULT_TENANT, 9, 99, false).await;
    assert_eq!(lost.unwrap_err(), Error::Compacted);
    from_store.shutdown().await;
    from_ring.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_of_one_revision_of_many_keys_comes_in_bounded_batches_that_count_replaced_versions() {
    const KEYS: usize = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let few = EngineOptions { watch_ring_bytes_max: 1, ..options(dir.path(), Arc::new(RealDisk)) };
    let from_store = Engine::start(few).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let from_ring = start(other.path()).await;
    let value = "v".repeat(400);
    for engine in [&from_store, &from_ring] {
        for first in (0..KEYS).step_by(100) {
            let put = |n: usize| RequestOp { request: Some(Request::RequestPut(put_request(&format!("/c/{n:04}"), &value))) };
            let success = (first..first + 100).map(put).collect();
            engine.txn(&Caller::client(), TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
        }
        let all = DeleteRangeRequest { key: "/c/".into(), range_end: "/c0".into(), ..DeleteRangeRequest::default() };
        engine.delete_range(&Caller::client(), all).await.unwrap();
        let revision = engine.revision();
        let mut at = Rev { main: revision, sub: 0 };
        let mut seen = Vec::new();
        while at.main <= revision {
            let batch = engine.history(at, &KeyRange::prefix("/c/"), DEFAULT_TENANT, 64, 4_000, true).await.unwrap();
            let bytes = |change: &kvasir_machine::Change| {
                change.row.key.len() + change.prev.as_ref().map_or(0, |prev| prev.value.len())
            };
            assert!(batch.changes.iter().map(bytes).sum::<usize>() <= 4_000, "{} changes", batch.changes.len());
            assert!(batch.changes.iter().all(|change| change.row.tombstone && change.prev.is_some()));
            seen.extend(batch.changes.iter().map(|change| change.row.rev.sub as usize));
            // The last batch of a revision is known to be the last.
            assert_eq!(batch.next.main > revision, seen.len() == KEYS);
            at = batch.next;
        }
        assert!(seen.iter().copied().eq(0..KEYS));
    }
    from_store.shutdown().await;
    from_ring.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_scan_pages_through_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    for n in 0..25 {
        put(&engine, &format!("k{n:02}"), "old").await;
    }
    let at = engine.revision();
    let mut after = None;
    let mut keys = Vec::new();
    loop {
        let page = engine.snapshot_scan(&client, &KeyRange::prefix("k"), at, after, 10, false).await.unwrap();
        put(&engine, "k00", "new").await;
        delete(&engine, "k24").await;
        assert!(page.kvs.iter().all(|kv| kv.value.as_ref() == b"old"));
        keys.extend(page.kvs.into_iter().map(|kv| kv.key));
        after = page.more;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(keys.len(), 25);
    let now = engine.snapshot_get(&client, "k00".into(), 0).await.unwrap().unwrap();
    assert_eq!(now.value.as_ref(), b"new");
    let then = engine.snapshot_get(&client, "k00".into(), at).await.unwrap().unwrap();
    assert_eq!(then.value.as_ref(), b"old");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_arrives_in_pieces_and_is_read_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let digest = vec![9u8; 32];
    let whole: Vec<u8> = (0..BLOB_CHUNK_BYTES + 1_000).map(|n| (n % 251) as u8).collect();
    for (index, piece) in whole.chunks(BLOB_CHUNK_BYTES).enumerate() {
        assert_eq!(engine.blob(&digest).await.unwrap(), None);
        let chunk = BlobChunk {
            digest: digest.clone().into(),
            index: index as u32,
            chunks: 2,
            total_bytes: whole.len() as u64,
            data: piece.to_vec().into(),
        };
        let reply = engine.propose(Body::BlobChunk(chunk), Origin::default(), DEFAULT_TENANT).await.unwrap();
        assert!(matches!(reply, Reply::BlobChunk { received, .. } if received == index as u32 + 1), "{reply:?}");
    }
    assert_eq!(engine.blob(&digest).await.unwrap().unwrap().as_ref(), &whole[..]);
    let client = Body::Put(put_request("k", "v"));
    assert!(matches!(engine.propose(client, Origin::default(), DEFAULT_TENANT).await, Err(Error::Invalid(_))));
    assert!(engine.registry().is_empty());
    engine.shutdown().await;
}
