//! As many writes as the machine takes, of 1 KiB each, with compactions, checkpoints and purges all along, and followers that fall
//! behind what was purged: the load under which a purge could pass what a node had applied (openraft's issue 2116).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvasir_api::etcdserverpb::CompactionRequest;
use kvasir_tests::{Addresses, Client, Cluster};
use tokio::task::JoinSet;

use crate::{number, seed, turn};

const WRITERS: u64 = 192;
const KEYS: u64 = 8_192;
const VALUE_BYTES: usize = 1_024;
/// No more is asked for than was when it was found.
const WRITES_PER_SECOND_MAX: u64 = 16_000;
const COMPACT_EVERY: Duration = Duration::from_secs(3);
const FREEZE_EVERY: Duration = Duration::from_secs(20);
const FREEZE_FOR: Duration = Duration::from_secs(6);
/// How long a write may take; followers stand still now and then, the quorum does not.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_writes_with_purges_all_along_is_survived() {
    let _turn = turn().await;
    let span = Duration::from_secs(number("KVASIR_FLOOD_SECONDS", 8));
    let mut random = seed("flood");
    let mut cluster = Cluster::builder(3).timing(100, 1_000).without_relay().start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    // Why writers went to another node: a follower that stands still has no answers.
    let left = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
    let begin = Instant::now();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (stop, written, addresses) = (Arc::clone(&stop), Arc::clone(&written), cluster.addresses());
        let (mut random, lost) = (random.fork(), Arc::clone(&left));
        writers.spawn(async move {
            let mut slot = writer as usize % addresses.len();
            while !stop.load(Ordering::Relaxed) {
                if let Err(why) = write(&addresses, slot, &stop, &written, begin, &mut random).await {
                    lost.lock().unwrap().entry(why).and_modify(|count| *count += 1).or_insert(1);
                    slot = (slot + 1) % addresses.len();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    let (mut compacted, mut frozen) = (begin, begin);
    while begin.elapsed() < span {
        tokio::time::sleep(Duration::from_millis(200)).await;
        for slot in 0..cluster.len() {
            assert!(cluster.is_running(slot), "node {slot} has ended: {}", cluster.node(slot).log());
        }
        if compacted.elapsed() >= COMPACT_EVERY {
            compacted = Instant::now();
            compact(&cluster).await;
        }
        if frozen.elapsed() >= FREEZE_EVERY {
            let leader = cluster.wait_leader().await;
            let follower = (leader + 1 + random.below(2) as usize) % cluster.len();
            cluster.freeze(follower);
            tokio::time::sleep(FREEZE_FOR).await;
            cluster.thaw(follower);
            frozen = Instant::now();
        }
    }
    stop.store(true, Ordering::Relaxed);
    writers.join_all().await;
    let (count, seconds) = (written.load(Ordering::Relaxed), begin.elapsed().as_secs_f64());
    cluster.wait_whole().await;
    for (slot, log) in cluster.logs().iter().enumerate() {
        assert!(!log.contains("panicked"), "node {slot}: {log}");
    }
    let revision = cluster.client(0).await.revision().await.unwrap();
    let hashes = cluster.hash_kv(revision).await;
    assert!(hashes.iter().all(|it| it.hash == hashes[0].hash), "HashKV at {revision}: {hashes:?}");
    eprintln!(
        "{count} writes of {VALUE_BYTES} bytes in {seconds:.0} s: {:.0} a second; {:?}",
        count as f64 / seconds,
        left.lock().unwrap()
    );
    assert!(count > 0, "something was written");
}

/// Writes through one node until it fails.
async fn write(
    addresses: &Addresses,
    slot: usize,
    stop: &AtomicBool,
    written: &AtomicU64,
    begin: Instant,
    random: &mut kvasir_tests::Random,
) -> Result<(), String> {
    let client = Client::try_connect(&addresses.endpoint(slot), Duration::from_secs(2)).await?;
    while !stop.load(Ordering::Relaxed) {
        let due = Duration::from_micros(written.load(Ordering::Relaxed) * 1_000_000 / WRITES_PER_SECOND_MAX);
        if let Some(early) = due.checked_sub(begin.elapsed()) {
            tokio::time::sleep(early).await;
        }
        let key = format!("/flood/{:05}", random.below(KEYS));
        let put = tokio::time::timeout(PATIENCE, client.put(key, vec![b'x'; VALUE_BYTES])).await;
        put.map_err(|_| "no answer".to_owned())?.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Forgets all but what is current.
async fn compact(cluster: &Cluster) {
    let Ok(leader) = cluster.leader().await else { return };
    let Ok(client) = Client::try_connect(&cluster.addresses().endpoint(leader), Duration::from_secs(2)).await else { return };
    let compacted = async {
        let revision = client.revision().await?;
        client.kv.clone().compact(CompactionRequest { revision, physical: false }).await
    };
    // Another time, when this one has no answer.
    let _ = tokio::time::timeout(PATIENCE, compacted).await;
}
