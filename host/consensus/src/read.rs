//! ReadIndex: what makes a read linearizable.
//!
//! All readers that wait share the next round: the leader confirms with a quorum that it still leads, and the readers go on once
//! what was committed at that moment is applied here. A follower asks the leader for a round of its own. A round that fails is
//! tried again as a new round, with nothing carried over from the old one.
//!
//! **Invariant:** a reader is only ever served by a round that began after it asked.

mod remote;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvasir_api::Error;
use kvasir_api::limits::READ_QUEUE_MAX;
use kvasir_transport::Network;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::kinds::Kinds;
use crate::machine::{Machine, Shared};
use remote::Leader;
pub(crate) use remote::serve;

type Raft = openraft::Raft<Kinds, Machine>;
type Waiter = oneshot::Sender<Result<(), Error>>;

/// Between two rounds when there is nobody to ask.
const PAUSE: Duration = Duration::from_millis(20);

/// The way to a round.
#[derive(Debug, Clone)]
pub(crate) struct Reads {
    queue: mpsc::Sender<Waiter>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    rounds: AtomicU64,
    confirmed: AtomicU64,
}

impl Reads {
    /// Starts the task that makes the rounds; it ends when the last `Reads` is dropped. Without a network there is no leader but
    /// this node.
    pub(crate) fn start(raft: Raft, shared: Arc<Shared>, network: Option<Arc<dyn Network>>) -> Self {
        let (queue, waiters) = mpsc::channel(READ_QUEUE_MAX);
        let counts = Arc::new(Counts::default());
        let (applied, standings) = (shared.applied_index.subscribe(), shared.standing.changes());
        let policy = shared.mutant.read_policy();
        let leader = network.map(|network| Leader::new(network, shared));
        tokio::spawn(rounds(Rounds { raft, policy, applied, standings, leader }, waiters, Arc::clone(&counts)));
        Self { queue, counts }
    }

    /// Waits until a read of the state is linearizable.
    ///
    /// # Errors
    /// `TooManyRequests` when too many wait, `NoLeader`, `LeaderChanged`, or `Stopped`.
    pub(crate) async fn confirm(&self) -> Result<(), Error> {
        let (reply, confirmed) = oneshot::channel();
        self.queue.try_send(reply).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => Error::Stopped,
        })?;
        confirmed.await.unwrap_or(Err(Error::Stopped))
    }

    pub(crate) fn rounds(&self) -> u64 {
        self.counts.rounds.load(Ordering::Relaxed)
    }

    pub(crate) fn confirmed(&self) -> u64 {
        self.counts.confirmed.load(Ordering::Relaxed)
    }
}

/// What a round needs.
struct Rounds {
    raft: Raft,
    policy: ReadPolicy,
    applied: watch::Receiver<u64>,
    /// The term and the leader.
    standings: watch::Receiver<(u64, Option<u64>)>,
    leader: Option<Leader>,
}

async fn rounds(mut by: Rounds, mut queue: mpsc::Receiver<Waiter>, counts: Arc<Counts>) {
    let mut waiters = Vec::new();
    while queue.recv_many(&mut waiters, READ_QUEUE_MAX).await > 0 {
        let result = loop {
            counts.rounds.fetch_add(1, Ordering::Relaxed);
            let result = by.round().await;
            // Without a quorum, or without a leader that may come yet: a fresh round, for those who still wait; those who gave up
            // have dropped their end.
            waiters.retain(|waiter| !waiter.is_closed());
            let again = match result {
                Err(Error::UnhealthyCluster) => true,
                Err(Error::NoLeader | Error::LeaderChanged) => by.leader.is_some(),
                _ => false,
            };
            if waiters.is_empty() || !again {
                break result;
            }
            tokio::time::sleep(PAUSE).await;
        };
        answer(&mut waiters, &result, &counts);
    }
}

fn answer(waiters: &mut Vec<Waiter>, result: &Result<(), Error>, counts: &Counts) {
    if result.is_ok() {
        counts.confirmed.fetch_add(waiters.len() as u64, Ordering::Relaxed);
    }
    for waiter in waiters.drain(..) {
        // Whoever waited may have given up.
        let _ = waiter.send(result.clone());
    }
}

impl Rounds {
    async fn round(&mut self) -> Result<(), Error> {
        let term = self.standings.borrow_and_update().0;
        let index = match (read_index(&self.raft, self.policy.clone()).await, &mut self.leader) {
            (Err(Error::LeaderChanged | Error::NoLeader), Some(leader)) => leader.read_index().await?,
            (index, _) => index?,
        };
        tokio::select! {
            applied = self.applied.wait_for(|applied| *applied >= index) => applied.map(drop).map_err(|_| Error::Stopped),
            // The index may be that of an entry which went with its leader.
            _ = self.standings.wait_for(|(now, _)| *now > term) => Err(Error::LeaderChanged),
        }
    }
}

/// The index that a linearizable read has to see, if this node leads.
async fn read_index(raft: &Raft, policy: ReadPolicy) -> Result<u64, Error> {
    let linearizer = raft.get_read_linearizer(policy).await.map_err(|error| match error {
        RaftError::Fatal(_) => Error::Stopped,
        RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
            if forward.leader_id.is_some() {
                Error::LeaderChanged
            } else {
                Error::NoLeader
            }
        }
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => Error::UnhealthyCluster,
    })?;
    Ok(linearizer.read_log_id().index())
}
