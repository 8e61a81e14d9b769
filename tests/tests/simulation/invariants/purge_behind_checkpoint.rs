//! The log is never purged above the last durable checkpoint.

use super::{Invariant, Seen};

pub(super) struct PurgeBehindCheckpoint;

impl Invariant for PurgeBehindCheckpoint {
    fn look(&mut self, seen: &Seen<'_>) {
        let purged = seen.consensus.log().state().last_purged.map_or(0, |id| id.index);
        let checkpoint = seen.status.checkpoint_index;
        assert!(
            purged <= checkpoint,
            "purge behind checkpoint: {:x} has purged up to {purged}, its checkpoint is of {checkpoint}",
            seen.node
        );
    }
}
