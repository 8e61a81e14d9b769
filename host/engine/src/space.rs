//! The data folder's disk: NOSPACE is raised early, while there is room to say so, and the ballast is given back and put aside.
//!
//! **Invariant:** the ballast never takes room that NOSPACE is raised for: it is put aside only when there is ample room, and given
//! back whenever there is little, whether this node raised the alarm just now, before a restart, or could not raise it at all.

use std::time::Duration;

use kvasir_api::command::Alarm;
use kvasir_api::command::command::Body;
use kvasir_api::etcdserverpb::AlarmType;
use kvasir_api::limits::{DISK_FREE_BYTES_AMPLE, DISK_FREE_BYTES_MIN};
use kvasir_consensus::blocking;

use crate::caller::Caller;
use crate::engine::Engine;

/// What a look at the free space calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Little,
    Enough,
    Ample,
}

fn room(free_bytes: u64) -> Room {
    match free_bytes {
        0..DISK_FREE_BYTES_MIN => Room::Little,
        DISK_FREE_BYTES_MIN..DISK_FREE_BYTES_AMPLE => Room::Enough,
        _ => Room::Ample,
    }
}

/// The task that looks after the disk's space.
pub(crate) async fn watch(engine: Engine) {
    let interval = Duration::from_millis(engine.inner().options.disk_look_interval_ms.max(1));
    loop {
        if engine.unless_stopped(look(&engine)).await.is_none() {
            return;
        }
        tokio::select! {
            () = engine.inner().stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

async fn look(engine: &Engine) {
    let consensus = engine.consensus().clone();
    let driven = consensus.store().is_driven();
    let Ok(Some(free_bytes)) = blocking(driven, move || consensus.free_bytes()).await else { return };
    let room = room(free_bytes);
    if room == Room::Little {
        raise(engine, free_bytes).await;
    }
    let consensus = engine.consensus().clone();
    // Only a panic ends a blocking task early, and that ends the process.
    let _ = blocking(driven, move || match room {
        Room::Little => consensus.drop_ballast(),
        Room::Enough => {}
        Room::Ample => consensus.make_ballast(),
    })
    .await;
}

async fn raise(engine: &Engine, free_bytes: u64) {
    let member_id = engine.node_id();
    let raised = engine.alarms().contains(&(member_id, AlarmType::Nospace));
    if raised || !engine.has_leader() {
        return;
    }
    tracing::warn!(free_bytes, "the disk is nearly full: raising NOSPACE; writes are refused until it is lifted");
    let alarm = Alarm { activate: true, member_id, alarm: AlarmType::Nospace as i32 };
    let caller = Caller::client();
    if let Err(error) = engine.propose_as(Body::Alarm(alarm), caller.origin, caller.tenant).await {
        tracing::warn!(%error, "NOSPACE was not raised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_little_and_ample_nothing_changes() {
        assert_eq!(room(DISK_FREE_BYTES_MIN - 1), Room::Little);
        assert_eq!(room(DISK_FREE_BYTES_MIN), Room::Enough);
        assert_eq!(room(DISK_FREE_BYTES_AMPLE - 1), Room::Enough);
        assert_eq!(room(DISK_FREE_BYTES_AMPLE), Room::Ample);
    }
}
