//! What a plugin author depends on: the store as [`Cx`], typed JSON events, `log`, and a harness that runs a plugin's logic in
//! plain `cargo test`.
//!
//! A plugin is a library crate (`crate-type = ["cdylib", "rlib"]`) with a `plugin.toml` beside its `Cargo.toml`:
//!
//! ```
//! use kvasir_guest::prelude::*;
//!
//! #[derive(serde::Deserialize)]
//! struct AppConfig {
//!     replicas: u32,
//! }
//!
//! #[kvasir_guest::reactor]
//! fn on_config(cx: &mut Cx, event: Event<AppConfig>) -> Outcome {
//!     log::info!("{} changed at revision {}", event.key, event.revision);
//!     let target = format!("/replicas/{}", event.name());
//!     match event.value() {
//!         Some(config) if config.replicas > 100 => bail_reject!("{} replicas are too many", config.replicas),
//!         Some(config) => cx.put_json(target, &config.replicas)?,
//!         None => cx.delete(target)?,
//!     }
//!     Ok(())
//! }
//!
//! // In a `#[test]`:
//! use kvasir_guest::testing::Harness;
//! let mut harness = Harness::reactor::<on_config>();
//! harness.put("/config/web", r#"{"replicas": 3}"#);
//! harness.put("/config/bad", r#"{"replicas": "three"}"#);
//! harness.run();
//! assert_eq!(harness.get_json("/replicas/web"), Some(3));
//! assert!(harness.dead_letters()[0].reason.contains("/config/bad"));
//! ```
//!
//! and is built with `cargo build --target wasm32-wasip2`. The component carries `plugin.toml` as its custom section
//! `kvasir:manifest`.
//!
//! - **What a handler stages is committed when it returns `Ok`**, in one entry with the trigger's cursor: exactly once. If
//!   something it read has changed meanwhile, it is run again on a newer snapshot, so it must not keep state elsewhere.
//! - **`?` on any error means "again later"**; [`bail_reject!`] means "never with this input". A value that does not decode is
//!   rejected with a message that names the key.
//! - **A panic is a trap**: it ends the run and nothing is committed; its message stands in the run's error and in the log.
//! - **Tests** use [`testing::Harness`], which keeps the same rules in memory.
//!
//! Invariant: handlers reach the world only through [`Cx`] and [`TaskCx`], so the same code runs in the host and in tests.

mod backend;
mod cx;
mod entry;
mod error;
mod event;
mod fault;
mod handler;
mod key;
mod logger;
mod scan;
mod task;

#[cfg(target_family = "wasm")]
#[doc(hidden)]
pub mod host;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use backend::{LeaseStatus, Position};
pub use cx::Cx;
pub use entry::{Entry, Payload, Raw};
pub use error::Error;
pub use event::{Batch, Change, Event, Resync};
pub use fault::{Fault, Outcome, ResultExt};
pub use handler::{Reactor, Task};
pub use key::{Key, Selection};
pub use kvasir_guest_macros::{reactor, task};
pub use log;
pub use scan::Scan;
pub use task::{Lease, Lock, TaskCx, Watch};

/// What the attributes' expansions call.
#[doc(hidden)]
pub mod __rt {
    pub use crate::handler::{each, page, replay, whole};
}

/// Everything a plugin usually names.
pub mod prelude {
    pub use crate::{
        Batch, Change, Cx, Entry, Event, Fault, Key, Outcome, Raw, ResultExt, Resync, Selection, TaskCx, bail_reject,
        bail_retry, log,
    };
}
