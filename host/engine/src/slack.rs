//! How much longer than its TTL a lease is asked for: its deadline counts from the entry's stamp, which the leader sets before the
//! commit, and its holder counts from the reply, which comes after it, through whichever member was asked.
//!
//! The slack is part of the entry, so that every member has the same deadline and a new leader knows it too. Whoever answers
//! measures, and answers only what was covered; what was not is renewed with more.
//!
//! **Invariant:** what is asked for stays between [`LEASE_SLACK_MS_MIN`] and [`LEASE_SLACK_MS_MAX`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvasir_api::limits::{LEASE_SLACK_MS_MAX, LEASE_SLACK_MS_MIN};

/// Asked for before anything was measured.
const FIRST_MS: u64 = 512;
/// Between the moment that is measured and the one at which the answer goes out.
const MARGIN_MS: u64 = 32;

/// What commits from here take.
#[derive(Debug)]
pub(crate) struct Slack {
    ask_ms: AtomicU64,
}

impl Default for Slack {
    fn default() -> Self {
        Self { ask_ms: AtomicU64::new(FIRST_MS) }
    }
}

impl Slack {
    /// What to ask for next, in milliseconds.
    pub(crate) fn ask_ms(&self) -> u64 {
        self.ask_ms.load(Ordering::Relaxed)
    }

    /// A commit that asked for `asked_ms` took `took`; whether that covers it. The next asks for more, or for a little less.
    pub(crate) fn covers(&self, asked_ms: u64, took: Duration) -> bool {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).saturating_add(MARGIN_MS);
        let wanted_ms = took_ms.saturating_mul(2);
        let next_ms = if wanted_ms > asked_ms { wanted_ms } else { asked_ms - (asked_ms - wanted_ms) / 8 };
        self.ask_ms.store(next_ms.clamp(LEASE_SLACK_MS_MIN, LEASE_SLACK_MS_MAX), Ordering::Relaxed);
        took_ms <= asked_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_longer_than_was_asked_for_is_not_covered_and_the_next_asks_for_more() {
        let slack = Slack::default();
        assert!(slack.covers(slack.ask_ms(), Duration::from_millis(3)));
        assert!(!slack.covers(slack.ask_ms(), Duration::from_millis(1_500)));
        assert!(slack.ask_ms() >= 3_000);
        assert!(slack.covers(slack.ask_ms(), Duration::from_millis(1_500)));
        for _ in 0..200 {
            assert!(slack.covers(slack.ask_ms(), Duration::from_millis(1)));
        }
        assert_eq!(slack.ask_ms(), LEASE_SLACK_MS_MIN, "slow times are forgotten");
        assert!(!slack.covers(slack.ask_ms(), Duration::MAX));
        assert_eq!(slack.ask_ms(), LEASE_SLACK_MS_MAX);
    }
}
