//! The state of one moment as a file that somebody saves.
//!
//! **Invariant:** it is read in bounded pieces, and gone from the disk once nobody reads it any more.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::{Error, limits};

use crate::blocking::blocking;
use crate::snapshot::{SnapshotFile, Snapshots};

/// A snapshot file in this node's data folder. Dropped, it is removed.
pub struct Export {
    file: Arc<SnapshotFile>,
    bytes: u64,
}

impl Export {
    pub(crate) async fn make(snapshots: Arc<Snapshots>) -> Result<Self, Error> {
        let driven = snapshots.is_driven();
        let made = blocking(driven, move || {
            snapshots.check_room()?;
            let file = snapshots.export()?;
            Ok(Self { bytes: file.bytes()?, file: Arc::new(file) })
        });
        made.await.unwrap_or_else(Err).map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull => Error::Exhausted(format!("no snapshot can be taken on this member: {error}")),
            _ => Error::Internal(format!("no snapshot can be taken: {error}")),
        })
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The bytes from `offset` on, one piece of them at most; none at the end.
    ///
    /// # Errors
    /// `Internal` for whatever the disk says.
    pub async fn read(&self, offset: u64) -> Result<Bytes, Error> {
        let piece = self.bytes.saturating_sub(offset).min(limits::SNAPSHOT_PIECE_BYTES as u64) as usize;
        let file = Arc::clone(&self.file);
        let read = blocking(file.is_driven(), move || {
            let mut out = vec![0; piece];
            file.read_at(offset, &mut out)?;
            Ok(Bytes::from(out))
        });
        read.await
            .unwrap_or_else(Err)
            .map_err(|error: io::Error| Error::Internal(format!("the snapshot cannot be read: {error}")))
    }
}
