//! What raft last said about leadership, for those who ask on every request.
//!
//! **Invariant:** term and leader are of one moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::kinds::Kinds;

#[derive(Debug)]
pub(crate) struct Standing {
    node_id: u64,
    /// The term, and the leader if one is known.
    now: watch::Sender<(u64, Option<u64>)>,
    start: Instant,
    /// When the leader was last heard, in milliseconds since the start.
    heard_ms: AtomicU64,
}

impl Standing {
    pub(crate) fn new(node_id: u64) -> Self {
        Self { node_id, now: watch::Sender::default(), start: Instant::now(), heard_ms: AtomicU64::new(0) }
    }

    pub(crate) fn note(&self, metrics: &openraft::RaftMetrics<Kinds>) {
        let now = (metrics.current_term, metrics.current_leader);
        if self.now.send_if_modified(|known| std::mem::replace(known, now) != now) {
            self.hear();
        }
    }

    /// The leader has been heard just now.
    pub(crate) fn hear(&self) {
        self.heard_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Whether the leader, who may be this node since a moment ago, has been heard within this time.
    pub(crate) fn is_heard(&self, within: Duration) -> bool {
        let silent_ms = self.now_ms().saturating_sub(self.heard_ms.load(Ordering::Relaxed));
        Duration::from_millis(silent_ms) < within
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The term, and the leader if one is known.
    pub(crate) fn now(&self) -> (u64, Option<u64>) {
        *self.now.borrow()
    }

    /// The same, and its changes.
    pub(crate) fn changes(&self) -> watch::Receiver<(u64, Option<u64>)> {
        self.now.subscribe()
    }

    /// The term in which this node leads, if it does.
    pub(crate) fn leading(&self) -> Option<u64> {
        let (term, leader) = self.now();
        (leader == Some(self.node_id)).then_some(term)
    }
}
