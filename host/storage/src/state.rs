//! The state file behind apply: history and small tables in redb, written from a bounded tail, durable by checkpoint.
//!
//! Apply pushes what it changed and goes on; one thread moves it into the file. A commit there is not durable by itself: the raft
//! log is. Now and then, and at close, a *checkpoint* makes the file durable as it stands; only below it may the log be purged.
//!
//! **Invariant:** a checkpoint at log index N is made only after the local log is durable up to N. Otherwise a power cut could
//! leave a state that is ahead of its log, and the entries between would be missing for ever.

mod backend;
mod file;
mod tail;
mod transfer;
mod writer;

#[cfg(test)]
mod tests;

pub use transfer::Prepared;

pub(crate) use file::{id_bytes, membership_bytes, read_id, read_membership};

use crate::disk::Disk;
use crate::log::{Log, LogId};
use crate::snapshot::SnapshotInfo;
use crate::thread::OwnThread;
use crate::{FatalHandler, StorageError};
use bytes::Bytes;
use file::{StateFile, TABLES, table_key};
use kvasir_api::limits;
use kvasir_machine::{Change, Rev, Row, State, Table, TableOp};
use parking_lot::{Condvar, Mutex, RwLock};
use redb::{ReadTransaction, ReadableDatabase};
use std::collections::VecDeque;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;
use tail::Tail;

/// Where the machine is in the log, as the state file has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// The newest applied entry; `None` before the first.
    pub log_id: Option<LogId>,
    /// The membership in force: the entry that set it and its content, opaque here.
    pub membership: Option<(Option<LogId>, Bytes)>,
}

/// What a run of applied entries changed; one atomic unit of the state file.
#[derive(Debug, Clone)]
pub struct AppliedBatch {
    /// The newest entry of the run.
    pub log_id: LogId,
    /// The membership, if the run changed it.
    pub membership: Option<(Option<LogId>, Bytes)>,
    /// Changes of keys, ascending and above all pushed before.
    pub changes: Vec<Change>,
    /// Changes of small tables, in order.
    pub tables: Vec<TableOp>,
}

/// Waits until the local log is durable up to an index.
pub type FlushedProbe = Arc<dyn Fn(u64) -> io::Result<()> + Send + Sync>;

/// How a store is kept.
#[derive(Clone)]
pub struct StoreOptions {
    /// redb's page cache, in bytes.
    pub cache_bytes: usize,
    /// Rows in one commit; a batch is never split.
    pub commit_rows_max: usize,
    /// Rows deleted in one commit.
    pub delete_rows_max: usize,
    /// How long rows may gather in the tail before they are moved to the file.
    pub commit_linger: Duration,
    /// A checkpoint is made after so many bytes moved to the file ...
    pub checkpoint_bytes: u64,
    /// ... or so long after the first move that it will cover.
    pub checkpoint_interval: Duration,
    /// Told, once, the error after which the store takes nothing more.
    pub on_fatal: Option<FatalHandler>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cache_bytes: limits::STATE_CACHE_BYTES,
            commit_rows_max: limits::STATE_COMMIT_ROWS_MAX,
            delete_rows_max: limits::STATE_DELETE_ROWS_MAX,
            commit_linger: Duration::from_millis(limits::STATE_COMMIT_LINGER_MS),
            checkpoint_bytes: limits::CHECKPOINT_BYTES,
            checkpoint_interval: Duration::from_millis(limits::CHECKPOINT_INTERVAL_MS),
            on_fatal: None,
        }
    }
}

/// What stands in a state file that is about to be opened.
#[derive(Debug)]
pub struct Found {
    /// Where in the log its state is.
    pub applied: Applied,
    local: Vec<(String, Bytes)>,
}

