//! The engine's handle: start, stop, headers, and what every request needs.
//!
//! **Invariant:** [`Feed::publish`] runs on the way of every reply, so it only appends and notifies.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kvasir_api::etcdserverpb::ResponseHeader;
use kvasir_api::limits;
use kvasir_consensus::{Consensus, ConsensusOptions, Member, Publish, Published, Status};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::compact;
use crate::corruption::{self, Hashed};
use crate::fill::Holds;
use crate::leader;
use crate::lease;
use crate::lock::Lines;
use crate::maintenance;
use crate::metrics::{Counters, EngineMetrics};
use crate::options::{EngineOptions, StartError};
use crate::slack::Slack;
use crate::space;
use crate::version;
use crate::watch::Hub;

/// How long a node may take to replay and elect.
const START_TIMEOUT: Duration = Duration::from_secs(600);

/// kvasir as one async API. A clone is another handle on the same engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    consensus: Consensus,
    pub(crate) options: EngineOptions,
    pub(crate) feed: Arc<Feed>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) renewals: lease::Renewals,
    /// Revisions whose history the deleter has dealt with.
    pub(crate) deleted: watch::Sender<u64>,
    /// The engine's own tasks, and keys of locks to give up after callers that went away.
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) lines: Mutex<Lines>,
    pub(crate) holds: Arc<Holds>,
    pub(crate) slack: Slack,
    pub(crate) hashed: Mutex<Hashed>,
    /// Turns to be saved from.
    pub(crate) saves: Arc<Semaphore>,
    /// Whether there has been no leader for too long.
    pub(crate) leaderless: watch::Sender<bool>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("consensus", &self.inner.consensus).finish_non_exhaustive()
    }
}

/// What apply tells the engine.
pub(crate) struct Feed {
    pub(crate) hub: Arc<Hub>,
    /// Revision up to which every row can be read, from memory, the tail or the state file.
    pub(crate) revisions: watch::Sender<u64>,
    pub(crate) compacted: watch::Sender<u64>,
    pub(crate) registry: watch::Sender<u64>,
    pub(crate) leases: Notify,
}

impl Feed {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self {
            hub,
            revisions: watch::Sender::new(0),
            compacted: watch::Sender::new(0),
            registry: watch::Sender::new(0),
            leases: Notify::new(),
        }
    }
}

impl Publish for Feed {
    fn publish(&self, batch: Published) {
        let Published { changes, revision, compacted, registry_changed, leases_changed, .. } = batch;
        self.hub.push(changes, revision);
        self.revisions.send_if_modified(|current| {
            let grown = revision > *current;
            *current = (*current).max(revision);
            grown
        });
        if let Some(compacted) = compacted {
            self.compacted.send_if_modified(|current| {
                let grown = compacted > *current;
                *current = (*current).max(compacted);
                grown
            });
        }
        if registry_changed {
            self.registry.send_modify(|version| *version += 1);
        }
        if leases_changed {
            self.leases.notify_waiters();
        }
    }
}

impl Engine {
    /// Opens the data folder, replays, elects and returns when requests can be served.
    ///
    /// # Errors
    /// One clear line: a folder in use, of another version or not ours, a damaged file, timings that do not fit, no leader.
    pub async fn start(options: EngineOptions) -> Result<Self, StartError> {
        let counters = Arc::new(Counters::default());
        let hub = Arc::new(Hub::new(
            options.watch_ring_bytes_max,
            options.watch_stream_queue_max,
            Duration::from_millis(options.watch_progress_interval_ms),
            Arc::clone(&counters),
        ));
        let feed = Arc::new(Feed::new(hub));
        let consensus = Consensus::start(consensus_options(&options), Arc::clone(&feed) as Arc<dyn Publish>).await?;
        if let Err(line) = consensus.ready(START_TIMEOUT).await {
            consensus.shutdown().await;
            return Err(StartError::NotReady(line));
        }
        let (revision, compacted) = {
            let state = consensus.state().read();
            (state.revision(), state.compact_revision())
        };
        feed.revisions.send_if_modified(|current| {
            *current = (*current).max(revision);
            true
        });
        feed.compacted.send_if_modified(|current| {
            *current = (*current).max(compacted);
            true
        });
        feed.hub.begin(consensus.clone(), feed.revisions.subscribe(), revision);
        let (renewals, waiting) = lease::renewals();
        let engine = Self {
            inner: Arc::new(Inner {
                consensus,
                options,
                feed,
                counters,
                renewals,
                deleted: watch::Sender::new(0),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
                lines: Mutex::default(),
                holds: Arc::default(),
                slack: Slack::default(),
                hashed: Mutex::default(),
                saves: Arc::new(Semaphore::new(limits::SNAPSHOT_SAVES_MAX)),
                leaderless: watch::Sender::new(false),
            }),
        };
        if let Some(term) = engine.consensus().leading_term()
            && let Err(error) = engine.set_quota(term).await
        {
            // A node that is alone serves under its quota from the first request on; in a cluster the next leader sees to it.
            tracing::warn!(%error, "the quota is not in force yet");
        }
        engine.inner.tasks.spawn(maintenance::quota(engine.clone()));
        engine.inner.tasks.spawn(Arc::clone(&engine.inner.feed.hub).run(engine.inner.stop.clone()));
        engine.inner.tasks.spawn(lease::renew(engine.clone(), waiting));
        engine.inner.tasks.spawn(lease::expire(engine.clone()));
        engine.inner.tasks.spawn(lease::stamp(engine.clone()));
        engine.inner.tasks.spawn(compact::delete(engine.clone()));
        engine.inner.tasks.spawn(space::watch(engine.clone()));
        engine.inner.tasks.spawn(corruption::compare(engine.clone()));
        engine.inner.tasks.spawn(version::raise(engine.clone()));
        engine.inner.tasks.spawn(leader::watch(engine.clone()));
        Ok(engine)
    }

