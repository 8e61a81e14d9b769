//! What the records up to some place of the log amount to; the writer and recovery step through it alike.

use super::entry::{LogId, LogState, Vote};
use super::record::Record;

/// The log's state after a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct View {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
}

impl View {
    /// Takes one record in; `Err` says what does not follow from the records before it.
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), &'static str> {
        match record {
            Record::Head(head) if head == self => {}
            Record::Head(_) => return Err("a segment's head that contradicts the segment before it"),
            Record::Entry(entry) => {
                if self.last.is_some_and(|last| last.index.checked_add(1) != Some(entry.id.index)) {
                    return Err("an entry that does not follow the one before it");
                }
                self.last = Some(entry.id);
            }
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Committed(id) => {
                self.committed = Some(*id);
                self.clamp_committed();
            }
            Record::Truncate(after) => self.truncate(*after),
            Record::Purge(id) => self.purge(*id),
            Record::Seal => {}
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, after: Option<LogId>) {
        let keep = after.filter(|after| self.purged.is_none_or(|purged| purged.index < after.index)).or(self.purged);
        let shorter = match (keep, self.last) {
            (Some(keep), Some(last)) => keep.index < last.index,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if shorter {
            self.last = keep;
            self.clamp_committed();
        }
    }

    /// What was torn away or voided is not known to be committed here.
    fn clamp_committed(&mut self) {
        if self.committed.map(|id| id.index) > self.last.map(|id| id.index) {
            self.committed = self.last;
        }
    }

    pub(super) fn purge(&mut self, id: LogId) {
        if self.purged.is_none_or(|purged| purged.index < id.index) {
            self.purged = Some(id);
        }
        if self.last.is_none_or(|last| last.index < id.index) {
            self.last = Some(id);
        }
    }

    /// The index after the newest purged entry; 0 if none was purged.
    pub(super) fn first(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index.saturating_add(1))
    }

    /// The index after the newest entry.
    pub(super) fn next(&self) -> u64 {
        self.last.map_or(0, |last| last.index.saturating_add(1))
    }

    pub(super) fn state(&self) -> LogState {
        LogState { last_purged: self.purged, last: self.last, vote: self.vote, committed: self.committed }
    }
}
