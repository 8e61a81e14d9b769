//! A small store with etcd's revisions: every change is kept, reads happen at a revision, a lease's keys go with it.
//!
//! Invariant: one revision for each set of writes that changed something, sub-revisions in order within it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::{Entry, Key, Raw, Selection};

/// One version of one key.
#[derive(Clone)]
struct Version {
    main: u64,
    /// `None`: a tombstone.
    entry: Option<Entry<Raw>>,
}

/// One change, as watchers see it.
#[derive(Clone)]
pub(crate) struct Logged {
    pub(crate) main: u64,
    pub(crate) sub: u32,
    pub(crate) key: Key,
    /// `None`: a delete.
    pub(crate) entry: Option<Entry<Raw>>,
    pub(crate) previous: Option<Entry<Raw>>,
    /// Written by the plugin under test.
    pub(crate) own: bool,
}

/// A staged write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Put { value: Raw, lease: Option<u64> },
    Delete,
}

struct LeaseState {
    granted_ttl_s: u64,
    deadline_ms: u64,
    keys: BTreeSet<Key>,
}

pub(crate) struct Store {
    revision: u64,
    compacted: u64,
    keys: BTreeMap<Key, Vec<Version>>,
    log: Vec<Logged>,
    leases: BTreeMap<u64, LeaseState>,
    next_lease: u64,
    /// Cluster time: never goes back.
    cluster_ms: u64,
}

impl Store {
    pub(crate) fn new() -> Self {
        Store {
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: Vec::new(),
            leases: BTreeMap::new(),
            next_lease: 1000,
            cluster_ms: 0,
        }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Forgets what happened up to now, but for the current state.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.log.clear();
        self.keys.retain(|_, versions| {
            if let Some(last) = versions.pop() {
                versions.clear();
                versions.push(last);
            }
            versions.first().is_some_and(|version| version.entry.is_some())
        });
    }

    /// The key's state at a revision.
    pub(crate) fn get(&self, key: &[u8], at: u64) -> Option<Entry<Raw>> {
        at_revision(self.keys.get(&Key::from(key))?, at)
    }

    /// The states at a revision of the selected keys behind `after`, in order.
    pub(crate) fn scan<'a>(&'a self, what: &Selection, after: Option<&[u8]>, at: u64) -> impl Iterator<Item = Entry<Raw>> + 'a {
        let from = match what {
            Selection::Key(key) | Selection::Prefix(key) | Selection::Span(key, _) => key.clone(),
        };
        let lower = match after {
            Some(after) if after >= from.as_bytes() => Bound::Excluded(Key::from(after)),
            _ => Bound::Included(from),
        };
        let what = what.clone();
        self.keys
            .range((lower, Bound::Unbounded))
            .take_while(move |(key, _)| what.contains(key))
            .filter_map(move |(_, versions)| at_revision(versions, at))
    }

    /// Changes behind a position, in order.
    pub(crate) fn changes(&self, behind: (u64, u32)) -> impl Iterator<Item = &Logged> {
        self.log.iter().filter(move |change| (change.main, change.sub) > behind)
    }

    /// Applies writes in one revision; a revision is used only if something changed.
    pub(crate) fn apply<'a>(&mut self, ops: impl IntoIterator<Item = (&'a Key, &'a Op)>, own: bool) -> u64 {
        let main = self.revision + 1;
        let mut sub = 0;
        for (key, op) in ops {
            let previous = self.get(key, u64::MAX);
            let entry = match op {
                Op::Delete if previous.is_none() => continue,
                Op::Delete => None,
                Op::Put { value, lease } => Some(Entry {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: previous.as_ref().map_or(main, |entry| entry.create_revision),
                    mod_revision: main,
                    version: previous.as_ref().map_or(1, |entry| entry.version + 1),
                    lease: *lease,
                }),
            };
            self.attach(key, previous.as_ref().and_then(|entry| entry.lease), entry.as_ref().and_then(|entry| entry.lease));
            self.keys.entry(key.clone()).or_default().push(Version { main, entry: entry.clone() });
            self.log.push(Logged { main, sub, key: key.clone(), entry, previous, own });
            sub += 1;
        }
        if sub > 0 {
            self.revision = main;
        }
        self.revision
    }

    fn attach(&mut self, key: &Key, from: Option<u64>, to: Option<u64>) {
        if let Some(lease) = from.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.remove(key);
        }
        if let Some(lease) = to.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.insert(key.clone());
        }
    }

    pub(crate) fn lease_grant(&mut self, ttl_s: u64) -> u64 {
        let id = self.next_lease;
        self.next_lease += 1;
        let deadline_ms = self.cluster_ms + ttl_s * 1000;
        self.leases.insert(id, LeaseState { granted_ttl_s: ttl_s, deadline_ms, keys: BTreeSet::new() });
        id
    }

    /// (seconds left, seconds granted).
    pub(crate) fn lease_ttl(&self, id: u64) -> Option<(u64, u64)> {
        let lease = self.leases.get(&id)?;
        Some((lease.deadline_ms.saturating_sub(self.cluster_ms) / 1000, lease.granted_ttl_s))
    }

    pub(crate) fn lease_renew(&mut self, id: u64) -> Option<(u64, u64)> {
        let now = self.cluster_ms;
        let lease = self.leases.get_mut(&id)?;
        lease.deadline_ms = now + lease.granted_ttl_s * 1000;
        Some((lease.granted_ttl_s, lease.granted_ttl_s))
    }

    /// Ends a lease and deletes its keys in one revision.
    pub(crate) fn lease_revoke(&mut self, id: u64) -> bool {
        let Some(lease) = self.leases.remove(&id) else { return false };
        self.apply(lease.keys.iter().map(|key| (key, &Op::Delete)), false);
        true
    }

    /// Lets time pass; leases end.
    pub(crate) fn advance(&mut self, ms: u64) {
        self.cluster_ms += ms;
        let ended = self.leases.iter().filter(|(_, lease)| lease.deadline_ms <= self.cluster_ms).map(|(id, _)| *id);
        for id in ended.collect::<Vec<_>>() {
            self.lease_revoke(id);
        }
    }
}

