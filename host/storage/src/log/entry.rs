//! What the log holds: entries with their ids, and the vote.

use bytes::Bytes;

/// Names one entry of the raft log. Ordered by term, then node, then index (Raft paper, section 5.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogId {
    /// The leader's term.
    pub term: u64,
    /// The leader.
    pub node: u64,
    /// The place in the log.
    pub index: u64,
}

/// The hard state of an election: for whom this node voted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Vote {
    /// The term voted in.
    pub term: u64,
    /// The node voted for.
    pub node: u64,
    /// Whether a quorum granted it.
    pub committed: bool,
}

/// What an entry is to raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A new leader's empty entry.
    Blank,
    /// A command for the machine.
    Command,
    /// A change of the cluster's membership.
    Membership,
}

impl EntryKind {
    /// The byte that stands for it, on disk and between nodes.
    pub fn code(self) -> u8 {
        match self {
            Self::Blank => 0,
            Self::Command => 1,
            Self::Membership => 2,
        }
    }

    /// The kind that a byte stands for.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Blank),
            1 => Some(Self::Command),
            2 => Some(Self::Membership),
            _ => None,
        }
    }
}

/// One entry. The payload's bytes are the ones that went over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its id.
    pub id: LogId,
    /// What it is.
    pub kind: EntryKind,
    /// Its content, opaque here.
    pub payload: Bytes,
}

/// What the log knows when asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogState {
    /// The newest entry that was purged.
    pub last_purged: Option<LogId>,
    /// The newest entry; the newest purged one if there is none after it.
    pub last: Option<LogId>,
    /// The last saved vote.
    pub vote: Option<Vote>,
    /// The last saved committed id.
    pub committed: Option<LogId>,
}
