//! Cluster time: the clock leases live by.
//!
//! It is the last replicated stamp plus the monotonic time this node has measured since it applied it; while this node leads, a
//! stamp only ever moves it forward. A new leader therefore goes on where the old one was, time in which no node ran does not count, and a wall clock
//! that steps changes nothing.
//!
//! **Invariant:** `now_ms` never goes back while the node leads, and `apply` takes the maximum of stamps besides.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Reads wall time in milliseconds since 1970. Only stamped, never compared.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// This node's view of cluster time.
pub struct Clock {
    base: Mutex<(u64, Instant)>,
    wall: WallClock,
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clock").field("now_ms", &self.now_ms()).finish_non_exhaustive()
    }
}

impl Clock {
    /// A clock that goes on from `stamp_ms`.
    pub fn new(stamp_ms: u64, wall: Option<WallClock>) -> Self {
        Self { base: Mutex::new((stamp_ms, Instant::now())), wall: wall.unwrap_or_else(|| Arc::new(system_wall_ms)) }
    }

    /// Cluster time in milliseconds.
    pub fn now_ms(&self) -> u64 {
        let (stamp_ms, since) = *self.base.lock();
        stamp_ms.saturating_add(elapsed_ms(since))
    }

    /// Wall time in milliseconds since 1970, for stamps.
    pub fn wall_ms(&self) -> u64 {
        (self.wall)()
    }

    /// Takes note of an applied stamp. A leader, whose own stamps these are, never goes back; a follower goes on from just this one,
    /// so that what it has measured too much (a slow leader, a pause) does not add up to leases that expire early when it leads.
    pub(crate) fn observe(&self, stamp_ms: u64, leading: bool) {
        let mut base = self.base.lock();
        if !leading || stamp_ms > base.0.saturating_add(elapsed_ms(base.1)) {
            *base = (stamp_ms, Instant::now());
        }
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn system_wall_ms() -> u64 {
    // A clock before 1970 reads as 1970: stamps carry no sign.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_moves_a_leaders_clock_forward_and_never_back() {
        let clock = Clock::new(1_000, None);
        assert!(clock.now_ms() >= 1_000);
        clock.observe(50_000, true);
        assert!(clock.now_ms() >= 50_000);
        clock.observe(2_000, true);
        assert!(clock.now_ms() >= 50_000);
    }

    #[test]
    fn a_followers_clock_is_the_last_stamp_and_the_time_since() {
        let clock = Clock::new(1_000_000, None);
        clock.observe(2_000, false);
        assert!((2_000..1_000_000).contains(&clock.now_ms()), "{}", clock.now_ms());
    }
}
