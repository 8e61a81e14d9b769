//! Members come, vote, move, hand over and go, over real QUIC.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use kvasir_api::Error;
use kvasir_machine::Reply;
use kvasir_storage::disk::SimDisk;
use kvasir_transport::NetworkError;
use kvasir_transport::identity::Authority;

use super::cluster::{DEADLINE, Node, TOKEN, get, launch, launch_with, put};
use crate::machine::Shared;
use crate::membership::not_a_member;
use crate::peer::Running;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_down_follows_a_leader_that_was_added_meanwhile() {
    let founded = found().await;
    let founder = &founded.founder.consensus;
    let disks = [SimDisk::new(2), SimDisk::new(3), SimDisk::new(4)];
    let second = founded.join(founder, "b", true, &disks[0]).await;
    let third = founded.join(founder, "c", true, &disks[1]).await;
    until("b and c vote", || voters(founder).len() == 3 && voters(&third.consensus).len() == 3).await;
    let id = third.consensus.node_id();
    let there = Member { peer_urls: vec![format!("https://{}", third.quic.address().unwrap())], ..member("c", false) };
    third.stop().await;
    let fourth = founded.join(founder, "d", true, &disks[2]).await;
    until("d votes", || voters(founder).len() == 4).await;
    founder.transfer_leader(fourth.consensus.node_id()).await.unwrap();
    until("d leads", || fourth.consensus.is_leader()).await;
    let term = fourth.consensus.term();
    fourth.consensus.propose(put("late", "1")).await.unwrap();
    // It has never heard of d, and nobody but d can tell it.
    let third = launch(&founded.authority, id, there, Boot::Alone, &disks[1]).await;
    until("c has what d has", || get(&third.consensus, "late").as_deref() == Some("1")).await;
    assert_eq!(fourth.consensus.leading_term(), Some(term), "d led all the time");
    // Without one of the others it is c whose vote counts.
    second.stop().await;
    assert!(matches!(founder.propose(put("three of four", "1")).await.unwrap(), Reply::Put(_)));
    third.stop().await;
    fourth.stop().await;
    founded.founder.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_change_of_a_record_stays_until_the_member_starts_again() {
    let founded = found().await;
    let founder = &founded.founder.consensus;
    let disk = SimDisk::new(2);
    let second = founded.join(founder, "b", true, &disk).await;
    until("b votes", || voters(founder).len() == 2).await;
    let id = second.consensus.node_id();
    let record = |at: &Consensus| at.members().into_iter().find(|known| known.id == id).unwrap().member;
    until("b says what it knows", || record(founder).command_version > 0).await;
    let moved = Member { client_urls: vec!["http://elsewhere:1".to_owned()], ..record(founder) };
    founder.update_member(id, moved.clone()).await.unwrap();
    // Long enough for the member to have looked at its record several times.
    let looked = tokio::time::Instant::now() + Duration::from_millis(1_500);
    while tokio::time::Instant::now() < looked {
        assert_eq!(record(founder), moved);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    second.stop().await;
    let again = launch(&founded.authority, id, member("b", false), Boot::Alone, &disk).await;
    until("b says again where it is", || record(founder).client_urls.is_empty()).await;
    again.stop().await;
    founded.founder.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hears_no_leader_and_who_is_not_answered_say_that_there_is_none() {
    let founded = found().await;
    let founder = &founded.founder.consensus;
    let disk = SimDisk::new(2);
    let second = founded.join(founder, "b", true, &disk).await;
    until("b votes", || voters(founder).len() == 2).await;
    until("both know a leader", || founder.leader().is_some() && second.consensus.leader().is_some()).await;
    assert_eq!(founder.status().leader, Some(founder.node_id()));
    let id = second.consensus.node_id();
    second.stop().await;
    until("a is not answered", || founder.leader().is_none()).await;
    assert!(founder.status().leader.is_none() && !founder.status().is_leader);
    let second = launch(&founded.authority, id, member("b", false), Boot::Alone, &disk).await;
    until("there is one again", || founder.leader().is_some() && second.consensus.leader().is_some()).await;
    let (stays, goes) = if second.consensus.is_leader() { (founded.founder, second) } else { (second, founded.founder) };
    // Cut off without a word: the other end hears nothing more.
    goes.quic.close().await;
    until("nobody is heard", || stays.consensus.leader().is_none()).await;
    goes.stop().await;
    stays.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_nobody_ends_is_ended_by_the_leader() {
    let founded = found().await;
    let founder = &founded.founder.consensus;
    let disks = [SimDisk::new(2), SimDisk::new(3)];
    let second = founded.join(founder, "b", true, &disks[0]).await;
    until("b votes", || voters(founder).len() == 2).await;
    let third = founded.join(founder, "c", false, &disks[1]).await;
    let Running { raft, shared, .. } = founded.founder.door.running().unwrap();
    let id = second.consensus.node_id();
    second.stop().await;
    // Its first entry is in the log, and whoever asked for it is gone before that is committed.
    let learner = BTreeSet::from([third.consensus.node_id()]);
    let begun = raft.change_membership(openraft::ChangeMembers::AddVoterIds(learner), false);
    tokio::time::timeout(Duration::from_millis(300), begun).await.expect_err("there is no quorum");
    let second = launch(&founded.authority, id, member("b", false), Boot::Alone, &disks[0]).await;
    let configs =
        |at: &Shared| at.applied.lock().1.membership().get_joint_config().iter().map(BTreeSet::len).collect::<Vec<_>>();
    until("the change is ended", || configs(&shared) == [3]).await;
    drop((raft, shared));
    third.stop().await;
    second.stop().await;
    founded.founder.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_peer_that_has_proved_itself_can_say_that_this_node_is_no_member() {
    let founded = found().await;
    let founder = &founded.founder.consensus;
    let Running { shared, .. } = founded.founder.door.running().unwrap();
    let said = not_a_member(founder.node_id(), u64::MAX);
    let nobody = NetworkError::Unreachable { node: 7, addresses: "127.0.0.1:1".to_owned(), why: said.clone() };
    shared.note_end(&nobody);
    assert!(!shared.fatal.is_raised());
    shared.note_end(&NetworkError::Ended(said));
    assert!(founder.fatal().await.contains("was removed from its cluster"));
    drop(shared);
    founded.founder.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_all_move_find_each_other_where_the_cluster_was_told_they_would_be() {
    let founded = found().await;
    let founder = &founded.founder.consensus;
    let disks = [SimDisk::new(2), SimDisk::new(3)];
    let second = founded.join(founder, "b", true, &disks[0]).await;
    let third = founded.join(founder, "c", true, &disks[1]).await;
    until("b and c vote and have said what they know", || {
        let members = third.consensus.members();
        members.len() == 3 && members.iter().all(|known| !known.learner && known.member.command_version > 0)
    })
    .await;
    founder.propose(put("before", "1")).await.unwrap();
    // Ports that were free a moment ago.
    let sockets = [(); 3].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let urls = sockets.each_ref().map(|socket| format!("https://{}", socket.local_addr().unwrap()));
    drop(sockets);
    let ids = [founder.node_id(), second.consensus.node_id(), third.consensus.node_id()];
    for (id, url) in ids.iter().zip(&urls) {
        let known = founder.members().into_iter().find(|known| known.id == *id).unwrap().member;
        founder.update_member(*id, Member { peer_urls: vec![url.clone()], ..known }).await.unwrap();
    }
    let told = |at: &Consensus| urls.iter().all(|url| at.members().iter().any(|known| known.member.peer_urls == [url.clone()]));
    until("all know where all will be", || [founder, &second.consensus, &third.consensus].into_iter().all(&told)).await;
    let disks = [founded.founder_disk.clone(), disks[0].clone(), disks[1].clone()];
    third.stop().await;
    second.stop().await;
    founded.founder.stop().await;
    let mut moved = Vec::new();
    for (nth, name) in ["a", "b", "c"].into_iter().enumerate() {
        let there = Member { peer_urls: vec![urls[nth].clone()], ..member(name, false) };
        moved.push(launch(&founded.authority, ids[nth], there, Boot::Alone, &disks[nth]).await);
    }
    moved[0].consensus.ready(DEADLINE).await.unwrap();
    assert!(matches!(moved[0].consensus.propose(put("after", "1")).await.unwrap(), Reply::Put(_)));
    for node in moved {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over_and_waits_for_no_election() {
    // Far longer than this test waits for anything.
    let patient = |options: &mut crate::ConsensusOptions| options.election_ms = 120_000;
    let authority = Authority::create(cluster_id(TOKEN), SystemTime::now()).unwrap();
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let founder = launch_with(&authority, node_id(TOKEN, "a"), member("a", false), Boot::Alone, &disks[0], patient).await;
    founder.consensus.ready(DEADLINE).await.unwrap();
    let id = founder.consensus.add_member(None, Member { peer_urls: Vec::new(), ..member("b", true) }).await.unwrap();
    let boot = Boot::Join { node_id: id, cluster_id: founder.consensus.cluster_id() };
    let second = launch_with(&authority, id, member("b", false), boot, &disks[1], patient).await;
    let known = Member { peer_urls: vec![format!("https://{}", second.quic.address().unwrap())], ..member("b", true) };
    founder.consensus.update_member(id, known).await.unwrap();
    until("b votes", || voters(&second.consensus).len() == 2).await;
    let term = founder.consensus.term();
    founder.stop().await;
    until("b leads", || second.consensus.is_leader()).await;
    assert_eq!(second.consensus.term(), term + 1);
    // Not in order: it would wait for the other, which it takes for alive for as long, to lead.
    second.quic.close().await;
}
