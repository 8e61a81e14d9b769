//! The raft log, the state file and the disk seam under both.
//!
//! Blocking calls and threads of its own; no async, and nothing of raft but its vocabulary. The formats stand byte by byte in
//! `docs/storage.md`.
//!
//! **Invariant:** what was acknowledged as durable is found again after a power cut at any moment, or opening fails with an
//! error that says where the damage is.

pub mod disk;
mod error;
#[cfg(test)]
mod fixture;
pub mod folder;
pub mod log;
pub mod snapshot;
pub mod state;
mod thread;

pub use error::StorageError;

use std::sync::Arc;

/// Told once the error after which a log or store takes nothing more; the process should end with its text.
pub type FatalHandler = Arc<dyn Fn(&StorageError) + Send + Sync>;
