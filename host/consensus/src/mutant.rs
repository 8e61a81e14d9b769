//! Known bugs that the cluster simulation puts back in, one at a time, to see that it would find them.
//!
//! **Invariant:** no flag and no message leads here: a node that serves is [`Mutant::None`].

use kvasir_api::command::Command;
use kvasir_api::command::command::Body;
use openraft::ReadPolicy;

/// A known bug.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mutant {
    /// None.
    #[default]
    None,
    /// A vote is given before it is on the disk, and never gets there.
    VoteNotPersisted,
    /// Reads trust the leader's lease, which a member that restarts inside of it knows nothing of.
    LeaseRead,
    /// A leader that was deposed goes on ending leases, as if it were a client that revokes them.
    RevokeByDeposed,
    /// What is put is applied with another value than the log has.
    OtherValues,
    /// A checkpoint does not wait until the log is durable up to it.
    CheckpointAheadOfLog,
}

impl Mutant {
    /// How a read finds out that this node leads.
    pub(crate) fn read_policy(self) -> ReadPolicy {
        if self == Self::LeaseRead { ReadPolicy::LeaseRead } else { ReadPolicy::ReadIndex }
    }

    /// A command as it is applied.
    pub(crate) fn applied(self, mut command: Command) -> Command {
        if self == Self::OtherValues
            && let Some(Body::Put(put)) = &mut command.body
        {
            put.value = "other".into();
        }
        command
    }
}
