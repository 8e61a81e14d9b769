//! Starting: storage, raft and the tasks around it; the first election; what raft says while it runs.
//!
//! **Invariant:** the single voter goes the way a cluster goes: it is initialised with a membership entry, votes, is elected, and
//! commits by quorum.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kvasir_api::limits;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::{Config, SnapshotPolicy};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::open::{Storage, open};
use super::{Consensus, Inner, Raft};
use crate::blocking::blocking;
use crate::checkpoint;
use crate::clock::Clock;
use crate::fatal::Fatal;
use crate::forward::{Forward, Waiting};
use crate::gauge::Gauge;
use crate::identity;
use crate::log::LogStore;
use crate::machine::{Machine, Shared, applied_from, is_learner};
use crate::members::{self, Members};
use crate::membership::Member;
use crate::options::{Boot, ConsensusOptions, StartError};
use crate::peer::{Alone, Peers, Running};
use crate::publish::Publish;
use crate::read::Reads;
use crate::snapshot::{Snapshots, meta};
use crate::standing::Standing;

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
        tokio::spawn(members::tend(members.clone(), reads.clone(), mine, stop.clone()));
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
