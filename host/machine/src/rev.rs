//! `Rev`: the place of one change in history. A plain value.

use std::fmt;

/// The tenant of clients that name none.
pub const DEFAULT_TENANT: u64 = 0;

/// A revision and the place among its changes: `main.sub`. Ordered as history is.
///
/// `main` grows by one with every command that changes anything (etcd `server/storage/mvcc/revision.go`); the empty store is at 1,
/// so the first change is `2.0`. As a *cursor* a `Rev` is the next change to deliver.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Rev {
    /// The revision that clients see.
    pub main: u64,
    /// Position among the changes of one revision, from 0.
    pub sub: u32,
}

impl Rev {
    /// Bytes of a revision as a key: big-endian, so that byte order is history's order.
    pub const KEY_BYTES: usize = 12;

    /// `main.sub`.
    pub const fn new(main: u64, sub: u32) -> Self {
        Self { main, sub }
    }

    /// The first place of a revision.
    pub const fn start_of(main: u64) -> Self {
        Self { main, sub: 0 }
    }

    /// Big-endian `main`, then big-endian `sub`.
    pub fn to_key(self) -> [u8; Self::KEY_BYTES] {
        let mut key = [0; Self::KEY_BYTES];
        key[..8].copy_from_slice(&self.main.to_be_bytes());
        key[8..].copy_from_slice(&self.sub.to_be_bytes());
        key
    }

    /// The inverse of [`Rev::to_key`]; `None` for any other length.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let (main, sub) = key.split_first_chunk::<8>()?;
        let sub: [u8; 4] = sub.try_into().ok()?;
        Some(Self { main: u64::from_be_bytes(*main), sub: u32::from_be_bytes(sub) })
    }
}

impl fmt::Display for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}
