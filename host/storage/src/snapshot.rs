//! The snapshot file: the state of one applied id in blocks that each verify (`docs/storage.md`, "Snapshot file").
//!
//! Written and read front to back with bounded memory, file to file. [`saved`] is the form in which operators keep it.
//!
//! **Invariant:** a snapshot has its name only once it is whole and durable; reading verifies every byte before it is used, and
//! the end block's counts before the last part is believed.

pub mod saved;

use crate::StorageError;
use crate::disk::{Disk, DiskFile, parent};
use crate::state::{Applied, id_bytes, membership_bytes, read_id, read_membership};
use bytes::{Buf, Bytes};
use kvasir_api::limits;
use kvasir_machine::{Rev, Table};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The snapshot's format version.
pub const FORMAT_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"KVSRSNAP";
const HEADER_BYTES: u64 = 32;
const BLOCK_HEADER_BYTES: u64 = 16;
const META: u8 = 1;
const TABLES: u8 = 2;
const HISTORY: u8 = 3;
const END: u8 = 4;

/// Where in the header the cluster's id is.
const CLUSTER: std::ops::Range<usize> = 12..20;

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The file.
    pub path: PathBuf,
    /// The applied id it is the state of, and the membership then.
    pub applied: Applied,
    /// The cluster it is of; 0 if that is not known.
    pub cluster_id: u64,
    /// Rows of small tables.
    pub table_rows: u64,
    /// Rows of history.
    pub history_rows: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
}

/// Rows of one verified block.
pub(crate) enum SnapshotPart {
    Tables(Vec<(Table, Bytes, Bytes)>),
    History(Vec<(Rev, Bytes)>),
}

/// Reads a snapshot's applied id, from its head alone.
///
/// # Errors
/// [`StorageError::BadSnapshot`], [`StorageError::OtherVersion`] or [`StorageError::Io`].
pub fn read_applied(disk: &dyn Disk, path: &Path) -> Result<Applied, StorageError> {
    Ok(SnapshotReader::open(disk, path)?.applied)
}

/// Verifies a whole snapshot.
///
/// # Errors
/// [`StorageError::BadSnapshot`], [`StorageError::OtherVersion`] or [`StorageError::Io`].
pub fn verify(disk: &dyn Disk, path: &Path) -> Result<SnapshotInfo, StorageError> {
    let mut reader = SnapshotReader::open(disk, path)?;
    while reader.next_part()?.is_some() {}
    Ok(reader.info())
}

pub(crate) fn unfinished(path: &Path) -> PathBuf {
    crate::disk::unfinished(path, ".part")
}

/// Writes a snapshot front to back: small tables in order of key, then history in order of revision.
pub(crate) struct SnapshotWriter<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    offset: u64,
    kind: u8,
    body: Vec<u8>,
    body_rows: u32,
    info: SnapshotInfo,
}

