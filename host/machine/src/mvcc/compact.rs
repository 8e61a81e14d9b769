//! Compaction: at once for clients, in apply; bounded and later for memory and the state file, outside of it.
//!
//! *Logical*: `Compact{revision}` moves the revision below which nobody reads. *Physical*: versions that nobody at or above the
//! **retention floor** needs are forgotten. The floor is the compact revision, or the lowest cursor of an active watch trigger if
//! that is lower: such a trigger still wants the changes from there on. A cursor that would hold back more than the budget
//! (`CURSOR_HOLD_REVISIONS_MAX`, `CURSOR_HOLD_BYTES_MAX`) is declared lost by the compaction itself, on every replica alike.
//!
//! The trimming need not look at every key: whoever makes garbage notes it in a queue in order of revision, and a slice takes from
//! the queue's front what the floor has passed.
//!
//! **Contract with the state file.** The revisions that [`State::compact_slice`] returns are deleted in the order given, or in one
//! transaction, and *behind* every batch that was applied before the slice was taken: a tombstone must not vanish before the
//! versions it ends, nor a version before the row that replaces it is in the file.

use std::collections::VecDeque;

use bytes::Bytes;
use kvasir_api::Error;

use crate::{Effects, Reply, Rev, Row, State, Table, table};

/// How far a trimming has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompactProgress {
    /// The retention floor that the last slice worked at.
    pub floor: u64,
    /// Nothing is left to trim at that floor.
    pub done: bool,
}

#[derive(Debug, Clone)]
struct Note {
    main: u64,
    tenant: u64,
    key: Bytes,
}

/// What may be trimmed one day, and how far trimming has gone. Local: replicas trim each at its own pace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trim {
    /// Versions that were replaced at `main`: garbage once the floor is there.
    replaced: VecDeque<Note>,
    /// Tombstones written at `main`: garbage once the floor is past.
    tombstones: VecDeque<Note>,
    floor: u64,
}

impl Trim {
    /// Takes note of a row that was just added to the index, in order of history.
    pub(crate) fn note(&mut self, row: &Row) {
        let note = || Note { main: row.rev.main, tenant: row.tenant, key: row.key.clone() };
        if row.prev.is_some() {
            self.replaced.push_back(note());
        }
        if row.tombstone {
            self.tombstones.push_back(note());
        }
    }

    /// The queue whose front the floor has passed.
    fn due(&mut self, floor: u64) -> Option<&mut VecDeque<Note>> {
        if self.replaced.front().is_some_and(|note| note.main <= floor) {
            return Some(&mut self.replaced);
        }
        if self.tombstones.front().is_some_and(|note| note.main < floor) { Some(&mut self.tombstones) } else { None }
    }
}

#[cfg(test)]
impl Trim {
    pub(crate) fn capacity(&self) -> usize {
        self.replaced.capacity() + self.tombstones.capacity()
    }
}

/// Gives memory back that a queue does not need any more, now and then.
fn shrink<T>(queue: &mut VecDeque<T>) {
    if queue.len() < queue.capacity() / 4 {
        queue.shrink_to(queue.len() * 2);
    }
}

impl State {
    /// Changes from here on are all there, in the state file and its tail; below, they may be gone. For readers of history that are
    /// not clients: clients are held to [`State::compact_revision`].
    pub fn retention_floor(&self) -> u64 {
        let compacted = self.compact_revision();
        self.registry.holding_cursors().map(|cursor| cursor.main).fold(compacted, u64::min)
    }

