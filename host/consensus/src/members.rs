//! Changes of membership and of who leads: made by the leader, asked of it by everybody else.
//!
//! A new member is a learner first; one that is to vote is promoted once it has caught up. A change that would leave the cluster
//! without a quorum of members that answer is refused, as etcd's strict reconfiguration check does.
//!
//! **Invariant:** an id is given once, ever: it is the index of an entry of the log, or a hash at a static bootstrap.

mod control;
mod tend;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use kvasir_api::Error;
use kvasir_transport::Network;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant as _};
use tokio::time::Instant;

pub use control::was_started;
pub(crate) use control::{refuse, serve};
pub(crate) use tend::tend;

use crate::kinds::Kinds;
use crate::machine::{Machine, Shared};
use crate::membership::{Member, MemberInfo};
use crate::peer::PeerDoor;

type Raft = openraft::Raft<Kinds, Machine>;

/// Between two tries of a change that another one, or a leader that is not there, is in the way of.
const PAUSE: Duration = Duration::from_millis(20);
/// Entries that a learner may be behind and be called caught up.
const CAUGHT_UP_ENTRIES: u64 = 1_000;
/// Learners that are never made voters by themselves; more cost the leader without adding safety.
const LEARNERS_MAX: usize = 16;

/// A change that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A learner, with the id it was given or one of its own.
    Add(Option<u64>, Member),
    /// A learner votes from now on.
    Promote(u64),
    Remove(u64),
    /// Another name or other addresses.
    Update(u64, Member),
    /// Who is to lead.
    Transfer(u64),
}

/// What a change gave: the id it is about, and the index of the entry that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) id: u64,
    pub(crate) index: u64,
}

/// Who changes the membership, and knows who answers.
#[derive(Clone)]
pub(crate) struct Members {
    pub(crate) raft: Raft,
    pub(crate) shared: Arc<Shared>,
    pub(crate) network: Option<Arc<dyn Network>>,
    /// Behind it is who prepares voters; the door leads back here.
    pub(crate) door: Option<Weak<PeerDoor>>,
    /// Without an answer for so long a member does not count as one that answers.
    pub(crate) silent_after: Duration,
}

impl Members {
    /// The members as applied here.
    pub(crate) fn list(&self) -> Vec<MemberInfo> {
        let applied = self.shared.applied.lock();
        let membership = applied.1.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        membership
            .nodes()
            .map(|(id, member)| MemberInfo { id: *id, member: member.clone(), learner: !voters.contains(id) })
            .collect()
    }