    /// Ends watch streams, refuses new requests, lets those in flight finish, makes the state durable and closes the files.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.feed.hub.close();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.consensus.shutdown().await;
    }

    /// Waits for a fault after which the process must end; the line is for its operator.
    pub fn fatal(&self) -> impl Future<Output = String> + Send + 'static {
        let consensus = self.inner.consensus.clone();
        async move { consensus.fatal().await }
    }

    /// A response's header at the revision of this moment.
    pub fn header(&self) -> ResponseHeader {
        self.header_at(self.revision())
    }

    pub(crate) fn header_at(&self, revision: u64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.inner.consensus.cluster_id(),
            member_id: self.inner.consensus.node_id(),
            revision: i64::try_from(revision).unwrap_or(i64::MAX),
            raft_term: self.inner.consensus.term(),
        }
    }

    /// The store's applied revision.
    pub fn revision(&self) -> u64 {
        *self.inner.feed.revisions.borrow()
    }

    /// The store's applied revision, and its changes. Every row up to it can be read.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.inner.feed.revisions.subscribe()
    }

    /// This node's id.
    pub fn node_id(&self) -> u64 {
        self.inner.consensus.node_id()
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.inner.consensus.cluster_id()
    }

    /// Whether this node leads, as last reported.
    pub fn is_leader(&self) -> bool {
        self.inner.consensus.is_leader()
    }

    /// The term in which this node leads, as last reported.
    pub fn leading_term(&self) -> Option<u64> {
        self.inner.consensus.leading_term()
    }

    /// The term and the leader as last reported, and their changes.
    pub fn standings(&self) -> watch::Receiver<(u64, Option<u64>)> {
        self.inner.consensus.standings()
    }

    /// Wall time as this node reads it, in milliseconds since 1970.
    pub fn wall_ms(&self) -> u64 {
        self.inner.consensus.clock().wall_ms()
    }

    /// Cluster time, in milliseconds: what leases live by.
    pub fn cluster_ms(&self) -> u64 {
        self.inner.consensus.now_cluster_ms()
    }

    /// Where raft stands.
    pub fn raft_status(&self) -> Status {
        self.inner.consensus.status()
    }

    /// Does something that may take as long as a request may, unless the engine stops first.
    pub(crate) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.inner.stop.cancelled() => None,
        }
    }

    /// What the engine stands on, for tests that look at its invariants.
    #[doc(hidden)]
    pub fn consensus(&self) -> &Consensus {
        &self.inner.consensus
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Every counter and gauge, read now.
    pub fn metrics(&self) -> EngineMetrics {
        let status = self.inner.consensus.status();
        let log = self.inner.consensus.log().stats();
        let counters = &self.inner.counters;
        let (compact_revision, logical_bytes, quota_bytes, leases) = {
            let state = self.inner.consensus.state().read();
            (state.compact_revision(), state.logical_bytes(), state.quota_bytes(), state.lease_count() as u64)
        };
        EngineMetrics {
            is_leader: status.is_leader,
            is_learner: self.is_learner(),
            has_leader: status.leader.is_some(),
            cluster_version: u64::from(self.cluster_version()),
            raft_term: status.term,
            log_index: status.last_log_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            checkpoint_index: status.checkpoint_index,
            revision: self.revision(),
            compact_revision,
            logical_bytes,
            quota_bytes,
            tail_bytes: self.inner.consensus.store().tail_bytes() as u64,
            log_syncs: log.syncs,
            log_entries: log.entries,
            log_bytes: log.bytes,
            proposals: status.proposals,
            proposals_refused: status.proposals_refused,
            proposals_failed: counters.proposals_failed.get(),
            proposals_pending: status.proposals_pending,
            read_rounds: status.read_rounds,
            reads_confirmed: status.reads_confirmed,
            ranges: counters.ranges.get(),
            puts: counters.puts.get(),
            deletes: counters.deletes.get(),
            txns: counters.txns.get(),
            compactions: counters.compactions.get(),
            leases,
            leases_granted: counters.leases_granted.get(),
            leases_revoked: counters.leases_revoked.get(),
            leases_renewed: counters.leases_renewed.get(),
            leases_expired: counters.leases_expired.get(),
            lock_waiters: self.inner.lines.lock().waiting() as u64,
            watch_streams: counters.watch_streams.get(),
            watchers: counters.watchers.get(),
            watchers_behind: counters.watchers_behind.get(),
            watch_events: counters.watch_events.get(),
            watch_responses: counters.watch_responses.get(),
            history_reads: counters.history_reads.get(),
        }
    }
}

fn consensus_options(options: &EngineOptions) -> ConsensusOptions {
    ConsensusOptions {
        member: Member {
            name: options.name.clone(),
            peer_urls: options.peer_urls.clone(),
            client_urls: options.client_urls.clone(),
            promote: false,
            command_version: options.command_version,
        },
        peers: options.peers.clone(),
        force_new_cluster: options.force_new_cluster,
        cluster_token: options.cluster_token.clone(),
        heartbeat_ms: options.heartbeat_ms,
        election_ms: options.election_ms,
        request_timeout_ms: options.request_timeout_ms,
        log_keep_entries: options.log_keep_entries,
        snapshot_hold: options.snapshot_hold,
        log: options.log.clone(),
        store: options.store.clone(),
        wall_clock: options.wall_clock.clone(),
        command_version: options.command_version,
        mutant: options.mutant,
        ..ConsensusOptions::new(options.data_dir.clone(), Arc::clone(&options.disk))
    }
}
