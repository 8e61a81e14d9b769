//! ReadIndex: what makes a read linearizable.
//!
//! All readers that wait share the next round: the leader confirms with a quorum that it still leads, and the readers go on once
//! what was committed at that moment is applied. A round that fails for want of a quorum is tried again as a new round, with
//! nothing carried over from the old one.
//!
//! **Invariant:** a reader is only ever served by a round that began after it asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvasir_api::Error;
use kvasir_api::limits::READ_QUEUE_MAX;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::kinds::Kinds;
use crate::machine::Machine;

type Raft = openraft::Raft<Kinds, Machine>;
type Waiter = oneshot::Sender<Result<(), Error>>;

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
    /// Starts the task that makes the rounds; it ends when the last `Reads` is dropped.
    pub(crate) fn start(raft: Raft, applied: watch::Receiver<u64>) -> Self {
        let (queue, waiters) = mpsc::channel(READ_QUEUE_MAX);
        let counts = Arc::new(Counts::default());
        tokio::spawn(rounds(raft, applied, waiters, Arc::clone(&counts)));
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

async fn rounds(raft: Raft, mut applied: watch::Receiver<u64>, mut queue: mpsc::Receiver<Waiter>, counts: Arc<Counts>) {
    let mut waiters = Vec::new();
    while queue.recv_many(&mut waiters, READ_QUEUE_MAX).await > 0 {
        let result = loop {
            counts.rounds.fetch_add(1, Ordering::Relaxed);
            let result = round(&raft, &mut applied).await;
            // Without a quorum: a fresh round, for those who still wait; those who gave up have dropped their end.
            waiters.retain(|waiter| !waiter.is_closed());
            if waiters.is_empty() || result != Err(Error::UnhealthyCluster) {
                break result;
            }
        };
        answer(&mut waiters, &result, &counts);
    }
}

fn answer(waiters: &mut Vec<Waiter>, result: &Result<(), Error>, counts: &Counts) {
    counts.confirmed.fetch_add(waiters.len() as u64, Ordering::Relaxed);
    for waiter in waiters.drain(..) {
        // Whoever waited may have given up.
        let _ = waiter.send(result.clone());
    }
}

async fn round(raft: &Raft, applied: &mut watch::Receiver<u64>) -> Result<(), Error> {
    let linearizer = raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(|error| match error {
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
    let index = linearizer.read_log_id().index();
    applied.wait_for(|applied| *applied >= index).await.map_err(|_| Error::Stopped)?;
    Ok(())
}