fn at_revision(versions: &[Version], at: u64) -> Option<Entry<Raw>> {
    versions.iter().rev().find(|version| version.main <= at)?.entry.clone()
}

/// Writes by somebody else than the plugin, applied together in one revision.
#[derive(Default)]
pub struct Writes {
    pub(crate) ops: Vec<(Key, Op)>,
}

impl Writes {
    /// Puts a key.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.ops.push((Key::from(key.as_ref()), Op::Put { value: Raw(value.as_ref().to_vec()), lease: None }));
    }

    /// Deletes a key.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) {
        self.ops.push((Key::from(key.as_ref()), Op::Delete));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &mut Store, key: &str, value: &str, lease: Option<u64>) -> u64 {
        let op = Op::Put { value: Raw(value.into()), lease };
        store.apply([(&Key::from(key), &op)], false)
    }

    #[test]
    fn reads_happen_at_a_revision() {
        let mut store = Store::new();
        let first = put(&mut store, "a", "1", None);
        let second = put(&mut store, "a", "2", None);
        let third = store.apply([(&Key::from("a"), &Op::Delete)], false);
        assert_eq!((first, second, third), (2, 3, 4));
        let value = |at| store.get(b"a", at).map(|entry| entry.value.0);
        assert_eq!([value(1), value(2), value(3), value(4)], [None, Some(b"1".to_vec()), Some(b"2".to_vec()), None]);
        let second = store.get(b"a", 3).map(|entry| (entry.create_revision, entry.mod_revision, entry.version));
        assert_eq!(second, Some((2, 3, 2)));
    }

    #[test]
    fn deleting_nothing_uses_no_revision() {
        let mut store = Store::new();
        assert_eq!(store.apply([(&Key::from("a"), &Op::Delete)], false), 1);
    }

    #[test]
    fn a_lease_takes_its_keys_with_it_unless_they_moved() {
        let mut store = Store::new();
        let lease = store.lease_grant(5);
        put(&mut store, "kept", "x", Some(lease));
        put(&mut store, "gone", "x", Some(lease));
        put(&mut store, "kept", "y", None);
        store.advance(4_999);
        assert!(store.get(b"gone", u64::MAX).is_some());
        store.advance(1);
        assert!(store.get(b"gone", u64::MAX).is_none());
        assert!(store.get(b"kept", u64::MAX).is_some());
        assert_eq!(store.lease_ttl(lease), None);
    }
}