impl<'a> SnapshotWriter<'a> {
    pub(crate) fn create(disk: &'a dyn Disk, path: &Path, applied: &Applied, cluster_id: u64) -> Result<Self, StorageError> {
        let fail = |source| StorageError::io(path, "write the snapshot", source);
        let file = disk.create(&unfinished(path)).map_err(fail)?;
        let mut header = [0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        header[CLUSTER].copy_from_slice(&cluster_id.to_le_bytes());
        let crc = crc32c::crc32c(&header[..28]);
        header[28..].copy_from_slice(&crc.to_le_bytes());
        file.write_at(0, &header).map_err(fail)?;
        let info = SnapshotInfo {
            path: path.to_path_buf(),
            applied: applied.clone(),
            cluster_id,
            table_rows: 0,
            history_rows: 0,
            bytes: 0,
        };
        let mut writer = Self {
            disk,
            path: path.to_path_buf(),
            file,
            offset: HEADER_BYTES,
            kind: META,
            body: Vec::new(),
            body_rows: 0,
            info,
        };
        writer.body.push(u8::from(applied.log_id.is_some()));
        writer.body.extend_from_slice(&id_bytes(applied.log_id.unwrap_or_default()));
        writer.body.push(u8::from(applied.membership.is_some()));
        if let Some((id, content)) = &applied.membership {
            writer.body.extend_from_slice(&membership_bytes(*id, content));
        }
        writer.flush()?;
        Ok(writer)
    }

    pub(crate) fn table_row(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        self.turn(TABLES)?;
        self.body.push(table as u8);
        self.piece(key);
        self.piece(value);
        self.info.table_rows += 1;
        self.row_written()
    }

    pub(crate) fn history_row(&mut self, rev: Rev, row: &[u8]) -> Result<(), StorageError> {
        self.turn(HISTORY)?;
        self.body.extend_from_slice(&rev.to_key());
        self.piece(row);
        self.info.history_rows += 1;
        self.row_written()
    }

    /// Writes the end, makes the file durable and gives it its name.
    pub(crate) fn finish(mut self) -> Result<SnapshotInfo, StorageError> {
        self.turn(END)?;
        self.body.extend_from_slice(&self.info.table_rows.to_le_bytes());
        self.body.extend_from_slice(&self.info.history_rows.to_le_bytes());
        self.body.extend_from_slice(&self.offset.to_le_bytes());
        self.flush()?;
        self.file
            .sync_data()
            .and_then(|()| self.disk.rename(&unfinished(&self.path), &self.path))
            .and_then(|()| self.disk.sync_dir(parent(&self.path)))
            .map_err(|source| StorageError::io(&self.path, "finish the snapshot", source))?;
        self.info.bytes = self.offset;
        Ok(self.info)
    }

    fn piece(&mut self, bytes: &[u8]) {
        self.body.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.body.extend_from_slice(bytes);
    }

    fn row_written(&mut self) -> Result<(), StorageError> {
        self.body_rows += 1;
        if self.body.len() >= limits::SNAPSHOT_BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    fn turn(&mut self, kind: u8) -> Result<(), StorageError> {
        if self.kind != kind {
            if !self.body.is_empty() {
                self.flush()?;
            }
            self.kind = kind;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        let mut header = [0; BLOCK_HEADER_BYTES as usize];
        header[..4].copy_from_slice(&(self.body.len() as u32).to_le_bytes());
        header[8] = self.kind;
        header[12..].copy_from_slice(&self.body_rows.to_le_bytes());
        let crc = block_crc(&header, self.offset, &self.body);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
        let fail = |source| StorageError::io(&self.path, "write the snapshot", source);
        self.file.write_at(self.offset, &header).map_err(fail)?;
        self.file.write_at(self.offset + BLOCK_HEADER_BYTES, &self.body).map_err(fail)?;
        self.offset += BLOCK_HEADER_BYTES + self.body.len() as u64;
        self.body.clear();
        self.body_rows = 0;
        Ok(())
    }
}

/// The checksum covers the block's place, its length, kind and count, and its content.
fn block_crc(header: &[u8; BLOCK_HEADER_BYTES as usize], offset: u64, body: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&offset.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &header[..4]);
    let crc = crc32c::crc32c_append(crc, &header[8..]);
    crc32c::crc32c_append(crc, body)
}

/// Reads a snapshot front to back, verifying as it goes.
pub(crate) struct SnapshotReader {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// Where it ends at the latest: before the zeros are `padded`, just there otherwise.
    len: u64,
    padded: bool,
    offset: u64,
    ended: bool,
    applied: Applied,
    cluster_id: u64,
    last_table: Option<(u8, Bytes)>,
    last_rev: Option<Rev>,
    table_rows: u64,
    history_rows: u64,
}

impl SnapshotReader {
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> Result<Self, StorageError> {
        let fail = |source| StorageError::io(path, "read the snapshot", source);
        let file = disk.open(path).map_err(fail)?;
        let len = file.len().map_err(fail)?;
        Self::over(file, path, len, false)
    }

    /// Reads from the file's first `len` bytes; `padded` may be followed there by zeros.
    fn over(file: Arc<dyn DiskFile>, path: &Path, len: u64, padded: bool) -> Result<Self, StorageError> {
        let fail = |source| StorageError::io(path, "read the snapshot", source);
        let mut reader = Self {
            path: path.to_path_buf(),
            file,
            len,
            padded,
            offset: HEADER_BYTES,
            ended: false,
            applied: Applied::default(),
            cluster_id: 0,
            last_table: None,
            last_rev: None,
            table_rows: 0,
            history_rows: 0,
        };
        if len < HEADER_BYTES {
            return Err(reader.bad(0, "shorter than a snapshot's header"));
        }
        let mut header = [0; HEADER_BYTES as usize];
        reader.file.read_at(0, &mut header).map_err(fail)?;
        let mut fields = &header[8..];
        let version = fields.get_u32_le();
        let crc = (&header[28..]).get_u32_le();
        if header[..8] != MAGIC[..] {
            return Err(reader.bad(0, "it does not begin like one of kvasir's"));
        }
        if crc != crc32c::crc32c(&header[..28]) {
            return Err(reader.bad(0, "its header fails its checksum"));
        }
        if version != FORMAT_VERSION {
            return Err(StorageError::OtherVersion {
                path: path.to_path_buf(),
                found: version.to_string(),
                supported: FORMAT_VERSION,
            });
        }
        reader.cluster_id = (&header[CLUSTER]).get_u64_le();
        let (kind, _, mut body) = reader.block()?;
        if kind != META {
            return Err(reader.bad(HEADER_BYTES, "it does not say what it is the state of"));
        }
        reader.applied = read_meta(&mut body).ok_or_else(|| reader.bad(HEADER_BYTES, "its first block is malformed"))?;
        Ok(reader)
    }

    pub(crate) fn applied(&self) -> &Applied {
        &self.applied
    }

    pub(crate) fn info(&self) -> SnapshotInfo {
        SnapshotInfo {
            path: self.path.clone(),
            applied: self.applied.clone(),
            cluster_id: self.cluster_id,
            table_rows: self.table_rows,
            history_rows: self.history_rows,
            bytes: if self.ended { self.offset } else { self.len },
        }
    }

    /// The next block's rows; `None` after the last, when the counts were right.
    pub(crate) fn next_part(&mut self) -> Result<Option<SnapshotPart>, StorageError> {
        if self.ended {
            return Ok(None);
        }
        let start = self.offset;
        let (kind, rows, body) = self.block()?;
        let path = self.path.clone();
        let malformed = |what: String| StorageError::BadSnapshot { path, offset: start, what };
        match kind {
            TABLES if self.last_rev.is_none() => {
                let rows = self.table_rows_of(body, rows).map_err(|what| malformed(what.into()))?;
                self.table_rows += rows.len() as u64;
                Ok(Some(SnapshotPart::Tables(rows)))
            }
            HISTORY => {
                let rows = self.history_rows_of(body, rows).map_err(|what| malformed(what.into()))?;
                self.history_rows += rows.len() as u64;
                Ok(Some(SnapshotPart::History(rows)))
            }
            END => {
                let mut body = body;
                let counts = (body.len() == 24).then(|| (body.get_u64_le(), body.get_u64_le(), body.get_u64_le()));
                if counts != Some((self.table_rows, self.history_rows, start)) {
                    return Err(malformed("its end does not match its content".into()));
                }
                if self.offset != self.len && !self.is_padding()? {
                    return Err(malformed("something follows its end".into()));
                }
                self.ended = true;
                Ok(None)
            }
            _ => Err(malformed(format!("a block of kind {kind} where none belongs"))),
        }
    }

    /// Whether nothing but the zeros up to the next sector follows.
    fn is_padding(&self) -> Result<bool, StorageError> {
        if !self.padded || saved::padded(self.offset) != self.len {
            return Ok(false);
        }
        let mut rest = vec![1; (self.len - self.offset) as usize];
        let read = self.file.read_at(self.offset, &mut rest);
        read.map_err(|source| StorageError::io(&self.path, "read the snapshot", source))?;
        Ok(rest.iter().all(|byte| *byte == 0))
    }

    fn table_rows_of(&mut self, mut body: Bytes, count: u32) -> Result<Vec<(Table, Bytes, Bytes)>, &'static str> {
        let mut rows = Vec::new();
        while body.has_remaining() {
            let number = body.get_u8();
            let table = Table::from_number(number).ok_or("a row of an unknown table")?;
            let key = piece(&mut body).ok_or("a row cut short")?;
            let value = piece(&mut body).ok_or("a row cut short")?;
            let place = (number, key.clone());
            if self.last_table.as_ref().is_some_and(|last| *last >= place) {
                return Err("rows out of order");
            }
            self.last_table = Some(place);
            rows.push((table, key, value));
        }
        if rows.len() == count as usize { Ok(rows) } else { Err("a wrong count of rows") }
    }

    fn history_rows_of(&mut self, mut body: Bytes, count: u32) -> Result<Vec<(Rev, Bytes)>, &'static str> {
        let mut rows = Vec::new();
        while body.has_remaining() {
            if body.remaining() < Rev::KEY_BYTES {
                return Err("a row cut short");
            }
            let rev = Rev::from_key(&body.split_to(Rev::KEY_BYTES)).ok_or("a malformed revision")?;
            let row = piece(&mut body).ok_or("a row cut short")?;
            if self.last_rev.is_some_and(|last| last >= rev) {
                return Err("rows out of order");
            }
            self.last_rev = Some(rev);
            rows.push((rev, row));
        }
        if rows.len() == count as usize { Ok(rows) } else { Err("a wrong count of rows") }
    }

