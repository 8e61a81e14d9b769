//! How much longer than its deadline a lease lives: a deadline counts from the stamp, which is set before the commit, and a client
//! counts from the reply, which comes after it.
//!
//! The slack is the longest that a grant or renewal took to commit, as long as one of those leases may be counted on; rounded up to
//! a power of two, so that a few numbers are all there is to remember.
//!
//! **Invariant:** at any moment it is at least what every answered grant or renewal took whose TTL, from its answer on, is not over.

use std::sync::atomic::{AtomicU64, Ordering};

use kvasir_api::limits::LEASE_SLACK_MS_MAX;

/// 1, 2, 4 ... [`LEASE_SLACK_MS_MAX`] milliseconds.
const BUCKETS: usize = LEASE_SLACK_MS_MAX.ilog2() as usize + 1;

/// For each length of a commit, until when it counts, in cluster time.
#[derive(Debug, Default)]
pub(crate) struct Slack {
    until_ms: [AtomicU64; BUCKETS],
}

impl Slack {
    /// A commit took `took_ms`, and what it granted is counted on until `until_ms`.
    pub(crate) fn note(&self, took_ms: u64, until_ms: u64) {
        let rounded = took_ms.clamp(1, LEASE_SLACK_MS_MAX).next_power_of_two();
        self.until_ms[rounded.ilog2() as usize].fetch_max(until_ms, Ordering::Relaxed);
    }

    /// The slack now, in milliseconds.
    pub(crate) fn at(&self, now_ms: u64) -> u64 {
        let counts = |until: &AtomicU64| until.load(Ordering::Relaxed) > now_ms;
        self.until_ms.iter().rposition(counts).map_or(0, |bucket| 1 << bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_commit_counts_as_long_as_its_lease() {
        let slack = Slack::default();
        assert_eq!(slack.at(0), 0);
        slack.note(3, 1_000);
        slack.note(700, 500);
        slack.note(2, 2_000);
        assert_eq!([slack.at(0), slack.at(499), slack.at(500), slack.at(1_000), slack.at(2_000)], [1024, 1024, 4, 2, 0]);
        slack.note(u64::MAX, 10);
        assert_eq!(slack.at(9), LEASE_SLACK_MS_MAX);
        slack.note(0, 3_000);
        assert_eq!(slack.at(2_999), 1);
    }
}
