//! What is done about the membership without being asked.
//!
//! The leader makes voters of learners that have caught up and are to vote; every member makes its own record true once it has
//! started; one that hears nothing asks whether it still is a member.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Change, Members};
use crate::membership::Member;
use crate::read::Reads;

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long one change may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two questions whether this node is still a member.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// Runs until the node stops. `mine` is what this node was started with.
pub(crate) async fn tend(members: Members, reads: Reads, mine: Member, stop: CancellationToken) {
    let mut is_recorded = false;
    let mut asked = Instant::now();
    let mut whom = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if members.raft.metrics().borrow_watched().running_state.is_err() {
            return;
        }
        let leader = members.shared.standing.now().1;
        if leader.is_some() && !is_recorded {
            is_recorded = record(&members, &reads, &mine).await;
        }
        if leader == Some(members.shared.node_id) {
            // Without a quorum it waits for one: not for longer than a change may take.
            let _ = tokio::time::timeout(CHANGE_TIMEOUT, members.end_change()).await;
            promote(&members).await;
        } else if asked.elapsed() > ASK_EVERY {
            asked = Instant::now();
            let others: Vec<u64> =
                members.list().iter().map(|known| known.id).filter(|id| *id != members.shared.node_id).collect();
            if !others.is_empty() {
                whom = (whom + 1) % others.len();
                members.ping(others[whom], asked + ASK_EVERY).await;
            }
        }
    }
}

/// Makes this node's record say what it was started with; whether it does. What an operator changes after that stays.
async fn record(members: &Members, reads: &Reads, mine: &Member) -> bool {
    // What has become of it while this node was down must be known here.
    if !matches!(tokio::time::timeout(ASK_EVERY, reads.confirm()).await, Ok(Ok(()))) {
        return false;
    }
    let id = members.shared.node_id;
    let Some(known) = members.list().into_iter().find(|known| known.id == id) else { return false };
    let wanted = Member { promote: known.member.promote, ..mine.clone() };
    if known.member == wanted {
        return true;
    }
    match members.change(Change::Update(id, wanted), Instant::now() + CHANGE_TIMEOUT).await {
        Ok(_) => tracing::info!(name = %mine.name, peer_urls = ?mine.peer_urls, "this member's record is up to date"),
        Err(error) => {
            tracing::debug!(%error, "this member's record is not up to date yet");
            return false;
        }
    }
    true
}

async fn promote(members: &Members) {
    for learner in members.list().into_iter().filter(|known| known.learner && known.member.promote) {
        if !members.is_caught_up(learner.id) {
            continue;
        }
        match members.change(Change::Promote(learner.id), Instant::now() + CHANGE_TIMEOUT).await {
            Ok(_) => tracing::info!("member {} ({:016x}) has caught up and votes", learner.member.name, learner.id),
            Err(error) => tracing::debug!(%error, "member {:016x} is not promoted yet", learner.id),
        }
    }
}
