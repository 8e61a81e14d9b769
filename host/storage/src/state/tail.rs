//! What was applied and is not in the state file yet; readers are served from it.
//!
//! **Invariant:** a row leaves the tail only after the commit that put it into the file can be seen by readers. So whoever looks
//! at the tail first and at the file then misses nothing, and what both have is the same.

use super::{Applied, AppliedBatch};
use bytes::Bytes;
use kvasir_machine::{Rev, Row, TableOp};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// One applied batch without its rows, which are in the tail's own list.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) tables: Vec<TableOp>,
    applied: Applied,
    rows: usize,
    bytes: usize,
}

/// The tail. Batches are numbered from 1 in the order they came.
#[derive(Debug, Default)]
pub(super) struct Tail {
    rows: VecDeque<Arc<Row>>,
    batches: VecDeque<Arc<Batch>>,
    /// Number of the newest batch pushed, and of the newest in the file.
    pub(super) pushed: u64,
    pub(super) filed: u64,
    /// The newest value of each small row that a batch in the tail touched, and that batch's number.
    overlay: BTreeMap<Vec<u8>, (u64, Option<Bytes>)>,
    bytes: usize,
    /// Rows to delete, each once the batch of that number is in the file.
    deletes: VecDeque<(u64, Rev)>,
}

/// What one commit takes.
pub(super) struct Slice {
    pub(super) rows: Vec<Arc<Row>>,
    pub(super) batches: Vec<Arc<Batch>>,
    pub(super) gone: Vec<Rev>,
    pub(super) applied: Option<Applied>,
    pub(super) bytes: usize,
}

impl Slice {
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.gone.is_empty()
    }
}

impl Tail {
    /// What a row counts for in the bounds, in bytes.
    pub(super) fn weight(row: &Row) -> usize {
        row.key.len() + row.value.len() + size_of::<Row>()
    }

    pub(super) fn push(&mut self, batch: AppliedBatch) {
        self.pushed += 1;
        let rows = batch.changes.len();
        let mut bytes = 0;
        for change in batch.changes {
            bytes += Self::weight(&change.row);
            debug_assert!(self.rows.back().is_none_or(|last| last.rev < change.row.rev), "history ascends");
            self.rows.push_back(change.row);
        }
        for op in &batch.tables {
            bytes += op.key.len() + op.value.as_ref().map_or(0, Bytes::len) + size_of::<TableOp>();
            let key = super::file::table_key(op.table, &op.key);
            self.overlay.insert(key, (self.pushed, op.value.clone()));
        }
        self.bytes += bytes;
        let applied = Applied { log_id: Some(batch.log_id), membership: batch.membership };
        self.batches.push_back(Arc::new(Batch { tables: batch.tables, applied, rows, bytes }));
    }

    pub(super) fn delete(&mut self, revs: Vec<Rev>) {
        let after = self.pushed;
        self.deletes.extend(revs.into_iter().map(|rev| (after, rev)));
    }

    /// The oldest batches, whole, until there are `rows_max` rows, and deletions that are due once these are in the file.
    pub(super) fn slice(&self, rows_max: usize, deletes_max: usize) -> Slice {
        let (mut rows, mut bytes, mut batches) = (0, 0, Vec::new());
        let mut applied: Option<Applied> = None;
        for batch in &self.batches {
            if rows >= rows_max {
                break;
            }
            rows += batch.rows;
            bytes += batch.bytes;
            let membership = batch.applied.membership.clone().or(applied.and_then(|applied| applied.membership));
            applied = Some(Applied { log_id: batch.applied.log_id, membership });
            batches.push(batch.clone());
        }
        let filed = self.filed + batches.len() as u64;
        let due = self.deletes.iter().take(deletes_max).take_while(|(after, _)| *after <= filed);
        let gone = due.map(|(_, rev)| *rev).collect();
        Slice { rows: self.rows.iter().take(rows).cloned().collect(), batches, gone, applied, bytes }
    }

    /// A slice is in the file.
    pub(super) fn settle(&mut self, slice: &Slice) {
        self.rows.drain(..slice.rows.len());
        self.batches.drain(..slice.batches.len());
        self.deletes.drain(..slice.gone.len());
        self.filed += slice.batches.len() as u64;
        self.bytes -= slice.bytes;
        for op in slice.batches.iter().flat_map(|batch| &batch.tables) {
            let key = super::file::table_key(op.table, &op.key);
            if self.overlay.get(&key).is_some_and(|(number, _)| *number <= self.filed) {
                self.overlay.remove(&key);
            }
        }
    }

    /// Forgets everything: the file was replaced by a newer one.
    pub(super) fn clear(&mut self) {
        *self = Self { pushed: self.pushed, filed: self.pushed, ..Self::default() };
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn row_count(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(super) fn pending_deletes(&self) -> usize {
        self.deletes.len()
    }

    /// Deletions are waiting, and nothing that must be in the file before them is.
    pub(super) fn deletes_due(&self) -> bool {
        self.deletes.front().is_some_and(|(after, _)| *after <= self.filed)
    }

    /// The first revision in the tail; everything before it is in the file.
    pub(super) fn first(&self) -> Option<Rev> {
        self.rows.front().map(|row| row.rev)
    }

    pub(super) fn row(&self, rev: Rev) -> Option<Arc<Row>> {
        self.rows.binary_search_by_key(&rev, |row| row.rev).ok().and_then(|at| self.rows.get(at).cloned())
    }

    /// Rows from `from` on, not past revision `to_main`, until there are `max_rows` of them or they weigh `max_bytes`.
    pub(super) fn rows(&self, from: Rev, to_main: u64, max_rows: usize, max_bytes: usize) -> Vec<Arc<Row>> {
        let start = self.rows.partition_point(|row| row.rev < from);
        let mut bytes = 0;
        let mut rows = Vec::new();
        for row in self.rows.range(start..) {
            if row.rev.main > to_main || rows.len() >= max_rows || bytes >= max_bytes {
                break;
            }
            bytes += Self::weight(row);
            rows.push(row.clone());
        }
        rows
    }

    /// What the tail says of a small row: `None` nothing, `Some(None)` deleted.
    pub(super) fn small(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.overlay.get(key).map(|(_, value)| value.clone())
    }

    /// What the tail says of the small rows from `start` on whose keys start with `prefix`, in order.
    pub(super) fn small_from<'a>(
        &'a self,
        prefix: &'a [u8],
        start: &Bound<Vec<u8>>,
    ) -> impl Iterator<Item = (&'a Vec<u8>, &'a Option<Bytes>)> {
        self.overlay
            .range((start.clone(), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, (_, value))| (key, value))
    }
}
