//! Where this node stands.

/// A reading of this node's raft state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node_id: u64,
    /// The leader, if one is known.
    pub leader: Option<u64>,
    /// Whether this node leads.
    pub is_leader: bool,
    /// Raft's term.
    pub term: u64,
    /// Index of the last entry in the log.
    pub last_log_index: u64,
    /// Index of the last entry known here to be committed.
    pub committed_index: u64,
    /// Index of the last applied entry.
    pub applied_index: u64,
    /// Index of the last durable checkpoint.
    pub checkpoint_index: u64,
    /// The log is purged up to here.
    pub purged_index: u64,
    /// Commands accepted for proposal since the start.
    pub proposals: u64,
    /// Commands refused since the start because too many waited.
    pub proposals_refused: u64,
    /// Commands whose fate is not known yet.
    pub proposals_pending: u64,
    /// ReadIndex rounds since the start.
    pub read_rounds: u64,
    /// Reads those rounds served.
    pub reads_confirmed: u64,
}
