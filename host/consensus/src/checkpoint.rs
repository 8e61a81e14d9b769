//! The checkpointer: tells openraft of durable checkpoints and purges the log below them.
//!
//! The store makes checkpoints durable by itself, by bytes and by age. When one is far enough ahead of what the log still holds,
//! openraft is asked for a snapshot (which is a durable checkpoint) and the log is purged below it, but not above a snapshot that a
//! member is being sent.
//!
//! **Invariant:** nothing above the last durable checkpoint is ever purged, nor anything near what openraft knows to be applied:
//! its core panics when a purge overtakes its own view of applied (openraft #2116), and that view trails the state machine's.

use std::sync::Arc;
use std::time::Duration;

use kvasir_api::limits::LOG_KEEP_ENTRIES_ALONE;
use openraft::async_runtime::WatchReceiver;

use crate::kinds::Kinds;
use crate::machine::{Machine, Shared};

type Raft = openraft::Raft<Kinds, Machine>;

/// The checkpoint's progress is looked at no more seldom than this, and as often as checkpoints are due.
const LOOK_EVERY: Duration = Duration::from_millis(1_000);
/// Entries kept whatever they weigh: raft's core may not know yet that they are applied.
const KEEP_ENTRIES_MIN: u64 = 100;
/// How long a snapshot may take to be known.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(60);

/// How much of the log is kept below the last durable checkpoint, for peers that are behind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// Runs until the node stops.
pub(crate) async fn run(
    raft: Raft,
    shared: Arc<Shared>,
    keep: Keep,
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
async fn look(raft: &Raft, shared: &Shared, mut keep: Keep) -> Result<(), ()> {
    let Some(durable) = shared.store.durable().map(|id| id.index) else { return Ok(()) };
    let purged = raft.metrics().borrow_watched().purged.map_or(0, |id| id.index);
    if shared.applied.lock().1.membership().nodes().count() <= 1 {
        // Nobody is behind.
        keep.entries = keep.entries.min(LOG_KEEP_ENTRIES_ALONE);
    }
    // Only when it is worth it: as much again as is kept.
    let many = durable >= purged.saturating_add(keep.entries.saturating_mul(2).max(1));
    let heavy = shared.log.live_bytes() > keep.bytes.saturating_mul(2);
    let held = || shared.snapshots.held(shared.log.live_bytes()).unwrap_or(u64::MAX);
    if (!many && !heavy) || held() <= purged {
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
    let covered = snapshot.min(durable).min(applied);
    // However heavy: what is nearest to applied stays.
    let light = shared.log.newest_within(keep.bytes).saturating_sub(1).min(covered.saturating_sub(KEEP_ENTRIES_MIN));
    let upto = covered.saturating_sub(keep.entries).max(light);
    // Looked up last: what is exported from now on covers all that is purged here.
    let upto = upto.min(held());
    if upto > purged {
        raft.trigger().purge_log(upto).await.map_err(|_| ())?;
    }
    Ok(())
}
