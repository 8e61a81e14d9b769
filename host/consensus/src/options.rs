//! How consensus is started, and why it could not be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvasir_api::limits;
use kvasir_storage::StorageError;
use kvasir_storage::disk::Disk;
use kvasir_storage::log::LogOptions;
use kvasir_storage::state::StoreOptions;
use kvasir_transport::Network;

use crate::clock::WallClock;
use crate::membership::Member;
use crate::mutant::Mutant;
use crate::peer::PeerDoor;

/// How consensus is started.
#[derive(Clone)]
pub struct ConsensusOptions {
    /// The data folder.
    pub dir: PathBuf,
    /// The disk under it.
    pub disk: Arc<dyn Disk>,
    /// This member. With the token its name makes the node's id at bootstrap; after that the id stands in the data folder.
    pub member: Member,
    /// Names the cluster at bootstrap.
    pub cluster_token: String,
    /// Between two heartbeats of a leader, in milliseconds.
    pub heartbeat_ms: u64,
    /// Without a heartbeat for so long a follower stands for election, in milliseconds; drawn from this to twice this.
    pub election_ms: u64,
    /// How long a proposal or a read may take, in milliseconds.
    pub request_timeout_ms: u64,
    /// Log entries kept below the last durable checkpoint.
    pub log_keep_entries: u64,
    /// As many bytes of log entries are kept below the last durable checkpoint, at most.
    pub log_keep_bytes: u64,
    /// How long an exported snapshot stays after it was last sent of, and the log above it with it.
    pub snapshot_hold: Duration,
    /// How the raft log is kept; its fatal handler is set here.
    pub log: LogOptions,
    /// How the state file is kept; its fatal handler is set here.
    pub store: StoreOptions,
    /// The way to the other members; `None` for a node that is alone and stays so.
    pub peers: Option<PeerOptions>,
    /// Whether this node goes on alone, with what it has, whoever else was a member (`--force-new-cluster`).
    pub force_new_cluster: bool,
    /// Wall time for stamps; `None` is the system's.
    pub wall_clock: Option<WallClock>,
    /// The version of commands that this node says to know.
    #[doc(hidden)]
    pub command_version: u32,
    /// A bug that tests put back in.
    #[doc(hidden)]
    pub mutant: Mutant,
}

/// How other members are reached, and let in.
#[derive(Clone)]
pub struct PeerOptions {
    /// The way to them.
    pub network: Arc<dyn Network>,
    /// Where the streams that they open arrive.
    pub door: Arc<PeerDoor>,
    /// How this node comes to its cluster, when its data folder is empty.
    pub boot: Boot,
}

/// How a node with an empty data folder comes to its cluster.
#[derive(Debug, Clone)]
pub enum Boot {
    /// As the first member of a cluster that grows by joining. Its id is the hash of token and name.
    Alone,
    /// As one of these members, by id; the same on each of them.
    Static(BTreeMap<u64, Member>),
    /// By joining: it was given its id by the cluster, and waits for what is replicated to it.
    Join {
        /// This node.
        node_id: u64,
        /// The cluster.
        cluster_id: u64,
    },
}

impl ConsensusOptions {
    /// The defaults, on `dir` of `disk`.
    pub fn new(dir: impl Into<PathBuf>, disk: Arc<dyn Disk>) -> Self {
        Self {
            dir: dir.into(),
            disk,
            member: Member { name: "default".to_owned(), ..Member::default() },
            cluster_token: "kvasir-cluster".to_owned(),
            heartbeat_ms: 100,
            election_ms: 1_000,
            request_timeout_ms: limits::REQUEST_TIMEOUT_MS,
            log_keep_entries: limits::LOG_KEEP_ENTRIES,
            log_keep_bytes: limits::LOG_KEEP_BYTES,
            snapshot_hold: Duration::from_millis(limits::SNAPSHOT_HOLD_MS),
            log: LogOptions::default(),
            store: StoreOptions::default(),
            peers: None,
            force_new_cluster: false,
            wall_clock: None,
            command_version: kvasir_machine::COMMAND_VERSION,
            mutant: Mutant::None,
        }
    }
}

/// Why consensus could not be started; each message is one clear line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder, the log or the state file.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The timings do not fit together.
    #[error("the raft timings do not fit together: {0}; the election timeout must be several heartbeats")]
    Config(String),
    /// Raft could not be started on what the data folder holds.
    #[error("raft cannot start: {0}")]
    Raft(String),
    /// This node's identity in the state file cannot be used.
    #[error("{0}")]
    Identity(String),
}