    fn block(&mut self) -> Result<(u8, u32, Bytes), StorageError> {
        let start = self.offset;
        if self.len - start < BLOCK_HEADER_BYTES {
            return Err(self.bad(start, "it ends before its end block"));
        }
        let fail = |source| StorageError::io(&self.path, "read the snapshot", source);
        let mut header = [0; BLOCK_HEADER_BYTES as usize];
        self.file.read_at(start, &mut header).map_err(fail)?;
        let len = (&header[..4]).get_u32_le();
        let crc = (&header[4..8]).get_u32_le();
        let rows = (&header[12..]).get_u32_le();
        let left = self.len - start - BLOCK_HEADER_BYTES;
        if len as usize > limits::SNAPSHOT_BLOCK_BYTES_MAX || u64::from(len) > left {
            return Err(self.bad(start, "a block longer than the file or than any block"));
        }
        let mut body = vec![0; len as usize];
        self.file.read_at(start + BLOCK_HEADER_BYTES, &mut body).map_err(fail)?;
        if crc != block_crc(&header, start, &body) {
            return Err(self.bad(start, "a block fails its checksum"));
        }
        self.offset = start + BLOCK_HEADER_BYTES + u64::from(len);
        Ok((header[8], rows, Bytes::from(body)))
    }

    fn bad(&self, offset: u64, what: &str) -> StorageError {
        StorageError::BadSnapshot { path: self.path.clone(), offset, what: what.into() }
    }
}

fn read_meta(body: &mut Bytes) -> Option<Applied> {
    let flag = |byte: u8| (byte < 2).then_some(byte == 1);
    let (has_id, rest) = body.split_first()?;
    let (id, rest) = rest.split_at_checked(24)?;
    let (has_membership, membership) = rest.split_first()?;
    let id = read_id(id)?;
    let log_id = flag(*has_id)?.then_some(id);
    let membership = match flag(*has_membership)? {
        true => Some(read_membership(membership)?),
        false if membership.is_empty() => None,
        false => return None,
    };
    Some(Applied { log_id, membership })
}

fn piece(body: &mut Bytes) -> Option<Bytes> {
    if body.remaining() < 4 {
        return None;
    }
    let len = body.get_u32_le() as usize;
    (body.remaining() >= len).then(|| body.split_to(len))
}
