//! What raft last said about leadership, for those who ask on every request.
//!
//! **Invariant:** term and leader are of one moment.

use tokio::sync::watch;

use crate::kinds::Kinds;

#[derive(Debug)]
pub(crate) struct Standing {
    node_id: u64,
    /// The term, and the leader if one is known.
    now: watch::Sender<(u64, Option<u64>)>,
}

impl Standing {
    pub(crate) fn new(node_id: u64) -> Self {
        Self { node_id, now: watch::Sender::default() }
    }

    pub(crate) fn note(&self, metrics: &openraft::RaftMetrics<Kinds>) {
        let now = (metrics.current_term, metrics.current_leader);
        self.now.send_if_modified(|known| std::mem::replace(known, now) != now);
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
