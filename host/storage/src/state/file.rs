//! The state file: redb's tables and what stands in them (`docs/storage.md`, "State file").
//!
//! **Invariant:** history, small tables and the applied id of one moment are written in one transaction, so that the file is
//! always the machine's state at the applied id, never between two.

use super::backend::Backend;
use super::tail::{Batch, Tail};
use super::{Applied, StoreOptions};
use crate::StorageError;
use crate::disk::{Disk, parent};
use crate::log::LogId;
use bytes::Bytes;
use kvasir_machine::{FormatError, Rev, Row, State, Table};
use redb::{Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The state file's format version.
pub(super) const FORMAT_VERSION: u32 = 1;
pub(super) const HISTORY: TableDefinition<'static, &[u8; 12], &[u8]> = TableDefinition::new("history");
pub(super) const TABLES: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("tables");
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
/// What concerns this node alone and never goes into a snapshot.
const LOCAL: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("local");

/// An open state file.
#[derive(Clone)]
pub(super) struct StateFile {
    pub(super) db: Arc<Database>,
    backend: Backend,
    pub(super) path: PathBuf,
}

/// The name under which a state file is built.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    crate::disk::unfinished(path, ".new")
}

/// A small table's key in the file: the table's number, then the key.
pub(super) fn table_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + 1);
    bytes.push(table as u8);
    bytes.extend_from_slice(key);
    bytes
}

impl StateFile {
    /// Opens the file at `path`, creating an empty one if there is none. What is there is left as it was until
    /// [`StateFile::release`].
    pub(super) fn open(disk: &dyn Disk, path: &Path, options: &StoreOptions) -> Result<Self, StorageError> {
        let leftover = unfinished(path);
        let fail = |doing| move |source| StorageError::io(path, doing, source);
        if disk.exists(&leftover).map_err(fail("look for the state file"))? {
            disk.remove(&leftover).map_err(fail("remove an unfinished state file"))?;
        }
        // The name may be there by a rename that was never made durable.
        disk.sync_dir(parent(path)).map_err(fail("sync the state file's folder"))?;
        if !disk.exists(path).map_err(fail("look for the state file"))? {
            let fresh = Self::create(disk, path, options)?;
            fresh.install(disk)?;
            return Ok(fresh);
        }
        let file = disk.open(path).map_err(fail("open the state file"))?;
        if file.is_empty().map_err(fail("read the state file"))? {
            return Err(StorageError::corrupt(path, 0, "the state file is empty"));
        }
        let backend = Backend::held(file).map_err(fail("read the state file"))?;
        let opened = Self::with_backend(backend, path, options)?;
        opened.check_version().inspect_err(|_| opened.seal())?;
        Ok(opened)
    }

    /// Lets through what opening the file changed in it.
    pub(super) fn release(&self) -> Result<(), StorageError> {
        self.backend.release().map_err(|source| StorageError::io(&self.path, "write the state file", source))
    }

    /// Closes the database, if nobody reads in it, and lets nothing reach the file any more.
    pub(super) fn close(self) {
        // A database with readers is not closed: the next start repairs it from its last checkpoint.
        drop(Arc::try_unwrap(self.db));
        self.backend.seal();
    }

    /// Makes an empty file beside `path`, to be filled and then [`StateFile::install`]ed.
    pub(super) fn create(disk: &dyn Disk, path: &Path, options: &StoreOptions) -> Result<Self, StorageError> {
        let file = disk.create(&unfinished(path)).map_err(|source| StorageError::io(path, "create the state file", source))?;
        let created = Self::with_backend(Backend::new(file), path, options)?;
        let txn = created.begin(Durability::Immediate)?;
        created.with_tables(&txn, |_, _, meta, _| meta.insert("format", &FORMAT_VERSION.to_le_bytes()[..]).map(drop))?;
        created.commit(txn)?;
        Ok(created)
    }

    /// Gives a finished file its name, replacing the old one.
    pub(super) fn install(&self, disk: &dyn Disk) -> Result<(), StorageError> {
        disk.rename(&unfinished(&self.path), &self.path)
            .and_then(|()| disk.sync_dir(parent(&self.path)))
            .map_err(|source| StorageError::io(&self.path, "name the state file", source))
    }

    fn with_backend(backend: Backend, path: &Path, options: &StoreOptions) -> Result<Self, StorageError> {
        let db = Database::builder()
            .set_cache_size(options.cache_bytes)
            .create_with_backend(backend.clone())
            .map_err(|error| fault(path, error.into()))
            .inspect_err(|_| backend.seal())?;
        Ok(Self { db: Arc::new(db), backend, path: path.to_path_buf() })
    }

