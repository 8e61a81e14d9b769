//! A new cluster of one node, founded on a saved snapshot of another.
//!
//! The state file is the snapshot's; the log begins behind what that covers, with a membership of this node alone, as
//! `--force-new-cluster` writes one. The first start finds a member that has been down.
//!
//! **Invariant:** the data folder is one only once all of it is durable; nothing that let members of the old cluster in lets them
//! into the new one.

use std::path::Path;
use std::sync::Arc;

use kvasir_machine::Founding;
use kvasir_storage::StorageError;
use kvasir_storage::disk::{Disk, DiskFile};
use kvasir_storage::folder::DataFolder;
use kvasir_storage::log::{Log, LogOptions};
use kvasir_storage::snapshot::saved;
use kvasir_storage::state::{Opened, Store, StoreOptions};

use crate::force;
use crate::identity::{self, Identity};
use crate::membership::Member;
use crate::options::StartError;

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// The node's id in the new cluster.
    pub node_id: u64,
    /// The new cluster's id.
    pub cluster_id: u64,
    /// The id of the cluster that the snapshot is of; 0 if it does not say.
    pub of_cluster: u64,
    /// The revision at which it goes on.
    pub revision: u64,
}

/// Makes a data folder at `dir`, where there is nothing, of the snapshot in `file`, which is called `snapshot`: of a node `name`, alone in the
/// cluster that `cluster_token` names. `identify` stores who it is, given the cluster's id and the node's. With `bump`, so many revisions
/// are left out and everything before is compacted. Blocking.
///
/// # Errors
/// One clear line: a snapshot that cannot be used, a folder that is not empty, whatever the disk says.
pub fn restore(
    disk: &Arc<dyn Disk>,
    (file, snapshot): (&Arc<dyn DiskFile>, &Path),
    dir: &Path,
    (name, cluster_token): (&str, &str),
    bump: Option<u64>,
    identify: impl FnOnce(u64, u64) -> Result<(), String>,
) -> Result<Restored, StartError> {
    // Whatever can be wrong with it is known before anything is made.
    let saved = saved::read(Arc::clone(file), snapshot)?;
    let (of_cluster, before) = (saved.info.cluster_id, saved.state.revision());
    drop(saved);
    if before.checked_add(bump.unwrap_or(0)).is_none_or(|revision| revision > i64::MAX as u64) {
        let line = format!("--bump-revision: no revision is so much above the snapshot's, {before}; give a lower one");
        return Err(StartError::Identity(line));
    }
    let (node_id, cluster_id) = (identity::node_id(cluster_token, name), identity::cluster_id(cluster_token));
    DataFolder::make(Arc::clone(disk), dir, |folder| {
        // First: from its first byte on a folder that was not finished is told from an empty one.
        let options = StoreOptions::default();
        let applied = Store::found(&**disk, &folder.state_path(), &options, Arc::clone(file), snapshot, Founding { bump })?;
        let last = applied.log_id.ok_or_else(|| StorageError::BadSnapshot {
            path: snapshot.to_path_buf(),
            offset: 0,
            what: "it is of a node that was never part of a cluster".to_owned(),
        })?;
        let failed = |source| StorageError::io(&folder.log_dir(), "begin the raft log", source);
        let log = Log::open(Arc::clone(disk), &folder.log_dir(), LogOptions::default())?;
        log.begin().map_err(failed)?;
        force::written(|done| log.purge(last, done)).map_err(failed)?;
        let member = Member { name: name.to_owned(), ..Member::default() };
        force::appoint(&log, last, node_id, &member).map_err(failed)?;
        log.close().map_err(failed)?;
        let Opened { store, state, .. } = Store::open(Arc::clone(disk), &folder.state_path(), options)?;
        identity::load_or_create(&store, cluster_token, name, Some(Identity { node_id, cluster_id }))?;
        store.close()?;
        identify(cluster_id, node_id).map_err(StartError::Identity)?;
        Ok(Restored { node_id, cluster_id, of_cluster, revision: state.revision() })
    })
}
