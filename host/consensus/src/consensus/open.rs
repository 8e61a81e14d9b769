//! Opening the data folder: the log and the state file, which must be those of one node.
//!
//! **Invariant:** a log or a state file that is gone while the other is not new is refused, never made anew.

use std::sync::Arc;

use kvasir_storage::StorageError;
use kvasir_storage::folder::DataFolder;
use kvasir_storage::log::{Log, LogOptions, LogState};
use kvasir_storage::state::{Opened, Store, StoreOptions};

use crate::fatal::Fatal;
use crate::force;
use crate::identity::{self, Identity};
use crate::mutant::Mutant;
use crate::options::{Boot, ConsensusOptions, StartError};

/// What the storage under consensus opened.
pub(super) struct Storage {
    pub(super) folder: DataFolder,
    pub(super) identity: Identity,
    pub(super) log: Log,
    pub(super) opened: Opened,
}

pub(super) fn open(options: &ConsensusOptions, fatal: &Fatal) -> Result<Storage, StartError> {
    let folder = DataFolder::open(Arc::clone(&options.disk), &options.dir)?;
    let raise = {
        let fatal = fatal.clone();
        Arc::new(move |error: &StorageError| fatal.raise(error.to_string()))
    };
    let log_options = LogOptions { on_fatal: Some(raise.clone()), ..options.log.clone() };
    let log = Log::open(Arc::clone(&options.disk), &folder.log_dir(), log_options)?;
    let store_options = StoreOptions { on_fatal: Some(raise), ..options.store.clone() };
    let opened = open_store(options, &folder, &log, store_options)?;
    // Before the identity is written: a folder that has one is a folder whose log has begun.
    log.begin().map_err(|source| StorageError::io(&folder.log_dir(), "begin the raft log", source))?;
    if options.mutant != Mutant::CheckpointAheadOfLog {
        opened.store.follow_log(&log);
    }
    let given = match options.peers.as_ref().map(|peers| &peers.boot) {
        Some(Boot::Join { node_id, cluster_id }) => Some(Identity { node_id: *node_id, cluster_id: *cluster_id }),
        Some(Boot::Alone | Boot::Static(_)) | None => None,
    };
    let identity = identity::load_or_create(&opened.store, &options.cluster_token, &options.member.name, given)?;
    if options.force_new_cluster {
        force::alone(&log, &opened.applied, identity.node_id, &options.member)?;
    }
    Ok(Storage { folder, identity, log, opened })
}

/// Opens the state file if it and the log can be those of one node; nothing is changed otherwise.
fn open_store(options: &ConsensusOptions, folder: &DataFolder, log: &Log, store: StoreOptions) -> Result<Opened, StorageError> {
    let (log_dir, path, logged) = (folder.log_dir(), folder.state_path(), log.state());
    let state_is_gone =
        || StorageError::missing(&path, "the state file is missing or empty, and the raft log beside it is not");
    let exists = options.disk.exists(&path).map_err(|source| StorageError::io(&path, "look for the state file", source))?;
    if !exists && logged != LogState::default() {
        return Err(state_is_gone());
    }
    Store::open_if(Arc::clone(&options.disk), &path, store, |found| {
        if found.local(identity::ROW).is_none() {
            return if logged == LogState::default() { Ok(()) } else { Err(state_is_gone()) };
        }
        if !log.is_begun() {
            return Err(StorageError::missing(&log_dir, "the raft log is gone, and the state file beside it is not new"));
        }
        let (applied, last) = (found.applied.log_id.map(|id| id.index), logged.last.map(|id| id.index));
        if last < applied && !found.is_as_installed() {
            let ends = last.map_or("is empty".to_owned(), |last| format!("ends with entry {last}"));
            let applied = applied.unwrap_or_default();
            let what =
                format!("the raft log {ends}, and the state file has applied entry {applied}: its newest segments are gone");
            return Err(StorageError::missing(&log_dir, what));
        }
        Ok(())
    })
}