    fn check_version(&self) -> Result<(), StorageError> {
        let txn = self.db.begin_read().map_err(self.fault())?;
        let meta = txn.open_table(META).map_err(self.fault())?;
        let found = meta.get("format").map_err(self.fault())?;
        let found = found.map(|value| value.value().to_vec()).unwrap_or_default();
        match <[u8; 4]>::try_from(found.as_slice()).map(u32::from_le_bytes) {
            Ok(FORMAT_VERSION) => Ok(()),
            Ok(other) => {
                Err(StorageError::OtherVersion { path: self.path.clone(), found: other.to_string(), supported: FORMAT_VERSION })
            }
            Err(_) => Err(StorageError::corrupt(&self.path, 0, "the state file has no format version")),
        }
    }

    /// Lets nothing reach the file any more.
    pub(super) fn seal(&self) {
        self.backend.seal();
    }

    /// Turns redb's errors into ours.
    pub(super) fn fault<E: Into<redb::Error>>(&self) -> impl Fn(E) -> StorageError + '_ {
        |error| fault(&self.path, error.into())
    }

    /// Turns the machine's refusal of stored bytes into ours.
    pub(super) fn misfit(&self, error: &FormatError) -> StorageError {
        match error {
            FormatError::UnknownVersion { .. } => {
                StorageError::OtherVersion { path: self.path.clone(), found: error.to_string(), supported: FORMAT_VERSION }
            }
            _ => StorageError::corrupt(&self.path, 0, error.to_string()),
        }
    }

    pub(super) fn begin(&self, durability: Durability) -> Result<WriteTransaction, StorageError> {
        let mut txn = self.db.begin_write().map_err(self.fault())?;
        txn.set_durability(durability).map_err(self.fault())?;
        if matches!(durability, Durability::Immediate) {
            txn.set_quick_repair(true);
        }
        Ok(txn)
    }

    pub(super) fn commit(&self, txn: WriteTransaction) -> Result<(), StorageError> {
        txn.commit().map_err(self.fault())
    }

    fn with_tables(
        &self,
        txn: &WriteTransaction,
        fill: impl FnOnce(
            &mut redb::Table<'_, &'static [u8; 12], &'static [u8]>,
            &mut redb::Table<'_, &'static [u8], &'static [u8]>,
            &mut redb::Table<'_, &'static str, &'static [u8]>,
            &mut redb::Table<'_, &'static str, &'static [u8]>,
        ) -> Result<(), redb::StorageError>,
    ) -> Result<(), StorageError> {
        let mut history = txn.open_table(HISTORY).map_err(self.fault())?;
        let mut tables = txn.open_table(TABLES).map_err(self.fault())?;
        let mut meta = txn.open_table(META).map_err(self.fault())?;
        let mut local = txn.open_table(LOCAL).map_err(self.fault())?;
        fill(&mut history, &mut tables, &mut meta, &mut local).map_err(self.fault())
    }

    /// Writes applied batches, their rows, and deletes `gone`, in one commit that a crash may yet undo.
    pub(super) fn write(
        &self,
        rows: &[Arc<Row>],
        batches: &[Arc<Batch>],
        gone: &[Rev],
        applied: &Applied,
    ) -> Result<(), StorageError> {
        let txn = self.begin(Durability::None)?;
        self.with_tables(&txn, |history, tables, meta, _| {
            for row in rows {
                let key = row.rev.to_key();
                history.insert(&key, sum(&key, row.encode()).as_slice())?;
            }
            for op in batches.iter().flat_map(|batch| &batch.tables) {
                let key = table_key(op.table, &op.key);
                match &op.value {
                    Some(value) => tables.insert(key.as_slice(), sum(&key, value.to_vec()).as_slice()).map(drop)?,
                    None => tables.remove(key.as_slice()).map(drop)?,
                }
            }
            for rev in gone {
                history.remove(&rev.to_key())?;
            }
            put_applied(meta, applied)
        })?;
        self.commit(txn)
    }

    /// Makes everything committed so far durable.
    pub(super) fn make_durable(&self, applied: &Applied) -> Result<(), StorageError> {
        let txn = self.begin(Durability::Immediate)?;
        self.with_tables(&txn, |_, _, meta, _| put_applied(meta, applied))?;
        self.commit(txn)
    }

    /// Writes rows of a snapshot; durable with the next [`StateFile::make_durable`].
    pub(super) fn load(&self, history: &[(Rev, Bytes)], tables: &[(Table, Bytes, Bytes)]) -> Result<(), StorageError> {
        let txn = self.begin(Durability::None)?;
        self.with_tables(&txn, |in_history, in_tables, _, _| {
            for (rev, row) in history {
                let key = rev.to_key();
                in_history.insert(&key, sum(&key, row.to_vec()).as_slice())?;
            }
            for (table, key, value) in tables {
                let key = table_key(*table, key);
                in_tables.insert(key.as_slice(), sum(&key, value.to_vec()).as_slice())?;
            }
            Ok(())
        })?;
        self.commit(txn)
    }

    /// Reads the node's own rows.
    pub(super) fn local_rows(&self) -> Result<Vec<(String, Bytes)>, StorageError> {
        let txn = self.db.begin_read().map_err(self.fault())?;
        let local = match txn.open_table(LOCAL) {
            Ok(local) => local,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(self.fault()(error)),
        };
        let mut rows = Vec::new();
        for row in local.iter().map_err(self.fault())? {
            let (name, value) = row.map_err(self.fault())?;
            let (name, value) = (name.value(), self.verified(name.value().as_bytes(), value.value())?);
            rows.push((name.to_owned(), Bytes::copy_from_slice(value)));
        }
        Ok(rows)
    }

    /// Writes the node's own rows; durable with the next [`StateFile::make_durable`].
    pub(super) fn put_local(&self, rows: &[(String, Bytes)]) -> Result<(), StorageError> {
        let txn = self.begin(Durability::None)?;
        self.with_tables(&txn, |_, _, _, local| {
            for (name, value) in rows {
                local.insert(name.as_str(), sum(name.as_bytes(), value.to_vec()).as_slice())?;
            }
            Ok(())
        })?;
        self.commit(txn)
    }

    /// Rebuilds the machine's state from the file.
    pub(super) fn restore(&self) -> Result<(State, Applied), StorageError> {
        let txn = self.db.begin_read().map_err(self.fault())?;
        let mut restore = State::restore();
        let tables = txn.open_table(TABLES).map_err(self.fault())?;
        for row in tables.iter().map_err(self.fault())? {
            let (key, value) = row.map_err(self.fault())?;
            let value = Bytes::copy_from_slice(self.verified(key.value(), value.value())?);
            let (table, key) = self.read_table_key(key.value())?;
            restore.table_row(table, key, &value).map_err(|error| self.misfit(&error))?;
        }
        let history = txn.open_table(HISTORY).map_err(self.fault())?;
        for row in history.iter().map_err(self.fault())? {
            let (key, value) = row.map_err(self.fault())?;
            let row = self.read_row(key.value(), value.value())?;
            restore.history_row(row).map_err(|error| self.misfit(&error))?;
        }
        let state = restore.finish().map_err(|error| self.misfit(&error))?;
        Ok((state, self.applied(&txn)?))
    }

    /// The applied id and membership as a read transaction has them.
    pub(super) fn applied(&self, txn: &ReadTransaction) -> Result<Applied, StorageError> {
        let meta = txn.open_table(META).map_err(self.fault())?;
        let get = |name: &str| -> Result<Option<Vec<u8>>, StorageError> {
            let value = meta.get(name).map_err(self.fault())?;
            value.map(|value| self.verified(name.as_bytes(), value.value()).map(<[u8]>::to_vec)).transpose()
        };
        let bad = |what| StorageError::corrupt(&self.path, 0, what);
        let log_id = match get("applied")? {
            Some(bytes) => Some(read_id(&bytes).ok_or_else(|| bad("the applied id is malformed"))?),
            None => None,
        };
        let membership = match get("membership")? {
            Some(bytes) => Some(read_membership(&bytes).ok_or_else(|| bad("the membership is malformed"))?),
            None => None,
        };
        Ok(Applied { log_id, membership })
    }

    pub(super) fn read_row(&self, key: &[u8; 12], value: &[u8]) -> Result<Row, StorageError> {
        let rev = Rev::from_key(key).ok_or_else(|| StorageError::corrupt(&self.path, 0, "a malformed revision"))?;
        Row::decode(rev, &Bytes::copy_from_slice(self.verified(key, value)?)).map_err(|error| self.misfit(&error))
    }

    /// The value as it was written, without its checksum. redb verifies its pages only after a crash.
    pub(super) fn verified<'a>(&self, key: &[u8], stored: &'a [u8]) -> Result<&'a [u8], StorageError> {
        match stored.split_last_chunk() {
            Some((value, crc)) if u32::from_le_bytes(*crc) == row_crc(key, value) => Ok(value),
            _ => Err(StorageError::corrupt(&self.path, 0, "a row fails its checksum")),
        }
    }

    pub(super) fn read_table_key<'a>(&self, key: &'a [u8]) -> Result<(Table, &'a [u8]), StorageError> {
        let parts = key.split_first().and_then(|(number, key)| Some((Table::from_number(*number)?, key)));
        parts.ok_or_else(|| StorageError::corrupt(&self.path, 0, "a row of an unknown table"))
    }

    /// The row of a revision, if the file has it.
    pub(super) fn row(&self, rev: Rev) -> Result<Option<Row>, StorageError> {
        let txn = self.db.begin_read().map_err(self.fault())?;
        let history = txn.open_table(HISTORY).map_err(self.fault())?;
        let key = rev.to_key();
        let value = history.get(&key).map_err(self.fault())?;
        value.map(|value| self.read_row(&key, value.value())).transpose()
    }

    /// Rows of history in `from..before` and not past revision `to_main`, ascending, until there are `max_rows` of them or they
    /// weigh `max_bytes`.
    pub(super) fn rows(
        &self,
        from: Rev,
        before: Option<Rev>,
        to_main: u64,
        max_rows: usize,
        max_bytes: usize,
    ) -> Result<(Vec<Arc<Row>>, usize), StorageError> {
        let txn = self.db.begin_read().map_err(self.fault())?;
        let history = txn.open_table(HISTORY).map_err(self.fault())?;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let last = Rev::new(to_main, u32::MAX).to_key();
        let start = from.to_key();
        if start > last {
            return Ok((rows, bytes));
        }
        for row in history.range::<&[u8; 12]>(&start..=&last).map_err(self.fault())? {
            let (key, value) = row.map_err(self.fault())?;
            if rows.len() >= max_rows || bytes >= max_bytes {
                break;
            }
            let row = self.read_row(key.value(), value.value())?;
            if before.is_some_and(|before| row.rev >= before) {
                break;
            }
            bytes += Tail::weight(&row);
            rows.push(Arc::new(row));
        }
        Ok((rows, bytes))
    }
}

