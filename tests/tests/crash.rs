//! kill -9 under load, again and again: what was acknowledged is there, what was not is there whole or not at all, revisions
//! never go back, and a counting plugin has counted every event exactly once.
//!
//! `KVASIR_KILL_ROUNDS` sets the number of kills (20), `KVASIR_SEED` repeats the choices of a run; the moment of a kill among
//! the requests follows the seed, its moment among instructions does not.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // a failed expectation is a failed test, and its seed goes to the terminal

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvasir_api::etcdserverpb::CompactionRequest;
use kvasir_tests::oracle::{Floor, Oracle, Step, Writer};
use kvasir_tests::{Client, Install, Node, Random, artefacts, eventually};
use tokio::task::JoinSet;

const WRITERS: u32 = 8;
const KEYS_PER_WRITER: u64 = 12;
/// The most requests between two kills.
const LOAD_MAX: u64 = 1_200;
const COUNTED: &str = "/in/";
const COUNTS: &str = "/count/";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9_and_a_plugin_counts_every_event_exactly_once() {
    let rounds = number("KVASIR_KILL_ROUNDS").unwrap_or(20);
    let seed = number("KVASIR_SEED").unwrap_or_else(|| u64::from(std::process::id()) ^ started_ns());
    eprintln!("{rounds} kills; repeat with KVASIR_SEED={seed}");
    let mut random = Random::new(seed);
    let mut writers: Vec<Writer> = (0..WRITERS).map(|id| Writer::new(id, COUNTED, KEYS_PER_WRITER, random.fork())).collect();
    let floor = Arc::new(Floor::default());
    let mut oracle = Oracle::new();

    let mut node = Node::builder().arg("--heartbeat-interval=20").arg("--election-timeout=200").start();
    let mut client = node.client().await;
    let counts = install_counter(&client).await;
    let start = Instant::now();
    for round in 0..rounds {
        oracle.verify(&client, &mut writers, &floor, |key| key.starts_with(COUNTS.as_bytes())).await;
        if round % 5 == 4 {
            oracle.verify_history(&client, oracle.oldest()).await;
        }
        let compaction = random.chance(30).then(|| 1 + random.below(oracle.verified() as u64) as i64);
        let until = random.below(LOAD_MAX);
        writers = load_until_killed(&mut node, &client, writers, &floor, until, compaction, &mut oracle).await;
        if random.chance(25) {
            // The next start is cut short too, somewhere between exec and ready.
            node.start_and_kill(Duration::from_millis(random.below(250)));
        }
        node.restart();
        client = node.client().await;
    }
    oracle.verify(&client, &mut writers, &floor, |key| key.starts_with(COUNTS.as_bytes())).await;
    oracle.verify_history(&client, oracle.oldest()).await;
    let sent: u64 = writers.iter().map(Writer::sent).sum();
    eprintln!("{rounds} kills, {sent} requests, {} revisions in {:.1} s", oracle.verified(), start.elapsed().as_secs_f64());
    if counts {
        check_counts(&client, &mut oracle, &mut writers, &floor).await;
    }

    assert!(node.terminate().success(), "a node that is asked to stop ends with success");
    node.restart();
    let client = node.client().await;
    oracle.verify(&client, &mut writers, &floor, |key| key.starts_with(COUNTS.as_bytes())).await;
}

/// Runs the writers until `until` requests were answered, kills the node in their midst, and waits for them to notice.
async fn load_until_killed(
    node: &mut Node,
    client: &Client,
    writers: Vec<Writer>,
    floor: &Arc<Floor>,
    until: u64,
    compaction: Option<i64>,
    oracle: &mut Oracle,
) -> Vec<Writer> {
    let answered = Arc::new(AtomicU64::new(0));
    let mut running = JoinSet::new();
    for mut writer in writers {
        let (client, floor, answered) = (client.clone(), Arc::clone(floor), Arc::clone(&answered));
        running.spawn(async move {
            while writer.step(&client, &floor).await == Step::Answered {
                answered.fetch_add(1, Ordering::Relaxed);
            }
            writer
        });
    }
    if let Some(revision) = compaction {
        match client.kv.clone().compact(CompactionRequest { revision, physical: false }).await {
            Ok(_) => oracle.compacted(revision),
            // Compacted further already.
            Err(status) if status.code() == tonic::Code::OutOfRange => {}
            Err(status) => panic!("compaction of {revision}: {status:?}"),
        }
    }
    eventually("the writers are answered", Duration::from_secs(60), || {
        let so_far = answered.load(Ordering::Relaxed);
        async move { if so_far >= until { Ok(()) } else { Err(format!("{so_far} of {until}")) } }
    })
    .await;
    tokio::task::block_in_place(|| node.kill());
    let mut writers = running.join_all().await;
    writers.sort_by_key(Writer::id);
    writers
}

async fn install_counter(client: &Client) -> bool {
    let Some(component) = artefacts::guest("counter-guest") else {
        return false;
    };
    client.install(&component, Install::accepting()).await.expect("the counting plugin is installed");
    true
}

/// Waits until the plugin has seen everything, and compares its counts with the history.
async fn check_counts(client: &Client, oracle: &mut Oracle, writers: &mut [Writer], floor: &Floor) {
    let total = oracle.events_under(COUNTED.as_bytes());
    let counted = || async {
        let count = client.get("/count/total").await.map_err(|status| status.to_string())?.unwrap_or_default();
        let count: usize = std::str::from_utf8(&count).unwrap().parse().unwrap_or(0);
        assert!(count <= total, "counted {count} of {total} events: some twice");
        if count == total { Ok(()) } else { Err(format!("counted {count} of {total} events")) }
    };
    eventually("every event is counted", Duration::from_secs(60), counted).await;
    assert_eq!(client.get("/count/resync").await.unwrap(), None, "nothing was compacted away from under the plugin");
    oracle.verify(client, writers, floor, |key| key.starts_with(COUNTS.as_bytes())).await;
    for kv in client.prefix("/count/key/").await.unwrap() {
        let key = [COUNTED.as_bytes(), kv.key.strip_prefix(b"/count/key/").unwrap()].concat();
        let count: usize = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
        assert_eq!(count, oracle.events_under_exactly(&key), "events of {}", String::from_utf8_lossy(&key));
    }
    eprintln!("{total} events, each counted once");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn started_ns() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}
