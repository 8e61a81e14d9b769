//! Moves idle cursors together: what a trigger passed over without an effect is recorded now and then, for all triggers in one entry.
//!
//! **Invariant:** losing a move costs reading some history again, never an event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kvasir_api::command::{Cursor, CursorAdvance, cursor_advance};
use kvasir_machine::Rev;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// Time between two entries.
const INTERVAL: Duration = Duration::from_secs(1);

/// Collects moves.
#[derive(Clone, Default)]
pub(crate) struct Advancer(Arc<Mutex<BTreeMap<(String, String), cursor_advance::Move>>>);

impl Advancer {
    /// Asks for a trigger's cursor to be moved from `expect` to `to`; replaces what was asked before.
    pub(crate) fn ask(&self, plugin: &str, trigger: &str, owner_epoch: u64, expect: Rev, to: Rev) {
        let step = cursor_advance::Move {
            plugin: plugin.to_owned(),
            trigger: trigger.to_owned(),
            partition: 0,
            owner_epoch,
            expect: Some(cursor(expect)),
            to: Some(cursor(to)),
        };
        self.0.lock().insert((plugin.to_owned(), trigger.to_owned()), step);
    }

    /// Takes back what was asked, before an effect moves the cursor.
    pub(crate) fn cancel(&self, plugin: &str, trigger: &str) {
        self.0.lock().remove(&(plugin.to_owned(), trigger.to_owned()));
    }

    /// Proposes what was asked, until cancelled.
    pub(crate) async fn run(self, store: Store, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = cancel.cancelled() => return,
            }
            let moves: Vec<_> = std::mem::take(&mut *self.0.lock()).into_values().collect();
            if moves.is_empty() {
                continue;
            }
            if let Err(error) = store.advance(CursorAdvance { moves }).await {
                tracing::debug!(%error, "idle plugin cursors stay where they are for now");
            }
        }
    }
}

/// A revision as the command has it.
pub(crate) fn cursor(rev: Rev) -> Cursor {
    Cursor { main: rev.main, sub: rev.sub }
}
