//! The running node: boot, proposals, reads, status, shutdown.
//!
//! A proposal is stamped, encoded once and put on raft's own queue; raft's core takes all that wait there in one append, so that
//! one sync serves them, and nothing waits for the batch before. A write whose fate is unknown is reported as such and never sent
//! again.
//!
//! **Invariant:** the single voter goes the way a cluster goes: it is initialised with a membership entry, votes, is elected, and
//! commits by quorum.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::command::{Command, Forwarded, Stamp};
use kvasir_api::limits;
use kvasir_machine::{FIRST_CLUSTER_VERSION, Reply, State, command_version};
use kvasir_storage::StorageError;
use kvasir_storage::folder::DataFolder;
use kvasir_storage::log::{Log, LogOptions, LogState};
use kvasir_storage::state::{Opened, Store, StoreOptions};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::{Config, SnapshotPolicy};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::blocking::blocking;
use crate::checkpoint;
use crate::clock::Clock;
use crate::export::Export;
use crate::fatal::Fatal;
use crate::force;
use crate::forward::{Forward, Outgoing, Waiting};
use crate::gauge::Gauge;
use crate::identity::{self, Identity};
use crate::kinds::{Kinds, Waiter};
use crate::log::LogStore;
use crate::machine::{Machine, Shared, applied_from, is_learner};
use crate::members::{self, Change, Members};
use crate::membership::{Member, MemberInfo};
use crate::mutant::Mutant;
use crate::options::{Boot, ConsensusOptions, StartError};
use crate::peer::{Alone, PeerDoor, Peers, Running};
use crate::proposed::Proposed;
use crate::publish::Publish;
use crate::read::Reads;
use crate::snapshot::{Snapshots, meta};
use crate::standing::Standing;
use crate::status::Status;

type Raft = openraft::Raft<Kinds, Machine>;

/// How long a proposal that was not taken waits before it looks again for a leader.
const LEADER_PAUSE: Duration = Duration::from_millis(20);
/// How long proposals in flight may take to finish at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

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

/// What the storage under consensus opened.
struct Storage {
    folder: DataFolder,
    identity: Identity,
    log: Log,
    opened: Opened,
}

fn open(options: &ConsensusOptions, fatal: &Fatal) -> Result<Storage, StartError> {
    let folder = DataFolder::open(Arc::clone(&options.disk), &options.dir)?;
    let raise = {
        let fatal = fatal.clone();
        Arc::new(move |error: &StorageError| fatal.raise(error.to_string()))
    };
    let log_options = LogOptions { on_fatal: Some(raise.clone()), ..options.log.clone() };
    let log = Log::open(Arc::clone(&options.disk), &folder.log_dir(), log_options)?;
    let store_options = StoreOptions { on_fatal: Some(raise), ..options.store.clone() };
    let opened = open_store(options, &folder, &log, store_options)?;
    // Before the identity is written: a folder that has one is a folder whose log has begun.
    log.begin().map_err(|source| StorageError::io(&folder.log_dir(), "begin the raft log", source))?;
    if options.mutant != Mutant::CheckpointAheadOfLog {
        opened.store.follow_log(&log);
    }
    let given = match options.peers.as_ref().map(|peers| &peers.boot) {
        Some(Boot::Join { node_id, cluster_id }) => Some(Identity { node_id: *node_id, cluster_id: *cluster_id }),
        Some(Boot::Alone | Boot::Static(_)) | None => None,
    };
    let identity = identity::load_or_create(&opened.store, &options.cluster_token, &options.member.name, given)?;
    if options.force_new_cluster {
        force::alone(&log, &opened.applied, identity.node_id, &options.member)?;
    }
    Ok(Storage { folder, identity, log, opened })
}

/// Opens the state file if it and the log can be those of one node; nothing is changed otherwise.
fn open_store(options: &ConsensusOptions, folder: &DataFolder, log: &Log, store: StoreOptions) -> Result<Opened, StorageError> {
    let (log_dir, path, logged) = (folder.log_dir(), folder.state_path(), log.state());
    let state_is_gone =
        || StorageError::missing(&path, "the state file is missing or empty, and the raft log beside it is not");
    let exists = options.disk.exists(&path).map_err(|source| StorageError::io(&path, "look for the state file", source))?;
    if !exists && logged != LogState::default() {
        return Err(state_is_gone());
    }
    Store::open_if(Arc::clone(&options.disk), &path, store, |found| {
        if found.local(identity::ROW).is_none() {
            return if logged == LogState::default() { Ok(()) } else { Err(state_is_gone()) };
        }
        if !log.is_begun() {
            return Err(StorageError::missing(&log_dir, "the raft log is gone, and the state file beside it is not new"));
        }
        let (applied, last) = (found.applied.log_id.map(|id| id.index), logged.last.map(|id| id.index));
        if last < applied && !found.is_as_installed() {
            let ends = last.map_or("is empty".to_owned(), |last| format!("ends with entry {last}"));
            let applied = applied.unwrap_or_default();
            let what =
                format!("the raft log {ends}, and the state file has applied entry {applied}: its newest segments are gone");
            return Err(StorageError::missing(&log_dir, what));
        }
        Ok(())
    })
}

