//! A saved snapshot: a snapshot file as an operator keeps it (`docs/storage.md`, "Saved snapshot").
//!
//! The snapshot file, zeros up to a multiple of 512 bytes, and the SHA-256 of all of that: the form that `etcdctl snapshot save`
//! takes for whole. Where the snapshot ends its own end block says.
//!
//! **Invariant:** a saved snapshot that is shown to anybody, or restored, was verified before, its hash and all that is in it.

use super::{HEADER_BYTES, SnapshotInfo, SnapshotPart, SnapshotReader};
use crate::StorageError;
use crate::disk::DiskFile;
use kvasir_machine::{FormatError, Row, State};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// What the part before the hash is a multiple of.
const SECTOR_BYTES: u64 = 512;
/// Length of the hash.
pub const HASH_BYTES: u64 = 32;
/// Bytes read at once.
const READ_BYTES: u64 = 256 * 1024;

/// The length before the hash for a snapshot file of `bytes`.
pub fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR_BYTES)
}

/// Makes what follows a snapshot file of its bytes, which are given in order.
#[derive(Debug, Default)]
pub struct Sealing {
    hasher: Sha256,
    bytes: u64,
}

impl Sealing {
    /// The next bytes of the snapshot file.
    pub fn add(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
        self.bytes += piece.len() as u64;
    }

    /// The zeros that follow them.
    pub fn pad(&mut self) -> Vec<u8> {
        let zeros = vec![0; (padded(self.bytes) - self.bytes) as usize];
        self.add(&zeros);
        zeros
    }

    /// The hash of all that was given.
    pub fn seal(self) -> [u8; HASH_BYTES as usize] {
        self.hasher.finalize().into()
    }
}

/// A saved snapshot, read to its last byte.
pub struct Saved {
    /// What it holds; its length is that of the snapshot alone.
    pub info: SnapshotInfo,
    /// The machine's state.
    pub state: State,
    /// The SHA-256 it ends with.
    pub hash: [u8; HASH_BYTES as usize],
}

/// Verifies the length and the hash.
fn hash(file: &dyn DiskFile, path: &Path) -> Result<[u8; HASH_BYTES as usize], StorageError> {
    let fail = |source| StorageError::io(path, "read the snapshot", source);
    let bad = |offset, what: &str| StorageError::BadSnapshot { path: path.to_path_buf(), offset, what: what.into() };
    let bytes = file.len().map_err(fail)?;
    let Some(body) = bytes.checked_sub(HASH_BYTES).filter(|body| body % SECTOR_BYTES == 0 && *body >= HEADER_BYTES) else {
        return Err(bad(bytes, "its length is not that of a saved snapshot: it is cut short, or none"));
    };
    let mut hasher = Sha256::new();
    let mut piece = vec![0; READ_BYTES as usize];
    let mut at = 0;
    while at < body {
        let piece = &mut piece[..(body - at).min(READ_BYTES) as usize];
        file.read_at(at, piece).map_err(fail)?;
        hasher.update(&*piece);
        at += piece.len() as u64;
    }
    let mut hash = [0; HASH_BYTES as usize];
    file.read_at(body, &mut hash).map_err(fail)?;
    if hasher.finalize()[..] != hash {
        return Err(bad(body, "its SHA-256 does not match: it was altered or cut short"));
    }
    Ok(hash)
}

/// Verifies a saved snapshot, its hash and its blocks, with little memory; `path` is for the messages.
///
/// # Errors
/// [`StorageError::BadSnapshot`], [`StorageError::OtherVersion`] or [`StorageError::Io`].
pub fn check(file: Arc<dyn DiskFile>, path: &Path) -> Result<SnapshotInfo, StorageError> {
    hash(&*file, path)?;
    let mut reader = open(file, path)?;
    while reader.next_part()?.is_some() {}
    Ok(reader.info())
}

/// Reads the whole of a saved snapshot, as the machine reads it; `path` is for the messages.
///
/// # Errors
/// [`StorageError::BadSnapshot`], [`StorageError::OtherVersion`] or [`StorageError::Io`].
pub fn read(file: Arc<dyn DiskFile>, path: &Path) -> Result<Saved, StorageError> {
    let hash = hash(&*file, path)?;
    let mut reader = open(file, path)?;
    let misfit =
        |error: FormatError| StorageError::BadSnapshot { path: path.to_path_buf(), offset: 0, what: error.to_string() };
    let mut restore = State::restore();
    while let Some(part) = reader.next_part()? {
        match part {
            SnapshotPart::Tables(rows) => {
                for (table, key, value) in &rows {
                    restore.table_row(*table, key, value).map_err(misfit)?;
                }
            }
            SnapshotPart::History(rows) => {
                for (rev, row) in &rows {
                    restore.history_row(Row::decode(*rev, row).map_err(misfit)?).map_err(misfit)?;
                }
            }
        }
    }
    Ok(Saved { info: reader.info(), state: restore.finish().map_err(misfit)?, hash })
}

/// A reader of what is before the hash, whose blocks verify by themselves.
pub(crate) fn open(file: Arc<dyn DiskFile>, path: &Path) -> Result<SnapshotReader, StorageError> {
    let bytes = file.len().map_err(|source| StorageError::io(path, "read the snapshot", source))?;
    SnapshotReader::over(file, path, bytes.saturating_sub(HASH_BYTES), true)
}
