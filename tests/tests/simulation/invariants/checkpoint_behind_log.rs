//! A durable checkpoint covers nothing that the local log does not have durably: after a power cut the state would be ahead of its
//! log, and what lies between would be missing for ever.

use super::{Invariant, Seen};

pub(super) struct CheckpointBehindLog;

impl Invariant for CheckpointBehindLog {
    fn look(&mut self, seen: &Seen<'_>) {
        let log = seen.consensus.log();
        let purged = log.state().last_purged.map_or(0, |id| id.index);
        let durable = log.flushed_index().unwrap_or(0).max(purged);
        let checkpoint = seen.status.checkpoint_index;
        // A snapshot that was just received stands for entries that the log is about to be told of.
        let received = seen.status.applied_index == checkpoint && seen.status.last_log_index <= checkpoint;
        assert!(
            checkpoint <= durable || received,
            "checkpoint behind log: {:x} has a checkpoint of {checkpoint}, and its log is durable up to {durable}",
            seen.node
        );
    }
}
