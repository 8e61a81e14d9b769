//! The engine through its API, with real consensus and storage underneath, on disk. One binary, so that it is linked once.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cluster;
mod kv;
mod lease;
mod lock;
mod plugin;
mod space;
#[path = "../support/mod.rs"]
mod support;
mod watch;
