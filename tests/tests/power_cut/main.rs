//! Power cuts at the disk seam: a whole engine over a simulated disk that loses and tears what was not synced.
//!
//! Each seed is a life of one store: writers with puts, deletes, transactions, leases and compare-and-put, compactions between them,
//! checkpoints and purges all the time, cut off again and again - by a power cut after so many disk operations (while it starts, too), or
//! by a disk that fails with EIO or ENOSPC. After each the engine is opened again on what the disk kept, and the oracle of
//! `kvasir_tests::oracle` compares it with what the writers were told.
//!
//! `KVASIR_POWER_SECONDS` (120) and `KVASIR_POWER_SEEDS` (300) say how long to go on: at least that many seeds, and that long
//! unless `KVASIR_POWER_SEEDS` is all that is asked for by a `KVASIR_POWER_SECONDS` of 0. `KVASIR_SEED` runs one seed.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // a failed expectation is a failed test, and its seed goes to the terminal

mod door;
mod life;
mod lying;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lives at once: one for each core of a small machine.
const THREADS: u64 = 2;
/// Seeds are counted on from here, so that a run without `KVASIR_FIRST_SEED` does the same ones each time.
const FIRST_SEED: u64 = 1;

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged_and_halves_nothing_that_was_not() {
    if let Some(seed) = number("KVASIR_SEED") {
        eprintln!("seed {seed}: {:?}", life::live(seed));
        return;
    }
    let span = Duration::from_secs(number("KVASIR_POWER_SECONDS").unwrap_or(120));
    let least = number("KVASIR_POWER_SEEDS").unwrap_or(300);
    let first = number("KVASIR_FIRST_SEED").unwrap_or(FIRST_SEED);
    let start = Instant::now();
    let next = Arc::new(AtomicU64::new(first));
    let failed = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..THREADS)
        .map(|_| {
            let (next, failed) = (Arc::clone(&next), Arc::clone(&failed));
            std::thread::spawn(move || {
                let mut sum = life::Tally::default();
                while !failed.load(Ordering::Relaxed)
                    && (start.elapsed() < span || next.load(Ordering::Relaxed) < first + least)
                {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    match std::thread::Builder::new()
                        .name(format!("seed {seed}"))
                        .spawn(move || life::live(seed))
                        .unwrap()
                        .join()
                    {
                        Ok(tally) => sum += tally,
                        Err(_) => {
                            failed.store(true, Ordering::Relaxed);
                            eprintln!(
                                "seed {seed} failed; again: KVASIR_SEED={seed} cargo test -p kvasir-tests --test power_cut"
                            );
                        }
                    }
                }
                sum
            })
        })
        .collect();
    let tally = workers.into_iter().map(|worker| worker.join().unwrap()).fold(life::Tally::default(), |mut sum, tally| {
        sum += tally;
        sum
    });
    let seeds = next.load(Ordering::Relaxed) - first;
    eprintln!("{seeds} seeds in {:.0} s: {tally:?}", start.elapsed().as_secs_f64());
    assert!(!failed.load(Ordering::Relaxed), "a seed failed; its line is above");
    assert!(seeds >= least, "{seeds} seeds in {:?}, {least} are asked for", start.elapsed());
    let tried = [
        tally.power_cuts,
        tally.cuts_while_starting,
        tally.faults,
        tally.kills,
        tally.shutdowns,
        tally.checkpointed,
        tally.purged,
    ];
    assert!(tried.iter().all(|count| *count > 0), "every kind of end has been tried: {tally:?}");
}

#[test]
fn the_oracle_notices_when_a_disk_loses_what_it_said_it_had_synced() {
    // The log notices most of it by itself, as damage; what it cannot notice is that its newest records are gone.
    let noticed = (FIRST_SEED..FIRST_SEED + 200).any(|seed| {
        let life = std::thread::spawn(move || life::live_on(seed, |disk| Arc::new(lying::LyingDisk(disk.clone()))));
        match life.join() {
            Ok(_) => false,
            Err(panic) => panic.downcast_ref::<String>().is_some_and(|why| why.contains("acknowledged")),
        }
    });
    assert!(noticed, "two hundred lives on a lying disk, and no acknowledged write was missed");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
