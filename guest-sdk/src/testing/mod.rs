//! A stand-in for the host: plugin logic under plain `cargo test`, without wasm and without a node.
//!
//! [`Harness`] reads the crate's `plugin.toml` by the host's own parser, so a test also shows that the grants suffice and that the limits
//! hold. It keeps the rules that a plugin can observe: a reactor's writes become visible only if it returns `Ok`, in one revision
//! with the cursor; reads come from one snapshot; what was read guards the commit; a task commits explicitly and not without its
//! lock. And it does on demand what is rare in the field: a crash before the commit, a redelivery, a resync, a writer that
//! interferes, a host call that fails, a clock that jumps.
//!
//! The [crate's](crate) example has a test in it.
//!
//! Invariant: single-threaded and deterministic; it never sleeps. A misuse of the harness panics with a reason, as a test should.

mod harness;
mod manifest;
mod run;
mod store;
mod world;

use std::cell::RefCell;

pub use harness::{DeadLetter, Harness, Ran};
pub use run::Call;
pub use store::Writes;

/// A line that the plugin logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Its level.
    pub level: log::Level,
    /// Its target: the module by default.
    pub target: String,
    /// Its text.
    pub message: String,
}

/// Lines kept per thread; older ones go.
const LINES_MAX: usize = 10_000;

thread_local! {
    // Tests run on threads of their own, and so do their handlers.
    static LINES: RefCell<Vec<LogLine>> = const { RefCell::new(Vec::new()) };
}

/// Keeps a line for [`Harness::logs`].
pub(crate) fn capture(level: log::Level, target: &str, message: &str) {
    LINES.with_borrow_mut(|lines| {
        if lines.len() == LINES_MAX {
            lines.remove(0);
        }
        lines.push(LogLine { level, target: target.to_owned(), message: message.to_owned() });
    });
}
