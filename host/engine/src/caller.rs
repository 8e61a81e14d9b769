//! Who asks, and what they may touch: a client, or a plugin with its grants.
//!
//! **Invariant:** grants are deny by default, and a range is allowed only when the whole of it lies within one granted range.

use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::command::Origin;
use kvasir_machine::DEFAULT_TENANT;

/// A range of keys as etcd writes it: `range_end` empty is the single key `key`, `range_end` = `\0` is every key from `key` on,
/// anything else is the half-open interval `[key, range_end)`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct KeyRange {
    /// First key.
    pub key: Bytes,
    /// etcd's `range_end`.
    pub range_end: Bytes,
}

impl KeyRange {
    /// The range of one key.
    pub fn single(key: impl Into<Bytes>) -> Self {
        Self { key: key.into(), range_end: Bytes::new() }
    }

    /// Every key that starts with `prefix`; an empty prefix is every key.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let key: Bytes = prefix.into();
        if key.is_empty() {
            return Self { key: Bytes::from_static(b"\0"), range_end: Bytes::from_static(b"\0") };
        }
        let mut end = key.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return Self { key, range_end: Bytes::from(end) };
            }
        }
        Self { key, range_end: Bytes::from_static(b"\0") }
    }

    /// The interval `[key, range_end)` in etcd's form.
    pub fn new(key: impl Into<Bytes>, range_end: impl Into<Bytes>) -> Self {
        Self { key: key.into(), range_end: range_end.into() }
    }

    /// Whether it is one key.
    pub fn is_single(&self) -> bool {
        self.range_end.is_empty()
    }

    /// Whether the range goes on to the last key.
    pub fn is_open(&self) -> bool {
        self.range_end.as_ref() == [0]
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        !self.is_single() && !self.is_open() && self.key >= self.range_end
    }

    /// Whether `key` is in the range.
    pub fn contains_key(&self, key: &[u8]) -> bool {
        if self.is_single() {
            return self.key.as_ref() == key;
        }
        self.key.as_ref() <= key && (self.is_open() || key < self.range_end.as_ref())
    }

    /// Whether the whole of `other` is in the range.
    pub fn contains(&self, other: &KeyRange) -> bool {
        if other.is_single() {
            return self.contains_key(&other.key);
        }
        if self.is_single() || self.key > other.key {
            return false;
        }
        self.is_open() || (!other.is_open() && other.range_end <= self.range_end)
    }
}

/// What a plugin may do. Nothing unless it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants {
    /// Ranges it may read and watch.
    pub read: Vec<KeyRange>,
    /// Ranges it may put and delete in.
    pub write: Vec<KeyRange>,
    /// Ranges in which it may take locks.
    pub lock: Vec<KeyRange>,
    /// Whether it may grant, renew and revoke leases.
    pub lease: bool,
}

/// On whose behalf a request is made.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whose key space.
    pub tenant: u64,
    /// Who writes, for the history; empty for a client.
    pub origin: Origin,
    /// What may be touched; `None` is a client without restrictions.
    pub grants: Option<Arc<Grants>>,
}

impl Caller {
    /// A client of the default tenant, without restrictions.
    pub fn client() -> Self {
        Self { tenant: DEFAULT_TENANT, origin: Origin::default(), grants: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_range_holds_exactly_the_keys_with_that_prefix() {
        let range = KeyRange::prefix("/a/");
        assert!(range.contains_key(b"/a/"));
        assert!(range.contains_key(b"/a/\xff\xff"));
        assert!(!range.contains_key(b"/a0"));
        assert!(!range.contains_key(b"/a"));
        assert!(KeyRange::prefix("").contains_key(b"\0"));
        assert!(KeyRange::prefix(&b"\xff\xff"[..]).is_open());
        assert_eq!(KeyRange::prefix(&b"a\xff"[..]).range_end.as_ref(), b"b");
    }

    #[test]
    fn a_grant_of_one_key_does_not_cover_the_range_from_it() {
        let one = KeyRange::single("k");
        assert!(one.contains(&KeyRange::single("k")));
        assert!(!one.contains(&KeyRange::new("k", &b"\0"[..])));
        assert!(!one.contains(&KeyRange::new("k", "k\0\0")));
        let prefix = KeyRange::prefix("/a/");
        assert!(prefix.contains(&KeyRange::new("/a/b", "/a/c")));
        assert!(prefix.contains(&KeyRange::new("/a/b", "/a0")));
        assert!(!prefix.contains(&KeyRange::new("/a/b", "/a1")));
        assert!(!prefix.contains(&KeyRange::new("/a/b", &b"\0"[..])));
    }
}
