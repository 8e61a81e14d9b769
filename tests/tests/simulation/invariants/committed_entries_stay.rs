//! State machine safety and log matching (Raft, sections 5.3 and 5.4): an entry that any node knows as committed is the same on every
//! node, for ever.

use std::collections::BTreeMap;

use kvasir_storage::log::{EntryKind, LogId};

use super::{Invariant, Seen};
use crate::trace::digest;

/// What an entry is known by.
type Known = (LogId, EntryKind, u64);

#[derive(Default)]
pub(super) struct CommittedEntriesStay {
    committed: BTreeMap<u64, Known>,
    /// For each incarnation of a node, up to where its log was compared.
    compared: BTreeMap<(u64, u64), u64>,
}

impl Invariant for CommittedEntriesStay {
    fn look(&mut self, seen: &Seen<'_>) {
        let compared = self.compared.entry((seen.node, seen.incarnation)).or_insert(0);
        for entry in seen.committed(*compared + 1) {
            let known = (entry.id, entry.kind, digest(&[entry.payload]));
            let first = self.committed.entry(entry.id.index).or_insert(known);
            assert!(
                *first == known,
                "committed entries stay: entry {} was {first:?}, and on {:x} it is {known:?}",
                entry.id.index,
                seen.node
            );
            *compared = entry.id.index;
        }
    }
}
