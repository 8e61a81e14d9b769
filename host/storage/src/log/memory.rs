//! What readers and callers of the log share: its state as called for, the newest entries, and how far the disk is.
//!
//! Two clocks run here. `view` and the cache follow the *calls*: an appended entry is readable at once, a truncated one gone at
//! once. `index` and `flushed` follow the *disk*.
//!
//! **Invariant:** an entry leaves the cache only when it is flushed and has its place in the index.

use super::entry::LogEntry;
use super::index::Index;
use super::view::View;
use super::{Done, LogId, Vote};
use crate::StorageError;
use std::collections::VecDeque;
use std::io;

/// What the writer thread is asked to do, in order.
pub(super) enum Request {
    Begin { done: Done },
    Append { entries: Vec<LogEntry>, done: Done },
    Vote { vote: Vote, done: Done },
    Truncate { after: Option<LogId>, done: Done },
    Purge { upto: LogId, done: Done },
    Sync { done: Done },
}

impl Request {
    pub(super) fn into_done(self) -> Done {
        match self {
            Self::Begin { done }
            | Self::Append { done, .. }
            | Self::Vote { done, .. }
            | Self::Truncate { done, .. }
            | Self::Purge { done, .. }
            | Self::Sync { done } => done,
        }
    }
}

/// An append on its way to the disk.
#[derive(Debug)]
struct InFlight {
    ticket: u64,
    /// The index after its last entry that no later truncation has voided.
    next: u64,
}

#[derive(Default)]
pub(super) struct Memory {
    pub(super) queue: VecDeque<Request>,
    pub(super) queue_bytes: usize,
    pub(super) closing: bool,
    pub(super) closed: bool,
    pub(super) failed: Option<StorageError>,

    pub(super) view: View,
    /// The first live entry's index.
    pub(super) first: u64,
    /// `committed` was saved and not yet written.
    pub(super) committed_dirty: bool,
    cache: VecDeque<LogEntry>,
    cache_bytes: usize,
    cache_bytes_max: usize,

    pub(super) index: Index,
    /// The index after the newest entry that is durable, it and all before it.
    flushed: u64,
    /// The newest vote that is durable.
    pub(super) vote_flushed: Option<Vote>,
    in_flight: VecDeque<InFlight>,
    tickets: u64,
}

impl Memory {
    pub(super) fn new(view: View, index: Index, cache_bytes_max: usize) -> Self {
        Self {
            view,
            first: index.first().unwrap_or_else(|| view.first()),
            flushed: view.next(),
            vote_flushed: view.vote,
            index,
            cache_bytes_max,
            ..Self::default()
        }
    }

    pub(super) fn flushed(&self) -> u64 {
        self.flushed
    }

    /// Why no more requests are taken.
    pub(super) fn refusal(&self) -> Option<StorageError> {
        match &self.failed {
            Some(error) => Some(error.clone()),
            None if self.closing => Some(StorageError::Closed),
            None => None,
        }
    }

    /// Takes entries in; they are readable from now on.
    pub(super) fn append(&mut self, entries: &[LogEntry]) -> io::Result<()> {
        let mut next = self.view.last.map(|last| last.index);
        for entry in entries {
            if next.is_some_and(|last| last.checked_add(1) != Some(entry.id.index)) {
                let what = format!("entry {} appended after {:?}", entry.id.index, self.view.last);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            next = Some(entry.id.index);
        }
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
        if self.view.last.is_none() {
            self.first = first.id.index;
            self.flushed = first.id.index;
        }
        self.view.last = Some(last.id);
        for entry in entries {
            self.cache_bytes += weight(entry);
            self.cache.push_back(entry.clone());
        }
        self.tickets += 1;
        self.in_flight.push_back(InFlight { ticket: self.tickets, next: last.id.index.saturating_add(1) });
        Ok(())
    }

    pub(super) fn truncate(&mut self, after: Option<LogId>) {
        self.view.truncate(after);
        let next = self.view.last.map_or(self.first, |last| last.index.saturating_add(1));
        self.flushed = self.flushed.min(next);
        for append in &mut self.in_flight {
            append.next = append.next.min(next);
        }
        while self.cache.back().is_some_and(|entry| entry.id.index >= next) {
            if let Some(entry) = self.cache.pop_back() {
                self.cache_bytes -= weight(&entry);
            }
        }
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        self.view.purge(upto);
        let first = self.view.first();
        self.first = self.first.max(first);
        self.flushed = self.flushed.max(first);
        while self.cache.front().is_some_and(|entry| entry.id.index < first) {
            self.evict();
        }
    }

    /// The last ticket given to an append.
    pub(super) fn ticket(&self) -> u64 {
        self.tickets
    }

    /// Appends up to `ticket` are durable.
    pub(super) fn set_flushed(&mut self, ticket: u64) {
        while self.in_flight.front().is_some_and(|append| append.ticket <= ticket) {
            if let Some(append) = self.in_flight.pop_front() {
                self.flushed = self.flushed.max(append.next);
            }
        }
        while self.cache_bytes > self.cache_bytes_max && self.cache.front().is_some_and(|entry| entry.id.index < self.flushed) {
            self.evict();
        }
    }

    fn evict(&mut self) {
        if let Some(entry) = self.cache.pop_front() {
            self.cache_bytes -= weight(&entry);
        }
    }

    /// The index of the first cached entry; the index after the last entry if none is.
    pub(super) fn cache_first(&self) -> u64 {
        self.cache.front().map_or(self.view.next(), |entry| entry.id.index)
    }

    /// The cached entries from `from` on, which is not below `cache_first`.
    pub(super) fn cached(&self, from: u64) -> impl Iterator<Item = &LogEntry> {
        self.cache.iter().skip(from.saturating_sub(self.cache_first()) as usize)
    }

    pub(super) fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }
}

pub(super) fn weight(entry: &LogEntry) -> usize {
    entry.payload.len() + size_of::<LogEntry>()
}
