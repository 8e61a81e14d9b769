//! Raft's messages between nodes: how they are written, sent and served.
//!
//! Appends and heartbeats go over long-lived streams, many requests in flight, answered in order; votes and transfers over a
//! stream each; a snapshot as a file.
//!
//! **Invariants:** an entry goes out as the bytes it has in the log; bytes from a peer are a message or an error, never a panic;
//! what cannot be delivered is reported so, and nothing is delivered twice.

mod client;
mod inbound;
mod snapshot;
mod wire;

pub(crate) use client::{Alone, Peers};
pub(crate) use inbound::Running;
pub use inbound::{Attendant, PeerDoor};
pub(crate) use wire::{invalid, message};
