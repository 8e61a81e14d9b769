//! Clusters in simulation: real machine, storage, consensus and engine code, on simulated disks and a simulated network, in one
//! thread whose clock and chances come from a seed.
//!
//! Each seed is the life of one cluster of three or five nodes, in a process of its own: clients put, delete, swap, read, grant,
//! renew and revoke through every member, watchers watch; nodes lose power between any two operations of their disks, are killed,
//! are stopped, find their disks failing with EIO or ENOSPC; links are cut in one direction or both, frames are late, streams break.
//! A watchman looks at the invariants of `invariants/` all the while. Then everything is healed, must come to serve, and the
//! histories are judged by `kvasir_tests::history`.
//!
//! `KVASIR_SIMULATION_SECONDS` (180) and `KVASIR_SIMULATION_SEEDS` (300) say how long to go on: at least that many seeds, and that
//! long unless the seconds are 0. `KVASIR_FIRST_SEED` (1) is the first one. `KVASIR_SEED` lives one seed only, `KVASIR_TRACE` tells
//! all of it, `KVASIR_MUTANT` puts a known bug back in. A seed lived twice leaves the same trace.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)] // a failed expectation is a failed test, and its seed goes to the terminal

mod clients;
mod disks;
mod faults;
mod hasty;
mod invariants;
mod life;
mod lives;
mod mutants;
mod network;
mod nodes;
mod trace;
mod watchers;
mod world;

use std::time::{Duration, Instant};

use lives::{Lived, many};

/// Seeds are counted on from here, so that a run without `KVASIR_FIRST_SEED` does the same ones each time.
const FIRST_SEED: u64 = 1;

#[test]
fn a_cluster_keeps_its_promises_whatever_befalls_it() {
    if let Some(seed) = number("KVASIR_SEED") {
        return lives::here(seed);
    }
    let span = Duration::from_secs(number("KVASIR_SIMULATION_SECONDS").unwrap_or(180));
    let least = number("KVASIR_SIMULATION_SEEDS").unwrap_or(300);
    let first = number("KVASIR_FIRST_SEED").unwrap_or(FIRST_SEED);
    let start = Instant::now();
    let sum = many(first, |next| start.elapsed() < span || next < first + least);
    eprintln!("{} seeds in {:.0} s: {:?}", sum.seeds, start.elapsed().as_secs_f64(), sum.tally);
    assert!(!sum.failed, "a seed failed; its line is above");
    assert!(sum.seeds >= least, "{} seeds, {least} are asked for", sum.seeds);
    let count = |what: &str| sum.tally.get(what).copied().unwrap_or(0);
    let tried = ["power_cuts", "kills", "disk_faults", "restarts", "cuts", "unknown", "leases_ended", "purged"];
    let untried: Vec<&str> = tried.into_iter().filter(|what| count(what) == 0).collect();
    // A few seeds need not have had everything.
    assert!(sum.seeds < 100 || untried.is_empty(), "never happened: {untried:?}");
}

#[test]
fn a_seed_lived_twice_leaves_the_same_trace() {
    if number("KVASIR_SEED").is_some() {
        return;
    }
    for seed in [FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2] {
        let traces = [(); 2].map(|()| match lives::elsewhere(seed, None) {
            Lived::Well(tally) => (tally["trace"].clone(), tally["trace_lines"].clone()),
            Lived::Badly(why) => panic!("seed {seed}: {why}"),
        });
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
    let [one, other] = [1, 2].map(|seed| match lives::elsewhere(seed, None) {
        Lived::Well(tally) => tally["trace"].clone(),
        Lived::Badly(why) => panic!("seed {seed}: {why}"),
    });
    assert_ne!(one, other, "another seed is another life");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
