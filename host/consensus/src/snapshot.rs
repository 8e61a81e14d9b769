//! Snapshots: the state at a durable checkpoint.
//!
//! Building one *is* making the state durable; the file is written only when a transfer asks for it, from the state file, to a
//! file. Installing one makes the state durable before it says so.
//!
//! A file that is being sent, or was until just now, is what raft is told of and what the next transfer sends: one that broke goes
//! on where it was, and the log is not purged above it, so that who was brought up by it finds what comes next.
//!
//! **Invariant:** a snapshot's log id is never above the last durable checkpoint, so purging below it loses nothing; what is sent
//! covers at least what raft was told it does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use kvasir_api::limits;
use kvasir_storage::StorageError;
use kvasir_storage::disk::{Disk, DiskFile};
use kvasir_storage::state::{Prepared, Store};
use openraft::storage::{RaftSnapshotBuilder, Snapshot};
use parking_lot::Mutex;

use crate::kinds::{Kinds, SnapshotMeta};
use crate::machine::{Shared, applied_from};

/// Where this node's snapshots are exported to.
pub(crate) struct Snapshots {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store: Store,
    cluster_id: u64,
    exported: AtomicU64,
    /// How long the file that is being sent stays after it was last sent of.
    hold: Duration,
    /// What tells this process' files from those of an earlier one.
    nonce: u64,
    sending: Mutex<Sending>,
    /// Held while a file to send is written: whoever wants one meanwhile waits for that one.
    exports: Mutex<()>,
    part: Mutex<Option<Part>>,
}

/// What is being sent to members, or about to be.
#[derive(Default)]
struct Sending {
    outgoing: Option<Outgoing>,
    /// The entry that the file which is being written covers at least.
    exporting: Option<u64>,
}

/// The file that is being sent, or was until lately.
struct Outgoing {
    file: Arc<SnapshotFile>,
    used: Instant,
}

/// What came of a transfer that broke.
struct Part {
    from: u64,
    number: u64,
    since: Instant,
    incoming: Incoming,
}

