//! What an engine counts, for `/metrics`: plain atomics on the way, a plain struct when asked.
//!
//! **Invariant:** counting allocates nothing and takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

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
    pub(crate) lock_waiters: Counter,
    pub(crate) watch_streams: Counter,
    pub(crate) watchers: Counter,
    pub(crate) watchers_behind: Counter,
    pub(crate) watch_events: Counter,
    pub(crate) watch_responses: Counter,
    pub(crate) history_reads: Counter,
}

/// A reading of every counter and gauge of the engine and what lies under it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineMetrics {
    /// Whether this node leads.
    pub is_leader: bool,
    /// Whether the cluster has a leader this node knows of.
    pub has_leader: bool,
    /// Raft's term.
    pub raft_term: u64,
    /// Index of the last entry in the log.
    pub log_index: u64,
    /// Index of the last applied entry.
    pub applied_index: u64,
    /// Index of the last durable checkpoint.
    pub checkpoint_index: u64,
    /// The store's revision.
    pub revision: u64,
    /// Compacted up to here.
    pub compact_revision: u64,
    /// Logical bytes stored.
    pub logical_bytes: u64,
    /// Logical bytes that may be stored.
    pub quota_bytes: u64,
    /// Applied bytes not yet in the state file.
    pub tail_bytes: u64,
    /// Syncs of the raft log since the start.
    pub log_syncs: u64,
    /// Entries appended to the raft log since the start.
    pub log_entries: u64,
    /// Bytes appended to the raft log since the start.
    pub log_bytes: u64,
    /// Commands accepted for proposal.
    pub proposals: u64,
    /// Commands refused because too many wait.
    pub proposals_refused: u64,
    /// Commands proposed and not yet answered.
    pub proposals_pending: u64,
    /// ReadIndex rounds.
    pub read_rounds: u64,
    /// Linearizable reads those rounds served.
    pub reads_confirmed: u64,
    /// Range requests.
    pub ranges: u64,
    /// Put requests.
    pub puts: u64,
    /// Delete requests.
    pub deletes: u64,
    /// Transactions.
    pub txns: u64,
    /// Compactions.
    pub compactions: u64,
    /// Leases in force.
    pub leases: u64,
    /// Leases granted here.
    pub leases_granted: u64,
    /// Leases revoked by a client here.
    pub leases_revoked: u64,
    /// Renewals answered.
    pub leases_renewed: u64,
    /// Leases whose expiry this node proposed.
    pub leases_expired: u64,
    /// Callers waiting for a lock.
    pub lock_waiters: u64,
    /// Open watch streams.
    pub watch_streams: u64,
    /// Watchers.
    pub watchers: u64,
    /// Watchers that read history at the moment.
    pub watchers_behind: u64,
    /// Events sent to watchers.
    pub watch_events: u64,
    /// Responses sent to watchers.
    pub watch_responses: u64,
    /// Reads of history for watchers that were behind.
    pub history_reads: u64,
}
