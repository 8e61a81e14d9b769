//! Whether this node is without a leader, for clients that will not be served then.
//!
//! **Invariant:** an election that takes no longer than elections do does not count.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::engine::Engine;

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Election timeouts without a leader after which clients that require one are sent away, as etcd does.
const ELECTIONS: u64 = 3;

/// The task that looks.
pub(crate) async fn watch(engine: Engine) {
    let patience = Duration::from_millis(engine.inner().options.election_ms.saturating_mul(ELECTIONS));
    let mut since = None;
    loop {
        tokio::select! {
            () = engine.inner().stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let leaderless = if engine.has_leader() {
            since = None;
            false
        } else {
            since.get_or_insert_with(Instant::now).elapsed() >= patience
        };
        let changed = engine.inner().leaderless.send_if_modified(|known| std::mem::replace(known, leaderless) != leaderless);
        if changed && leaderless {
            tracing::warn!("this node has no leader: clients that require one are sent away");
        }
    }
}

impl Engine {
    /// Who leads, as long as this node hears it, or, leading itself, is answered by most voters.
    pub fn leader(&self) -> Option<u64> {
        self.consensus().leader()
    }

    /// Whether a leader is known.
    pub fn has_leader(&self) -> bool {
        self.leader().is_some()
    }

    /// Whether there has been no leader for longer than elections take, and its changes.
    pub fn leaderless(&self) -> watch::Receiver<bool> {
        self.inner().leaderless.subscribe()
    }
}