fn fault(path: &Path, error: redb::Error) -> StorageError {
    match error {
        redb::Error::Corrupted(what) => StorageError::corrupt(path, 0, what),
        redb::Error::UpgradeRequired(found) => {
            StorageError::OtherVersion { path: path.to_path_buf(), found: format!("redb {found}"), supported: FORMAT_VERSION }
        }
        redb::Error::Io(source) => match source.kind() {
            std::io::ErrorKind::InvalidData => StorageError::corrupt(path, 0, source.to_string()),
            _ => StorageError::io(path, "use the state file", source),
        },
        other => StorageError::io(path, "use the state file", std::io::Error::other(other.to_string())),
    }
}

fn row_crc(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

/// A value as it is stored: with the checksum of key and value behind it.
fn sum(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let crc = row_crc(key, &value);
    value.extend_from_slice(&crc.to_le_bytes());
    value
}

fn put_applied(meta: &mut redb::Table<'_, &'static str, &'static [u8]>, applied: &Applied) -> Result<(), redb::StorageError> {
    if let Some(id) = applied.log_id {
        meta.insert("applied", sum(b"applied", id_bytes(id).to_vec()).as_slice())?;
    }
    if let Some((id, content)) = &applied.membership {
        meta.insert("membership", sum(b"membership", membership_bytes(*id, content)).as_slice())?;
    }
    Ok(())
}

/// A log id in 24 bytes: term, node, index, little-endian.
pub(crate) fn id_bytes(id: LogId) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&id.term.to_le_bytes());
    bytes[8..16].copy_from_slice(&id.node.to_le_bytes());
    bytes[16..].copy_from_slice(&id.index.to_le_bytes());
    bytes
}

/// The inverse of [`id_bytes`].
pub(crate) fn read_id(bytes: &[u8]) -> Option<LogId> {
    let (term, rest) = bytes.split_first_chunk()?;
    let (node, rest) = rest.split_first_chunk()?;
    let index = rest.try_into().ok()?;
    Some(LogId { term: u64::from_le_bytes(*term), node: u64::from_le_bytes(*node), index: u64::from_le_bytes(index) })
}

/// A membership: a flag and the id of the entry that set it, then its content.
pub(crate) fn membership_bytes(id: Option<LogId>, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::from(id.is_some())];
    bytes.extend_from_slice(&id_bytes(id.unwrap_or_default()));
    bytes.extend_from_slice(content);
    bytes
}

/// The inverse of [`membership_bytes`].
pub(crate) fn read_membership(bytes: &[u8]) -> Option<(Option<LogId>, Bytes)> {
    let (flag, rest) = bytes.split_first()?;
    let (id, content) = rest.split_at_checked(24)?;
    let id = read_id(id)?;
    match flag {
        0 => Some((None, Bytes::copy_from_slice(content))),
        1 => Some((Some(id), Bytes::copy_from_slice(content))),
        _ => None,
    }
}
