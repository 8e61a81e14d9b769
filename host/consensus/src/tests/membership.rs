//! Members come, vote, move, hand over and go, over real QUIC.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use kvasir_api::Error;
use kvasir_machine::Reply;
use kvasir_storage::disk::SimDisk;
use kvasir_transport::identity::Authority;

use super::cluster::{DEADLINE, Node, TOKEN, get, launch, put};
use crate::{Boot, Consensus, Member, cluster_id, node_id};

fn member(name: &str, promote: bool) -> Member {
    Member { name: name.to_owned(), peer_urls: vec!["https://127.0.0.1:0".to_owned()], promote, ..Member::default() }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "it never happens: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn voters(consensus: &Consensus) -> Vec<u64> {
    consensus.members().into_iter().filter(|known| !known.learner).map(|known| known.id).collect()
}

struct Founded {
    authority: Authority,
    founder: Node,
    founder_disk: SimDisk,
}

async fn found() -> Founded {
    let authority = Authority::create(cluster_id(TOKEN), SystemTime::now()).unwrap();
    let founder_disk = SimDisk::new(1);
    let founder = launch(&authority, node_id(TOKEN, "a"), member("a", false), Boot::Alone, &founder_disk).await;
    founder.consensus.ready(DEADLINE).await.unwrap();
    Founded { authority, founder, founder_disk }
}

impl Founded {
    /// Adds a member through `at`, and starts it.
    async fn join(&self, at: &Consensus, name: &str, promote: bool, disk: &SimDisk) -> Node {
        let unstarted = Member { peer_urls: Vec::new(), ..member(name, promote) };
        let id = at.add_member(None, unstarted).await.unwrap();
        let boot = Boot::Join { node_id: id, cluster_id: at.cluster_id() };
        let node = launch(&self.authority, id, member(name, false), boot, disk).await;
        // Only the node knows where it listens: whoever adds it says so on its behalf.
        let known = Member { peer_urls: vec![format!("https://{}", node.quic.address().unwrap())], ..member(name, promote) };
        at.update_member(id, known).await.unwrap();
        node.consensus.ready(DEADLINE).await.unwrap();
        node
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_join_vote_take_over_and_the_founder_can_go() {
    let founded = found().await;
    let founder = &founded.founder.consensus;
    founder.propose(put("one", "1")).await.unwrap();
    let disks = [SimDisk::new(2), SimDisk::new(3)];
    let second = founded.join(founder, "b", true, &disks[0]).await;
    until("b votes", || voters(founder).len() == 2).await;
    // The third is added through the second, which is no leader.
    let third = founded.join(&second.consensus, "c", true, &disks[1]).await;
    until("c votes", || voters(&second.consensus).len() == 3 && voters(&third.consensus).len() == 3).await;
    assert_eq!(get(&third.consensus, "one").as_deref(), Some("1"));
    let id = third.consensus.node_id();
    assert_eq!(third.consensus.promote_member(id).await, Err(Error::NotLearner));
    assert_eq!(third.consensus.promote_member(4711).await, Err(Error::MemberNotFound));
    assert_eq!(second.consensus.transfer_leader(4711).await, Err(Error::BadLeaderTransferee));
    // Leadership goes where it is told to.
    second.consensus.transfer_leader(id).await.unwrap();
    until("c leads", || third.consensus.is_leader()).await;
    second.consensus.transfer_leader(founder.node_id()).await.unwrap();
    until("a leads", || founder.is_leader()).await;
    // The leader is removed: it hands over, and stops with the reason.
    second.consensus.remove_member(founder.node_id()).await.unwrap();
    let line = tokio::time::timeout(DEADLINE, founder.fatal()).await.unwrap();
    assert!(line.contains("was removed from its cluster"), "{line}");
    assert_eq!(voters(&second.consensus).len(), 2);
    assert!(matches!(third.consensus.propose(put("two", "2")).await.unwrap(), Reply::Put(_)));
    founded.founder.stop().await;
    // Started again, it is told so again.
    let again = launch(&founded.authority, node_id(TOKEN, "a"), member("a", false), Boot::Alone, &founded.founder_disk).await;
    let line = tokio::time::timeout(DEADLINE, again.consensus.fatal()).await.unwrap();
    assert!(line.contains("was removed from its cluster"), "{line}");
    again.stop().await;
    third.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_stays_one_unless_asked_and_a_change_without_a_quorum_is_refused() {
    let founded = found().await;
    let founder = &founded.founder.consensus;
    let disk = SimDisk::new(2);
    let learner = founded.join(founder, "b", false, &disk).await;
    // It takes writes and linearizable reads, and counts for nothing.
    assert!(matches!(learner.consensus.propose(put("by", "b")).await.unwrap(), Reply::Put(_)));
    learner.consensus.read_index().await.unwrap();
    let id = learner.consensus.node_id();
    assert_eq!(voters(founder), [founder.node_id()]);
    assert_eq!(learner.consensus.transfer_leader(id).await, Err(Error::BadLeaderTransferee));
    let taken = Member { peer_urls: founder.members()[0].member.peer_urls.clone(), ..member("d", true) };
    assert_eq!(learner.consensus.add_member(None, taken).await, Err(Error::PeerUrlExists));
    // The only voter cannot go.
    assert_eq!(learner.consensus.remove_member(founder.node_id()).await, Err(Error::UnhealthyForReconfiguration));
    founded.founder.attendant.0.store(false, Ordering::SeqCst);
    until("it has caught up", || founder.progress().iter().any(|(known, matched)| *known == id && matched.is_some())).await;
    // Nor does it vote before it has what voters must have.
    assert_eq!(founder.promote_member(id).await, Err(Error::LearnerNotReady));
    assert_eq!(voters(founder), [founder.node_id()]);
    founded.founder.attendant.0.store(true, Ordering::SeqCst);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while let Err(error) = founder.promote_member(id).await {
        assert_eq!(error, Error::LearnerNotReady);
        assert!(tokio::time::Instant::now() < deadline, "it is never promoted");
    }
    assert_eq!(voters(founder).len(), 2);
    learner.stop().await;
    // One of two answers, and that has been so for two maximal election timeouts: no change is made by a vote of one.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(founder.remove_member(id).await, Err(Error::UnhealthyCluster));
    let back = launch(&founded.authority, id, member("b", false), Boot::Alone, &disk).await;
    back.consensus.ready(DEADLINE).await.unwrap();
    // On another port than before: it says so itself.
    let url = format!("https://{}", back.quic.address().unwrap());
    until("its record is true again", || {
        founder.members().iter().any(|known| known.id == id && known.member.peer_urls == [url.clone()])
    })
    .await;
    assert!(matches!(founder.propose(put("back", "1")).await.unwrap(), Reply::Put(_)));
    back.stop().await;
    founded.founder.stop().await;
}
