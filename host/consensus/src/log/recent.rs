//! The newest entries, in memory.
//!
//! **Invariant:** the entries are consecutive and end with the log's last one; anything older is the disk's.

use std::collections::VecDeque;

use openraft::entry::RaftEntry;

use crate::kinds::{Entry, Payload};

/// Entries kept.
const ENTRIES_MAX: usize = 16_384;
/// Bytes of entries kept; one entry is kept whatever it weighs.
const BYTES_MAX: usize = 32 * 1024 * 1024;

/// The log's newest entries.
#[derive(Debug, Default)]
pub(super) struct Recent {
    entries: VecDeque<Entry>,
    bytes: usize,
}

fn weight(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(proposed) => proposed.bytes().len(),
        _ => 0,
    }
}

impl Recent {
    fn first(&self) -> Option<u64> {
        self.entries.front().map(RaftEntry::index)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        let expected = self.entries.back().map(|last| last.index() + 1);
        if expected.is_some_and(|expected| expected != entry.index()) {
            self.entries.clear();
            self.bytes = 0;
        }
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
        while self.entries.len() > ENTRIES_MAX || (self.bytes > BYTES_MAX && self.entries.len() > 1) {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= weight(&entry);
        }
    }

    /// The first entries of `[start, end)`, until they pass `bytes_max`; `None` if they are not here.
    pub(super) fn range(&self, start: u64, end: u64, bytes_max: u64) -> Option<Vec<Entry>> {
        let first = self.first()?;
        let end = end.min(first + self.entries.len() as u64);
        if start < first || start >= end {
            return None;
        }
        let from = usize::try_from(start - first).ok()?;
        let to = usize::try_from(end - first).ok()?;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in self.entries.range(from..to) {
            entries.push(entry.clone());
            bytes += weight(entry) as u64;
            if bytes >= bytes_max {
                break;
            }
        }
        Some(entries)
    }

    pub(super) fn truncate_after(&mut self, last: Option<u64>) {
        while self.entries.back().is_some_and(|entry| last.is_none_or(|last| entry.index() > last)) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= weight(&entry);
            }
        }
    }

    pub(super) fn purge(&mut self, upto: u64) {
        while self.first().is_some_and(|first| first <= upto) {
            self.pop_front();
        }
    }
}
