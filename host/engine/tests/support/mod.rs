//! What the engine's tests share: a node on a disk, and waiting for conditions with a deadline.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses its part; a test may panic")]

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use kvasir_engine::{Caller, Engine, EngineOptions, KeyRange, WatchStream};
use kvasir_storage::disk::{Disk, RealDisk};
use kvasir_storage::log::LogOptions;

/// How long anything may take before a test gives up.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Options with small files and short timings.
pub fn options(dir: &Path, disk: Arc<dyn Disk>) -> EngineOptions {
    EngineOptions {
        heartbeat_ms: 20,
        election_ms: 100,
        lease_scan_interval_ms: 20,
        lease_stamp_interval_ms: 50,
        log: LogOptions { segment_bytes: 8 * 1024 * 1024, ..LogOptions::default() },
        ..EngineOptions::new(dir, disk)
    }
}

/// A node on a real disk.
pub async fn start(dir: &Path) -> Engine {
    Engine::start(options(dir, Arc::new(RealDisk))).await.unwrap()
}

/// Waits for a future with the deadline.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(done) => done,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub fn put_request(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() }
}

/// Puts; returns the revision.
pub async fn put(engine: &Engine, key: &str, value: &str) -> i64 {
    engine.put(&Caller::client(), put_request(key, value)).await.unwrap().header.unwrap().revision
}

/// Deletes one key; returns the revision.
pub async fn delete(engine: &Engine, key: &str) -> i64 {
    let request = DeleteRangeRequest { key: key.to_owned().into(), ..DeleteRangeRequest::default() };
    engine.delete_range(&Caller::client(), request).await.unwrap().header.unwrap().revision
}

pub fn range_request(range: &KeyRange) -> RangeRequest {
    RangeRequest { key: range.key.clone(), range_end: range.range_end.clone(), ..RangeRequest::default() }
}

/// Reads a key, linearizably.
pub async fn get(engine: &Engine, key: &str) -> Option<String> {
    let found = engine.range(&Caller::client(), range_request(&KeyRange::single(key.to_owned()))).await.unwrap();
    found.kvs.into_iter().next().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

pub async fn scan(engine: &Engine, prefix: &str) -> RangeResponse {
    engine.range(&Caller::client(), range_request(&KeyRange::prefix(prefix.to_owned()))).await.unwrap()
}

pub fn watch_request(range: KeyRange, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest { key: range.key, range_end: range.range_end, start_revision, ..WatchCreateRequest::default() }
}

/// Creates a watcher on a stream.
pub async fn create(stream: &WatchStream, request: WatchCreateRequest) {
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) };
    stream.request(request).await.unwrap();
}

/// The next response of a stream.
pub async fn response(stream: &mut WatchStream) -> WatchResponse {
    within("a watch response", stream.next()).await.expect("the stream goes on").decode().unwrap()
}

/// Events of a response as `(revision, key, value or none for a delete)`.
pub fn events(response: &WatchResponse) -> Vec<(i64, String, Option<String>)> {
    response
        .events
        .iter()
        .map(|event| {
            let kv = event.kv.as_ref().unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            (kv.mod_revision, text(&kv.key), (event.r#type == 0).then(|| text(&kv.value)))
        })
        .collect()
}
