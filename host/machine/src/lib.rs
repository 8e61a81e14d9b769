//! The replicated state machine: everything that kvasir agrees on. Pure: no clock, I/O, randomness, floats, hash maps, threads.
//!
//! A [`State`] is driven, it never drives. Three kinds of calls:
//!
//! - **Apply**, in the order of the log, by one caller. Before each entry ask [`check_version`]; if it refuses, the node must stop.
//!   Then [`State::apply`] with the entry's [`EntryId`]. A batch of commands shares one [`Effects`]; when the batch is through, its
//!   `changes` and [`Effects::take_tables`] go to storage as one atomic unit, and the changes to whoever watches. Replies are ready at once but
//!   for holes ([`Reply::has_holes`]): values of old revisions, to be fetched by [`Reply::fill`] after the lock on the state is
//!   released.
//! - **Read**, by anyone under a shared lock: [`State::range`], [`State::range_slice`] for long scans, [`State::read_txn`], leases,
//!   registry, quotas. Nothing here says whether the read is linearizable: that is decided before.
//! - **Trim**, now and then, by one caller: [`State::compact_slice`] forgets a bounded number of versions that nobody needs and says
//!   which rows of history may be deleted. Its order matters: see `mvcc/compact.rs`.
//!
//! After a restart, [`State::restore`] takes the rows that storage has, and the log from there on is applied.
//!
//! Time: the state knows the *stamps* that commands carried. [`State::cluster_ms`] is the last; the caller adds what it has measured
//! since, asks [`State::expired`] with the sum and proposes a revocation, which is refused if it comes too early after all.
//!
//! Formats: `row.rs` has the bytes of a history row, `table.rs` those of the small tables, `codec.rs` their alphabet.
//!
//! **Invariant:** two states that applied the same commands are equal ([`State::digest`]); so is one restored from the rows that the
//! other's effects made.

mod apply;
mod authority;
mod blob;
mod codec;
mod cursor;
mod digest;
mod effect;
mod effects;
mod found;
mod lease;
mod mvcc;
mod quota;
mod registry;
mod reply;
mod restore;
mod rev;
mod row;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod token;
mod version;

pub use apply::{COMMAND_VERSION, EntryId, UnsupportedCommand, check_version};
pub use authority::Authorities;
pub use blob::{BlobRecord, Digest};
pub use codec::FormatError;
pub use effects::{Change, Effects, TableOp};
pub use found::Founding;
pub use lease::LeaseView;
pub use mvcc::check::{check_delete_range, check_put, check_range, check_txn};
pub use mvcc::compact::CompactProgress;
pub use mvcc::range::Slice;
pub use registry::{PluginRecord, PluginState, TriggerKind, TriggerRecord, TriggerState};
pub use reply::{
    ByValue, DeleteRangeReply, EffectReply, Item, OpReply, PutReply, RangeReply, Rejection, Reply, TxnReply, ValueSlot,
};
pub use restore::Restore;
pub use rev::{DEFAULT_TENANT, Rev};
pub use row::Row;
pub use state::State;
pub use table::{DeadLetterRecord, Table, blob_chunk_key, dead_letter_key, read_dead_letter_key};
pub use token::{TokenRecord, TokenUsed};
pub use version::{FIRST_CLUSTER_VERSION, command_version};
