//! A vote that was given stays given, also across restarts (Raft, section 5.2: the vote is on stable storage).
//!
//! A vote is for a leader of (term, node): whoever has voted for one may vote for a higher one, never for a lower one.

use std::collections::BTreeMap;

use super::{Invariant, Seen};

#[derive(Default)]
pub(super) struct VotesStay {
    /// The highest vote of each node that was durable.
    votes: BTreeMap<u64, (u64, u64, bool)>,
}

impl Invariant for VotesStay {
    fn look(&mut self, seen: &Seen<'_>) {
        let Some(vote) = seen.consensus.log().flushed_vote() else { return };
        let vote = (vote.term, vote.node, vote.committed);
        let highest = self.votes.entry(seen.node).or_insert(vote);
        assert!(*highest <= vote, "votes stay: {:x} has voted for {highest:x?}, and now for {vote:x?}", seen.node);
        *highest = vote;
    }
}
