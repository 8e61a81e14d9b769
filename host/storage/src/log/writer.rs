//! The one thread that writes the log: takes all that is queued, writes once, syncs once, answers all in order.
//!
//! **Invariant:** nothing is answered before it is durable (truncation, purge and the committed id need no sync of their own:
//! they are in the file before whatever is acknowledged after them). After the first error nothing is acknowledged any more.

use super::entry::LogEntry;
use super::index::Position;
use super::memory::Request;
use super::preparer::Preparer;
use super::record::Record;
use super::segment::{SEGMENT_HEADER_BYTES, Segment};
use super::view::View;
use super::{Done, LogId, Shared};
use crate::StorageError;
use crate::disk::Due;
use crate::thread::Work;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes kept at a segment's end for the seal.
const SEAL_BYTES: u64 = super::record::HEADER_BYTES as u64;
/// The first segments are small, so that an empty node starts at once and takes little room.
const FIRST_SEGMENT_BYTES: u64 = 8 << 20;

/// The length of segment `number`: 8 MiB, doubling up to the configured size, and never too short for an entry.
pub(super) fn capacity_of(number: u64, sizes: &Sizes) -> u64 {
    let doublings = number.saturating_sub(1).min(16);
    (FIRST_SEGMENT_BYTES << doublings).max(sizes.least).min(sizes.most).next_multiple_of(8)
}

/// Bounds of a segment's length, in bytes.
pub(super) struct Sizes {
    /// What holds the largest entry.
    pub(super) least: u64,
    /// What is configured.
    pub(super) most: u64,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    preparer: Preparer,
    sizes: Sizes,
    active: Option<Active>,
    next_number: u64,
    view: View,
    buffer: Vec<u8>,
}

struct Active {
    segment: Arc<Segment>,
    /// Where the next byte goes.
    offset: u64,
    /// Everything before this offset is durable.
    synced: u64,
}