fn config(options: &ConsensusOptions) -> Result<Arc<Config>, StartError> {
    let config = Config {
        cluster_name: options.cluster_token.clone(),
        heartbeat_interval: options.heartbeat_ms,
        // A follower waits out the leader's lease, which is the maximum, and then as long as is drawn: in all from one election
        // timeout to two, as etcd's.
        election_timeout_min: options.heartbeat_ms.saturating_mul(3) / 2,
        election_timeout_max: options.election_ms,
        // Snapshots and purges come from our checkpointer only.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        max_payload_entries: limits::PROPOSAL_BATCH_MAX as u64,
        max_append_entries: Some(limits::PROPOSAL_BATCH_MAX as u64),
        api_channel_size: Some(limits::PROPOSAL_QUEUE_MAX as u64 * 2),
        api_batch_capacity: limits::PROPOSAL_BATCH_MAX as u64,
        api_batch_linger_ms: 0,
        enable_pre_vote: Some(true),
        // A restarted leader is elected anew: neither the state file nor the committed id is synced on the way of a reply, so
        // what it knew as committed may be more than what it finds.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| StartError::Config(error.to_string()))
}

impl Consensus {
    /// Opens the data folder, replays, elects, and serves. Returns once raft runs; [`Consensus::ready`] waits until it can serve.
    ///
    /// # Errors
    /// One clear line: a folder that is not ours, of another version or in use, a damaged file, timings that do not fit.
    pub async fn start(options: ConsensusOptions, publish: Arc<dyn Publish>) -> Result<Self, StartError> {
        let config = config(&options)?;
        let fatal = Fatal::new();
        let (opening, raising) = (options.clone(), fatal.clone());
        let storage = blocking(options.disk.driver().is_some(), move || open(&opening, &raising))
            .await
            .map_err(|error| StartError::Raft(error.to_string()))??;
        let Storage { folder, identity, log, opened } = storage;
        let applied = applied_from(&opened.applied).map_err(|error| StartError::Raft(error.to_string()))?;
        let applied_index = applied.0.map_or(0, |id| id.index);
        let clock = Arc::new(Clock::new(opened.state.cluster_ms(), options.wall_clock.clone()));
        let snapshots = Snapshots::open(
            Arc::clone(&options.disk),
            folder.snapshot_dir(),
            opened.store.clone(),
            identity.cluster_id,
            options.snapshot_hold,
        )?;
        let shared = Arc::new(Shared {
            state: Arc::new(RwLock::new(opened.state)),
            store: opened.store,
            log: log.clone(),
            clock,
            fatal: fatal.clone(),
            standing: Standing::new(identity.node_id),
            applied_index: watch::Sender::new(applied_index),
            snapshot: Mutex::new(applied.0.map(|log_id| meta(Some(log_id), applied.1.clone()))),
            learner: AtomicBool::new(is_learner(applied.1.membership(), identity.node_id)),
            applied: Mutex::new(applied),
            snapshots: Arc::new(snapshots),
            node_id: identity.node_id,
            waiting: Waiting::new(std::time::SystemTime::now()),
            tail_bytes_max: limits::TAIL_BYTES_MAX,
            command_version: options.command_version,
            mutant: options.mutant,
        });
        let log_store = LogStore::new(log.clone(), fatal).with(options.mutant);
        let network = options.peers.as_ref().map_or_else(|| Arc::new(Alone) as _, |peers| Arc::clone(&peers.network));
        let machine = Machine { shared: Arc::clone(&shared), publish };
        let peers = Peers::new(network, Arc::clone(&shared));
        let raft = Raft::new(identity.node_id, config, peers, log_store, machine)
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let gauge = Gauge::new(limits::PROPOSAL_QUEUE_MAX, limits::PROPOSAL_PENDING_BYTES_MAX);
        let members = Members {
            raft: raft.clone(),
            shared: Arc::clone(&shared),
            network: options.peers.as_ref().map(|peers| Arc::clone(&peers.network)),
            door: options.peers.as_ref().map(|peers| Arc::downgrade(&peers.door)),
            silent_after: Duration::from_millis(options.election_ms.saturating_mul(2)),
        };
        let forward = options.peers.as_ref().map(|peers| {
            let running = Running {
                raft: raft.clone(),
                shared: Arc::clone(&shared),
                gauge: Arc::clone(&gauge),
                members: members.clone(),
            };
            peers.door.serve(running);
            Forward::start(Arc::clone(&peers.network), Arc::clone(&shared))
        });
        let network = options.peers.as_ref().map(|peers| Arc::clone(&peers.network));
        let reads = Reads::start(raft.clone(), Arc::clone(&shared), network);
        let stop = CancellationToken::new();
        tokio::spawn(follow(raft.clone(), Arc::clone(&shared), stop.clone()));
        let keep = checkpoint::Keep { entries: options.log_keep_entries, bytes: options.log_keep_bytes };
        let interval = options.store.checkpoint_interval;
        tokio::spawn(checkpoint::run(raft.clone(), Arc::clone(&shared), keep, interval, stop.clone()));
        let first = match options.peers.as_ref().map(|peers| &peers.boot) {
            None => BTreeMap::from([(identity.node_id, options.member.clone())]),
            // A node that has joined is none of those that its cluster was begun with, whatever it is started with.
            Some(Boot::Alone) => {
                let founder = identity::node_id(&options.cluster_token, &options.member.name);
                BTreeMap::from([(founder, options.member.clone())])
            }
            Some(Boot::Static(members)) => members.clone(),
            Some(Boot::Join { .. }) => BTreeMap::new(),
        };
        boot(&raft, identity.node_id, first).await?;
        let mine = Member { command_version: options.command_version, ..options.member.clone() };
        tokio::spawn(members::tend(members.clone(), mine, stop.clone()));
        Ok(Self {
            inner: Arc::new(Inner {
                identity,
                raft,
                shared,
                log,
                reads,
                forward,
                members,
                door: options.peers.map(|peers| peers.door),
                gauge,
                request_timeout: Duration::from_millis(options.request_timeout_ms),
                stop,
                closing: AtomicBool::new(false),
                folder: Mutex::new(Some(folder)),
            }),
        })
    }

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

    /// Takes a command to its reply: stamps it, replicates it, applies it. The command's version and stamp are set here.
    ///
    /// # Errors
    /// `TooManyRequests` when too much waits, `NotLeader`/`NoLeader` when it was certainly not taken, `Timeout` or `LeaderChanged`
    /// when its fate is unknown, `Stopped`. What apply refuses is a [`Reply::Error`], not an error here.
    pub async fn propose(&self, mut command: Command) -> Result<Reply, Error> {
        let inner = &*self.inner;
        if inner.closing.load(Ordering::Relaxed) || inner.shared.fatal.is_raised() {
            return Err(Error::Stopped);
        }
        if inner.shared.store.tail_bytes() > limits::TAIL_BYTES_MAX {
            inner.gauge.refuse();
            return Err(Error::TooManyRequests);
        }
        if let Some(body) = &command.body {
            command.version = command_version(body);
            let agreed =
                if command.version > FIRST_CLUSTER_VERSION { self.state().read().cluster_version() } else { command.version };
            if command.version > agreed {
                return Err(Error::Precondition(format!(
                    "this asks for version {} of the cluster, which is at version {agreed} until every member runs a newer kvasir",
                    command.version
                )));
            }
        }
        let deadline = Instant::now() + inner.request_timeout;
        loop {
            let (_, leader) = inner.shared.standing.now();
            let proposed = match (&inner.forward, leader) {
                (Some(forward), Some(leader)) if leader != inner.identity.node_id => {
                    self.propose_there(forward, &mut command, deadline).await
                }
                _ => self.propose_here(&mut command, deadline).await,
            };
            match proposed {
                // It was not taken and never will be: somebody else may lead now.
                Err(Error::NotLeader | Error::NoLeader)
                    if inner.forward.is_some() && Instant::now() + LEADER_PAUSE < deadline =>
                {
                    tokio::time::sleep(LEADER_PAUSE).await;
                }
                proposed => return proposed,
            }
        }
    }

    /// Proposes as the leader that this node may be.
    async fn propose_here(&self, command: &mut Command, deadline: Instant) -> Result<Reply, Error> {
        let inner = &*self.inner;
        command.forwarded = None;
        command.stamp = Some(Stamp { cluster_ms: inner.shared.clock.now_ms(), wall_ms: inner.shared.clock.wall_ms() });
        let proposed = Proposed::encode(command);
        let ticket = inner.gauge.enter(proposed.bytes().len()).ok_or(Error::TooManyRequests)?;
        let (reply, answer) = oneshot::channel();
        let waiter = Waiter { reply, _ticket: ticket };
        inner.raft.client_write_ff(proposed, Some(waiter)).await.map_err(|_| Error::Stopped)?;
        let answer = match tokio::time::timeout_at(deadline, answer).await {
            Err(_) => return Err(Error::Timeout),
            // Raft went away with the command in its hands.
            Ok(Err(_)) => return Err(Error::Stopped),
            Ok(Ok(answer)) => answer,
        };
        match answer {
            Ok(response) => response.data.0.ok_or_else(|| Error::Internal("a command was applied without a reply".to_owned())),
            Err(ClientWriteError::ForwardToLeader(forward)) => {
                Err(if forward.leader_id.is_some() { Error::NotLeader } else { Error::NoLeader })
            }
            Err(ClientWriteError::LogEntryDiscarded(_)) => Err(Error::LeaderChanged),
            Err(error) => Err(Error::Internal(error.to_string())),
        }
    }

    /// Passes a command on to the leader, and waits until it is applied here.
    async fn propose_there(&self, forward: &Forward, command: &mut Command, deadline: Instant) -> Result<Reply, Error> {
        let inner = &*self.inner;
        let ticket = inner.gauge.enter(command.encoded_len()).ok_or(Error::TooManyRequests)?;
        let (number, answer) = inner.shared.waiting.enter(ticket);
        command.stamp = None;
        command.forwarded = Some(Forwarded { node: inner.identity.node_id, number });
        let bytes = Bytes::from(command.encode_to_vec());
        if let Err(error) = forward.send(Outgoing { number, bytes }) {
            inner.shared.waiting.forget(number);
            return Err(error);
        }
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answered) => answered.unwrap_or(Err(Error::Stopped)),
            Err(_) => {
                inner.shared.waiting.forget(number);
                Err(Error::Timeout)
            }
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

    /// The leader as last reported.
    pub fn leader(&self) -> Option<u64> {
        self.inner.shared.standing.now().1
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
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        Status {
            node_id: inner.identity.node_id,
            leader: metrics.current_leader,
            is_leader: metrics.current_leader == Some(inner.identity.node_id),
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

    /// Lets another voter lead, takes no more proposals, lets those in flight finish, stops raft, makes the state durable and closes the files.
    pub async fn shutdown(&self) {
        let inner = &*self.inner;
        // Who leads next takes what still comes.
        inner.members.hand_over().await;
        if inner.closing.swap(true, Ordering::SeqCst) {
            return;
        }
        let drained = async {
            while inner.gauge.pending() > 0 && !inner.shared.fatal.is_raised() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!(pending = inner.gauge.pending(), "stopping with proposals unanswered");
        }
        inner.stop.cancel();
        if let Some(door) = &inner.door {
            door.close();
        }
        // In a task of its own: where raft has stopped by itself, openraft may panic here, and what follows must be done all the same.
        let raft = inner.raft.clone();
        match tokio::spawn(async move { raft.shutdown().await }).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => tracing::warn!(%error, "raft did not stop cleanly"),
        }
        let (store, log) = (inner.shared.store.clone(), inner.log.clone());
        let healthy = !inner.shared.fatal.is_raised();
        let closed = blocking(store.is_driven(), move || {
            // Closing the store makes the last checkpoint, which waits for the log: the log goes second.
            if let Err(error) = store.close()
                && healthy
            {
                tracing::error!(%error, "the final checkpoint failed; the log has everything and is replayed at the next start");
            }
            if let Err(error) = log.close()
                && healthy
            {
                tracing::error!(%error, "the raft log did not close cleanly");
            }
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "closing the data folder failed");
        }
        // Now another process may have the folder.
        inner.folder.lock().take();
    }
}

/// Makes the first members a cluster, if this node is one of them; a single voter stands for election at once: there is nobody to
/// wait for.
async fn boot(raft: &Raft, node_id: u64, members: BTreeMap<u64, Member>) -> Result<(), StartError> {
    let failed = |error: &dyn std::fmt::Display| StartError::Raft(error.to_string());
    if !raft.is_initialized().await.map_err(|error| failed(&error))? {
        if !members.contains_key(&node_id) {
            return Ok(());
        }
        return match raft.initialize(members).await {
            Ok(()) => Ok(()),
            // Another member was faster, and its vote or its log is here already: it is the same membership.
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(failed(&error)),
        };
    }
    let alone = raft.voter_ids().eq([node_id]);
    if alone {
        raft.trigger().elect(false).await.map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// Keeps [`Standing`] up to date, and raises the fatal line when raft dies.
async fn follow(raft: Raft, shared: Arc<Shared>, stop: CancellationToken) {
    let fatal = &shared.fatal;
    let mut metrics = raft.metrics();
    loop {
        {
            let now = metrics.borrow_and_update();
            shared.standing.note(&now);
            if let Err(error) = &now.running_state {
                if !stop.is_cancelled() {
                    fatal.raise(format!("raft has stopped: {error}"));
                }
                return;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = metrics.changed() => if changed.is_err() {
                if !stop.is_cancelled() {
                    fatal.raise("raft has stopped");
                }
                return;
            },
        }
    }
}