impl Found {
    /// A row of this node alone.
    pub fn local(&self, name: &str) -> Option<&Bytes> {
        self.local.iter().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    /// Whether the state is just as a received snapshot brought it: then the log may end before it.
    pub fn is_as_installed(&self) -> bool {
        self.applied.log_id.is_some_and(|id| self.local(INSTALLED).is_some_and(|row| row[..] == id_bytes(id)))
    }
}

/// The local row that says which applied id the last received snapshot brought.
const INSTALLED: &str = "installed";

/// What opening a store finds.
pub struct Opened {
    /// The store.
    pub store: Store,
    /// The machine's state, rebuilt from the file.
    pub state: State,
    /// Where in the log that state is; entries after it are to be applied again.
    pub applied: Applied,
}

/// The state store. Clones are the same store; it is closed when the last one is dropped.
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    writer: OwnThread,
}

type Answer<T> = SyncSender<Result<T, StorageError>>;

enum Job {
    Checkpoint(Answer<Applied>),
    View(Answer<(StateFile, ReadTransaction)>),
    Install(Box<Prepared>, Answer<(Box<Prepared>, Applied)>),
    PutLocal(String, Bytes, Answer<()>),
}

struct Shared {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    options: StoreOptions,
    inner: Mutex<Inner>,
    /// There is something to do.
    work: Condvar,
    /// Bytes in the tail, for those who ask on every request.
    tail_bytes: AtomicUsize,
    /// A received snapshot is being prepared, or waits to be installed.
    preparing: AtomicBool,
    /// `None` once closed.
    file: RwLock<Option<StateFile>>,
}

struct Inner {
    tail: Tail,
    jobs: VecDeque<Job>,
    durable: Applied,
    flushed: Option<FlushedProbe>,
    closing: bool,
    failed: Option<StorageError>,
}

/// One page of a small table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TablePage {
    /// Keys and values, in order of key.
    pub rows: Vec<(Bytes, Bytes)>,
    /// There are more after the last.
    pub more: bool,
}

impl Store {
    /// Opens the state file at `path`, creating it if there is none, and rebuilds the machine's state from it.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] if the file's content does not fit together; [`StorageError::OtherVersion`];
    /// [`StorageError::Io`].
    pub fn open(disk: Arc<dyn Disk>, path: &Path, options: StoreOptions) -> Result<Opened, StorageError> {
        Self::open_if(disk, path, options, |_| Ok(()))
    }

    /// As [`Store::open`], if `check` agrees with what is in the file; nothing is changed in it before.
    ///
    /// # Errors
    /// As [`Store::open`], or those of `check`.
    pub fn open_if(
        disk: Arc<dyn Disk>,
        path: &Path,
        options: StoreOptions,
        check: impl FnOnce(&Found) -> Result<(), StorageError>,
    ) -> Result<Opened, StorageError> {
        let file = StateFile::open(&*disk, path, &options)?;
        let restored = file.restore().and_then(|(state, applied)| {
            let found = Found { applied, local: file.local_rows()? };
            check(&found)?;
            file.release()?;
            Ok((state, found.applied))
        });
        let (state, applied) = restored.inspect_err(|_| file.seal())?;
        let driver = disk.driver();
        let shared = Arc::new(Shared {
            disk,
            path: path.to_path_buf(),
            inner: Mutex::new(Inner {
                tail: Tail::default(),
                jobs: VecDeque::new(),
                durable: applied.clone(),
                flushed: None,
                closing: false,
                failed: None,
            }),
            options,
            work: Condvar::new(),
            tail_bytes: AtomicUsize::new(0),
            preparing: AtomicBool::new(false),
            file: RwLock::new(Some(file)),
        });
        let writer = writer::Writer::new(shared.clone(), applied.clone());
        let writer = OwnThread::start(driver, "kvasir-state", writer)
            .map_err(|source| StorageError::io(path, "start the state file's thread", source))?;
        let store = Store { handle: Arc::new(Handle { shared, writer }) };
        Ok(Opened { store, state, applied })
    }

    /// Whether its work is done by a driver, so that no call waits.
    pub fn is_driven(&self) -> bool {
        self.handle.writer.is_driven()
    }

