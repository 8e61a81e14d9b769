//! openraft's log storage over [`kvasir_storage::log::Log`].
//!
//! Appends are handed to the log's writer thread and answered by its callback; the newest entries stay in memory as openraft has
//! them, so that applying and replicating what was just written reads no file and decodes nothing.
//!
//! **Invariant:** votes, appends, truncations and purges reach the one writer in the order openraft asked for them.

mod recent;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use kvasir_storage::log::{EntryKind, Log, LogEntry};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::blocking::blocking;
use crate::fatal::Fatal;
use crate::kinds::{Entry, Kinds, LogId, Payload, Vote, log_id_from, log_id_into, vote_from, vote_into};
use crate::membership;
use crate::mutant::Mutant;
use crate::proposed::Proposed;
use recent::Recent;

/// Entries read at once when they come from the disk.
const READ_ENTRIES: u64 = 512;
/// Bytes of entries read, or sent to a peer, at once; one entry is, whatever it weighs.
const READ_BYTES: u64 = 4 * 1024 * 1024;

/// The log as openraft sees it; a clone is a reader.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: Log,
    recent: Arc<Mutex<Recent>>,
    fatal: Fatal,
    mutant: Mutant,
}

impl LogStore {
    pub(crate) fn new(log: Log, fatal: Fatal) -> Self {
        Self { log, recent: Arc::new(Mutex::new(Recent::default())), fatal, mutant: Mutant::None }
    }

    pub(crate) fn with(self, mutant: Mutant) -> Self {
        Self { mutant, ..self }
    }

    /// Waits for one of the writer's callbacks.
    async fn written(&self, doing: &str, done: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
        let result = done.await.unwrap_or_else(|_| Err(io::Error::other("the log's writer has stopped")));
        if let Err(error) = &result {
            self.fatal.raise(format!("raft log: cannot {doing}: {error}"));
        }
        result
    }

    /// The first entries of `[start, end)`, from memory or else from the disk: those that exist, and not many at once.
    async fn entries(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let end = end.min(start.saturating_add(READ_ENTRIES));
        if start >= end {
            return Ok(Vec::new());
        }
        if let Some(entries) = self.recent.lock().range(start, end, READ_BYTES) {
            return Ok(entries);
        }
        let log = self.log.clone();
        let read = blocking(log.is_driven(), move || {
            log.read_bounded(start..end, READ_BYTES)?.into_iter().map(entry_from).collect::<io::Result<Vec<Entry>>>()
        });
        let entries = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        if let Err(error) = &entries {
            self.fatal.raise(format!("raft log: cannot read entries from {start} on: {error}"));
        }
        entries
    }

    /// Waits, without a thread of the runtime, until the writer takes another call at once.
    async fn room(&self) -> io::Result<()> {
        if self.log.has_room() {
            return Ok(());
        }
        let log = self.log.clone();
        blocking(log.is_driven(), move || log.wait_for_room()).await
    }
}

pub(crate) fn entry_from(entry: LogEntry) -> io::Result<Entry> {
    let payload = match entry.kind {
        EntryKind::Blank => Payload::Blank,
        EntryKind::Command => Payload::Normal(Proposed::from_bytes(entry.payload)),
        EntryKind::Membership => Payload::Membership(membership::decode(&entry.payload)?),
    };
    Ok(Entry::new(log_id_from(entry.id), payload))
}

pub(crate) fn entry_into(entry: &Entry) -> LogEntry {
    let (kind, payload) = match &entry.payload {
        Payload::Blank => (EntryKind::Blank, Bytes::new()),
        Payload::Normal(proposed) => (EntryKind::Command, proposed.bytes().clone()),
        Payload::Membership(membership) => (EntryKind::Membership, membership::encode(membership)),
    };
    LogEntry { id: log_id_into(entry.log_id()), kind, payload }
}

/// The range that is meant: without a beginning from the first entry there is, without an end up to the last one.
fn bounds(range: &impl RangeBounds<u64>, state: &kvasir_storage::log::LogState) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => state.last_purged.map_or(0, |id| id.index + 1),
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => state.last.map_or(0, |id| id.index + 1),
    };
    (start, end)
}