impl Snapshots {
    /// Takes the folder, which must exist, and removes what an earlier process left in it. Blocking.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        store: Store,
        cluster_id: u64,
        hold: Duration,
    ) -> Result<Self, StorageError> {
        for name in disk.list(&dir).map_err(|source| StorageError::io(&dir, "list the snapshot folder", source))? {
            let path = dir.join(name);
            disk.remove(&path).map_err(|source| StorageError::io(&path, "remove a leftover snapshot", source))?;
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nonce = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let (sending, exports, part) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self { disk, dir, store, cluster_id, exported: AtomicU64::new(0), hold, nonce, sending, exports, part })
    }

    /// Whether nothing of it ever waits for a disk.
    pub(crate) fn is_driven(&self) -> bool {
        self.disk.driver().is_some()
    }

    /// Whether an export fits on the disk, and does not by itself bring on the alarm that there is little room. Blocking.
    ///
    /// # Errors
    /// `StorageFull`; whatever the disk says.
    pub(crate) fn check_room(&self) -> io::Result<()> {
        // Where that alarm is raised already there is nothing to bring on.
        let free = self.disk.free_bytes(&self.dir)?;
        self.fits(free, if free >= limits::DISK_FREE_BYTES_MIN { limits::DISK_FREE_BYTES_MIN } else { 0 })
    }

    fn fits(&self, free: u64, kept: u64) -> io::Result<()> {
        let needed = self.store.file_bytes()?;
        if free.saturating_sub(kept) >= needed {
            return Ok(());
        }
        let line =
            format!("it may need {needed} bytes of the data folder's disk, where {free} are free and {kept} must stay so");
        Err(io::Error::new(io::ErrorKind::StorageFull, line))
    }

    /// Exports the state at a fresh checkpoint to a file of its own. Blocking.
    ///
    /// # Errors
    /// The state file cannot be read or the file not be written.
    pub(crate) fn export(&self) -> io::Result<SnapshotFile> {
        // Which entry it will cover is known only afterwards, and two may be exported at once: numbered, not named by it.
        let number = self.exported.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{number}.snap"));
        let info = self.store.export(&path, self.cluster_id)?;
        let mut file = SnapshotFile {
            disk: Arc::clone(&self.disk),
            path,
            number: self.nonce.wrapping_add(number),
            meta: SnapshotMeta::default(),
        };
        let (log_id, membership) = applied_from(&info.applied)?;
        file.meta = meta(log_id, membership);
        Ok(file)
    }

    /// The file to send to a member that is to get at least what `meta` covers: the one that is being sent, or a new one. Blocking.
    ///
    /// # Errors
    /// `StorageFull` when there is no room for one; as [`Snapshots::export`].
    pub(crate) fn to_send(&self, meta: &SnapshotMeta) -> io::Result<Arc<SnapshotFile>> {
        let _one_at_a_time = self.exports.lock();
        if let Some(outgoing) = &mut self.sending.lock().outgoing
            && outgoing.file.meta.last_log_id >= meta.last_log_id
        {
            outgoing.used = Instant::now();
            return Ok(Arc::clone(&outgoing.file));
        }
        // A disk that it fills would end this node.
        self.fits(self.disk.free_bytes(&self.dir)?, 0)?;
        // While it is written the log must stay above what it will cover.
        self.sending.lock().exporting = Some(self.store.durable().map_or(0, |id| id.index));
        let exported = self.export().map(Arc::new);
        let mut sending = self.sending.lock();
        sending.exporting = None;
        let file = exported?;
        sending.outgoing = Some(Outgoing { file: Arc::clone(&file), used: Instant::now() });
        Ok(file)
    }

    /// What the file covers that is being sent, if there is one that the log, purged up to an entry, goes on from.
    pub(crate) fn sending(&self, purged: Option<u64>) -> Option<SnapshotMeta> {
        let sending = self.sending.lock();
        let meta = &sending.outgoing.as_ref()?.file.meta;
        (meta.last_log_id.as_ref().map(|id| id.index) >= purged).then(|| meta.clone())
    }

    /// Above which entry the log must stay, `log_bytes` heavy as it is; forgets what nobody came back for.
    pub(crate) fn held(&self, log_bytes: u64) -> Option<u64> {
        let part_kept = Duration::from_millis(limits::SNAPSHOT_PART_KEEP_MS);
        self.part.lock().take_if(|part| part.since.elapsed() > part_kept);
        let mut sending = self.sending.lock();
        sending.outgoing.take_if(|outgoing| {
            // While it is sent, or its receiver is at it, somebody has it.
            let is_over = outgoing.used.elapsed() > self.hold && Arc::strong_count(&outgoing.file) == 1;
            is_over || log_bytes > limits::SNAPSHOT_HOLD_LOG_BYTES_MAX
        });
        let outgoing =
            sending.outgoing.as_ref().map(|outgoing| outgoing.file.meta.last_log_id.as_ref().map_or(0, |id| id.index));
        outgoing.into_iter().chain(sending.exporting).min()
    }

    /// Keeps what has come of a transfer that broke, for the next one of the same file.
    pub(crate) fn set_aside(&self, from: u64, number: u64, incoming: Incoming) {
        *self.part.lock() = Some(Part { from, number, since: Instant::now(), incoming });
    }

    /// What is here of a file, or a new file for it, `length` bytes long. Blocking.
    ///
    /// # Errors
    /// As [`Snapshots::receive`].
    pub(crate) fn go_on(&self, from: u64, number: u64, length: u64) -> io::Result<Incoming> {
        let part = self.part.lock().take();
        match part.filter(|part| (part.from, part.number, part.incoming.length) == (from, number, length)) {
            Some(part) => Ok(part.incoming),
            None => self.receive(length),
        }
    }

    /// A file for a snapshot of `length` bytes that is about to come. Blocking.
    ///
    /// # Errors
    /// `StorageFull` when there is no room for it and the state file that is made of it; whatever the disk says.
    fn receive(&self, length: u64) -> io::Result<Incoming> {
        if self.disk.free_bytes(&self.dir)? / 3 < length {
            return Err(io::Error::new(io::ErrorKind::StorageFull, format!("no room for a snapshot of {length} bytes")));
        }
        let number = self.exported.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{number}.part"));
        let file = self.disk.create(&path)?;
        Ok(Incoming { disk: Arc::clone(&self.disk), path, file, length, written: 0 })
    }
}

/// A snapshot that is being received. Dropped, it is removed.
pub(crate) struct Incoming {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    length: u64,
    written: u64,
}

impl Incoming {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that have come.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Bytes that are still to come.
    pub(crate) fn missing(&self) -> u64 {
        self.length - self.written
    }

    /// The next bytes. Blocking.
    ///
    /// # Errors
    /// `InvalidData` for more than were announced; whatever the disk says.
    pub(crate) fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        if piece.is_empty() || piece.len() as u64 > self.missing() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a snapshot of another length than was announced"));
        }
        self.file.write_at(self.written, piece)?;
        self.written += piece.len() as u64;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Err(error) = self.disk.remove(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a received snapshot is left until the next start");
        }
    }
}

