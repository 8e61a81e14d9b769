//! Consensus: one openraft group under kvasir's log, machine and state file.
//!
//! [`Consensus::start`] opens the data folder, replays, elects and hands out the running node; [`Consensus::propose`] takes a
//! command to its reply, [`Consensus::read_index`] makes a read linearizable, [`Publish`] tells the layer above what was applied.
//! How the parts meet openraft: `log` is its log storage, `machine` its state machine, `peer` its way to the other members, `kinds` its types.
//!
//! **Invariant:** this crate alone imports openraft, and nothing of openraft appears in its interface.

mod blocking;
mod checkpoint;
mod clock;
mod consensus;
mod export;
mod fatal;
mod force;
mod forward;
mod gauge;
mod identity;
mod kinds;
mod log;
mod machine;
mod members;
mod membership;
mod mutant;
mod options;
mod peer;
mod proposed;
mod publish;
mod read;
mod restore;
mod snapshot;
mod standing;
mod status;

pub use blocking::blocking;
pub use clock::{Clock, WallClock};
pub use consensus::Consensus;
pub use export::Export;
pub use identity::{cluster_id, node_id};
pub use members::was_started;
pub use membership::{Member, MemberInfo};
#[doc(hidden)]
pub use mutant::Mutant;
pub use options::{Boot, ConsensusOptions, PeerOptions, StartError};
pub use peer::{Attendant, PeerDoor};
pub use publish::{Publish, Published};
pub use restore::{Restored, restore};
pub use status::Status;

#[cfg(test)]
mod tests;
