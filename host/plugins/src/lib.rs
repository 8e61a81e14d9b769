//! Hosts users' WebAssembly components: installs them through the raft log, compiles them in the background, and runs their
//! reactors and tasks on this node with effects that replicate.
//!
//! Reading order: [`PluginHost`] is the door the node uses. `manifest`, `inspect`, `grants` and `install` decide what may be
//! installed, `installed` is what is replicated of it. `wasm`, `compile`, `linker` and `program` turn bytes into code; `imports` is
//! what a guest can call; `run` is one call of a guest under its limits, `view` what it sees and stages, `stop` why it was stopped.
//! `reactor` and `schedule` decide when to run and what becomes of the outcome; `supervisor` keeps plugins in step with the
//! replicated registry, `placement` says which node runs which trigger, and `tenure` runs those that are this node's.
//!
//! **Invariant:** a guest never runs inside `apply`, on a server thread or while a lock of the host is held; what it did reaches
//! the store only as one `EffectTxn` command.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail where it stands"))]

mod active;
mod advance;
mod bindings;
mod board;
mod compile;
mod grants;
mod held;
mod host;
mod imports;
mod inspect;
mod install;
mod installed;
mod linker;
mod logs;
mod manifest;
mod members;
mod meter;
mod placement;
mod plan;
mod program;
mod reactor;
mod run;
mod schedule;
mod slots;
mod stop;
mod store;
mod supervisor;
mod tenure;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod view;
mod wasm;

pub use host::{PluginHost, PluginHostOptions, PluginMetrics, StartError};
pub use logs::{LogFollow, LogTail};
pub use wasm::THREAD_NAME_PREFIX;
