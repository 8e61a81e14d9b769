//! Replicated state machine: nodes that have applied the same entries have the same state.

use std::collections::BTreeMap;

use super::{Invariant, Seen};

#[derive(Default)]
pub(super) struct StatesAgree {
    /// The digest at an applied index, and who had it first.
    digests: BTreeMap<u64, (u64, u64)>,
    /// For each node, the index it was looked at last.
    looked: BTreeMap<u64, u64>,
}

impl Invariant for StatesAgree {
    fn look(&mut self, seen: &Seen<'_>) {
        // Both of one moment: nothing is applied while this looks.
        let index = *seen.consensus.applied_index().borrow();
        if self.looked.insert(seen.node, index) == Some(index) {
            return;
        }
        let digest = seen.consensus.state().read().digest();
        let (first, node) = *self.digests.entry(index).or_insert((digest, seen.node));
        assert_eq!(first, digest, "states agree: {node:x} and {:x} have both applied entry {index}", seen.node);
    }
}
