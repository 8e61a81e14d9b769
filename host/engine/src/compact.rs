//! Compaction: at once for clients, and then, in slices, for memory and the state file.
//!
//! **Invariant:** rows are deleted behind every batch that was applied before the slice was taken, in the order the machine gives;
//! one hold of the state's lock trims at most [`COMPACT_SLICE_VERSIONS`] versions of [`COMPACT_SLICE_KEYS`] keys.

use std::time::Duration;

use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::etcdserverpb::{CompactionRequest, CompactionResponse};
use kvasir_api::limits::{COMPACT_PENDING_ROWS_MAX, COMPACT_SLICE_KEYS, COMPACT_SLICE_VERSIONS};
use kvasir_machine::{CompactProgress, Reply};

use crate::caller::Caller;
use crate::engine::Engine;
use crate::write::unexpected;

/// How often the deleter looks whether a cursor that moved has made something garbage.
const LOOK_EVERY: Duration = Duration::from_secs(5);
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
            // Commands that were applied before the slice was taken may still have to fetch what it drops.
            tokio::select! {
                () = engine.inner().holds.passed(progress.floor) => {}
                () = engine.inner().stop.cancelled() => return Err(Error::Stopped),
            }
            // Everything applied before the slice is in the store before the deletion is.
            engine.stored(revision).await?;
            engine.consensus().store().delete_history(dropped);
            // Bounded: the store deletes behind us at its own pace.
            deleted_here(engine, COMPACT_PENDING_ROWS_MAX).await?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvasir_api::etcdserverpb::request_op::Request;
    use kvasir_api::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
    use kvasir_machine::Rev;
    use kvasir_storage::disk::SimDisk;

    use super::*;
    use crate::EngineOptions;

    async fn until(mut holds: impl FnMut() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time");
    }

    fn put(value: &'static str) -> PutRequest {
        PutRequest { key: "k".into(), value: value.into(), ..PutRequest::default() }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_command_under_way_finds_what_it_reads_though_that_is_compacted_meanwhile() {
        let disk = SimDisk::new(1);
        let engine = Engine::start(EngineOptions::new("/node", Arc::new(disk.clone()))).await.expect("an engine");
        let client = Caller::client();
        for value in ["1", "2"] {
            engine.put(&client, put(value)).await.expect("put");
        }
        // A command that reads an old revision is known while it is under way.
        let op = |request| RequestOp { request: Some(request) };
        let read = RangeRequest { key: "k".into(), revision: 2, ..RangeRequest::default() };
        let success = vec![op(Request::RequestRange(read)), op(Request::RequestPut(put("3")))];
        disk.set_sync_delay(Duration::from_millis(300));
        let under_way = tokio::spawn({
            let (engine, client) = (engine.clone(), client.clone());
            async move { engine.txn(&client, TxnRequest { success, ..TxnRequest::default() }).await }
        });
        until(|| engine.inner().holds.count() == 1).await;
        disk.set_sync_delay(Duration::ZERO);
        under_way.await.expect("no panic").expect("committed");
        assert_eq!(engine.inner().holds.count(), 0);
        // What such a command reads outlives a compaction until it is done.
        let hold = engine.inner().holds.hold(2);
        let compacting = tokio::spawn({
            let engine = engine.clone();
            async move { engine.compact(&client, CompactionRequest { revision: 4, physical: true }).await }
        });
        until(|| {
            let state = engine.consensus().state().read();
            state.compact_revision() == 4 && !state.has_garbage()
        })
        .await;
        let old = Rev { main: 2, sub: 0 };
        assert_eq!(engine.consensus().store().pending_deletes(), 0);
        assert!(engine.consensus().store().row(old).expect("readable").is_some());
        drop(hold);
        compacting.await.expect("no panic").expect("compacted");
        assert!(engine.consensus().store().row(old).expect("readable").is_none());
        engine.shutdown().await;
    }
}
