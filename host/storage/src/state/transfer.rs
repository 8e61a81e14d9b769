//! The state file's content to a snapshot file and back.
//!
//! **Invariant:** import touches nothing but a file beside the state file, until that is whole, verified and durable.

use super::file::{HISTORY, StateFile, TABLES};
use super::{Applied, INSTALLED, StoreOptions, id_bytes};
use crate::StorageError;
use crate::disk::Disk;
use crate::snapshot::{SnapshotInfo, SnapshotPart, SnapshotReader, SnapshotWriter};
use bytes::Bytes;
use kvasir_machine::{Rev, State};
use redb::{ReadableDatabase, ReadableTable};
use std::path::Path;

/// Writes the file's content, as of one read transaction, to a snapshot.
pub(super) fn export(disk: &dyn Disk, file: &StateFile, path: &Path) -> Result<SnapshotInfo, StorageError> {
    let txn = file.db.begin_read().map_err(file.fault())?;
    let applied = file.applied(&txn)?;
    let mut writer = SnapshotWriter::create(disk, path, &applied)?;
    let tables = txn.open_table(TABLES).map_err(file.fault())?;
    for row in tables.iter().map_err(file.fault())? {
        let (key, value) = row.map_err(file.fault())?;
        let (table, key) = file.read_table_key(key.value())?;
        writer.table_row(table, key, value.value())?;
    }
    let history = txn.open_table(HISTORY).map_err(file.fault())?;
    for row in history.iter().map_err(file.fault())? {
        let (key, value) = row.map_err(file.fault())?;
        let rev = Rev::from_key(key.value()).ok_or_else(|| StorageError::corrupt(&file.path, 0, "a malformed revision"))?;
        writer.history_row(rev, value.value())?;
    }
    writer.finish()
}

/// Builds a fresh, durable state file from a snapshot, with the node's own rows of the old one; does not give it its name.
pub(super) fn import(
    disk: &dyn Disk,
    old: &StateFile,
    path: &Path,
    options: &StoreOptions,
) -> Result<(StateFile, State, Applied), StorageError> {
    let mut reader = SnapshotReader::open(disk, path)?;
    let applied: Applied = reader.applied().clone();
    let fresh = StateFile::create(disk, &old.path, options)?;
    let filled = fill(&mut reader, &fresh).and_then(|()| {
        fresh.put_local(&old.local_rows()?)?;
        let installed = applied.log_id.map(|id| (INSTALLED.to_owned(), Bytes::copy_from_slice(&id_bytes(id))));
        fresh.put_local(installed.as_slice())?;
        fresh.make_durable(&applied)?;
        // Bytes that verify can still make no sense to the machine; that, too, must be known before the old file goes.
        fresh.restore().map_err(|error| match error {
            StorageError::Corrupt { what, .. } => StorageError::BadSnapshot { path: path.to_path_buf(), offset: 0, what },
            other => other,
        })
    });
    if filled.is_err() {
        fresh.seal();
    }
    let (state, applied) = filled?;
    Ok((fresh, state, applied))
}

fn fill(reader: &mut SnapshotReader, fresh: &StateFile) -> Result<(), StorageError> {
    while let Some(part) = reader.next_part()? {
        match part {
            SnapshotPart::Tables(rows) => fresh.load(&[], &rows)?,
            SnapshotPart::History(rows) => fresh.load(&rows, &[])?,
        }
    }
    Ok(())
}
