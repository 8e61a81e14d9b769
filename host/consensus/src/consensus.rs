//! The running node: a handle to propose, read, change members and see where it stands.

mod open;
mod propose;
mod shutdown;
mod start;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::{Error, limits};
use kvasir_machine::State;
use kvasir_storage::folder::DataFolder;
use kvasir_storage::log::Log;
use kvasir_storage::state::Store;
use openraft::async_runtime::WatchReceiver;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::export::Export;
use crate::forward::Forward;
use crate::gauge::Gauge;
use crate::identity::Identity;
use crate::kinds::Kinds;
use crate::machine::{Machine, Shared};
use crate::members::{Change, Members};
use crate::membership::{Member, MemberInfo};
use crate::peer::PeerDoor;
use crate::read::Reads;
use crate::status::Status;

type Raft = openraft::Raft<Kinds, Machine>;

/// A running node's consensus. A clone is another handle.
#[derive(Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    raft: Raft,
    shared: Arc<Shared>,
    log: Log,
    reads: Reads,
    /// The way to the leader, unless this node is alone.
    forward: Option<Forward>,
    members: Members,
    door: Option<Arc<PeerDoor>>,
    gauge: Arc<Gauge>,
    request_timeout: Duration,
    stop: CancellationToken,
    closing: AtomicBool,
    /// Held for its lock, until the files are closed.
    folder: Mutex<Option<DataFolder>>,
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Consensus {
    /// Waits until this node can serve linearizable reads: a leader is elected and what it committed is applied here.
    ///
    /// # Errors
    /// The fatal line, or that no leader was elected in time.
    pub async fn ready(&self, timeout: Duration) -> Result<(), String> {
        let become_ready = async {
            loop {
                match self.inner.reads.confirm().await {
                    Ok(()) => {
                        let metrics = self.inner.raft.metrics();
                        self.inner.shared.standing.note(&metrics.borrow_watched());
                        return Ok(());
                    }
                    Err(Error::Stopped) => {
                        return Err(self.inner.shared.fatal.line().unwrap_or_else(|| "raft has stopped".to_owned()));
                    }
                    Err(_) => {
                        let mut metrics = self.inner.raft.metrics();
                        // Something about raft has to change first; the interval covers what changes without it.
                        let _ = tokio::time::timeout(Duration::from_millis(50), metrics.changed()).await;
                    }
                }
            }
        };
        tokio::select! {
            ready = tokio::time::timeout(timeout, become_ready) => {
                ready.unwrap_or_else(|_| Err(format!("no leader was elected within {} ms", timeout.as_millis())))
            }
            line = self.inner.shared.fatal.wait() => Err(line),
        }
    }

    /// Waits until a read of [`Consensus::state`] is linearizable. All who wait share one round.
    ///
    /// # Errors
    /// `Timeout`, `TooManyRequests`, `NoLeader`, `LeaderChanged` or `Stopped`.
    pub async fn read_index(&self) -> Result<(), Error> {
        match tokio::time::timeout(self.inner.request_timeout, self.inner.reads.confirm()).await {
            Ok(confirmed) => confirmed,
            Err(_) => Err(Error::Timeout),
        }
    }

    /// The replicated state. Never hold its lock across an `await`, nor long: applying waits for it.
    pub fn state(&self) -> &Arc<RwLock<State>> {
        &self.inner.shared.state
    }

    /// The state file: history that memory does not hold. Its reads block.
    pub fn store(&self) -> &Store {
        &self.inner.shared.store
    }

    /// The raft log, for its counters.
    pub fn log(&self) -> &Log {
        &self.inner.log
    }

    /// Cluster time.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.inner.shared.clock
    }

    /// Cluster time in milliseconds.
    pub fn now_cluster_ms(&self) -> u64 {
        self.inner.shared.clock.now_ms()
    }

    /// This node's id.
    pub fn node_id(&self) -> u64 {
        self.inner.identity.node_id
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.inner.identity.cluster_id
    }

    /// Raft's term as last reported.
    pub fn term(&self) -> u64 {
        self.inner.shared.standing.now().0
    }

    /// The leader, as long as this node hears it, or, leading itself, is answered by most voters.
    pub fn leader(&self) -> Option<u64> {
        self.inner.members.leader()
    }

    /// Whether this node leads, as last reported. Only a hint: a command or a read index says for sure.
    pub fn is_leader(&self) -> bool {
        self.leading_term().is_some()
    }

    /// The term in which this node leads, as last reported: both of one moment.
    pub fn leading_term(&self) -> Option<u64> {
        self.inner.shared.standing.leading()
    }

    /// Index of the last applied entry, and its changes.
    pub fn applied_index(&self) -> watch::Receiver<u64> {
        self.inner.shared.applied_index.subscribe()
    }

    /// The term and the leader, if one is known, and their changes.
    pub fn standings(&self) -> watch::Receiver<(u64, Option<u64>)> {
        self.inner.shared.standing.changes()
    }

    /// The members, as applied here.
    pub fn members(&self) -> Vec<MemberInfo> {
        self.inner.members.list()
    }

    /// Whether this node is a member that does not vote, as applied here.
    pub fn is_learner(&self) -> bool {
        self.inner.shared.learner.load(Ordering::Relaxed)
    }

    /// On the leader: every member, and the index of the last entry it is known to have. Empty elsewhere.
    pub fn progress(&self) -> Vec<(u64, Option<u64>)> {
        self.inner.members.progress()
    }

    /// Adds a member as a learner, with the id it was given or one of its own; returns the id. One that is a member already gets
    /// this record.
    ///
    /// # Errors
    /// `PeerUrlExists`, `TooManyLearners`, and as every change `NoLeader`, or `Timeout` when its fate is unknown.
    pub async fn add_member(&self, id: Option<u64>, member: Member) -> Result<u64, Error> {
        self.change(Change::Add(id, member)).await
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// `MemberNotFound`, `NotLearner`, `LearnerNotReady`, `UnhealthyForReconfiguration`, and as every change.
    pub async fn promote_member(&self, id: u64) -> Result<(), Error> {
        self.change(Change::Promote(id)).await.map(drop)
    }

    /// Removes a member for good: its id is never used again.
    ///
    /// # Errors
    /// `MemberNotFound`, `UnhealthyForReconfiguration`, and as every change.
    pub async fn remove_member(&self, id: u64) -> Result<(), Error> {
        self.change(Change::Remove(id)).await.map(drop)
    }

    /// Gives a member another record.
    ///
    /// # Errors
    /// `MemberNotFound`, `PeerUrlExists`, and as every change.
    pub async fn update_member(&self, id: u64, member: Member) -> Result<(), Error> {
        self.change(Change::Update(id, member)).await.map(drop)
    }

    /// Lets another voter lead.
    ///
    /// # Errors
    /// `BadLeaderTransferee`, and as every change.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), Error> {
        self.change(Change::Transfer(to)).await.map(drop)
    }

    async fn change(&self, change: Change) -> Result<u64, Error> {
        if self.inner.closing.load(Ordering::Relaxed) || self.inner.shared.fatal.is_raised() {
            return Err(Error::Stopped);
        }
        self.inner.members.change(change, Instant::now() + self.inner.request_timeout).await.map(|changed| changed.id)
    }

    /// Asks the [`crate::Attendant`] of a member.
    ///
    /// # Errors
    /// `MemberNotFound`; `NoLeader` when it cannot be reached; `Timeout` when it was asked and did not answer.
    pub async fn ask(&self, node: u64, request: Bytes) -> Result<Bytes, Error> {
        self.inner.members.ask(node, request, Instant::now() + self.inner.request_timeout).await
    }

    /// Where this node stands.
    pub fn status(&self) -> Status {
        let inner = &*self.inner;
        let leader = self.leader();
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        Status {
            node_id: inner.identity.node_id,
            leader,
            is_leader: leader == Some(inner.identity.node_id),
            term: metrics.current_term,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            committed_index: metrics.local_committed.as_ref().map_or(0, |id| id.index),
            applied_index: *inner.shared.applied_index.borrow(),
            checkpoint_index: inner.shared.store.durable().map_or(0, |id| id.index),
            purged_index: metrics.purged.map_or(0, |id| id.index),
            proposals: inner.gauge.accepted(),
            proposals_refused: inner.gauge.refused(),
            proposals_pending: inner.gauge.pending(),
            read_rounds: inner.reads.rounds(),
            reads_confirmed: inner.reads.confirmed(),
        }
    }

    /// Waits for a fault that the process must end with; the line says which.
    pub async fn fatal(&self) -> String {
        self.inner.shared.fatal.wait().await
    }

    /// How much room there is on the data folder's disk, in bytes; `None` when it cannot be told. Blocking.
    pub fn free_bytes(&self) -> Option<u64> {
        let folder = self.inner.folder.lock();
        folder.as_ref().and_then(|folder| folder.space().ok()).map(|space| space.free_bytes)
    }

    /// Puts room aside for the day the disk is full, unless that is done. Blocking.
    pub fn make_ballast(&self) {
        if let Some(folder) = self.inner.folder.lock().as_ref()
            && let Err(error) = folder.make_ballast(limits::BALLAST_BYTES)
        {
            tracing::warn!(%error, "no ballast was put aside");
        }
    }

    /// The state of this moment as a file of this node's, to be read by who saves it.
    ///
    /// # Errors
    /// `Exhausted` when there is no room for it; `Stopped`; `Internal` for what else the disk says.
    pub async fn export(&self) -> Result<Export, Error> {
        if self.inner.closing.load(Ordering::Relaxed) || self.inner.shared.fatal.is_raised() {
            return Err(Error::Stopped);
        }
        Export::make(Arc::clone(&self.inner.shared.snapshots)).await
    }

    /// Gives the ballast's room back, so that there is room to compact and to stop in order. Blocking.
    pub fn drop_ballast(&self) {
        if let Some(folder) = self.inner.folder.lock().as_ref()
            && let Err(error) = folder.drop_ballast()
        {
            tracing::warn!(%error, "the ballast was not dropped");
        }
    }

    /// Reports a fault that the process must end with.
    pub fn raise(&self, line: impl Into<String>) {
        self.inner.shared.fatal.raise(line);
    }
}