/// An exported snapshot. Dropped, it is removed.
pub(crate) struct SnapshotFile {
    disk: Arc<dyn Disk>,
    pub(crate) path: PathBuf,
    /// Tells it from every other file of this node.
    pub(crate) number: u64,
    /// What the file covers: what its receiver is to be told, whatever was announced before the export.
    pub(crate) meta: SnapshotMeta,
}

impl SnapshotFile {
    /// Whether reading it never waits.
    pub(crate) fn is_driven(&self) -> bool {
        self.disk.driver().is_some()
    }

    /// The file's length. Blocking, but short.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub(crate) fn bytes(&self) -> io::Result<u64> {
        self.disk.open(&self.path)?.len()
    }

    /// Fills `out` from `offset`. Blocking.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.open(&self.path)?.read_at(offset, out)
    }
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        if let Err(error) = self.disk.remove(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "an exported snapshot is left until the next start");
        }
    }
}

/// A snapshot's bytes: still to be exported, or received and verified.
pub(crate) struct SnapshotData {
    source: Source,
}

enum Source {
    /// A node's own state file, exported when someone wants its bytes.
    Own(Arc<Snapshots>),
    /// One that was received, ready to be put in place.
    Received(Box<Prepared>),
}

impl SnapshotData {
    pub(crate) fn of_store(snapshots: Arc<Snapshots>) -> Self {
        Self { source: Source::Own(snapshots) }
    }

    /// A received snapshot, verified to its last byte and read by the machine, and what it covers. Blocking. Nothing of this node
    /// changes, and an error is for the sender: it is not this node's fault.
    ///
    /// # Errors
    /// `InvalidData` for a file that is not a whole snapshot of a version this program reads; whatever the disk says.
    pub(crate) fn of_file(store: &Store, path: &Path) -> io::Result<(SnapshotMeta, Self)> {
        let prepared = store.prepare(path)?;
        let (log_id, membership) = applied_from(prepared.applied())?;
        Ok((meta(log_id, membership), Self { source: Source::Received(Box::new(prepared)) }))
    }

    /// Whether nothing of it ever waits for a disk.
    pub(crate) fn is_driven(&self) -> bool {
        matches!(&self.source, Source::Own(snapshots) if snapshots.is_driven())
    }

    /// The snapshot as a file that covers at least what `meta` does, to be sent; `None` for one that was received. Blocking.
    ///
    /// # Errors
    /// As [`Snapshots::export`].
    pub(crate) fn file(&self, meta: &SnapshotMeta) -> io::Result<Option<Arc<SnapshotFile>>> {
        match &self.source {
            Source::Own(snapshots) => snapshots.to_send(meta).map(Some),
            Source::Received(_) => Ok(None),
        }
    }

    /// Some of it was sent just now.
    pub(crate) fn note_sent(&self) {
        if let Source::Own(snapshots) = &self.source
            && let Some(outgoing) = &mut snapshots.sending.lock().outgoing
        {
            outgoing.used = Instant::now();
        }
    }

    /// The snapshot ready to be put in place of `store`'s file. Blocking.
    ///
    /// # Errors
    /// As [`SnapshotData::of_file`].
    pub(crate) fn prepared(self, store: &Store) -> io::Result<Prepared> {
        match self.source {
            Source::Received(prepared) => Ok(*prepared),
            Source::Own(snapshots) => Ok(store.prepare(&snapshots.export()?.path)?),
        }
    }
}

/// Builds a snapshot: makes the state durable.
pub(crate) struct Builder {
    pub(crate) shared: Arc<Shared>,
}

impl RaftSnapshotBuilder<Kinds> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(
        &mut self,
    ) -> Result<
        Snapshot<openraft::impls::leader_id_adv::LeaderId<u64, u64>, u64, crate::membership::Member, SnapshotData>,
        io::Error,
    > {
        let meta = self.shared.checkpoint().await?;
        self.shared.note_snapshot(&meta);
        Ok(Snapshot { meta, snapshot: SnapshotData::of_store(Arc::clone(&self.shared.snapshots)) })
    }
}

/// What a snapshot covers.
pub(crate) fn meta(log_id: Option<crate::kinds::LogId>, membership: crate::kinds::StoredMembership) -> SnapshotMeta {
    SnapshotMeta { last_log_id: log_id, last_membership: membership }
}
