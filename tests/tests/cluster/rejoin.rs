//! A member loses everything and joins again while writes flow: it is sent all there is, and nobody else notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvasir_api::etcdserverpb::request_op::Request as Op;
use kvasir_api::etcdserverpb::{PutRequest, RequestOp, TxnRequest};
use kvasir_tests::{Client, Cluster};
use tokio::task::JoinSet;

use crate::{number, turn};

const VALUE_BYTES: usize = 16 * 1024;
const KEYS_PER_TXN: u64 = 16;
/// What the leader's own memory may grow by while it brings the new member up.
const GROWTH_BYTES_MAX: u64 = 100 << 20;
/// The load meanwhile.
const WRITERS: usize = 4;
const WRITE_EVERY: Duration = Duration::from_millis(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_everything_is_brought_up_while_writes_flow() {
    let _turn = turn().await;
    let mib = number("KVASIR_REJOIN_MIB", 64);
    let mut cluster = Cluster::builder(3).timing(100, 1_000).without_relay().start().await;
    let leader = cluster.wait_leader().await;
    let client = cluster.client(leader).await;
    let keys = mib * (1 << 20) / VALUE_BYTES as u64;
    load(&client, keys).await;
    cluster.wait_whole().await;

    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (client, stop, written) = (client.clone(), Arc::clone(&stop), Arc::clone(&written));
        writers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                client.put(format!("/flow/{writer}"), vec![b'f'; 1_024]).await.expect("writes flow all the time");
                written.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(WRITE_EVERY).await;
            }
        });
    }
    let before = cluster.status(leader).await.unwrap();
    let memory = Memory::watch(cluster.node(leader).pid().unwrap());
    let begin = Instant::now();
    let lost = (leader + 1) % cluster.len();
    let written_before = written.load(Ordering::Relaxed);
    cluster.replace(lost).await;
    cluster.wait_whole().await;
    let took = begin.elapsed();
    let meanwhile = written.load(Ordering::Relaxed) - written_before;
    let growth = memory.growth_bytes();
    stop.store(true, Ordering::Relaxed);
    writers.join_all().await;
    let after = cluster.status(leader).await.unwrap();
    eprintln!("{mib} MiB sent in {took:?}, {meanwhile} writes meanwhile, the leader grew by {} MiB", growth >> 20);

    assert_eq!((after.raft_term, after.leader), (before.raft_term, before.leader), "no heartbeat was missed");
    assert!(meanwhile > 0, "writes flow");
    assert!(growth < GROWTH_BYTES_MAX, "the leader grew by {} MiB", growth >> 20);
    cluster.wait_whole().await;
    let revision = client.revision().await.unwrap();
    let hashes = cluster.hash_kv(revision).await;
    assert!(hashes.iter().all(|it| it.hash == hashes[0].hash), "HashKV at {revision}: {hashes:?}");
}

/// Fills the store.
async fn load(client: &Client, keys: u64) {
    let mut running = JoinSet::new();
    for from in (0..keys).step_by(KEYS_PER_TXN as usize) {
        if running.len() >= 8 {
            running.join_next().await.unwrap().unwrap();
        }
        let client = client.clone();
        running.spawn(async move {
            let put = |nth: u64| {
                let mut value = nth.to_string().into_bytes();
                value.resize(VALUE_BYTES, b'.');
                let put = PutRequest { key: format!("/load/{nth:08}").into(), value: value.into(), ..PutRequest::default() };
                RequestOp { request: Some(Op::RequestPut(put)) }
            };
            let success = (from..keys.min(from + KEYS_PER_TXN)).map(put).collect();
            client.txn(TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
        });
    }
    running.join_all().await;
}

/// A process's own memory, looked at all the time.
struct Memory {
    first: u64,
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Memory {
    fn watch(pid: u32) -> Self {
        let first = kvasir_tests::anonymous_bytes(pid);
        let (most, stop) = (Arc::new(AtomicU64::new(first)), Arc::new(AtomicBool::new(false)));
        let (highest, stopping) = (Arc::clone(&most), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                highest.fetch_max(kvasir_tests::anonymous_bytes(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { first, most, stop }
    }

    fn growth_bytes(&self) -> u64 {
        self.most.load(Ordering::Relaxed) - self.first
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
