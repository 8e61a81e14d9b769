//! What an engine counts, for `/metrics`: plain atomics on the way, a plain struct when asked.
//!
//! **Invariant:** counting allocates nothing and takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

use kvasir_api::command::command::Body;
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_machine::{OpReply, Reply, TxnReply};

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The engine's own counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) ranges: Counter,
    pub(crate) puts: Counter,
    pub(crate) deletes: Counter,
    pub(crate) txns: Counter,
    pub(crate) compactions: Counter,
    pub(crate) leases_granted: Counter,
    pub(crate) leases_revoked: Counter,
    pub(crate) leases_renewed: Counter,
    pub(crate) leases_expired: Counter,
    pub(crate) proposals_failed: Counter,
    pub(crate) watch_streams: Counter,
    pub(crate) watchers: Counter,
    pub(crate) watchers_behind: Counter,
    pub(crate) watch_events: Counter,
    pub(crate) watch_responses: Counter,
    pub(crate) history_reads: Counter,
}

/// Operations that one command or read has executed, counted as etcd does (`server/storage/mvcc/metrics_txn.go`).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Executed {
    pub(crate) ranges: u64,
    pub(crate) puts: u64,
    pub(crate) deletes: u64,
}

impl Executed {
    /// What an effect of a plugin does if it is applied.
    pub(crate) fn staged(body: &Body) -> Self {
        let Body::EffectTxn(effect) = body else { return Self::default() };
        let deletes = effect.ops.iter().filter(|op| matches!(op.request, Some(Request::RequestDeleteRange(_)))).count() as u64;
        Self { ranges: 0, puts: effect.ops.len() as u64 - deletes, deletes }
    }

    pub(crate) fn of(reply: &Reply) -> Self {
        match reply {
            Reply::Put(_) => Self { puts: 1, ..Self::default() },
            Reply::DeleteRange(_) => Self { deletes: 1, ..Self::default() },
            Reply::Txn(txn) => Self::of_txn(txn),
            _ => Self::default(),
        }
    }

    pub(crate) fn of_txn(txn: &TxnReply) -> Self {
        let mut executed = Self::default();
        for response in &txn.responses {
            match response {
                OpReply::Range(_) => executed.ranges += 1,
                OpReply::Put(_) => executed.puts += 1,
                OpReply::DeleteRange(_) => executed.deletes += 1,
                OpReply::Txn(txn) => {
                    let inner = Self::of_txn(txn);
                    executed.ranges += inner.ranges;
                    executed.puts += inner.puts;
                    executed.deletes += inner.deletes;
                }
            }
        }
        executed
    }
}

impl Counters {
    pub(crate) fn executed(&self, executed: &Executed) {
        self.ranges.add(executed.ranges);
        self.puts.add(executed.puts);
        self.deletes.add(executed.deletes);
        // To etcd one operation alone is no transaction.
        self.txns.add(u64::from(executed.ranges + executed.puts + executed.deletes > 1));
    }
}

kvasir_api::metrics! {
    /// A reading of every counter and gauge of the engine and what lies under it.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct EngineMetrics {
        has_leader: bool = Gauge "etcd_server_has_leader", "Whether this member knows a leader.";
        is_leader: bool = Gauge "etcd_server_is_leader", "Whether this member leads.";
        is_learner: bool = Gauge "etcd_server_is_learner", "Whether this member is a learner.";
        committed_index: u64 = Gauge "etcd_server_proposals_committed_total", "Last entry of the raft log known to be committed.";
        applied_index: u64 = Gauge "etcd_server_proposals_applied_total", "Last applied entry of the raft log.";
        proposals_pending: u64 = Gauge "etcd_server_proposals_pending", "Commands proposed and not yet answered.";
        proposals_failed: u64 = Counter "etcd_server_proposals_failed_total",
            "Commands whose proposal failed or was not answered in time.";
        quota_bytes: u64 = Gauge "etcd_server_quota_backend_bytes", "Logical bytes that may be stored.";
        logical_bytes: u64 = Gauge "etcd_mvcc_db_total_size_in_bytes" "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Logical bytes stored.";
        revision: u64 = Gauge "etcd_debugging_mvcc_current_revision", "The store's revision.";
        compact_revision: u64 = Gauge "etcd_debugging_mvcc_compact_revision", "Compacted up to this revision.";
        ranges: u64 = Counter "etcd_mvcc_range_total", "Ranges executed here, those of transactions included.";
        puts: u64 = Counter "etcd_mvcc_put_total", "Puts executed from here, those of transactions and plugins included.";
        deletes: u64 = Counter "etcd_mvcc_delete_total",
            "Deletes executed from here, those of transactions and plugins included.";
        txns: u64 = Counter "etcd_mvcc_txn_total", "Transactions of more than one operation executed from here.";
        watch_streams: u64 = Gauge "etcd_debugging_mvcc_watch_stream_total", "Open watch streams.";
        watchers: u64 = Gauge "etcd_debugging_mvcc_watcher_total", "Watchers.";
        watchers_behind: u64 = Gauge "etcd_debugging_mvcc_slow_watcher_total", "Watchers that read history at the moment.";
        watch_events: u64 = Counter "etcd_debugging_mvcc_events_total", "Events sent to watchers.";
        leases_granted: u64 = Counter "etcd_debugging_lease_granted_total", "Leases granted from here.";
        leases_revoked: u64 = Counter "etcd_debugging_lease_revoked_total", "Leases revoked from here, expired ones included.";
        leases_renewed: u64 = Counter "etcd_debugging_lease_renewed_total", "Renewals answered.";
        leases_expired: u64 = Counter "etcd_debugging_server_lease_expired_total", "Leases whose expiry came from here.";
        leases: u64 = Gauge "kvasir_leases", "Leases in force.";
        lock_waiters: u64 = Gauge "kvasir_lock_waiters", "Callers waiting for a lock.";
        compactions: u64 = Counter "kvasir_compactions_total", "Compactions asked for.";
        cluster_version: u64 = Gauge "kvasir_cluster_version", "Version of commands that every member knows.";
        raft_term: u64 = Gauge "kvasir_raft_term", "Raft's term.";
        log_index: u64 = Gauge "kvasir_raft_log_index", "Last entry of the raft log.";
        checkpoint_index: u64 = Gauge "kvasir_checkpoint_index", "Last entry that a durable checkpoint covers.";
        tail_bytes: u64 = Gauge "kvasir_state_tail_bytes", "Applied bytes that are not in the state file yet.";
        log_syncs: u64 = Counter "kvasir_log_syncs_total", "Syncs of the raft log.";
        log_entries: u64 = Counter "kvasir_log_entries_total", "Entries appended to the raft log; over syncs: entries per sync.";
        log_bytes: u64 = Counter "kvasir_log_bytes_total", "Bytes appended to the raft log.";
        proposals: u64 = Counter "kvasir_proposals_total", "Commands accepted for proposal.";
        proposals_refused: u64 = Counter "kvasir_proposals_refused_total", "Commands not proposed because too much waited.";
        read_rounds: u64 = Counter "kvasir_read_rounds_total", "ReadIndex rounds.";
        reads_confirmed: u64 = Counter "kvasir_reads_confirmed_total", "Linearizable reads that those rounds served.";
        watch_responses: u64 = Counter "kvasir_watch_responses_total", "Responses sent to watchers.";
        history_reads: u64 = Counter "kvasir_watch_history_reads_total", "Reads of history for watchers that were behind.";
    }
}
