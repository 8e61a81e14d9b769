//! Changes of a range from a cursor on, which may stand within a revision.
//!
//! **Invariant:** history is given out only up to what is applied and stored, in order, every change of the range once; reading it
//! batch by batch costs as much as it holds, however large a revision is.

use std::io;
use std::sync::Arc;

use kvasir_api::Error;
use kvasir_api::limits::{HISTORY_PIECES_MAX, HISTORY_READ_BYTES_MAX, HISTORY_READ_ROWS_MAX};
use kvasir_machine::{Change, Rev, Row};

use crate::caller::KeyRange;
use crate::engine::Engine;

/// Rows of the first such read at least; twice as many each time.
const PIECE_ROWS_MIN: usize = 256;
const PIECE_BYTES_MIN: usize = 256 << 10;

/// Changes from a cursor on.
#[derive(Debug, Clone, Default)]
pub struct HistoryBatch {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// The next change to look at: the cursor after these. Within the last change's revision only if more of it is wanted.
    pub next: Rev,
    /// Everything up to `revision` was looked at; otherwise there may be more from `next` on.
    pub whole: bool,
    /// The applied revision that was looked up to.
    pub revision: u64,
}

impl Engine {
    /// Changes of a range in order, from `from` (included) up to what is applied. At most `max_events` changes and about
    /// `max_bytes` bytes of keys and values, at least one change if there is any; with `with_prev` each with the version it
    /// replaced, which counts too, as far as that is still there.
    ///
    /// # Errors
    /// `Compacted` when history from there on is no longer whole; a disk fault.
    pub async fn history(
        &self,
        from: Rev,
        range: &KeyRange,
        tenant: u64,
        max_events: usize,
        max_bytes: usize,
        with_prev: bool,
    ) -> Result<HistoryBatch, Error> {
        let to = self.revision();
        let mut taking = Taking {
            range: range.clone(),
            tenant,
            max_events,
            max_bytes,
            with_prev,
            to,
            changes: Vec::new(),
            bytes: 0,
            next: from,
            full: false,
        };
        let (mut pieces, mut rows_max) = (0, max_events.clamp(PIECE_ROWS_MIN, HISTORY_READ_ROWS_MAX));
        while !taking.full && taking.next.main <= to && (pieces < HISTORY_PIECES_MAX || taking.ends_within_a_revision()) {
            taking = self.history_piece(taking, rows_max).await?;
            pieces += 1;
            rows_max = (rows_max * 2).min(HISTORY_READ_ROWS_MAX);
        }
        let Taking { changes, next, .. } = taking;
        Ok(HistoryBatch { changes, next, whole: next.main > to, revision: to })
    }

    /// Looks at the next rows, from memory as far as they are there.
    async fn history_piece(&self, mut taking: Taking, rows_max: usize) -> Result<Taking, Error> {
        let from = taking.next;
        if let Some((events, next)) = self.inner().feed.hub.recent(from, rows_max) {
            for event in &events {
                let prev = || Ok(event.change().prev.clone());
                if !taking.take(event.row(), prev).map_err(|error| Error::Internal(error.to_string()))? {
                    return Ok(taking);
                }
            }
            taking.next = next.min(Rev::start_of(taking.to + 1)).max(taking.next);
            return Ok(taking);
        }
        self.inner().counters.history_reads.add(1);
        let taking = self
            .blocking(move |store| {
                let bytes_max = taking.max_bytes.clamp(PIECE_BYTES_MIN, HISTORY_READ_BYTES_MAX);
                let rows = store.rows(from, taking.to, rows_max, bytes_max)?;
                if rows.is_empty() {
                    taking.next = Rev::start_of(taking.to + 1);
                }
                for row in &rows {
                    if !taking.take(row, || row.prev.map_or(Ok(None), |prev| store.row(prev)))? {
                        break;
                    }
                }
                Ok(taking)
            })
            .await?;
        // Asked after reading: what was whole then was whole while it was read.
        if from.main < self.consensus().state().read().retention_floor() {
            return Err(Error::Compacted);
        }
        Ok(taking)
    }
}

/// A batch that is being filled.
struct Taking {
    range: KeyRange,
    tenant: u64,
    max_events: usize,
    max_bytes: usize,
    with_prev: bool,
    /// The last revision to look at.
    to: u64,
    changes: Vec<Change>,
    bytes: usize,
    next: Rev,
    full: bool,
}

impl Taking {
    /// Looks at the next row. False when the batch is full, and the row is the next one's.
    fn take(&mut self, row: &Arc<Row>, prev: impl FnOnce() -> io::Result<Option<Arc<Row>>>) -> io::Result<bool> {
        if row.rev < self.next {
            return Ok(true);
        }
        if row.rev.main > self.to {
            self.next = Rev::start_of(self.to + 1);
            return Ok(false);
        }
        if row.tenant == self.tenant && self.range.contains_key(&row.key) {
            let weight = |row: &Row| row.key.len() + row.value.len();
            let mut bytes = self.bytes + weight(row);
            // The version it replaced is fetched only for what is taken.
            if self.is_full(bytes) {
                return Ok(self.end_at(row.rev));
            }
            let prev = if self.with_prev { prev()? } else { None };
            bytes += prev.as_deref().map_or(0, weight);
            if self.is_full(bytes) {
                return Ok(self.end_at(row.rev));
            }
            self.bytes = bytes;
            self.changes.push(Change { row: Arc::clone(row), prev });
        }
        self.next = Rev { main: row.rev.main, sub: row.rev.sub.saturating_add(1) };
        Ok(true)
    }

    fn is_full(&self, bytes: usize) -> bool {
        !self.changes.is_empty() && (self.changes.len() >= self.max_events || bytes > self.max_bytes)
    }

    fn end_at(&mut self, next: Rev) -> bool {
        self.next = next;
        self.full = true;
        false
    }

    /// Whether more of the last change's revision is to be looked at.
    fn ends_within_a_revision(&self) -> bool {
        self.changes.last().is_some_and(|last| last.row.rev.main == self.next.main)
    }
}
