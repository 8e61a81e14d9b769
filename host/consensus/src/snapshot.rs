//! Snapshots: the state at a durable checkpoint.
//!
//! Building one *is* making the state durable; the file is written only when a transfer asks for it, from the state file, to a
//! file. Installing one makes the state durable before it says so.
//!
//! **Invariant:** a snapshot's log id is never above the last durable checkpoint, so purging below it loses nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvasir_storage::state::Store;
use openraft::storage::{RaftSnapshotBuilder, Snapshot};

use crate::kinds::{Kinds, SnapshotMeta};
use crate::machine::Shared;

/// A snapshot that is exported when someone wants its bytes.
#[derive(Clone)]
pub(crate) struct SnapshotData {
    source: Source,
}

#[derive(Clone)]
enum Source {
    /// This node's own state file.
    Store(Store),
    /// A file, received or exported.
    #[allow(dead_code, reason = "what a transport hands over once there is one")]
    File(PathBuf),
}

impl SnapshotData {
    pub(crate) fn of_store(store: Store) -> Self {
        Self { source: Source::Store(store) }
    }

    /// The snapshot as a file: the received one, or `path` freshly exported. Blocking.
    ///
    /// # Errors
    /// The state file cannot be read or the file not be written.
    pub(crate) fn file(&self, path: &Path) -> io::Result<PathBuf> {
        match &self.source {
            Source::File(file) => Ok(file.clone()),
            Source::Store(store) => {
                store.export(path)?;
                Ok(path.to_path_buf())
            }
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
        *self.shared.snapshot.lock() = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: SnapshotData::of_store(self.shared.store.clone()) })
    }
}

/// What a snapshot covers.
pub(crate) fn meta(log_id: Option<crate::kinds::LogId>, membership: crate::kinds::StoredMembership) -> SnapshotMeta {
    SnapshotMeta { last_log_id: log_id, last_membership: membership }
}
