//! Mixed traffic while faults of every kind strike, one after the other; then everything that was told is judged.
//!
//! A run is made of episodes of some minutes, each with a cluster of its own, so that every history is judged from its first
//! revision to its last.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kvasir_tests::traffic::{Load, Traffic};
use kvasir_tests::{Cluster, Mount, Random, eventually};

use crate::faults::Fault;
use crate::judge::{install_counter, judge};
use crate::{number, seed, turn};

/// The longest an episode lasts.
const EPISODE: Duration = Duration::from_secs(240);
/// What starting a cluster and judging it take of an episode, roughly.
const AROUND: Duration = Duration::from_secs(25);
/// Bytes of the small disk: enough for a node that sees less than 256 MiB free as trouble.
const DISK_BYTES: u64 = 900 << 20;
/// The node on the small disk.
const DISK_SLOT: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_strikes_a_cluster_what_it_told_is_true() {
    let _turn = turn().await;
    let seconds = number("KVASIR_NEMESIS_SECONDS", 120);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut random = seed("nemesis");
    let mut struck = BTreeMap::<Fault, usize>::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        episode(left.min(EPISODE).saturating_sub(AROUND), &mut random, &mut struck).await;
        if end.saturating_duration_since(Instant::now()) < 2 * AROUND {
            break;
        }
    }
    eprintln!("struck: {struck:?}");
    if seconds >= 1_800 && std::env::var_os("KVASIR_FAULTS").is_none() {
        let missing: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| !struck.contains_key(fault)).collect();
        let skipped = missing.iter().all(|fault| *fault == Fault::FullDisk);
        assert!(skipped, "in so long a run every fault strikes: {missing:?}");
    }
}

async fn episode(span: Duration, random: &mut Random, struck: &mut BTreeMap<Fault, usize>) {
    let scratch = tempfile::tempdir().unwrap();
    let disk = Mount::new("a full disk in a cluster", scratch.path().join("small"), DISK_BYTES);
    let mut builder = Cluster::builder(3);
    if let Some(disk) = &disk {
        builder = builder.data_dir(DISK_SLOT, disk.path());
    }
    let mut cluster = builder.start().await;
    let counts = install_counter(&cluster.client(0).await).await;
    let load = Load { writers: 6, leasers: 3, lockers: 4, rest_max: Duration::from_millis(40) };
    let traffic = Traffic::start(cluster.addresses(), load, random);
    let end = Instant::now() + span;
    'struck: loop {
        for fault in shuffled(random) {
            if Instant::now() >= end {
                break 'struck;
            }
            if fault == Fault::FullDisk && disk.is_none() {
                continue;
            }
            let begin = Instant::now();
            let answered = traffic.answered();
            eprintln!("{fault:?}");
            fault.strike(&mut cluster, random, disk.as_ref().map(|disk| (DISK_SLOT, disk))).await;
            let (lasted, during) = (begin.elapsed(), traffic.answered() - answered);
            cluster.wait_whole().await;
            let whole = begin.elapsed();
            let answered = traffic.answered();
            eventually("requests are answered again", Duration::from_secs(30), || async {
                if traffic.answered() > answered + 50 { Ok(()) } else { Err("none".to_owned()) }
            })
            .await;
            eprintln!(
                "{fault:?}: {:.1} s, {during} requests answered, whole after {:.1} s",
                lasted.as_secs_f64(),
                whole.as_secs_f64()
            );
            *struck.entry(fault).or_default() += 1;
        }
    }
    judge(&cluster, traffic, counts).await;
}

/// Every fault once, in some order; or those that `KVASIR_FAULTS` names (`Kill,Freeze`), to look at some alone.
fn shuffled(random: &mut Random) -> Vec<Fault> {
    let wanted = std::env::var("KVASIR_FAULTS").ok();
    let is_wanted = |fault: &Fault| wanted.as_ref().is_none_or(|it| it.split(',').any(|name| name == format!("{fault:?}")));
    let mut faults: Vec<Fault> = Fault::ALL.into_iter().filter(is_wanted).collect();
    assert!(!faults.is_empty(), "KVASIR_FAULTS names no fault: {wanted:?}");
    for nth in (1..faults.len()).rev() {
        faults.swap(nth, random.below(nth as u64 + 1) as usize);
    }
    faults
}
