//! The raft log: our own segmented, append-only file format, written with group commit.
//!
//! Calls go into one queue; one thread takes all that is queued, writes it with one write, makes it durable with one
//! `fdatasync` and answers every call in order. There is no timer: while one sync runs, the next batch gathers. Appended
//! entries are readable at once, from memory; older ones are read from their files.
//!
//! Vote and entries share the one queue, because an append that overtook a vote would lose committed entries after a crash.
//!
//! **Invariant:** what `done` was called for with `Ok` is found again after every crash, and nothing is acknowledged after the
//! first I/O error: after a failed sync nobody knows what the disk holds ("fsyncgate"), so the process must end.

mod entry;
mod index;
mod memory;
mod preparer;
mod record;
mod recovery;
mod segment;
mod view;
mod writer;

#[cfg(test)]
mod tests;

pub use entry::{EntryKind, LogEntry, LogId, LogState, Vote};

use crate::disk::Disk;
use crate::thread::OwnThread;
use crate::{FatalHandler, StorageError};
use kvasir_api::limits;
use memory::{Memory, Request, weight};
use parking_lot::{Condvar, Mutex, MutexGuard};
use preparer::Preparer;
use record::{HEADER_BYTES, Record};
use segment::Segment;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use writer::{Sizes, Writer};

/// Called once, on the log's thread, when a call is durable or has failed. Must not block.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Room for a segment's header, head, seal and the small records, besides its largest entry.
const MARGIN_BYTES: u64 = 512;
/// The encoding buffer's memory between batches.
const BUFFER_KEEP_BYTES: usize = 1 << 20;
/// Entries that stand together are read together, so many bytes at most.
const READ_RUN_BYTES: u64 = 1 << 20;

/// How a log is kept.
#[derive(Clone)]
pub struct LogOptions {
    /// Length of a segment file in bytes; the first ones are shorter. At least `record_bytes_max` and 512 bytes.
    pub segment_bytes: u64,
    /// Largest payload of an entry in bytes; a larger one is refused.
    pub record_bytes_max: usize,
    /// Recent entries kept in memory, in bytes; entries that are not yet durable are kept whatever they weigh.
    pub cache_bytes: usize,
    /// Calls waiting for the writer thread before a caller is made to wait.
    pub queue_max: usize,
    /// Bytes of entries waiting for the writer thread before a caller is made to wait.
    pub queue_bytes_max: usize,
    /// Told, once, the error after which the log takes nothing more.
    pub on_fatal: Option<FatalHandler>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: limits::LOG_SEGMENT_BYTES,
            record_bytes_max: limits::LOG_RECORD_BYTES_MAX,
            cache_bytes: limits::LOG_CACHE_BYTES,
            queue_max: limits::LOG_QUEUE_MAX,
            queue_bytes_max: limits::LOG_QUEUE_BYTES_MAX,
            on_fatal: None,
        }
    }
}

/// What the log did since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogStats {
    /// Syncs of segment files on the way to an answer.
    pub syncs: u64,
    /// Entries written.
    pub entries: u64,
    /// Bytes written, record headers and padding included.
    pub bytes: u64,
    /// Bytes of entries in memory.
    pub cache_bytes: u64,
    /// Segment files.
    pub segments: u64,
}

/// The raft log. Clones are the same log; it is closed when the last one is dropped.
#[derive(Clone)]
pub struct Log {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    options: LogOptions,
    writer: OwnThread,
}

