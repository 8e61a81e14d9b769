//! The checkpointer: tells openraft of durable checkpoints and purges the log below them.
//!
//! The store makes checkpoints durable by itself, by bytes and by age. When one is far enough ahead of what the log still holds,
//! openraft is asked for a snapshot (which is a durable checkpoint) and the log is purged below it.
//!
//! **Invariant:** nothing above the last durable checkpoint is ever purged, nor anything near what openraft knows to be applied:
//! its core panics when a purge overtakes its own view of applied (openraft #2116), and that view trails the state machine's.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;

use crate::kinds::Kinds;
use crate::machine::{Machine, Shared};

type Raft = openraft::Raft<Kinds, Machine>;

/// The checkpoint's progress is looked at no more seldom than this, and as often as checkpoints are due.
const LOOK_EVERY: Duration = Duration::from_millis(1_000);
/// How long a snapshot may take to be known.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(60);

/// Runs until the node stops.
pub(crate) async fn run(
    raft: Raft,
    shared: Arc<Shared>,
    keep: u64,
    checkpoint_interval: Duration,
    stop: tokio_util::sync::CancellationToken,
) {
    let look_every = LOOK_EVERY.min(checkpoint_interval);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(look_every) => {}
        }
        if look(&raft, &shared, keep).await.is_err() {
            return;
        }
    }
}

/// Purges what can be purged; `Err` when raft has stopped.
async fn look(raft: &Raft, shared: &Shared, keep: u64) -> Result<(), ()> {
    let Some(durable) = shared.store.durable().map(|id| id.index) else { return Ok(()) };
    let purged = raft.metrics().borrow_watched().purged.map_or(0, |id| id.index);
    // Only when it is worth it: as many again as are kept.
    if durable < purged.saturating_add(keep.saturating_mul(2).max(1)) {
        return Ok(());
    }
    raft.trigger().snapshot().await.map_err(|_| ())?;
    let known = raft
        .wait(Some(SNAPSHOT_WAIT))
        .metrics(|metrics| metrics.snapshot.is_some_and(|id| id.index >= durable), "a durable checkpoint is known")
        .await;
    let Ok(metrics) = known else { return Ok(()) };
    let applied = metrics.last_applied.map_or(0, |id| id.index);
    let durable = shared.store.durable().map_or(0, |id| id.index);
    let snapshot = metrics.snapshot.map_or(0, |id| id.index);
    let upto = snapshot.min(durable).min(applied).saturating_sub(keep);
    if upto > purged {
        raft.trigger().purge_log(upto).await.map_err(|_| ())?;
    }
    Ok(())
}
