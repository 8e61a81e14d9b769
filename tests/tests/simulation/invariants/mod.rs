//! What must hold of the nodes themselves at every moment, whatever their clients see: one file each, named.
//!
//! A watchman looks at every node that serves, many times in a simulated second, and when one ends. What clients were told is
//! judged by `kvasir_tests::history`.

mod checkpoint_behind_log;
mod committed_entries_stay;
mod leaders_in_order;

mod purge_behind_checkpoint;
mod states_agree;
mod votes_stay;

use std::sync::Arc;

use kvasir_consensus::{Consensus, Status};
use kvasir_storage::log::LogEntry;
use parking_lot::Mutex;

use crate::nodes::Incarnation;

/// A node at one moment.
pub(crate) struct Seen<'a> {
    node: u64,
    incarnation: u64,
    status: Status,
    consensus: &'a Consensus,
}

impl Seen<'_> {
    /// The entries from `from` on that this node knows as committed. None while its log does not reach up to what is: a snapshot takes
    /// the log's place just now, and what is still in it may have been another's that was never committed.
    fn committed(&self, from: u64) -> Vec<LogEntry> {
        let (log, upto) = (self.consensus.log(), self.status.committed_index);
        let from = from.max(self.status.purged_index + 1);
        if from > upto || log.state().last.is_none_or(|last| last.index < upto) {
            return Vec::new();
        }
        // Gone meanwhile: its next incarnation is looked at.
        log.read(from..upto + 1).unwrap_or_default()
    }
}

/// Something that must hold.
trait Invariant: Send {
    /// Looks at a node.
    ///
    /// # Panics
    /// When it does not hold.
    fn look(&mut self, seen: &Seen<'_>);
}

/// All of them. A clone is the same.
#[derive(Clone)]
pub(crate) struct Invariants {
    all: Arc<Mutex<Vec<Box<dyn Invariant>>>>,
}

impl Invariants {
    pub(crate) fn new() -> Self {
        let all: Vec<Box<dyn Invariant>> = vec![
            Box::new(leaders_in_order::LeadersInOrder::default()),
            Box::new(committed_entries_stay::CommittedEntriesStay::default()),
            Box::new(states_agree::StatesAgree::default()),
            Box::new(votes_stay::VotesStay::default()),
            Box::new(checkpoint_behind_log::CheckpointBehindLog),
            Box::new(purge_behind_checkpoint::PurgeBehindCheckpoint),
        ];
        Self { all: Arc::new(Mutex::new(all)) }
    }

    /// A node serves from now on.
    pub(crate) fn began(&self, incarnation: &Incarnation) {
        self.look(incarnation);
    }

    /// A node ends at this moment.
    pub(crate) fn ends(&self, incarnation: &Incarnation) {
        self.look(incarnation);
    }

    /// Looks at a node.
    pub(crate) fn look(&self, incarnation: &Incarnation) {
        let consensus = incarnation.engine.consensus();
        let status = consensus.status();
        let seen = Seen { node: incarnation.node, incarnation: incarnation.number, status, consensus };
        for invariant in self.all.lock().iter_mut() {
            invariant.look(&seen);
        }
    }
}
