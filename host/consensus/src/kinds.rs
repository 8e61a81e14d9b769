//! The types openraft is instantiated with.
//!
//! **Invariant:** a log id is (term, node, index), so that two leaders of one term, should pre-vote and votes ever allow them, are
//! still told apart; and an entry's payload is the command's encoded bytes.

use openraft::RaftTypeConfig;
use openraft::raft::responder::Responder;

use crate::gauge::Ticket;
use crate::membership::Member;
use crate::proposed::{Outcome, Proposed};

/// kvasir's instance of openraft.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kinds;

impl RaftTypeConfig for Kinds {
    type D = Proposed;
    type R = Outcome;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Proposed, u64, Member>;
    type Entry = openraft::Entry<Self::LeaderId, Self::Payload>;
    type AsyncRuntime = openraft::TokioRuntime;
    type Responder<T>
        = Waiter<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// A log id.
pub(crate) type LogId = openraft::LogId<openraft::impls::leader_id_adv::LeaderId<u64, u64>>;
/// A vote.
pub(crate) type Vote = openraft::impls::Vote<openraft::impls::leader_id_adv::LeaderId<u64, u64>>;
/// A log entry.
pub(crate) type Entry = openraft::Entry<openraft::impls::leader_id_adv::LeaderId<u64, u64>, Payload>;
/// What an entry carries.
pub(crate) type Payload = openraft::EntryPayload<Proposed, u64, Member>;
/// A membership and the log id of its entry.
pub(crate) type StoredMembership = openraft::StoredMembership<openraft::impls::leader_id_adv::LeaderId<u64, u64>, u64, Member>;
/// What a snapshot covers.
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<openraft::impls::leader_id_adv::LeaderId<u64, u64>, u64, Member>;

/// Our log id as openraft has it.
pub(crate) fn log_id_from(id: kvasir_storage::log::LogId) -> LogId {
    LogId::new(openraft::impls::leader_id_adv::LeaderId { term: id.term, node_id: id.node }, id.index)
}

/// openraft's log id as our storage has it.
pub(crate) fn log_id_into(id: LogId) -> kvasir_storage::log::LogId {
    kvasir_storage::log::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

/// Our vote as openraft has it.
pub(crate) fn vote_from(vote: kvasir_storage::log::Vote) -> Vote {
    if vote.committed { Vote::new_committed(vote.term, vote.node) } else { Vote::new(vote.term, vote.node) }
}

/// openraft's vote as our storage has it.
pub(crate) fn vote_into(vote: &Vote) -> kvasir_storage::log::Vote {
    kvasir_storage::log::Vote { term: vote.leader_id().term, node: vote.leader_id().node_id, committed: vote.is_committed() }
}

/// Who waits for a proposal's outcome, and the room the proposal takes until then.
pub(crate) struct Waiter<T> {
    pub(crate) reply: tokio::sync::oneshot::Sender<T>,
    pub(crate) _ticket: Ticket,
}

impl<T> Responder<Kinds, T> for Waiter<T>
where
    T: openraft::OptionalSend + 'static,
{
    fn on_complete(self, result: T) {
        // Whoever waited may have given up; the command is applied all the same.
        let _ = self.reply.send(result);
    }
}
