//! The orderly end.
//!
//! **Invariant:** when it is over, nothing of this node touches the data folder any more.

use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;

use super::Consensus;
use crate::blocking::blocking;

/// How long proposals in flight may take to finish at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

impl Consensus {
    /// Lets another voter lead, takes no more proposals, lets those in flight finish, stops raft, makes the state durable and closes the files.
    pub async fn shutdown(&self) {
        let inner = &*self.inner;
        // Who leads next takes what still comes.
        inner.members.hand_over().await;
        if inner.closing.swap(true, Ordering::SeqCst) {
            return;
        }
        let drained = async {
            while inner.gauge.pending() > 0 && !inner.shared.fatal.is_raised() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!(pending = inner.gauge.pending(), "stopping with proposals unanswered");
        }
        inner.stop.cancel();
        if let Some(door) = &inner.door {
            door.close();
        }
        // Where raft has stopped by itself there is nothing to stop: openraft would panic.
        let runs = inner.raft.metrics().borrow_watched().running_state.is_ok();
        if runs {
            // In a task of its own: it may stop by itself right now, and what follows must be done all the same.
            let raft = inner.raft.clone();
            match tokio::spawn(async move { raft.shutdown().await }).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) | Err(error) => tracing::warn!(%error, "raft did not stop cleanly"),
            }
        }
        let (store, log) = (inner.shared.store.clone(), inner.log.clone());
        let healthy = !inner.shared.fatal.is_raised();
        let closed = blocking(store.is_driven(), move || {
            // Closing the store makes the last checkpoint, which waits for the log: the log goes second.
            if let Err(error) = store.close()
                && healthy
            {
                tracing::error!(%error, "the final checkpoint failed; the log has everything and is replayed at the next start");
            }
            if let Err(error) = log.close()
                && healthy
            {
                tracing::error!(%error, "the raft log did not close cleanly");
            }
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "closing the data folder failed");
        }
        // Now another process may have the folder.
        inner.folder.lock().take();
    }
}
