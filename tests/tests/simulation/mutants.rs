//! Known bugs, put back in: the simulation must find each of them, or its silence would prove nothing.
//!
//! A mutant is looked for in the same seeds that the unchanged code lives well; the seed that finds it is lived again without it.

use crate::lives::{Lived, elsewhere};
use crate::{FIRST_SEED, number};

/// Seeds in which a mutant is looked for.
const SEEDS_MAX: u64 = 150;

/// Looks for a mutant; one of these promises must be what it breaks.
fn is_found(mutant: &str, promises: &[&str]) {
    if number("KVASIR_SEED").is_some() {
        return;
    }
    for seed in FIRST_SEED..FIRST_SEED + SEEDS_MAX {
        let Lived::Badly(why) = elsewhere(seed, Some(mutant)) else { continue };
        assert!(promises.iter().any(|promise| why.contains(promise)), "seed {seed}, {mutant}: found as something else: {why}");
        if let Lived::Badly(why) = elsewhere(seed, None) {
            panic!("seed {seed} finds {mutant}, and fails without it, too: {why}");
        }
        eprintln!(
            "{mutant} is found by seed {seed}: {}",
            why.lines().take(2).collect::<Vec<_>>().join(" ").chars().take(300).collect::<String>()
        );
        return;
    }
    panic!("{mutant} is not found by {SEEDS_MAX} seeds");
}

/// What can be lost when something that was promised was not on the disk.
const LOST: [&str; 9] = [
    "what was acknowledged is there",
    "each revision is one whole request",
    "committed entries stay",
    "leaders in order",
    "states agree",
    "votes stay",
    "a node starts on what its disk kept",
    // openraft's own.
    "follower log reversion is not allowed",
    "must GE last_leader_log_ids",
];

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    is_found("ack-before-sync", &LOST);
}

#[test]
fn a_vote_that_is_not_persisted_is_found() {
    is_found("vote-not-persisted", &LOST);
}

#[test]
fn a_lease_read_after_a_reboot_is_found() {
    // A lease that somebody else was granted is missing in what is read, too.
    is_found("lease-read", &["revisions follow real time", "each key is linearizable", "leases never end early"]);
}

#[test]
fn a_revocation_by_a_deposed_leader_is_found() {
    is_found("revoke-by-deposed", &["leases never end early"]);
}

#[test]
fn a_checkpoint_ahead_of_the_log_is_found() {
    is_found("checkpoint-ahead-of-log", &["checkpoint behind log", "a node starts on what its disk kept"]);
}
