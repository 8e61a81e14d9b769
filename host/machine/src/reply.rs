//! `Reply`: what apply and reads answer, before headers and before values that memory does not hold are filled in. Pure data.
//!
//! **Invariant:** a reply with holes is not ready to be sent: [`Reply::fill`] first.

use std::cmp::Reverse;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::mvccpb::KeyValue;

use crate::{Rev, Row};

/// A value, or where to find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueSlot {
    /// Here.
    Memory(Bytes),
    /// A hole: in the history row of this revision.
    Row(Rev),
}

/// A key's state at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The key, without the tenant.
    pub key: Bytes,
    /// Revision of the put that created this generation of the key.
    pub create_revision: u64,
    /// Revision of its last put.
    pub mod_revision: Rev,
    /// Puts since creation.
    pub version: u64,
    /// Its lease, 0 for none.
    pub lease: i64,
    /// Its value; empty when only keys were asked for.
    pub value: ValueSlot,
}

impl Item {
    pub(crate) fn of(row: &Row) -> Self {
        Self {
            key: row.key.clone(),
            create_revision: row.create_revision,
            mod_revision: row.rev,
            version: row.version,
            lease: row.lease,
            value: ValueSlot::Memory(row.value.clone()),
        }
    }

    /// The value; empty while it is a hole.
    pub fn value(&self) -> Bytes {
        match &self.value {
            ValueSlot::Memory(value) => value.clone(),
            ValueSlot::Row(_) => Bytes::new(),
        }
    }

    /// As etcd's clients see it; holes must be filled before.
    pub fn into_key_value(self) -> KeyValue {
        KeyValue {
            value: self.value(),
            key: self.key,
            create_revision: self.create_revision as i64,
            mod_revision: self.mod_revision.main as i64,
            version: self.version as i64,
            lease: self.lease,
        }
    }

    fn fill<E>(&mut self, fetch: &mut impl FnMut(Rev) -> Result<Bytes, E>) -> Result<(), E> {
        if let ValueSlot::Row(rev) = self.value {
            self.value = ValueSlot::Memory(fetch(rev)?);
        }
        Ok(())
    }
}

/// What is left to do once the holes are filled: an order by value cannot be had without the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByValue {
    /// Largest first.
    pub descend: bool,
    /// At most so many; 0 for all.
    pub limit: usize,
    /// Values are only wanted for the order.
    pub keys_only: bool,
}

/// Answer to a range.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeReply {
    /// The store's revision as the range saw it: the header's.
    pub revision: u64,
    /// The keys, in the order asked for.
    pub items: Vec<Item>,
    /// The limit cut the list.
    pub more: bool,
    /// Keys in the range, whatever limit and filters say.
    pub count: u64,
    /// Set when `items` has holes that decide their order; [`RangeReply::fill`] sees to it.
    pub by_value: Option<ByValue>,
}

impl RangeReply {
    /// Whether values must be fetched.
    pub fn has_holes(&self) -> bool {
        self.items.iter().any(|item| matches!(item.value, ValueSlot::Row(_)))
    }

    /// Fetches what memory did not hold, then sorts what could not be sorted before.
    ///
    /// # Errors
    /// The first that `fetch` returns.
    pub fn fill<E>(&mut self, fetch: &mut impl FnMut(Rev) -> Result<Bytes, E>) -> Result<(), E> {
        for item in &mut self.items {
            item.fill(fetch)?;
        }
        let Some(todo) = self.by_value.take() else { return Ok(()) };
        if todo.descend {
            self.items.sort_by_cached_key(|item| Reverse(item.value()));
        } else {
            self.items.sort_by_cached_key(Item::value);
        }
        if todo.limit > 0 && self.items.len() > todo.limit {
            self.items.truncate(todo.limit);
            self.more = true;
        }
        if todo.keys_only {
            self.items.iter_mut().for_each(|item| item.value = ValueSlot::Memory(Bytes::new()));
        }
        Ok(())
    }
}

/// Answer to a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutReply {
    /// The put's revision: the header's.
    pub revision: u64,
    /// The version it replaced, if asked for and there.
    pub prev: Option<Item>,
}