/// The part of a range that the log has.
fn existing(start: u64, end: u64, state: &kvasir_storage::log::LogState) -> (u64, u64) {
    let (first, next) = (state.last_purged.map_or(0, |id| id.index + 1), state.last.map_or(0, |id| id.index + 1));
    (start.max(first), end.min(next))
}

impl RaftLogReader<Kinds> for LogStore {
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl futures_util::Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // Piece by piece, so that catching up after a restart never holds the whole log in memory.
        let state = self.log.state();
        let (start, asked) = bounds(&range, &state);
        let (start, end) = existing(start, asked, &state);
        // Raft may know as committed what a log that has failed did not take any more.
        let missing = if end < asked { self.log.check().err() } else { None };
        let pieces = futures_util::stream::unfold((self.clone(), start, end), |(store, start, end)| async move {
            if start >= end {
                return None;
            }
            let (items, next): (Vec<Result<Entry, io::Error>>, u64) = match store.entries(start, end).await {
                Ok(entries) if entries.first().is_some_and(|first| first.index() == start) => {
                    let next = start + entries.len() as u64;
                    (entries.into_iter().map(Ok).collect(), next)
                }
                // Whoever applies these must not skip one.
                Ok(_) => (vec![Err(io::Error::other(format!("log entry {start} is not there")))], end),
                Err(error) => (vec![Err(error)], end),
            };
            Some((futures_util::stream::iter(items), (store, next, end)))
        });
        Box::pin(pieces.flatten().chain(futures_util::stream::iter(missing.map(Err))))
    }

    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let state = self.log.state();
        let (start, end) = bounds(&range, &state);
        let (start, end) = existing(start, end, &state);
        let mut entries = Vec::new();
        let mut next = start;
        while next < end {
            let piece = self.entries(next, end).await?;
            let Some(last) = piece.last() else { break };
            next = last.index() + 1;
            entries.extend(piece);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.log.state().vote.map(vote_from))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let entries = self.entries(start, end).await?;
        // Purged meanwhile: what follows must not be taken for what was asked for.
        Ok(if entries.first().is_some_and(|first| first.index() == start) { entries } else { Vec::new() })
    }
}

impl RaftLogStorage<Kinds> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Kinds>, io::Error> {
        let state = self.log.state();
        let last_purged = state.last_purged.map(log_id_from);
        Ok(LogState { last_purged_log_id: last_purged, last_log_id: state.last.map(log_id_from).or(last_purged) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        if self.mutant == Mutant::VoteNotPersisted {
            return Ok(());
        }
        self.room().await?;
        let (done, written) = oneshot::channel();
        self.log.save_vote(
            vote_into(vote),
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        self.written("save a vote", written).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.log.save_committed(log_id_into(committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.state().committed.map(log_id_from))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Kinds>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.room().await?;
        let mut records = Vec::new();
        {
            let mut recent = self.recent.lock();
            for entry in entries {
                records.push(entry_into(&entry));
                recent.push(entry);
            }
        }
        let fatal = self.fatal.clone();
        self.log.append(
            records,
            Box::new(move |result| {
                if let Err(error) = &result {
                    fatal.raise(format!("raft log: cannot write: {error}"));
                }
                callback.io_completed(result);
            }),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.room().await?;
        self.recent.lock().truncate_after(last.map(|id| id.index));
        let (done, written) = oneshot::channel();
        self.log.truncate_after(
            last.map(log_id_into),
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        self.written("truncate", written).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.room().await?;
        self.recent.lock().purge(upto.index);
        let fatal = self.fatal.clone();
        // Nobody has to wait: it is in force at the call, and written before whatever is acknowledged after it.
        self.log.purge(
            log_id_into(upto),
            Box::new(move |result| {
                if let Err(error) = result {
                    fatal.raise(format!("raft log: cannot purge: {error}"));
                }
            }),
        );
        Ok(())
    }
}