    /// Sets what a checkpoint at index N waits for: that the local log is durable up to N.
    pub fn set_flushed(&self, probe: FlushedProbe) {
        self.shared().inner.lock().flushed = Some(probe);
    }

    /// Makes checkpoints wait for this log.
    pub fn follow_log(&self, log: &Log) {
        let log = log.clone();
        self.set_flushed(Arc::new(move |index| log.wait_flushed(index)));
    }

    /// Takes in what apply changed. Never waits for the disk; the caller bounds the tail by [`Store::tail_bytes`].
    pub fn push(&self, batch: AppliedBatch) {
        let mut inner = self.shared().inner.lock();
        if inner.failed.is_some() {
            return;
        }
        let was_empty = inner.tail.is_empty();
        inner.tail.push(batch);
        self.shared().tail_bytes.store(inner.tail.bytes(), Ordering::Relaxed);
        let wake = was_empty || inner.tail.row_count() >= self.shared().options.commit_rows_max;
        drop(inner);
        if wake {
            self.wake();
        }
    }

    fn wake(&self) {
        self.shared().work.notify_one();
        self.handle.writer.wake();
    }

    /// Bytes that were pushed and are not in the file yet.
    pub fn tail_bytes(&self) -> usize {
        self.shared().tail_bytes.load(Ordering::Relaxed)
    }

    /// The newest applied id that is durable in the state file.
    pub fn durable(&self) -> Option<LogId> {
        self.shared().inner.lock().durable.log_id
    }

    /// Moves all that was pushed so far into the file and makes it durable; waits for it.
    ///
    /// # Errors
    /// The log is not durable up to there and never will be; an I/O error; the store was closed.
    pub fn checkpoint(&self) -> Result<Applied, StorageError> {
        self.ask(Job::Checkpoint)
    }

    /// The row of a revision, from the tail or the file; `None` if it was deleted or never was.
    ///
    /// # Errors
    /// An I/O error, or bytes in the file that are not a row.
    pub fn row(&self, rev: Rev) -> io::Result<Option<Arc<Row>>> {
        {
            let inner = self.shared().inner.lock();
            if inner.tail.first().is_some_and(|first| first <= rev) {
                return Ok(inner.tail.row(rev));
            }
        }
        Ok(self.file()?.row(rev)?.map(Arc::new))
    }

    /// Rows of history from `from` on, not past revision `to_main_inclusive`, ascending and without a gap, until there are
    /// `max_rows` of them or their keys and values weigh `max_bytes`.
    ///
    /// # Errors
    /// As [`Store::row`].
    pub fn rows(&self, from: Rev, to_main_inclusive: u64, max_rows: usize, max_bytes: usize) -> io::Result<Vec<Arc<Row>>> {
        // First the tail, then the file: what leaves the tail in between is in the file already.
        let (first, tail) = {
            let inner = self.shared().inner.lock();
            (inner.tail.first(), inner.tail.rows(from, to_main_inclusive, max_rows, max_bytes))
        };
        if first.is_some_and(|first| first <= from) {
            return Ok(tail);
        }
        let (mut rows, mut bytes) = self.file()?.rows(from, first, to_main_inclusive, max_rows, max_bytes)?;
        for row in tail {
            if rows.len() >= max_rows || bytes >= max_bytes {
                break;
            }
            bytes += Tail::weight(&row);
            rows.push(row);
        }
        Ok(rows)
    }

    /// A row of a small table.
    ///
    /// # Errors
    /// An I/O error.
    pub fn table_get(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        let key = table_key(table, key);
        if let Some(found) = self.shared().inner.lock().tail.small(&key) {
            return Ok(found);
        }
        let file = self.file()?;
        let txn = file.db.begin_read().map_err(file.fault())?;
        let tables = txn.open_table(TABLES).map_err(file.fault())?;
        let found = tables.get(key.as_slice()).map_err(file.fault())?;
        let value = found.map(|value| file.verified(&key, value.value()).map(Bytes::copy_from_slice)).transpose()?;
        Ok(value)
    }