/// Answer to a delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteRangeReply {
    /// The store's revision after it: the header's.
    pub revision: u64,
    /// Keys deleted.
    pub deleted: u64,
    /// The versions it deleted, if asked for.
    pub prevs: Vec<Item>,
}

/// Answer to one operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpReply {
    /// Of a range.
    Range(RangeReply),
    /// Of a put.
    Put(PutReply),
    /// Of a delete.
    DeleteRange(DeleteRangeReply),
    /// Of a nested transaction.
    Txn(TxnReply),
}

/// Answer to a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnReply {
    /// The store's revision after it: the header's.
    pub revision: u64,
    /// The compares held, and the success branch ran.
    pub succeeded: bool,
    /// One for each operation of the branch.
    pub responses: Vec<OpReply>,
}

impl TxnReply {
    /// Whether values must be fetched, at any depth.
    pub fn has_holes(&self) -> bool {
        self.responses.iter().any(|response| match response {
            OpReply::Range(range) => range.has_holes(),
            OpReply::Txn(txn) => txn.has_holes(),
            OpReply::Put(_) | OpReply::DeleteRange(_) => false,
        })
    }

    /// Fetches what memory did not hold.
    ///
    /// # Errors
    /// The first that `fetch` returns.
    pub fn fill<E>(&mut self, fetch: &mut impl FnMut(Rev) -> Result<Bytes, E>) -> Result<(), E> {
        for response in &mut self.responses {
            match response {
                OpReply::Range(range) => range.fill(fetch)?,
                OpReply::Txn(txn) => txn.fill(fetch)?,
                // What a write replaced was current, and current values are in memory.
                OpReply::Put(_) | OpReply::DeleteRange(_) => {}
            }
        }
        Ok(())
    }
}

/// Why a plugin's effect was not applied. Nothing of it was, but a trigger may have been halted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// The run no longer owns its trigger, or the plugin changed: the text says what.
    Stale(String),
    /// Somebody else changed what the run relied on; the guard's place in the list, and what broke it.
    GuardBroken {
        /// Index among the guards.
        guard: usize,
        /// What broke it.
        what: String,
    },
    /// The trigger's dead letters are full and it is halted now.
    Halted,
    /// The chain of plugins that write because of each other's writes is too long.
    TooDeep,
    /// The effect is malformed.
    Invalid(String),
    /// Refused as a client's write would be: no space, no such lease.
    Refused(Error),
}

/// Answer to a plugin's effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EffectReply {
    /// Applied whole.
    Applied {
        /// The store's revision after it; the effect's own if it changed a key.
        revision: u64,
    },
    /// Not applied.
    Rejected {
        /// Why.
        reason: Rejection,
    },
}

