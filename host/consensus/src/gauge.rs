//! How much is proposed and not yet answered: the bound of the proposal path.
//!
//! **Invariant:** commands between `propose` and their reply never exceed the bounds in number or in bytes; a ticket is returned
//! when the command's fate is known, not when its caller gives up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts proposals in flight.
#[derive(Debug)]
pub(crate) struct Gauge {
    count: AtomicUsize,
    bytes: AtomicUsize,
    count_max: usize,
    bytes_max: usize,
    accepted: AtomicU64,
    refused: AtomicU64,
}

impl Gauge {
    pub(crate) fn new(count_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            count_max,
            bytes_max,
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// Room for one command of `bytes`, or `None` when too many wait already. One command always fits an empty gauge.
    pub(crate) fn enter(self: &Arc<Self>, bytes: usize) -> Option<Ticket> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let ticket = Ticket { gauge: Arc::clone(self), bytes };
        if count >= self.count_max || (count > 0 && held.saturating_add(bytes) > self.bytes_max) {
            self.refuse();
            return None;
        }
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Some(ticket)
    }

    /// Notes a refusal made elsewhere on the way.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn pending(&self) -> u64 {
        self.count.load(Ordering::Relaxed) as u64
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Room taken; dropping it gives the room back.
#[derive(Debug)]
pub(crate) struct Ticket {
    gauge: Arc<Gauge>,
    bytes: usize,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.gauge.count.fetch_sub(1, Ordering::Relaxed);
        self.gauge.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gauge_refuses_and_a_dropped_ticket_makes_room() {
        let gauge = Gauge::new(2, 100);
        let first = gauge.enter(1_000).expect("an empty gauge takes any one command");
        assert!(gauge.enter(1).is_none());
        drop(first);
        let a = gauge.enter(50).expect("room");
        let _b = gauge.enter(50).expect("room");
        assert!(gauge.enter(0).is_none());
        drop(a);
        assert!(gauge.enter(51).is_none());
        assert_eq!((gauge.pending(), gauge.accepted(), gauge.refused()), (1, 3, 3));
    }
}