    /// Forgets what nobody at or above the retention floor needs, at most `versions_max` versions of `keys_max` keys, and returns the
    /// rows that may be deleted from history. To be called until `progress.done`, after a compaction and after cursors moved. Local: does not change
    /// what any reply says. See the module's contract on the order of deletion.
    pub fn compact_slice(&mut self, progress: &mut CompactProgress, keys_max: usize, versions_max: usize) -> Vec<Rev> {
        let floor = self.retention_floor();
        assert!(floor >= self.trim.floor, "the retention floor never goes back");
        self.trim.floor = floor;
        *progress = CompactProgress { floor, done: false };
        let mut dropped = Vec::new();
        for _ in 0..keys_max {
            let Some(queue) = self.trim.due(floor) else {
                progress.done = true;
                break;
            };
            let Some(note) = queue.pop_front() else { break };
            let versions_left = versions_max.max(1) - dropped.len();
            let Some(space) = self.spaces.get_mut(&note.tenant) else { continue };
            // What is noted as a tombstone may live again meanwhile.
            let record = match space.dead.get_mut(&note.key) {
                Some(record) => Some(record),
                None => space.live.get_mut(&note.key),
            };
            let Some(record) = record else { continue };
            let droppable = record.droppable(floor);
            let older = droppable.min(record.older.len()).min(versions_left);
            dropped.extend(record.older.drain(..older).map(|version| version.rev));
            shrink(&mut record.older);
            if droppable > versions_left {
                // The rest of it comes first in the next slice.
                queue.push_front(note);
                break;
            }
            if droppable > older {
                assert!(record.head.tombstone, "a live key is never trimmed");
                dropped.push(record.head.rev);
                space.dead.remove(&note.key);
            }
            if dropped.len() >= versions_max.max(1) {
                break;
            }
        }
        shrink(&mut self.trim.replaced);
        shrink(&mut self.trim.tombstones);
        dropped
    }

    /// Whether [`State::compact_slice`] would find something.
    pub fn has_garbage(&self) -> bool {
        let floor = self.retention_floor();
        self.trim.replaced.front().is_some_and(|note| note.main <= floor)
            || self.trim.tombstones.front().is_some_and(|note| note.main < floor)
    }

    pub(crate) fn apply_compact(&mut self, revision: i64, effects: &mut Effects) -> Result<Reply, Error> {
        // etcd's compact revision is -1 at first, so that 0 is legal once.
        let last = self.meta.compacted.map_or(-1, |compacted| compacted as i64);
        if revision <= last {
            return Err(Error::Compacted);
        }
        let revision = revision as u64;
        if revision > self.revision() {
            return Err(Error::FutureRevision);
        }
        self.meta.compacted = Some(revision);
        let totals = self.totals_at(revision);
        // A mark may be older than the last compaction's exact totals.
        let before = &mut self.meta.at_compaction;
        before.history_bytes = before.history_bytes.max(totals.history_bytes);
        before.old_versions = before.old_versions.max(totals.old_versions);
        self.lose_laggards(revision, effects);
        self.forget_marks(effects);
        effects.compacted = Some(revision);
        Ok(Reply::Compact { revision: self.revision() })
    }

    /// Declares triggers lost whose cursors would hold back too much history. Their epoch ends with it: a run that read history
    /// which is gone on another node cannot land any more.
    fn lose_laggards(&mut self, compacted: u64, effects: &mut Effects) {
        let (hold, until) = (self.hold, self.meta.at_compaction.history_bytes);
        let lost: Vec<_> = self
            .registry
            .triggers
            .iter()
            .filter(|(_, trigger)| trigger.holds_history() && trigger.record.cursor.main < compacted)
            .filter(|(_, trigger)| {
                let from = trigger.record.cursor.main;
                let bytes = until.saturating_sub(self.totals_at(from).history_bytes);
                compacted - from > hold.revisions_max || bytes > hold.bytes_max
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in lost {
            self.change_trigger(&key, effects, |trigger, epoch| {
                trigger.state = trigger.state.losing();
                trigger.owner_epoch = epoch;
            });
        }
    }

    /// Marks below the floor have one use left: the last of them tells the totals there.
    fn forget_marks(&mut self, effects: &mut Effects) {
        let Some((&last, _)) = self.marks.range(..=self.retention_floor()).next_back() else { return };
        let kept = self.marks.split_off(&last);
        for revision in std::mem::replace(&mut self.marks, kept).into_keys() {
            effects.delete(Table::Meta, table::numbered_key(table::META_MARK, revision));
        }
    }
}