/// What a command came to. Every variant knows the store's revision after it ([`Reply::revision`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A tick was taken in.
    Tick {
        /// The store's revision.
        revision: u64,
    },
    /// Of a put.
    Put(PutReply),
    /// Of a delete.
    DeleteRange(DeleteRangeReply),
    /// Of a transaction.
    Txn(TxnReply),
    /// Compacted for clients.
    Compact {
        /// The store's revision.
        revision: u64,
    },
    /// A lease was granted.
    LeaseGrant {
        /// The store's revision.
        revision: u64,
        /// The lease.
        id: i64,
        /// The TTL it got, in seconds.
        ttl_s: i64,
    },
    /// Leases were revoked.
    LeaseRevoke {
        /// The store's revision after all of them.
        revision: u64,
        /// Those that were; the others are gone already or, on expiry, were renewed or wait for the next entry.
        revoked: Vec<i64>,
    },
    /// Leases were renewed.
    LeaseRenew {
        /// The store's revision.
        revision: u64,
        /// Each lease asked for with its TTL in seconds, 0 when there is no such lease.
        leases: Vec<(i64, i64)>,
    },
    /// An alarm was raised or lifted.
    Alarm {
        /// The store's revision.
        revision: u64,
        /// Member and etcd's `AlarmType`: what is raised now, or was until now; `None` when nothing matched.
        alarm: Option<(u64, i32)>,
    },
    /// `ClusterVersion`.
    ClusterVersion {
        /// The revision, unchanged.
        revision: u64,
    },
    /// A quota was set.
    QuotaSet {
        /// The store's revision.
        revision: u64,
    },
    /// A piece of a component was taken.
    BlobChunk {
        /// The store's revision.
        revision: u64,
        /// Pieces received so far, which is also the next to send.
        received: u32,
        /// All pieces are there.
        complete: bool,
    },
    /// A plugin was installed, upgraded, removed or controlled.
    Plugin {
        /// The store's revision.
        revision: u64,
        /// The generation in force, or the last one of a removed plugin.
        generation: u64,
    },
    /// A trigger's partition has a new owner.
    Assign {
        /// The store's revision.
        revision: u64,
        /// The owner's epoch.
        owner_epoch: u64,
    },
    /// Of a plugin's effect.
    Effect {
        /// The store's revision.
        revision: u64,
        /// What it came to.
        reply: EffectReply,
    },
    /// Cursors moved.
    CursorAdvance {
        /// The store's revision.
        revision: u64,
        /// How many; the others were stale.
        moved: u32,
    },
    /// Dead letters were dropped.
    DeadLetterDrop {
        /// The store's revision.
        revision: u64,
        /// How many.
        dropped: u32,
    },
    /// A join token was made.
    TokenCreate {
        /// The store's revision.
        revision: u64,
        /// When its time is over, in ms since 1970.
        expires_wall_ms: u64,
    },
    /// A join token was used.
    TokenUse {
        /// The store's revision.
        revision: u64,
        /// The id it gave.
        node_id: u64,
        /// The node had joined before.
        joined: bool,
    },
    /// A join token was removed.
    TokenRemove {
        /// The store's revision.
        revision: u64,
    },
    /// The authorities were changed.
    AuthoritySet {
        /// The store's revision.
        revision: u64,
        /// The epoch of those in force.
        epoch: u64,
    },
    /// A trigger was halted or let go on.
    TriggerControl {
        /// The store's revision.
        revision: u64,
        /// The epoch in force.
        owner_epoch: u64,
    },
    /// A task's run was noted, unless the trigger has gone on to another owner.
    TaskDone {
        /// The store's revision.
        revision: u64,
    },
    /// Refused; nothing changed but, for want of space, the NOSPACE alarm.
    Error {
        /// The store's revision.
        revision: u64,
        /// Why.
        error: Error,
    },
}

impl Reply {
    /// The store's revision after the command: the header's.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Put(reply) => reply.revision,
            Self::DeleteRange(reply) => reply.revision,
            Self::Txn(reply) => reply.revision,
            Self::Tick { revision }
            | Self::Compact { revision }
            | Self::LeaseGrant { revision, .. }
            | Self::LeaseRevoke { revision, .. }
            | Self::LeaseRenew { revision, .. }
            | Self::Alarm { revision, .. }
            | Self::QuotaSet { revision }
            | Self::ClusterVersion { revision }
            | Self::BlobChunk { revision, .. }
            | Self::Plugin { revision, .. }
            | Self::Assign { revision, .. }
            | Self::Effect { revision, .. }
            | Self::CursorAdvance { revision, .. }
            | Self::DeadLetterDrop { revision, .. }
            | Self::TokenCreate { revision, .. }
            | Self::TokenUse { revision, .. }
            | Self::TokenRemove { revision }
            | Self::AuthoritySet { revision, .. }
            | Self::TriggerControl { revision, .. }
            | Self::TaskDone { revision }
            | Self::Error { revision, .. } => *revision,
        }
    }

    /// Whether values must be fetched before the reply can be sent.
    pub fn has_holes(&self) -> bool {
        matches!(self, Self::Txn(txn) if txn.has_holes())
    }

    /// Fetches what memory did not hold, outside of any lock on the state.
    ///
    /// # Errors
    /// The first that `fetch` returns.
    pub fn fill<E>(&mut self, fetch: &mut impl FnMut(Rev) -> Result<Bytes, E>) -> Result<(), E> {
        match self {
            Self::Txn(txn) => txn.fill(fetch),
            _ => Ok(()),
        }
    }
}