    /// The rows of a small table whose keys start with `prefix` and come after `after`, in order, `limit` at most: the table as
    /// of one moment.
    ///
    /// # Errors
    /// An I/O error.
    pub fn table_scan(&self, table: Table, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> io::Result<TablePage> {
        let prefix = table_key(table, prefix);
        // A key that no other comes before: just the prefix, itself included.
        let start = match after {
            Some(after) => Bound::Excluded(table_key(table, after).max(prefix.clone())),
            None => Bound::Included(prefix.clone()),
        };
        let file = self.file()?;
        let (txn, overlay) = self.view(&file, |tail| {
            let mut overlay: Vec<(Vec<u8>, Option<Bytes>)> = Vec::new();
            let mut kept = 0;
            for (key, value) in tail.small_from(&prefix, &start) {
                overlay.push((key.clone(), value.clone()));
                kept += usize::from(value.is_some());
                if kept > limit {
                    break;
                }
            }
            overlay
        })?;
        let tables = txn.open_table(TABLES).map_err(file.fault())?;
        let range = (start.as_ref().map(Vec::as_slice), Bound::Unbounded);
        let mut stored = tables.range::<&[u8]>(range).map_err(file.fault())?.map_while(|row| match row {
            Ok((key, value)) if key.value().starts_with(&prefix) => {
                let value = file.verified(key.value(), value.value()).map(Bytes::copy_from_slice);
                Some(value.map(|value| (key.value().to_vec(), value)))
            }
            Ok(_) => None,
            Err(error) => Some(Err(file.fault()(error))),
        });
        let mut newer = overlay.into_iter().peekable();
        let mut next = stored.next().transpose()?;
        let mut page = TablePage::default();
        loop {
            let from_tail = match (&next, newer.peek()) {
                (None, None) => break,
                (Some((stored, _)), Some((tail, _))) => tail <= stored,
                (stored, _) => stored.is_none(),
            };
            let found = if from_tail {
                let taken = newer.next();
                if taken.as_ref().map(|(key, _)| key) == next.as_ref().map(|(key, _)| key) {
                    next = stored.next().transpose()?;
                }
                taken.and_then(|(key, value)| Some((key, value?)))
            } else {
                std::mem::replace(&mut next, stored.next().transpose()?)
            };
            let Some((key, value)) = found else { continue };
            if page.rows.len() >= limit {
                page.more = true;
                break;
            }
            page.rows.push((Bytes::from(key).slice(1..), value));
        }
        Ok(page)
    }

    /// Deletes rows of history, in this order, in bounded commits, behind everything pushed before.
    pub fn delete_history(&self, revs: Vec<Rev>) {
        let mut inner = self.shared().inner.lock();
        if inner.failed.is_none() {
            inner.tail.delete(revs);
        }
        drop(inner);
        self.wake();
    }

    /// Rows that are still to be deleted: what bounds the caller of [`Store::delete_history`].
    pub fn pending_deletes(&self) -> usize {
        self.shared().inner.lock().tail.pending_deletes()
    }

    /// A row of this node alone, such as its id; never part of a snapshot.
    ///
    /// # Errors
    /// An I/O error.
    pub fn local_get(&self, name: &str) -> Result<Option<Bytes>, StorageError> {
        let rows = self.file()?.local_rows()?;
        Ok(rows.into_iter().find(|(found, _)| found == name).map(|(_, value)| value))
    }

    /// Writes a row of this node alone and makes it durable; waits for it.
    ///
    /// # Errors
    /// As [`Store::checkpoint`].
    pub fn local_put(&self, name: &str, value: Bytes) -> Result<(), StorageError> {
        let name = name.to_owned();
        self.ask(|answer| Job::PutLocal(name, value, answer))
    }

    /// Makes a checkpoint, then writes just what it covers to a snapshot at `path`, durable, with that name only once whole, as one
    /// of the cluster `cluster_id`; 0 says nothing of it. What an error leaves is removed.
    ///
    /// # Errors
    /// As [`Store::checkpoint`].
    pub fn export(&self, path: &Path, cluster_id: u64) -> Result<SnapshotInfo, StorageError> {
        let (file, txn) = self.ask(Job::View)?;
        transfer::export(&*self.shared().disk, &file, &txn, path, cluster_id)
    }

    /// Length of the state file: what an export takes at most, but for what is yet to be moved into it.
    ///
    /// # Errors
    /// An I/O error.
    pub fn file_bytes(&self) -> io::Result<u64> {
        Ok(self.shared().disk.open(&self.shared().path)?.len()? + self.tail_bytes() as u64)
    }

    /// Makes a state file of the snapshot at `path`, beside the one in use, which goes on. One at a time.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`] and [`StorageError::OtherVersion`], which are the sender's fault; [`StorageError::Io`]. The
    /// store goes on in any case.
    pub fn prepare(&self, path: &Path) -> Result<Prepared, StorageError> {
        Prepared::build(self.handle.shared.clone(), path)
    }

    /// Replaces everything by a prepared snapshot, which is given the state file's name. The tail is dropped; nothing may be pushed
    /// meanwhile. Answers the machine's state and where it is.
    ///
    /// # Errors
    /// As [`Store::checkpoint`].
    pub fn install(&self, prepared: Prepared) -> Result<(State, Applied), StorageError> {
        if !prepared.belongs_to(&self.handle.shared) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the snapshot was prepared for another store");
            return Err(StorageError::io(&self.shared().path, "install a snapshot", source));
        }
        let (mut prepared, applied) = self.ask(|answer| Job::Install(Box::new(prepared), answer))?;
        Ok((prepared.take_state().ok_or(StorageError::Closed)?, applied))
    }

