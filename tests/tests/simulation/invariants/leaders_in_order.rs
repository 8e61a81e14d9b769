//! Leaders follow each other (Raft, section 5.2): who has committed an entry is never followed by one that was elected before.
//!
//! A leader is elected to a term and its own place in it, (term, node): a second candidate of a term may win over the first if its
//! node id is higher, and then the first can commit nothing more. So the pairs of committed entries never go back, and a node that
//! leads at one pair is the node of that pair.

use std::collections::BTreeMap;

use super::{Invariant, Seen};

#[derive(Default)]
pub(super) struct LeadersInOrder {
    /// Who committed an entry: term and node, by index.
    committers: BTreeMap<u64, (u64, u64)>,
    looked: BTreeMap<(u64, u64), u64>,
}

impl Invariant for LeadersInOrder {
    fn look(&mut self, seen: &Seen<'_>) {
        let looked = self.looked.entry((seen.node, seen.incarnation)).or_insert(0);
        for entry in seen.committed(*looked + 1) {
            let (index, committer) = (entry.id.index, (entry.id.term, entry.id.node));
            self.committers.entry(index).or_insert(committer);
            let before = self.committers.range(..index).next_back();
            let after = self.committers.range(index + 1..).next();
            let in_order =
                before.is_none_or(|(_, before)| *before <= committer) && after.is_none_or(|(_, after)| committer <= *after);
            assert!(
                in_order,
                "leaders in order: entry {index} is of {committer:x?}, between entries of {before:x?} and {after:x?}"
            );
            *looked = index;
        }
    }
}