/// A step of the index, in the order of the records.
enum Step {
    Segment(Arc<Segment>),
    Entry(u64, Position),
    Truncate(u64),
    Purge(u64),
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        preparer: Preparer,
        sizes: Sizes,
        active: Option<(Arc<Segment>, u64)>,
        sealed: bool,
        view: View,
    ) -> Self {
        let next_number = active.as_ref().map_or(1, |(segment, _)| segment.number + 1);
        let active = active.filter(|_| !sealed).map(|(segment, offset)| Active { segment, offset, synced: offset });
        Self { shared, preparer, sizes, active, next_number, view, buffer: Vec::new() }
    }

    /// Serves all that is queued; `true` once the log is closed and this was the last.
    fn round(&mut self) -> bool {
        let (requests, committed, ticket, last_round) = {
            let mut memory = self.shared.memory.lock();
            let requests: Vec<Request> = memory.queue.drain(..).collect();
            memory.queue_bytes = 0;
            let dirty = std::mem::take(&mut memory.committed_dirty);
            let committed = memory.view.committed.filter(|_| dirty);
            (requests, committed, memory.ticket(), memory.closing)
        };
        self.shared.room.notify_all();
        let failed = self.shared.memory.lock().failed.clone();
        let result = match failed {
            Some(error) => Err(error),
            None => self.write_batch(&requests, committed, ticket, last_round),
        };
        if let Err(error) = &result {
            self.shared.poison(error);
        }
        let answer = |done: Done| done(result.as_ref().map(|_| ()).map_err(|error| error.clone().into()));
        requests.into_iter().map(Request::into_done).for_each(answer);
        if !last_round {
            return false;
        }
        let mut memory = self.shared.memory.lock();
        if memory.queue.is_empty() {
            memory.closed = true;
            drop(memory);
            self.shared.flushed.notify_all();
            return true;
        }
        false
    }

    fn write_batch(
        &mut self,
        requests: &[Request],
        committed: Option<LogId>,
        ticket: u64,
        last_round: bool,
    ) -> Result<(), StorageError> {
        let mut steps = Vec::new();
        let mut sync = last_round;
        let mut entries = 0;
        for request in requests {
            match request {
                Request::Begin { .. } => {
                    sync = true;
                    if self.active.is_none() && self.next_number == 1 {
                        self.rotate(&mut steps)?;
                    }
                    self.put_head();
                    self.prepare_next();
                }
                Request::Append { entries: appended, .. } => {
                    sync = true;
                    entries += appended.len() as u64;
                    for entry in appended {
                        self.put_entry(entry, &mut steps)?;
                    }
                }
                Request::Vote { vote, .. } => {
                    sync = true;
                    self.put(&Record::Vote(*vote), &mut steps)?;
                }
                Request::Truncate { after, .. } => {
                    self.put(&Record::Truncate(*after), &mut steps)?;
                    steps.push(Step::Truncate(self.view.next()));
                }
                Request::Purge { upto, .. } => {
                    self.put(&Record::Purge(*upto), &mut steps)?;
                    steps.push(Step::Purge(self.view.first()));
                }
                Request::Sync { .. } => sync = true,
            }
        }
        // After the entries it covers: a tail torn between the two must not leave a committed id beyond the last entry.
        if let Some(id) = committed {
            self.put(&Record::Committed(id), &mut steps)?;
        }
        self.write_buffer()?;
        let synced = sync && self.sync()?;
        self.shared.entries.fetch_add(entries, Ordering::Relaxed);
        self.publish(steps, ticket, sync, synced);
        Ok(())
    }

    /// Makes a batch's outcome visible: places, how far the disk is, segments that are no longer needed.
    fn publish(&mut self, steps: Vec<Step>, ticket: u64, flushed: bool, synced: bool) {
        let mut memory = self.shared.memory.lock();
        for step in steps {
            match step {
                Step::Segment(segment) => memory.index.add_segment(segment),
                Step::Entry(index, position) => memory.index.push(index, position),
                Step::Truncate(next) => memory.index.truncate(next),
                Step::Purge(first) => memory.index.purge(first),
            }
        }
        if flushed {
            memory.set_flushed(ticket);
            memory.vote_flushed = self.view.vote;
        }
        let removed = match &self.active {
            Some(active) if synced => memory.index.take_purged(self.view.first(), active.segment.number),
            _ => Vec::new(),
        };
        drop(memory);
        self.shared.flushed.notify_all();
        for segment in removed {
            self.preparer.remove(segment.path.clone());
        }
    }

    fn put_entry(&mut self, entry: &LogEntry, steps: &mut Vec<Step>) -> Result<(), StorageError> {
        // The clone of an entry is a reference count.
        let (segment, offset, span) = self.put(&Record::Entry(entry.clone()), steps)?;
        steps.push(Step::Entry(entry.id.index, Position { segment, offset: offset as u32, span: span as u32 }));
        Ok(())
    }

    /// Encodes a record into the buffer, beginning a segment if need be; answers segment, offset and length.
    fn put(&mut self, record: &Record, steps: &mut Vec<Step>) -> Result<(u64, u64, u64), StorageError> {
        let want = match record {
            Record::Entry(entry) => super::record::entry_span(entry.payload.len()),
            _ => super::MARGIN_BYTES / 2,
        };
        let fits =
            |active: &Active, buffered: usize| active.offset + buffered as u64 + want + SEAL_BYTES <= active.segment.capacity;
        self.put_head();
        // More than once only if a segment was made ready when entries had to be smaller.
        while !self.active.as_ref().is_some_and(|active| fits(active, self.buffer.len())) {
            self.rotate(steps)?;
            self.put_head();
        }
        let Some(active) = &self.active else { return Err(StorageError::Closed) };
        if let Err(what) = self.view.apply(record) {
            let offset = active.offset + self.buffer.len() as u64;
            return Err(StorageError::io(&active.segment.path, "append to the log", invalid(what, offset)));
        }
        let offset = active.offset + self.buffer.len() as u64;
        let before = self.buffer.len();
        encode(&mut self.buffer, active, record);
        Ok((active.segment.number, offset, (self.buffer.len() - before) as u64))
    }

    /// Begins the active segment with its head, unless it has one: it is new, or its first write was torn away.
    fn put_head(&mut self) {
        if let Some(active) = &self.active
            && active.offset + self.buffer.len() as u64 == SEGMENT_HEADER_BYTES
        {
            encode(&mut self.buffer, active, &Record::Head(self.view));
        }
    }

    /// Seals and syncs the active segment and begins the next one.
    fn rotate(&mut self, steps: &mut Vec<Step>) -> Result<(), StorageError> {
        if let Some(active) = &self.active {
            encode(&mut self.buffer, active, &Record::Seal);
            self.write_buffer()?;
            self.sync()?;
        }
        self.prepare_next();
        let segment = Arc::new(self.preparer.take(self.next_number, self.sizes.least.next_multiple_of(8))?);
        self.next_number = segment.number + 1;
        self.prepare_next();
        steps.push(Step::Segment(segment.clone()));
        self.active = Some(Active { segment, offset: SEGMENT_HEADER_BYTES, synced: SEGMENT_HEADER_BYTES });
        Ok(())
    }

    fn prepare_next(&mut self) {
        self.preparer.prepare(self.next_number, capacity_of(self.next_number, &self.sizes));
    }

    fn write_buffer(&mut self) -> Result<(), StorageError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if self.buffer.is_empty() {
            return Ok(());
        }
        let segment = &active.segment;
        segment.file.write_at(active.offset, &self.buffer).map_err(segment.fail("write the log"))?;
        active.offset += self.buffer.len() as u64;
        self.shared.bytes.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
        self.buffer.clear();
        // One huge batch must not hold its memory for ever.
        self.buffer.shrink_to(super::BUFFER_KEEP_BYTES);
        Ok(())
    }

    /// Makes what was written durable; answers whether the active segment's head is: only then may older segments go.
    fn sync(&mut self) -> Result<bool, StorageError> {
        let Some(active) = &mut self.active else { return Ok(false) };
        if active.synced < active.offset {
            active.segment.file.sync_data().map_err(active.segment.fail("sync the log"))?;
            active.synced = active.offset;
            self.shared.begun.store(true, Ordering::SeqCst);
            self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        }
        Ok(active.synced > SEGMENT_HEADER_BYTES)
    }
}

impl Work for Writer {
    /// Serves requests until the log is closed.
    fn run(mut self) {
        loop {
            {
                let mut memory = self.shared.memory.lock();
                while memory.queue.is_empty() && !memory.closing {
                    self.shared.work.wait(&mut memory);
                }
            }
            if self.round() {
                return;
            }
        }
    }

    fn step(&mut self) -> Due {
        let idle = {
            let memory = self.shared.memory.lock();
            memory.queue.is_empty() && !memory.closing
        };
        if idle {
            return Due::Woken;
        }
        if self.round() { Due::Never } else { Due::Woken }
    }
}

fn encode(buffer: &mut Vec<u8>, active: &Active, record: &Record) {
    let offset = active.offset + buffer.len() as u64;
    record.encode(buffer, active.segment.number, offset, active.synced as u32);
}

fn invalid(what: &str, offset: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what} (at byte {offset})"))
}
