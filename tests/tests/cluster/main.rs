//! Clusters of real processes behind a relay, under load, while all kinds of things happen to them.
//!
//! What is run briefly here runs for long in `cargo xtask soak`, by larger numbers in the environment: `KVASIR_NEMESIS_SECONDS`,
//! `KVASIR_ROLLS`, `KVASIR_REJOIN_MIB`, `KVASIR_FLOOD_SECONDS`. `KVASIR_SEED` repeats the choices of a run, though not its
//! interleaving.
//!
//! **Invariant:** one cluster at a time: each needs the machine for itself.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // a failed expectation is a failed test, and its seed goes to the terminal

// Shared with the tests of etcd's clients on one node; not all of it is used here.
#[allow(dead_code)]
#[path = "../etcd_clients/server.rs"]
mod clients;
mod etcdctl;
mod faults;
mod flood;
mod judge;
mod leader;
mod nemesis;
#[allow(dead_code)]
#[path = "../etcd_clients/process.rs"]
mod process;
mod rejoin;
mod rolling;

use tokio::sync::{Mutex, MutexGuard};

/// Held by the test whose cluster runs.
async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// A number from the environment.
fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A seed that is said, so that it can be given again.
fn seed(what: &str) -> kvasir_tests::Random {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("KVASIR_SEED", now ^ u64::from(std::process::id()));
    eprintln!("{what}: repeat with KVASIR_SEED={seed}");
    kvasir_tests::Random::new(seed)
}
