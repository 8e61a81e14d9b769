//! What stands behind `Cx`: the host's imports on wasm, an in-memory store in tests.
//!
//! Invariant: reactors see [`Backend`] only. What only tasks may call is a trait of its own, so that a reactor's component does
//! not even import it.

use crate::event::Event;
use crate::{Entry, Error, Key, Raw, Selection};

/// One page of a scan.
pub(crate) struct Page {
    /// In order of key.
    pub(crate) entries: Vec<Entry<Raw>>,
    /// There is more after the last entry.
    pub(crate) more: bool,
}

/// Interfaces `kv` (without `commit`) and `context`.
pub(crate) trait Backend {
    fn get(&self, key: &[u8]) -> Result<Option<Entry<Raw>>, Error>;
    fn scan(&self, what: &Selection, after: Option<&[u8]>, limit: u32, keys_only: bool) -> Result<Page, Error>;
    fn put(&self, key: &[u8], value: &[u8], lease: Option<u64>) -> Result<(), Error>;
    fn delete(&self, key: &[u8]) -> Result<(), Error>;
    fn require_unchanged(&self, key: &[u8]) -> Result<(), Error>;
    fn snapshot_revision(&self) -> u64;
    fn plugin(&self) -> String;
    fn trigger(&self) -> String;
    fn config(&self, name: &str) -> Option<String>;
    fn attempt(&self) -> u32;
    fn now_ms(&self) -> u64;
    fn cancelled(&self) -> bool;
}

/// What tasks may call besides: `commit`, `watch`, `lease`, `lock`.
pub(crate) trait TaskBackend: Backend {
    fn commit(&self) -> Result<u64, Error>;
    fn fencing_token(&self) -> Option<u64>;
    fn watch(&self, what: &Selection, start: Option<Position>) -> Result<Box<dyn CursorBackend>, Error>;
    fn lease_grant(&self, ttl_s: u64) -> Result<u64, Error>;
    fn lease_keep_alive(&self, id: u64) -> Result<LeaseStatus, Error>;
    fn lease_revoke(&self, id: u64) -> Result<(), Error>;
    fn lease_time_to_live(&self, id: u64) -> Result<LeaseStatus, Error>;
    fn lock(&self, name: &[u8], wait_ms: u64) -> Result<Box<dyn LockBackend>, Error>;
}

/// A cursor over changes. Dropping it closes it.
pub(crate) trait CursorBackend {
    fn next(&mut self, max_events: u32, wait_ms: u64) -> Result<Vec<Event<Raw>>, Error>;
    fn position(&self) -> Position;
}

/// A held lock. Dropping it releases the lock.
pub(crate) trait LockBackend {
    fn fencing_token(&self) -> u64;
    fn key(&self) -> Key;
}

/// A place in the order of changes: where a [`Watch`](crate::Watch) begins or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The revision.
    pub revision: u64,
    /// Among the changes of the revision; 0 is the first.
    pub sub: u32,
}

impl From<u64> for Position {
    /// The first change of a revision.
    fn from(revision: u64) -> Self {
        Position { revision, sub: 0 }
    }
}

/// How long a lease lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Seconds left.
    pub ttl_s: u64,
    /// Seconds granted.
    pub granted_ttl_s: u64,
}
