//! What a guest can call: one file for each interface of the contract. Each call is counted first, then checked, then done.
//!
//! **Invariant:** no call reaches a key that the engine's `authorise` did not allow for this plugin.

pub(crate) mod context;
pub(crate) mod kv;
pub(crate) mod lease;
pub(crate) mod lock;
pub(crate) mod log;
pub(crate) mod stdio;
pub(crate) mod task;
pub(crate) mod types;
pub(crate) mod watch;
