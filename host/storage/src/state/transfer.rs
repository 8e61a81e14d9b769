//! The state file's content to a snapshot file and back.
//!
//! **Invariant:** a snapshot touches nothing but a file beside the state file, until that is whole, verified and durable.

use super::file::{HISTORY, StateFile, TABLES, unfinished};
use super::{Applied, INSTALLED, Shared, Store, StoreOptions, id_bytes};
use crate::StorageError;
use crate::disk::{Disk, DiskFile};
use crate::snapshot::{self, SnapshotInfo, SnapshotPart, SnapshotReader, SnapshotWriter, saved};
use bytes::Bytes;
use kvasir_machine::{Founding, Rev, State, Table};
use redb::{ReadTransaction, ReadableTable};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Writes the file's content, as of a read transaction, to a snapshot.
pub(super) fn export(
    disk: &dyn Disk,
    file: &StateFile,
    txn: &ReadTransaction,
    path: &Path,
    cluster_id: u64,
) -> Result<SnapshotInfo, StorageError> {
    let written = write(disk, file, txn, path, cluster_id);
    written.inspect_err(|_| {
        // What an export is begun with is of no use to anybody.
        if let Err(error) = disk.remove(&snapshot::unfinished(path)) {
            tracing::debug!(%error, "an unfinished snapshot is left until the next start");
        }
    })
}

fn write(
    disk: &dyn Disk,
    file: &StateFile,
    txn: &ReadTransaction,
    path: &Path,
    cluster_id: u64,
) -> Result<SnapshotInfo, StorageError> {
    let applied = file.applied(txn)?;
    let mut writer = SnapshotWriter::create(disk, path, &applied, cluster_id)?;
    let tables = txn.open_table(TABLES).map_err(file.fault())?;
    for row in tables.iter().map_err(file.fault())? {
        let (key, value) = row.map_err(file.fault())?;
        let value = file.verified(key.value(), value.value())?;
        let (table, key) = file.read_table_key(key.value())?;
        writer.table_row(table, key, value)?;
    }
    let history = txn.open_table(HISTORY).map_err(file.fault())?;
    for row in history.iter().map_err(file.fault())? {
        let (key, value) = row.map_err(file.fault())?;
        let rev = Rev::from_key(key.value()).ok_or_else(|| StorageError::corrupt(&file.path, 0, "a malformed revision"))?;
        writer.history_row(rev, file.verified(key.value(), value.value())?)?;
    }
    writer.finish()
}

/// A received snapshot as a state file beside the one in use: whole, verified, read by the machine, durable; without its name.
/// Dropped without [`Store::install`](super::Store::install), it is gone.
pub struct Prepared {
    shared: Arc<Shared>,
    fresh: Option<StateFile>,
    state: Option<State>,
    applied: Applied,
}

impl Prepared {
    /// Builds the state file of a snapshot.
    pub(super) fn build(shared: Arc<Shared>, path: &Path) -> Result<Self, StorageError> {
        if shared.preparing.swap(true, Ordering::SeqCst) {
            let source = std::io::Error::new(std::io::ErrorKind::ResourceBusy, "another snapshot is being received");
            return Err(StorageError::io(path, "receive the snapshot", source));
        }
        // From here on dropping it cleans up.
        let mut prepared = Self { shared, fresh: None, state: None, applied: Applied::default() };
        let shared = &prepared.shared;
        let mut reader = SnapshotReader::open(&*shared.disk, path)?;
        prepared.applied = reader.applied().clone();
        let fresh = prepared.fresh.insert(StateFile::create(&*shared.disk, &shared.path, &shared.options)?);
        fill(&mut reader, fresh, |_, _, value| Ok(Some(value)))?;
        fresh.make_durable(&prepared.applied)?;
        // Bytes that verify can still make no sense to the machine; that, too, must be known before the old file goes.
        let (state, applied) = fresh.restore().map_err(|error| match error {
            StorageError::Corrupt { what, .. } => StorageError::BadSnapshot { path: path.to_path_buf(), offset: 0, what },
            other => other,
        })?;
        (prepared.state, prepared.applied) = (Some(state), applied);
        Ok(prepared)
    }

    /// What the snapshot covers.
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    pub(super) fn belongs_to(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    pub(super) fn take_state(&mut self) -> Option<State> {
        self.state.take()
    }

    /// Gives the file the node's own rows of the old one, and its name.
    pub(super) fn put_in_place(&mut self, old: &StateFile) -> Result<(StateFile, Applied), StorageError> {
        let fresh = self.fresh.as_ref().ok_or(StorageError::Closed)?;
        fresh.put_local(&old.local_rows()?)?;
        let installed = self.applied.log_id.map(|id| (INSTALLED.to_owned(), Bytes::copy_from_slice(&id_bytes(id))));
        fresh.put_local(installed.as_slice())?;
        fresh.make_durable(&self.applied)?;
        fresh.install(&*self.shared.disk)?;
        Ok((self.fresh.take().ok_or(StorageError::Closed)?, self.applied.clone()))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(fresh) = self.fresh.take() {
            fresh.seal();
            if let Err(error) = self.shared.disk.remove(&unfinished(&self.shared.path)) {
                tracing::debug!(%error, "an unused snapshot's state file is left until the next start");
            }
        }
        self.shared.preparing.store(false, Ordering::SeqCst);
    }
}

impl Store {
    /// Makes the state file at `path`, where there is none, of a saved snapshot (read from `saved`, called `snapshot`), which was
    /// verified, for a new cluster; answers what it covers. It is durable, and has its name only once it is whole.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`], [`StorageError::OtherVersion`] or [`StorageError::Io`].
    pub fn found(
        disk: &dyn Disk,
        path: &Path,
        options: &StoreOptions,
        saved: Arc<dyn DiskFile>,
        snapshot: &Path,
        founding: Founding,
    ) -> Result<Applied, StorageError> {
        let mut reader = saved::open(saved, snapshot)?;
        let applied = reader.applied().clone();
        let fresh = StateFile::create(disk, path, options)?;
        let kept = |table, key: &[u8], value: Bytes| {
            let kept = founding.table_row(table, key, &value);
            kept.map_err(|error| StorageError::BadSnapshot { path: snapshot.to_path_buf(), offset: 0, what: error.to_string() })
        };
        let made =
            fill(&mut reader, &fresh, kept).and_then(|()| fresh.make_durable(&applied)).and_then(|()| fresh.install(disk));
        made.inspect_err(|_| fresh.seal())?;
        fresh.close();
        Ok(applied)
    }
}

fn fill(
    reader: &mut SnapshotReader,
    fresh: &StateFile,
    kept: impl Fn(Table, &[u8], Bytes) -> Result<Option<Bytes>, StorageError>,
) -> Result<(), StorageError> {
    while let Some(part) = reader.next_part()? {
        match part {
            SnapshotPart::Tables(rows) => {
                let rows = rows.into_iter().filter_map(|(table, key, value)| {
                    let value = kept(table, &key, value).transpose()?;
                    Some(value.map(|value| (table, key, value)))
                });
                fresh.load(&[], &rows.collect::<Result<Vec<_>, _>>()?)?;
            }
            SnapshotPart::History(rows) => fresh.load(&rows, &[])?,
        }
    }
    Ok(())
}
