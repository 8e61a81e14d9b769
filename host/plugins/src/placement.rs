//! Which node runs what: while this node leads, it assigns every trigger's partition that another one has, or nobody.
//!
//! All on the leader: it has what is applied first, its effects need no way to another node, and when it is gone its successor, which
//! is elected anyway, knows at once what to take over. An assignment carries the leader's term, and apply refuses it in any other:
//! a leader that was deposed takes nothing back.
//!
//! **Invariant:** only a node that leads assigns, and only in its own term.

use std::time::Duration;

use kvasir_api::Error;
use kvasir_api::command::Assign;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// Wait before what could not be assigned is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// Assignments under way at once: they share entries of the log.
const UNDER_WAY_MAX: usize = 256;

/// Assigns until cancelled.
pub(crate) async fn place(store: Store, cancel: CancellationToken) {
    let mut changes = store.registry_changes();
    let mut standings = store.standings();
    loop {
        changes.mark_unchanged();
        standings.mark_unchanged();
        let settled = match store.leading_term() {
            None => true,
            Some(term) => tokio::select! {
                settled = assign(&store, term) => settled,
                () = cancel.cancelled() => return,
            },
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = standings.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !settled => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// Assigns what this node, which leads in `term`, does not have. False when something is left to be tried again.
async fn assign(store: &Store, term: u64) -> bool {
    let node = store.node_id();
    let mut under_way = JoinSet::new();
    let mut settled = true;
    for trigger in store.triggers().into_iter().filter(|trigger| trigger.owner_node != node) {
        if under_way.len() >= UNDER_WAY_MAX {
            settled &= is_settled(under_way.join_next().await);
        }
        let store = store.clone();
        let assign = Assign {
            plugin: trigger.plugin,
            trigger: trigger.id,
            partition: trigger.partition,
            node,
            expect_epoch: trigger.owner_epoch,
        };
        under_way.spawn(async move { store.assign(term, assign).await });
    }
    while let Some(assigned) = under_way.join_next().await {
        settled &= is_settled(Some(assigned));
    }
    settled
}

fn is_settled(assigned: Option<Result<Result<u64, Error>, tokio::task::JoinError>>) -> bool {
    match assigned {
        None | Some(Ok(Ok(_))) => true,
        // It changed meanwhile, which is a change of the registry to be looked at.
        Some(Ok(Err(Error::Precondition(_) | Error::Missing(_)))) => true,
        Some(Ok(Err(error))) => {
            tracing::debug!(%error, "a trigger is not assigned yet");
            false
        }
        Some(Err(_)) => false,
    }
}
