//! `State`: everything that is replicated, and what may be asked of it. Driven by its callers, never drives.
//!
//! **Invariant:** whatever a public function of `State` answers, but for local trimming ([`State::compact_slice`]), follows from the
//! commands applied and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use kvasir_api::etcdserverpb::AlarmType;
use kvasir_api::limits;

use crate::authority::Authorities;
use crate::blob::Blobs;
use crate::lease::Leases;
use crate::mvcc::compact::Trim;
use crate::mvcc::index::Space;
use crate::registry::Registry;
use crate::token::Tokens;

/// Running totals of history, at some revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    /// Bytes of every row ever written.
    pub(crate) history_bytes: u64,
    /// Versions that a later one replaced, and tombstones: what a compaction frees.
    pub(crate) old_versions: u64,
}

/// The replicated scalars.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) applied_index: u64,
    pub(crate) revision: u64,
    pub(crate) compacted: Option<u64>,
    pub(crate) cluster_ms: u64,
    pub(crate) wall_ms: u64,
    /// 0: the default.
    pub(crate) quota_bytes: u64,
    /// The last plugin generation given out, over all plugins: one that was removed never meets its old effects again.
    pub(crate) generation: u64,
    /// The last owner epoch given out, over all triggers, for the same reason.
    pub(crate) epoch: u64,
    pub(crate) total: Mark,
    pub(crate) at_compaction: Mark,
}

/// How long plugins' cursors may hold history back. The same on every node of a cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hold {
    pub(crate) revisions_max: u64,
    pub(crate) bytes_max: u64,
}

/// The replicated state.
pub struct State {
    pub(crate) meta: Meta,
    pub(crate) spaces: BTreeMap<u64, Space>,
    /// Live keys of all tenants, in logical bytes.
    pub(crate) live_bytes: u64,
    /// Totals after some revisions, about one for every [`limits::HISTORY_MARK_BYTES`].
    pub(crate) marks: BTreeMap<u64, Mark>,
    pub(crate) leases: Leases,
    pub(crate) registry: Registry,
    pub(crate) blobs: Blobs,
    /// Member and etcd's `AlarmType`.
    pub(crate) alarms: BTreeSet<(u64, i32)>,
    pub(crate) tokens: Tokens,
    pub(crate) authorities: Option<Authorities>,
    pub(crate) cluster_version: u32,
    pub(crate) trim: Trim,
    pub(crate) hold: Hold,
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// The empty store, at revision 1.
    pub fn new() -> Self {
        Self {
            meta: Meta {
                applied_index: 0,
                revision: 1,
                compacted: None,
                cluster_ms: 0,
                wall_ms: 0,
                quota_bytes: 0,
                generation: 0,
                epoch: 0,
                total: Mark::default(),
                at_compaction: Mark::default(),
            },
            spaces: BTreeMap::new(),
            live_bytes: 0,
            marks: BTreeMap::new(),
            leases: Leases::default(),
            registry: Registry::default(),
            blobs: Blobs::default(),
            alarms: BTreeSet::new(),
            tokens: Tokens::new(),
            authorities: None,
            cluster_version: crate::FIRST_CLUSTER_VERSION,
            trim: Trim::default(),
            hold: Hold { revisions_max: limits::CURSOR_HOLD_REVISIONS_MAX, bytes_max: limits::CURSOR_HOLD_BYTES_MAX },
        }
    }

    /// Index of the last command applied, 0 when none was.
    pub fn applied_index(&self) -> u64 {
        self.meta.applied_index
    }

    /// The store's revision; 1 when nothing was ever written.
    pub fn revision(&self) -> u64 {
        self.meta.revision
    }

    /// The revision below which clients cannot read; 0 when nothing was ever compacted.
    pub fn compact_revision(&self) -> u64 {
        self.meta.compacted.unwrap_or(0)
    }

    /// Cluster time as of the last stamp applied, in ms.
    pub fn cluster_ms(&self) -> u64 {
        self.meta.cluster_ms
    }

    /// Wall time as of the last stamp applied, in ms since 1970; it may go back.
    pub fn wall_ms(&self) -> u64 {
        self.meta.wall_ms
    }

    /// Live keys of a tenant.
    pub fn live_keys(&self, tenant: u64) -> u64 {
        self.spaces.get(&tenant).map_or(0, |space| space.live.len() as u64)
    }

    /// The tenants that have, or had, keys; in order.
    pub fn tenants(&self) -> impl Iterator<Item = u64> {
        self.spaces.keys().copied()
    }

    /// Live keys of all tenants.
    pub fn live_keys_in_all(&self) -> u64 {
        self.spaces.values().map(|space| space.live.len() as u64).sum()
    }

    /// Raised alarms: member and etcd's `AlarmType`. When a write does not fit the quota, the member is the leader that proposed it.
    pub fn alarms(&self) -> impl Iterator<Item = (u64, AlarmType)> {
        self.alarms.iter().filter_map(|(member, alarm)| Some((*member, AlarmType::try_from(*alarm).ok()?)))
    }
}
