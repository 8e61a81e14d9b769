//! `watch`: a cursor over changes that a task pulls.

use std::time::Duration;

use kvasir_engine::{Access, KeyRange};
use kvasir_machine::Rev;
use wasmtime::component::Resource;

use super::types::{event, range, refusal};
use crate::bindings::kvasir::plugin::types as wit;
use crate::bindings::kvasir::plugin::watch::{Host, HostCursor, Position};
use crate::run::Run;

/// Bytes of events in one answer, and how many events.
const EVENT_BYTES_MAX: usize = 1 << 20;
const EVENTS_MAX: u32 = 1_024;
/// No wait is longer than the longest run.
const WAIT_MS_MAX: u64 = 3_600_000;

/// The host's side of a guest's cursor.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Cursor {
    keys: KeyRange,
    next: Rev,
}

type Answer<T> = wasmtime::Result<Result<T, wit::Error>>;

impl Host for Run {}

impl HostCursor for Run {
    async fn open(&mut self, what: wit::Selection, start: Option<Position>) -> Answer<Resource<Cursor>> {
        self.charge()?;
        let keys = match self.may_watch(what) {
            Ok(keys) => keys,
            Err(error) => return Ok(Err(error)),
        };
        let next = match start {
            Some(Position { revision, sub }) => Rev { main: revision, sub },
            None => Rev { main: self.view.revision() + 1, sub: 0 },
        };
        let cursor = self.table.push(Cursor { keys, next })?;
        Ok(Ok(cursor))
    }

    async fn next(&mut self, cursor: Resource<Cursor>, max_events: u32, wait_ms: u64) -> Answer<Vec<wit::Event>> {
        self.charge()?;
        let Cursor { keys, next } = self.table.get(&cursor)?;
        let (keys, mut at) = (keys.clone(), *next);
        let max_events = max_events.clamp(1, EVENTS_MAX) as usize;
        let mut revisions = self.facts.store.revisions();
        let deadline = tokio::time::Instant::now() + Duration::from_millis(wait_ms.min(WAIT_MS_MAX));
        let events = loop {
            revisions.mark_unchanged();
            // For a task compaction counts at once, as for clients: what is kept for triggers is not for it to rely on.
            let compacted = self.facts.store.compact_revision();
            if at.main <= compacted {
                return Ok(Err(wit::Error::Compacted(compacted)));
            }
            let batch =
                match self.facts.store.history(at, &keys, self.facts.caller.tenant, max_events, EVENT_BYTES_MAX, false).await {
                    Ok(batch) => batch,
                    Err(error) => {
                        let refused = Err(refusal(&error, "the range", compacted));
                        return Ok(self.noting(refused));
                    }
                };
            at = batch.next;
            if !batch.changes.is_empty() || self.facts.cancel.is_cancelled() {
                break batch.changes.iter().map(event).collect();
            }
            tokio::select! {
                changed = revisions.changed() => if changed.is_err() { break Vec::new() },
                () = tokio::time::sleep_until(deadline) => break Vec::new(),
                () = self.facts.cancel.cancelled() => break Vec::new(),
            }
        };
        self.table.get_mut(&cursor)?.next = at;
        Ok(Ok(events))
    }

    async fn position(&mut self, cursor: Resource<Cursor>) -> wasmtime::Result<Position> {
        self.charge()?;
        let Rev { main, sub } = self.table.get(&cursor)?.next;
        Ok(Position { revision: main, sub })
    }

    async fn drop(&mut self, cursor: Resource<Cursor>) -> wasmtime::Result<()> {
        self.table.delete(cursor)?;
        Ok(())
    }
}

impl Run {
    fn may_watch(&self, what: wit::Selection) -> Result<KeyRange, wit::Error> {
        if self.task.is_none() {
            return Err(wit::Error::Unsupported("a cursor is for tasks: a reactor's changes come to it".to_owned()));
        }
        let keys = range(what)?;
        self.allow(Access::Read, &keys)?;
        Ok(keys)
    }
}
