//! Compaction: at once for clients, and then, in slices, for memory and the state file.
//!
//! **Invariant:** rows are deleted behind every batch that was applied before the slice was taken, in the order the machine gives;
//! one hold of the state's lock trims at most [`COMPACT_SLICE_VERSIONS`] versions of [`COMPACT_SLICE_KEYS`] keys.

use std::time::Duration;

use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::etcdserverpb::{CompactionRequest, CompactionResponse};
use kvasir_api::limits::{COMPACT_SLICE_KEYS, COMPACT_SLICE_VERSIONS};
use kvasir_machine::{CompactProgress, Reply};

use crate::caller::Caller;
use crate::engine::Engine;
use crate::write::unexpected;

/// How often the deleter looks whether a cursor that moved has made something garbage.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Rows that may wait for deletion before another slice is taken.
const PENDING_DELETES_MAX: usize = 64 * COMPACT_SLICE_KEYS;
/// How often the store's deletions are looked at while somebody waits for them.
const DELETES_LOOK_EVERY: Duration = Duration::from_millis(2);

impl Engine {
    /// Forgets what is older than a revision (etcd `KV.Compact`). With `physical` it returns once that is deleted here.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`, `PermissionDenied`, and what a proposal can fail with.
    pub async fn compact(&self, caller: &Caller, request: CompactionRequest) -> Result<CompactionResponse, Error> {
        self.inner().counters.compactions.add(1);
        let physical = request.physical;
        let compacted = u64::try_from(request.revision).unwrap_or(0);
        let reply = match self.submit(caller, Body::Compact(request)).await? {
            Reply::Compact { revision } => revision,
            reply => return Err(unexpected(&reply)),
        };
        if physical {
            let mut deleted = self.inner().deleted.subscribe();
            tokio::select! {
                done = deleted.wait_for(|deleted| *deleted >= compacted) => {
                    done.map_err(|_| Error::Stopped)?;
                }
                () = self.inner().stop.cancelled() => return Err(Error::Stopped),
            }
        }
        Ok(CompactionResponse { header: Some(self.header_at(reply)) })
    }
}

/// The deleter: trims what compactions and moving cursors have made garbage.
pub(crate) async fn delete(engine: Engine) {
    let inner = engine.inner();
    let mut compacted = inner.feed.compacted.subscribe();
    loop {
        let upto = *compacted.borrow_and_update();
        if let Err(error) = trim(&engine).await {
            if error != Error::Stopped {
                tracing::error!(%error, "compaction cannot delete history");
            }
            return;
        }
        inner.deleted.send_if_modified(|deleted| {
            let grown = upto > *deleted;
            *deleted = (*deleted).max(upto);
            grown
        });
        tokio::select! {
            () = inner.stop.cancelled() => return,
            changed = compacted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn trim(engine: &Engine) -> Result<(), Error> {
    let mut progress = CompactProgress::default();
    loop {
        if engine.inner().stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        // Asked with a shared lock first: mostly there is nothing.
        if !engine.consensus().state().read().has_garbage() {
            return Ok(());
        }
        let (dropped, revision) = {
            let mut state = engine.consensus().state().write();
            (state.compact_slice(&mut progress, COMPACT_SLICE_KEYS, COMPACT_SLICE_VERSIONS), state.revision())
        };
        if !dropped.is_empty() {
            // Everything applied before the slice is in the store before the deletion is.
            engine.stored(revision).await?;
            engine.consensus().store().delete_history(dropped);
            // Bounded: the store deletes behind us at its own pace.
            deleted_here(engine, PENDING_DELETES_MAX).await?;
        }
        if progress.done {
            return deleted_here(engine, 0).await;
        }
        tokio::task::yield_now().await;
    }
}

/// Waits until the store has at most so many rows left to delete.
async fn deleted_here(engine: &Engine, pending_max: usize) -> Result<(), Error> {
    while engine.consensus().store().pending_deletes() > pending_max {
        tokio::select! {
            () = engine.inner().stop.cancelled() => return Err(Error::Stopped),
            () = tokio::time::sleep(DELETES_LOOK_EVERY) => {}
        }
    }
    Ok(())
}