    /// Prepares and installs a snapshot.
    ///
    /// # Errors
    /// As [`Store::prepare`] and [`Store::install`].
    pub fn import(&self, path: &Path) -> Result<(State, Applied), StorageError> {
        self.install(self.prepare(path)?)
    }

    /// Makes a last checkpoint and stops the thread. Later calls are refused. Waits until the log is durable up to there, or
    /// failed, or was closed: flush or close the log first.
    ///
    /// # Errors
    /// The error that stopped the store, now or earlier.
    pub fn close(&self) -> Result<(), StorageError> {
        self.handle.close();
        self.shared().inner.lock().failed.clone().map_or(Ok(()), Err)
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    fn file(&self) -> Result<StateFile, StorageError> {
        self.shared().file.read().clone().ok_or(StorageError::Closed)
    }

    /// A read transaction and what `take` sees in the tail, of one moment.
    fn view<T>(&self, file: &StateFile, take: impl FnOnce(&Tail) -> T) -> Result<(ReadTransaction, T), StorageError> {
        let inner = &self.shared().inner;
        let mut filed = inner.lock().tail.filed;
        for _ in 0..3 {
            let txn = file.db.begin_read().map_err(file.fault())?;
            let now = inner.lock();
            if now.tail.filed == filed {
                return Ok((txn, take(&now.tail)));
            }
            filed = now.tail.filed;
        }
        let now = inner.lock();
        let txn = file.db.begin_read().map_err(file.fault())?;
        Ok((txn, take(&now.tail)))
    }

    fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, StorageError> {
        let (answer, result) = sync_channel(1);
        {
            let mut inner = self.shared().inner.lock();
            if let Some(error) = &inner.failed {
                return Err(StorageError::Poisoned(error.to_string()));
            }
            if inner.closing {
                return Err(StorageError::Closed);
            }
            inner.jobs.push_back(job(answer));
        }
        self.wake();
        // A driven writer takes the oldest job in a step.
        while self.handle.writer.is_driven() && !self.shared().inner.lock().jobs.is_empty() {
            self.handle.writer.help();
        }
        result.recv().unwrap_or(Err(StorageError::Closed))
    }
}

impl Handle {
    fn close(&self) {
        self.shared.inner.lock().closing = true;
        self.shared.work.notify_all();
        self.writer.join();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}