pub(crate) struct Shared {
    memory: Mutex<Memory>,
    /// There is something to write.
    work: Condvar,
    /// There is room in the queue.
    room: Condvar,
    /// The flushed index moved, or never will.
    flushed: Condvar,
    on_fatal: Option<FatalHandler>,
    /// The first segment's head is durable.
    begun: AtomicBool,
    syncs: AtomicU64,
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Shared {
    fn poison(&self, error: &StorageError) {
        let mut memory = self.memory.lock();
        let first = memory.failed.is_none();
        if first {
            memory.failed = Some(error.clone());
        }
        drop(memory);
        self.flushed.notify_all();
        self.room.notify_all();
        if let Some(on_fatal) = self.on_fatal.as_ref().filter(|_| first) {
            on_fatal(error);
        }
    }
}

impl Log {
    /// Opens the log in `dir`, which must exist, and recovers what is in it; an empty folder is an empty log. No segment is made
    /// before [`Log::begin`] or the first call.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] for damage that no power cut explains, with nothing changed;
    /// [`StorageError::OtherVersion`]; [`StorageError::Io`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: LogOptions) -> Result<Log, StorageError> {
        let room = options.record_bytes_max as u64 + MARGIN_BYTES;
        if options.segment_bytes < room || options.segment_bytes > 1 << 30 {
            let what = format!("segments of {} bytes, {room} to 1073741824 needed", options.segment_bytes);
            let source = io::Error::new(io::ErrorKind::InvalidInput, what);
            return Err(StorageError::io(dir, "open the log", source));
        }
        let found = recovery::recover(&*disk, dir)?;
        let shared = Arc::new(Shared {
            memory: Mutex::new(Memory::new(found.view, found.index, options.cache_bytes)),
            work: Condvar::new(),
            room: Condvar::new(),
            flushed: Condvar::new(),
            on_fatal: options.on_fatal.clone(),
            begun: AtomicBool::new(found.begun),
            syncs: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let driver = disk.driver();
        let preparer = Preparer::start(disk, dir.to_path_buf(), found.ready)?;
        let sizes = Sizes { least: room, most: options.segment_bytes };
        let writer = Writer::new(shared.clone(), preparer, sizes, found.active, found.sealed, found.view);
        let writer = OwnThread::start(driver, "kvasir-log", writer)
            .map_err(|source| StorageError::io(dir, "start the log's thread", source))?;
        Ok(Log { handle: Arc::new(Handle { shared, options, writer }) })
    }

    /// Whether its work is done by a driver, so that no call waits.
    pub fn is_driven(&self) -> bool {
        self.handle.writer.is_driven()
    }

    /// Whether anything was ever durable in this log: an empty one that is begun still has its first record.
    pub fn is_begun(&self) -> bool {
        self.shared().begun.load(Ordering::SeqCst)
    }

    /// Makes the log one that is begun, durably: from here on its loss can be told from its never having been. Waits for it.
    ///
    /// # Errors
    /// The log failed or was closed.
    pub fn begin(&self) -> io::Result<()> {
        self.call_and_wait(|done| Request::Begin { done })
    }

    /// What the log holds, unwritten calls included.
    pub fn state(&self) -> LogState {
        self.shared().memory.lock().view.state()
    }

    /// Appends entries, which must follow the last one without a gap; they can be read at once. `done` is called when they are
    /// durable. Waits while the queue is full.
    pub fn append(&self, entries: Vec<LogEntry>, done: Done) {
        let bytes: usize = entries.iter().map(weight).sum();
        let oversize = entries.iter().find(|entry| entry.payload.len() > self.handle.options.record_bytes_max);
        if let Some(entry) = oversize {
            let what = format!("entry {} has {} bytes, too many for the log", entry.id.index, entry.payload.len());
            return done(Err(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        self.call(bytes, done, |memory, done| match memory.append(&entries) {
            Ok(()) => Ok(Request::Append { entries, done }),
            Err(error) => Err((done, error)),
        });
    }

    /// Saves the vote; `done` is called when it is durable.
    pub fn save_vote(&self, vote: Vote, done: Done) {
        self.call(0, done, |memory, done| {
            memory.view.vote = Some(vote);
            Ok(Request::Vote { vote, done })
        });
    }

    /// Remembers the newest committed id. It is written with the next batch and needs no sync: raft can do without it.
    pub fn save_committed(&self, id: LogId) {
        let mut memory = self.shared().memory.lock();
        memory.view.committed = Some(id);
        memory.committed_dirty = true;
    }

    /// Voids the entries after `after` (all unpurged ones if `None`), for readers at once. `done` is called when this is
    /// written; it is durable before anything appended later is acknowledged.
    pub fn truncate_after(&self, after: Option<LogId>, done: Done) {
        self.call(0, done, |memory, done| {
            memory.truncate(after);
            Ok(Request::Truncate { after, done })
        });
    }

    /// Forgets the entries up to and including `upto`, which may lie beyond the last one (after a snapshot was installed).
    /// Whole files go once this is durable. The caller purges only what a durable checkpoint covers.
    pub fn purge(&self, upto: LogId, done: Done) {
        self.call(0, done, |memory, done| {
            memory.purge(upto);
            Ok(Request::Purge { upto, done })
        });
    }

    /// Reads the entries of an index range, as many of them as there are.
    ///
    /// # Errors
    /// `InvalidData` if a record no longer verifies; whatever the disk says.
    pub fn read(&self, range: Range<u64>) -> io::Result<Vec<LogEntry>> {
        self.read_bounded(range, u64::MAX)
    }

    /// Reads the first entries of an index range, until their payloads pass `bytes_max`; at least one if there is any.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub fn read_bounded(&self, range: Range<u64>, bytes_max: u64) -> io::Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut places: Vec<(Arc<Segment>, index::Position)> = Vec::new();
        let mut cached = Vec::new();
        let start;
        {
            let memory = self.shared().memory.lock();
            start = range.start.max(memory.first);
            let end = range.end.min(memory.view.next());
            let on_disk = start..end.min(memory.cache_first());
            for index in on_disk.clone() {
                let Some((segment, position)) = memory.index.get(index) else {
                    let what = format!("log entry {index} has no place on disk");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                };
                bytes += u64::from(position.span);
                places.push((segment, position));
                if bytes >= bytes_max {
                    break;
                }
            }
            if bytes < bytes_max && start < end {
                for entry in memory.cached(start.max(on_disk.end)).take_while(|entry| entry.id.index < end) {
                    cached.push(entry.clone());
                    bytes += entry.payload.len() as u64;
                    if bytes >= bytes_max {
                        break;
                    }
                }
            }
        }
        read_places(&places, start, &mut entries)?;
        entries.extend(cached);
        Ok(entries)
    }

    /// Bytes that the unpurged entries take on the disk.
    pub fn live_bytes(&self) -> u64 {
        self.shared().memory.lock().index.bytes()
    }

    /// The oldest entry from which on the log takes `bytes` at most.
    pub fn newest_within(&self, bytes: u64) -> u64 {
        self.shared().memory.lock().index.newest_within(bytes)
    }

    /// Whether a call would be taken without waiting.
    pub fn has_room(&self) -> bool {
        self.handle.has_room(&self.shared().memory.lock())
    }

    /// Waits until a call would be taken without waiting, or would be refused.
    pub fn wait_for_room(&self) {
        let shared = self.shared();
        let mut memory = shared.memory.lock();
        while !self.handle.has_room(&memory) {
            self.handle.wait(&shared.room, &mut memory);
        }
    }

    /// The newest entry that is durable together with all before it; `None` if there is none.
    pub fn flushed_index(&self) -> Option<u64> {
        self.shared().memory.lock().flushed().checked_sub(1)
    }

    /// The newest vote that is durable.
    pub fn flushed_vote(&self) -> Option<Vote> {
        self.shared().memory.lock().vote_flushed
    }

    /// Waits until the entries up to `index` are durable.
    ///
    /// # Errors
    /// The log failed or was closed before.
    pub fn wait_flushed(&self, index: u64) -> io::Result<()> {
        let mut memory = self.shared().memory.lock();
        loop {
            if memory.flushed() > index {
                return Ok(());
            }
            if let Some(error) = &memory.failed {
                return Err(StorageError::Poisoned(error.to_string()).into());
            }
            if memory.closed {
                return Err(StorageError::Closed.into());
            }
            if self.handle.writer.is_driven() && memory.queue.is_empty() {
                let what = format!("entry {index} is not on its way to the disk");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            self.handle.wait(&self.shared().flushed, &mut memory);
        }
    }

    /// Writes and syncs all that was called for so far, the committed id too; waits for it.
    ///
    /// # Errors
    /// The log failed or was closed.
    pub fn sync(&self) -> io::Result<()> {
        self.call_and_wait(|done| Request::Sync { done })
    }

    /// Whether the log still takes calls.
    ///
    /// # Errors
    /// The log failed or was closed: what was appended since is not in it.
    pub fn check(&self) -> io::Result<()> {
        self.shared().memory.lock().refusal().map_or(Ok(()), |error| Err(error.into()))
    }

    /// What the log did so far.
    pub fn stats(&self) -> LogStats {
        let shared = self.shared();
        let memory = shared.memory.lock();
        LogStats {
            syncs: shared.syncs.load(Ordering::Relaxed),
            entries: shared.entries.load(Ordering::Relaxed),
            bytes: shared.bytes.load(Ordering::Relaxed),
            cache_bytes: memory.cache_bytes() as u64,
            segments: memory.index.segments() as u64,
        }
    }

    /// Writes and syncs what is queued and stops the threads. Later calls are refused. Must not be called from a `done`.
    ///
    /// # Errors
    /// The error that stopped the log earlier.
    pub fn close(&self) -> io::Result<()> {
        self.handle.close();
        match &self.shared().memory.lock().failed {
            Some(error) => Err(error.clone().into()),
            None => Ok(()),
        }
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    fn call_and_wait(&self, request: impl FnOnce(Done) -> Request) -> io::Result<()> {
        let (done, result) = std::sync::mpsc::sync_channel(1);
        let send = Box::new(move |outcome| {
            let _ = done.send(outcome);
        });
        self.call(0, send, |_, done| Ok(request(done)));
        // A driven writer takes all that is queued in one step.
        self.handle.writer.help();
        result.recv().unwrap_or_else(|_| Err(StorageError::Closed.into()))
    }

    fn call(&self, bytes: usize, done: Done, enter: impl FnOnce(&mut Memory, Done) -> Result<Request, (Done, io::Error)>) {
        let shared = self.shared();
        let mut memory = shared.memory.lock();
        while !self.handle.has_room(&memory) {
            self.handle.wait(&shared.room, &mut memory);
        }
        if let Some(error) = memory.refusal() {
            drop(memory);
            return done(Err(error.into()));
        }
        match enter(&mut memory, done) {
            Ok(request) => {
                memory.queue_bytes += bytes;
                memory.queue.push_back(request);
                drop(memory);
                shared.work.notify_one();
                self.handle.writer.wake();
            }
            Err((done, error)) => {
                drop(memory);
                done(Err(error));
            }
        }
    }
}

impl Handle {
    fn has_room(&self, memory: &Memory) -> bool {
        memory.refusal().is_some()
            || (memory.queue.len() < self.options.queue_max && memory.queue_bytes < self.options.queue_bytes_max)
    }

    /// Waits for what the writer tells of, or has it do it.
    fn wait(&self, told: &Condvar, memory: &mut MutexGuard<'_, Memory>) {
        if self.writer.is_driven() {
            MutexGuard::unlocked(memory, || self.writer.help());
        } else {
            told.wait(memory);
        }
    }

    fn close(&self) {
        self.shared.memory.lock().closing = true;
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        self.writer.join();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

/// Reads and verifies the entries at `places`, the first of which is entry `first`.
fn read_places(places: &[(Arc<Segment>, index::Position)], first: u64, entries: &mut Vec<LogEntry>) -> io::Result<()> {
    let mut at = 0;
    while let Some((segment, start)) = places.get(at) {
        let mut end = at + 1;
        let mut run_end = u64::from(start.offset) + u64::from(start.span);
        while let Some((_, next)) = places.get(end)
            && next.segment == start.segment
            && u64::from(next.offset) >= run_end
            && u64::from(next.offset) + u64::from(next.span) - u64::from(start.offset) <= READ_RUN_BYTES
        {
            run_end = u64::from(next.offset) + u64::from(next.span);
            end += 1;
        }
        let mut run = vec![0; (run_end - u64::from(start.offset)) as usize];
        segment.file.read_at(u64::from(start.offset), &mut run)?;
        let run = bytes::Bytes::from(run);
        for (_, position) in &places[at..end] {
            let from = (position.offset - start.offset) as usize;
            let bytes = run.slice(from..from + position.span as usize);
            let entry = read_entry(segment, u64::from(position.offset), &bytes)?;
            if entry.id.index != first + entries.len() as u64 {
                return Err(damaged(segment, u64::from(position.offset), "another entry than the index names"));
            }
            entries.push(entry);
        }
        at = end;
    }
    Ok(())
}

fn read_entry(segment: &Segment, offset: u64, bytes: &bytes::Bytes) -> io::Result<LogEntry> {
    let fail = |what| damaged(segment, offset, what);
    let (head, _) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or_else(|| fail("a record is cut short"))?;
    let header =
        record::Header::verify(head, segment.number, offset).ok_or_else(|| fail("a record's header fails its checksum"))?;
    let end = HEADER_BYTES + header.body_len as usize;
    if end > bytes.len() {
        return Err(fail("a record's header does not fit its place"));
    }
    let body = bytes.slice(HEADER_BYTES..end);
    if crc32c::crc32c(&body) != header.body_crc {
        return Err(fail("a record's content fails its checksum"));
    }
    match Record::decode(header.kind, &body) {
        Ok(Record::Entry(entry)) => Ok(entry),
        Ok(_) => Err(fail("a record that is not an entry")),
        Err(what) => Err(fail(what)),
    }
}

fn damaged(segment: &Segment, offset: u64, what: &str) -> io::Error {
    StorageError::corrupt(&segment.path, offset, what).into()
}
