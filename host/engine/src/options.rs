//! How an engine is started, and why one could not be.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvasir_api::limits;
use kvasir_consensus::{Mutant, PeerOptions, WallClock};
use kvasir_machine::COMMAND_VERSION;
use kvasir_storage::disk::Disk;
use kvasir_storage::log::LogOptions;
use kvasir_storage::state::StoreOptions;

/// How an engine is started.
#[derive(Clone)]
pub struct EngineOptions {
    /// The data folder; made when it is not there.
    pub data_dir: PathBuf,
    /// The disk under it: a real one, or a simulated one in tests.
    pub disk: Arc<dyn Disk>,
    /// This member's name (`--name`).
    pub name: String,
    /// Names the cluster at bootstrap (`--initial-cluster-token`); with the name it makes the ids.
    pub cluster_token: String,
    /// URLs clients are told to use.
    pub client_urls: Vec<String>,
    /// URLs peers are told to use.
    pub peer_urls: Vec<String>,
    /// The way to the other members; `None` for a node that is alone and stays so.
    pub peers: Option<PeerOptions>,
    /// Whether this node goes on alone, whoever else was a member (`--force-new-cluster`).
    pub force_new_cluster: bool,
    /// Logical bytes stored before writes are refused; `None` leaves the quota in force, at first the default one.
    pub quota_bytes: Option<u64>,
    /// Between two heartbeats of a leader, in milliseconds.
    pub heartbeat_ms: u64,
    /// Without a heartbeat for so long a follower stands for election, in milliseconds.
    pub election_ms: u64,
    /// How long a request may take in all, in milliseconds.
    pub request_timeout_ms: u64,
    /// How often the disk's free space is looked at, in milliseconds.
    pub disk_look_interval_ms: u64,
    /// How often the leader compares what the members hold; `None`: never.
    pub corrupt_check_interval: Option<Duration>,
    /// How often expired leases are looked for, in milliseconds.
    pub lease_scan_interval_ms: u64,
    /// While leases are outstanding a stamp is replicated at least so often, in milliseconds.
    pub lease_stamp_interval_ms: u64,
    /// How often an idle watcher that asked for it is told the revision, in milliseconds.
    pub watch_progress_interval_ms: u64,
    /// Bytes of recent changes kept in memory for watchers.
    pub watch_ring_bytes_max: usize,
    /// Responses that may wait on one watch stream.
    pub watch_stream_queue_max: usize,
    /// Log entries kept below the last durable checkpoint.
    pub log_keep_entries: u64,
    /// The version of commands that this node says to know.
    #[doc(hidden)]
    pub command_version: u32,
    /// How long an exported snapshot stays after it was last sent of, and the log above it with it.
    pub snapshot_hold: Duration,
    /// A bug that tests put back in.
    #[doc(hidden)]
    pub mutant: Mutant,
    /// How the raft log is kept.
    pub log: LogOptions,
    /// How the state file is kept.
    pub store: StoreOptions,
    /// Wall time for stamps; `None` is the system's.
    pub wall_clock: Option<WallClock>,
}

impl EngineOptions {
    /// The defaults, on `data_dir` of `disk`.
    pub fn new(data_dir: impl Into<PathBuf>, disk: Arc<dyn Disk>) -> Self {
        Self {
            data_dir: data_dir.into(),
            disk,
            name: "default".to_owned(),
            cluster_token: "kvasir-cluster".to_owned(),
            client_urls: Vec::new(),
            peer_urls: Vec::new(),
            peers: None,
            force_new_cluster: false,
            quota_bytes: None,
            heartbeat_ms: 100,
            election_ms: 1_000,
            request_timeout_ms: limits::REQUEST_TIMEOUT_MS,
            disk_look_interval_ms: limits::DISK_LOOK_INTERVAL_MS,
            corrupt_check_interval: None,
            lease_scan_interval_ms: limits::LEASE_SCAN_INTERVAL_MS,
            lease_stamp_interval_ms: limits::LEASE_STAMP_INTERVAL_MS,
            watch_progress_interval_ms: limits::WATCH_PROGRESS_INTERVAL_MS,
            watch_ring_bytes_max: limits::WATCH_RING_BYTES_MAX,
            watch_stream_queue_max: limits::WATCH_STREAM_QUEUE_MAX,
            log_keep_entries: limits::LOG_KEEP_ENTRIES,
            snapshot_hold: Duration::from_millis(limits::SNAPSHOT_HOLD_MS),
            command_version: COMMAND_VERSION,
            mutant: Mutant::None,
            log: LogOptions::default(),
            store: StoreOptions::default(),
            wall_clock: None,
        }
    }
}

/// Why an engine could not be started; each message is one clear line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The consensus layer or what lies under it.
    #[error(transparent)]
    Consensus(#[from] kvasir_consensus::StartError),
    /// The node did not become able to serve.
    #[error("{0}")]
    NotReady(String),
}
