//! The oracle of the crash tests: what clients were told, and whether a store that came back still keeps every word of it.
//!
//! Each [`Writer`] owns a range of keys and sends one request at a time, so what its keys must be is known at every moment, but
//! for the one request that was on its way when the store died. Because revisions are dense (etcd: one for each request that
//! changed something) the whole history can be checked revision by revision, [`Oracle::verify`]:
//!
//! 1. revisions are dense and never go back below anything a client has seen;
//! 2. the history at an acknowledged revision is exactly what the acknowledged request does, event by event;
//! 3. any other revision is exactly one whole request that was on its way, each at most once;
//! 4. folding the history with a naive model of etcd's rules gives exactly the state that a range shows;
//! 5. leases are there or not, with the keys they must have.
//!
//! Real-time order: an acknowledged write's revision is above every revision that was acknowledged before it was sent.
//!
//! **Invariant:** the oracle only knows etcd's interface; the same oracle judges a process over gRPC and an engine in memory.

mod door;
mod model;
mod writer;

pub use door::{Door, Refusal};
pub use model::{Edit, Model, Oracle};
pub use writer::{Floor, Step, Writer};
