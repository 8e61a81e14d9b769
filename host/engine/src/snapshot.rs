//! Snapshots that clients save: etcd's `Maintenance.Snapshot` over this node's own state.
//!
//! **Invariant:** a piece at a time is in memory, and the copy on the disk goes with whoever reads it.

use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::etcdserverpb::{ResponseHeader, SnapshotRequest, SnapshotResponse};
use kvasir_api::{ETCD_VERSION, Error, limits};
use kvasir_consensus::Export;
use kvasir_storage::snapshot::saved::{self, Sealing};
use tokio::sync::OwnedSemaphorePermit;

use crate::authorise;
use crate::caller::Caller;
use crate::engine::Engine;

/// A snapshot on its way to a client.
pub struct Saving {
    export: Export,
    header: ResponseHeader,
    offset: u64,
    /// `None` once the hash was handed out.
    sealing: Option<Sealing>,
    _turn: OwnedSemaphorePermit,
}

impl Engine {
    /// Begins a snapshot of what this member has applied; every write that was acknowledged before is in it, if the member can ask
    /// the leader (etcd `Maintenance.Snapshot`).
    ///
    /// # Errors
    /// `PermissionDenied`; `Exhausted` when others are being saved, or there is no room; `Stopped`, `Internal`.
    pub async fn snapshot(&self, caller: &Caller, _request: SnapshotRequest) -> Result<Saving, Error> {
        authorise::allow_operator(caller)?;
        let turn = Arc::clone(&self.inner().saves).try_acquire_owned().map_err(|_| {
            let most = limits::SNAPSHOT_SAVES_MAX;
            Error::Exhausted(format!(
                "{most} snapshots are being saved from this member: wait for one to end, or ask another member"
            ))
        })?;
        // Without a quorum what is here is all that can be saved, and is what is wanted then.
        if self.has_leader()
            && let Err(error) = self.linearize().await
        {
            tracing::warn!(%error, "a snapshot is saved that may lack the newest writes");
        }
        let header = self.header();
        let made = self.unless_stopped(self.consensus().export()).await.ok_or(Error::Stopped)?;
        Ok(Saving { export: made?, header, offset: 0, sealing: Some(Sealing::default()), _turn: turn })
    }
}

impl Saving {
    /// The next message: pieces of the snapshot, the zeros behind it, the hash, and then none.
    ///
    /// # Errors
    /// `Internal` for whatever the disk says.
    pub async fn next(&mut self) -> Result<Option<SnapshotResponse>, Error> {
        let Some(sealing) = &mut self.sealing else { return Ok(None) };
        let bytes = self.export.bytes();
        let blob = if self.offset < bytes {
            let piece = self.export.read(self.offset).await?;
            sealing.add(&piece);
            piece
        } else if self.offset < saved::padded(bytes) {
            Bytes::from(sealing.pad())
        } else {
            let hash = self.sealing.take().map(Sealing::seal).unwrap_or_default();
            return Ok(Some(self.message(Bytes::copy_from_slice(&hash))));
        };
        self.offset += blob.len() as u64;
        Ok(Some(self.message(blob)))
    }

    fn message(&self, blob: Bytes) -> SnapshotResponse {
        let remaining_bytes = saved::padded(self.export.bytes()) - self.offset;
        SnapshotResponse { header: Some(self.header), remaining_bytes, blob, version: ETCD_VERSION.to_owned() }
    }
}