    /// Makes a change wherever the leader is, and waits until it is applied here.
    ///
    /// # Errors
    /// etcd's refusals; `NoLeader`; `Timeout` when it is not known whether it was made.
    pub(crate) async fn change(&self, change: Change, deadline: Instant) -> Result<Changed, Error> {
        loop {
            let made = match (&self.network, self.shared.standing.now().1) {
                (_, None) => Err(Error::NoLeader),
                (Some(network), Some(leader)) if leader != self.shared.node_id => {
                    control::ask_change(network, &self.shared, leader, &change, deadline).await
                }
                _ => tokio::time::timeout_at(deadline, self.make(&change)).await.unwrap_or(Err(Error::Timeout)),
            };
            match made {
                Err(Error::NotLeader | Error::NoLeader) if Instant::now() + PAUSE < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(changed) => {
                    let mut applied = self.shared.applied_index.subscribe();
                    let here = applied.wait_for(|index| *index >= changed.index);
                    // It is made: whoever is behind learns of it later.
                    let _ = tokio::time::timeout_at(deadline, here).await;
                    return Ok(changed);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes a change as the leader that this node may be.
    async fn make(&self, change: &Change) -> Result<Changed, Error> {
        match change {
            Change::Add(id, member) => self.add(*id, member).await,
            Change::Promote(id) => self.promote(*id).await,
            Change::Remove(id) => self.remove(*id).await,
            Change::Update(id, member) => self.update(*id, member).await,
            Change::Transfer(to) => self.transfer(*to).await,
        }
    }

    async fn add(&self, id: Option<u64>, member: &Member) -> Result<Changed, Error> {
        self.check_urls(id, member)?;
        self.check_version(member)?;
        let members = self.list();
        if let Some(id) = id
            && members.iter().any(|known| known.id == id)
        {
            return self.update(id, member).await;
        }
        // Those that become voters by themselves are on their way.
        if !member.promote && members.iter().filter(|known| known.learner && !known.member.promote).count() >= LEARNERS_MAX {
            return Err(Error::TooManyLearners);
        }
        let id = match id {
            Some(id) => id,
            None => self.raft.write_blank().await.map_err(|error| refused(&error))?.log_id.index,
        };
        let index = self.apply(ChangeMembers::AddNodes(BTreeMap::from([(id, member.clone())]))).await?;
        Ok(Changed { id, index })
    }

    async fn promote(&self, id: u64) -> Result<Changed, Error> {
        let members = self.list();
        let member = members.iter().find(|known| known.id == id).ok_or(Error::MemberNotFound)?;
        if !member.learner {
            return Err(Error::NotLearner);
        }
        if !self.is_caught_up(id) {
            return Err(Error::LearnerNotReady);
        }
        let voters: Vec<u64> = members.iter().filter(|known| !known.learner).map(|known| known.id).collect();
        self.quorum_of(voters.into_iter().chain([id]).collect()).await?;
        self.prepare(id).await.map_err(|why| {
            tracing::info!("member {} ({id:016x}) does not vote yet: {why}", member.member.name);
            Error::LearnerNotReady
        })?;
        let index = self.apply(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await?;
        Ok(Changed { id, index })
    }

    /// Has a learner prepared to vote.
    async fn prepare(&self, id: u64) -> Result<(), String> {
        let Some(door) = &self.door else { return Ok(()) };
        match door.upgrade().and_then(|door| door.attendant()) {
            Some(attendant) => attendant.prepare_voter(id).await,
            None => Err("this leader has only just started".to_owned()),
        }
    }

    async fn remove(&self, id: u64) -> Result<Changed, Error> {
        let members = self.list();
        let member = members.iter().find(|known| known.id == id).ok_or(Error::MemberNotFound)?;
        let ids = BTreeSet::from([id]);
        if member.learner {
            let index = self.apply(ChangeMembers::RemoveNodes(ids)).await?;
            return Ok(Changed { id, index });
        }
        let others = members.iter().filter(|known| !known.learner && known.id != id).map(|known| known.id);
        self.quorum_of(others.collect()).await?;
        if id == self.shared.node_id {
            // Whoever leads next removes this node: it is never without a leader that knows what it committed.
            self.hand_over().await;
            return Err(Error::NotLeader);
        }
        let index = self.apply(ChangeMembers::RemoveVoters(ids)).await?;
        Ok(Changed { id, index })
    }

    async fn update(&self, id: u64, member: &Member) -> Result<Changed, Error> {
        if !self.list().iter().any(|known| known.id == id) {
            return Err(Error::MemberNotFound);
        }
        self.check_urls(Some(id), member)?;
        let index = self.apply(ChangeMembers::SetNodes(BTreeMap::from([(id, member.clone())]))).await?;
        Ok(Changed { id, index })
    }

    async fn transfer(&self, to: u64) -> Result<Changed, Error> {
        if !self.list().iter().any(|known| known.id == to && !known.learner) {
            return Err(Error::BadLeaderTransferee);
        }
        // Whoever asks may not know yet that this node leads no more.
        if self.shared.standing.leading().is_none() {
            return Err(Error::NotLeader);
        }
        let index = *self.shared.applied_index.borrow();
        if to != self.shared.node_id {
            let mut standings = self.shared.standing.changes();
            self.raft.trigger().transfer_leader(to).await.map_err(|_| Error::Stopped)?;
            // The caller's deadline bounds this.
            let _ = standings.wait_for(|(_, leader)| *leader == Some(to)).await;
        }
        Ok(Changed { id: to, index })
    }

    /// Lets the voter lead that has the most, if this node leads and there is one that answers.
    pub(crate) async fn hand_over(&self) {
        let Some(term) = self.shared.standing.leading() else { return };
        let answering = self.answering();
        let voters: BTreeSet<u64> = self.list().iter().filter(|known| !known.learner).map(|known| known.id).collect();
        let best = self
            .progress()
            .into_iter()
            .filter(|(id, _)| *id != self.shared.node_id && voters.contains(id) && answering.contains(id))
            .max_by_key(|(_, matched)| *matched);
        let Some((to, _)) = best else { return };
        tracing::info!("leadership goes to node {to:016x}");
        let mut standings = self.shared.standing.changes();
        if self.raft.trigger().transfer_leader(to).await.is_ok() {
            let gone = standings.wait_for(|(now, leader)| *now > term && leader.is_some());
            // Without an answer an election settles it.
            let _ = tokio::time::timeout(self.silent_after, gone).await;
        }
    }

    /// On the leader: every member, and the last entry it is known to have.
    pub(crate) fn progress(&self) -> Vec<(u64, Option<u64>)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let of = |(id, matched): (&u64, &Option<crate::kinds::LogId>)| (*id, matched.as_ref().map(|id| id.index));
        metrics.replication.as_ref().map(|replication| replication.iter().map(of).collect()).unwrap_or_default()
    }

    /// On the leader: the members that answered lately, itself among them.
    fn answering(&self) -> BTreeSet<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let lately = |(id, acked): (&u64, &Option<openraft::metrics::SerdeInstant<_>>)| {
            let acked: Option<&openraft::type_config::alias::InstantOf<Kinds>> = acked.as_deref();
            acked.is_some_and(|acked| acked.elapsed() < self.silent_after).then_some(*id)
        };
        let others = metrics.heartbeat.iter().flatten().filter_map(lately);
        others.chain([self.shared.node_id]).collect()
    }

    /// Who leads, as long as that shows: of another node, that it is heard; of this one, that most voters answer it.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leader = self.shared.standing.now().1?;
        let shows = self.shared.standing.is_heard(self.silent_after) || leader == self.shared.node_id && self.is_answered();
        shows.then_some(leader)
    }

    /// On the leader: whether most voters answer it.
    fn is_answered(&self) -> bool {
        let answering = self.answering();
        let applied = self.shared.applied.lock();
        let voters: BTreeSet<u64> = applied.1.membership().voter_ids().collect();
        voters.intersection(&answering).count() > voters.len() / 2
    }

    fn is_caught_up(&self, id: u64) -> bool {
        let last = self.raft.metrics().borrow_watched().last_log_index.unwrap_or(0);
        self.answering().contains(&id)
            && self.progress().iter().any(|(known, matched)| {
                *known == id && matched.is_some_and(|matched| matched.saturating_add(CAUGHT_UP_ENTRIES) >= last)
            })
    }

    /// Waits until more than half of these voters answer this leader, who may lead since just now.
    async fn quorum_of(&self, voters: Vec<u64>) -> Result<(), Error> {
        let deadline = Instant::now() + self.silent_after;
        loop {
            let answering = self.answering();
            if voters.iter().filter(|voter| answering.contains(voter)).count() > voters.len() / 2 {
                return Ok(());
            }
            if self.shared.standing.leading().is_none() {
                return Err(Error::NotLeader);
            }
            if voters.is_empty() || Instant::now() > deadline {
                return Err(Error::UnhealthyForReconfiguration);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// No two members are reached at one address.
    fn check_urls(&self, id: Option<u64>, member: &Member) -> Result<(), Error> {
        let taken = self
            .list()
            .iter()
            .filter(|known| Some(known.id) != id)
            .any(|known| known.member.peer_urls.iter().any(|url| member.peer_urls.contains(url)));
        if taken { Err(Error::PeerUrlExists) } else { Ok(()) }
    }

    /// A member that the cluster has left behind would stop at what it is sent. One that was added by name says later what it knows.
    fn check_version(&self, member: &Member) -> Result<(), Error> {
        let (knows, needs) = (member.command_version, self.shared.state.read().cluster_version());
        if knows == 0 || knows >= needs {
            return Ok(());
        }
        let name = &member.name;
        Err(Error::Precondition(format!(
            "{name} knows version {knows} of the cluster's commands, and the cluster is at version {needs}: start it with a newer kvasir"
        )))
    }

    /// On the leader: ends a change that was begun and not ended, by this leader or another, if there is one and nobody is at it.
    pub(crate) async fn end_change(&self) {
        if self.shared.applied.lock().1.membership().get_joint_config().len() > 1 {
            // What is a change already goes on; what fails is tried again.
            let ended = self.raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await;
            tracing::info!(done = ended.is_ok(), "a change of the membership that was begun is ended");
        }
    }

    /// Puts a change through raft, after any that is under way. While most voters are silent it would be of unknown fate for as long
    /// as they are, and is not made.
    async fn apply(&self, change: ChangeMembers<u64, Member>) -> Result<u64, Error> {
        let voters = self.list().into_iter().filter(|known| !known.learner).map(|known| known.id).collect();
        self.quorum_of(voters).await.map_err(|error| match error {
            Error::UnhealthyForReconfiguration => Error::UnhealthyCluster,
            other => other,
        })?;
        loop {
            // In a task of its own: it takes two entries, and whoever asked may go away between them.
            let (raft, change) = (self.raft.clone(), change.clone());
            let changing = tokio::spawn(async move { raft.change_membership(change, false).await });
            match changing.await.map_err(|error| Error::Internal(error.to_string()))? {
                Ok(response) => return Ok(response.log_id.index),
                // The caller's deadline bounds this.
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
                ))) => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(refused(&error)),
            }
        }
    }
}

fn refused(error: &RaftError<Kinds, ClientWriteError<Kinds>>) -> Error {
    match error {
        RaftError::Fatal(_) => Error::Stopped,
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => Error::NotLeader,
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => Error::LeaderChanged,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::LearnerNotFound(_))) => {
            Error::MemberNotFound
        }
        RaftError::APIError(error) => Error::Internal(error.to_string()),
    }
}
