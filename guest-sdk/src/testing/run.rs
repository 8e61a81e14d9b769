//! One run of a handler: its snapshot, what it staged and what it read.
//!
//! Invariant: the store changes only in [`Run::commit_staged`], all or nothing, and only if every guard holds.

mod handles;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use handles::RunCursor;
pub(super) use handles::{acquire, event};

use super::manifest::Manifest;
use super::store::Op;
use super::world::{Moment, Shared};
use crate::backend::{Backend, CursorBackend, LeaseStatus, LockBackend, Page, Position, TaskBackend};
use crate::{Entry, Error, Key, Raw, Selection};

/// A host call, for [`Harness::inject`](super::Harness::inject).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call<'a> {
    /// `kv.get`.
    Get(&'a [u8]),
    /// `kv.scan`, one page.
    Scan(&'a Selection),
    /// `kv.put`.
    Put(&'a [u8]),
    /// `kv.delete`.
    Delete(&'a [u8]),
    /// `kv.require-unchanged`.
    RequireUnchanged(&'a [u8]),
    /// `kv.commit`.
    Commit,
    /// `watch.open` and `watch.next`.
    Watch,
    /// Any call of `lease`.
    Lease,
    /// `lock.acquire`.
    Lock(&'a [u8]),
}

/// What a staged write weighs besides its key and value, as in the host.
const OP_OVERHEAD_BYTES: usize = 32;
/// Guards of one commit, as in the host.
const GUARDS_MAX: usize = 4_096;
/// Keys under the range guards of one commit, as in the host.
const GUARD_KEYS_MAX: usize = 65_536;

/// Depends on the selected keys behind `after` being as they were.
struct RangeGuard {
    what: Selection,
    after: Option<Key>,
    /// The last key read, if the page did not reach the end.
    upto: Option<Key>,
    count: usize,
    mod_revision_max: u64,
}

struct Reads {
    snapshot: u64,
    /// With the place of each write in the order of staging.
    staged: BTreeMap<Key, (usize, Op)>,
    staged_next: usize,
    staged_bytes: usize,
    points: BTreeMap<Key, u64>,
    ranges: Vec<RangeGuard>,
    calls: u64,
}

pub(super) struct Run {
    world: Shared,
    manifest: Rc<Manifest>,
    config: Rc<BTreeMap<String, String>>,
    trigger: String,
    attempt: u32,
    now_ms: u64,
    /// A task's own lock: its key and create revision.
    lock: Option<(Key, u64)>,
    state: RefCell<Reads>,
}

impl Run {
    pub(super) fn new(
        world: Shared,
        manifest: Rc<Manifest>,
        config: Rc<BTreeMap<String, String>>,
        trigger: String,
        attempt: u32,
        lock: Option<(Key, u64)>,
    ) -> Self {
        let (snapshot, now_ms) = world.with(|world| (world.store.revision(), world.now_ms));
        let state = Reads {
            snapshot,
            staged: BTreeMap::new(),
            staged_next: 0,
            staged_bytes: 0,
            points: BTreeMap::new(),
            ranges: Vec::new(),
            calls: 0,
        };
        Run { world, manifest, config, trigger, attempt, now_ms, lock, state: RefCell::new(state) }
    }

    /// Staged writes that nobody committed.
    pub(super) fn staged(&self) -> usize {
        self.state.borrow().staged.len()
    }

    /// Checks the guards and applies what is staged in one revision; then continues on a new snapshot.
    pub(super) fn commit_staged(&self) -> Result<u64, Error> {
        self.world.interfere(Moment::NextCommit);
        self.world.interfere(Moment::EveryCommit);
        let state = &mut *self.state.borrow_mut();
        let mut staged: Vec<_> = std::mem::take(&mut state.staged).into_iter().collect();
        staged.sort_by_key(|(_, (place, _))| *place);
        // Without writes there is nothing to guard.
        let held = self.check_lock().and_then(|()| if staged.is_empty() { Ok(()) } else { self.check_guards(state) });
        let held = held.and_then(|()| self.check_leases(staged.iter().map(|(_, (_, op))| op)));
        state.staged_bytes = 0;
        state.points.clear();
        state.ranges.clear();
        self.world.with(|world| {
            if held.is_ok() {
                world.store.apply(staged.iter().map(|(key, (_, op))| (key, op)), true);
            }
            state.snapshot = world.store.revision();
        });
        held.map(|()| state.snapshot)
    }

    fn check_lock(&self) -> Result<(), Error> {
        let Some((key, create_revision)) = &self.lock else { return Ok(()) };
        let holder = self.world.with(|world| world.store.get(key, u64::MAX));
        match holder {
            Some(entry) if entry.create_revision == *create_revision => Ok(()),
            _ => Err(Error::Conflict(format!("the lock {key} is lost"))),
        }
    }

    fn check_guards(&self, state: &Reads) -> Result<(), Error> {
        self.world.with(|world| {
            for (key, expected) in &state.points {
                let actual = world.store.get(key, u64::MAX).map_or(0, |entry| entry.mod_revision);
                if actual != *expected {
                    return Err(Error::Conflict(format!("{key} was read at revision {expected} and is at {actual} now")));
                }
            }
            for guard in &state.ranges {
                let after = guard.after.as_ref().map(Key::as_bytes);
                let within = |entry: &Entry<Raw>| guard.upto.as_ref().is_none_or(|upto| entry.key <= *upto);
                let now = summary(world.store.scan(&guard.what, after, u64::MAX).take_while(within));
                if now != (guard.count, guard.mod_revision_max) {
                    return Err(Error::Conflict(format!("{} have changed since they were read", guard.what)));
                }
            }
            Ok(())
        })
    }

    /// What every host call begins with: it is counted, may lose the lock, may be told to fail.
    fn enter(&self, call: &Call<'_>) -> Result<(), Error> {
        let calls = self.charge();
        if let Some((key, _)) = &self.lock
            && self.world.with(|world| world.lose_lock_after.is_some_and(|after| calls > after))
        {
            self.world.with(|world| world.store.apply([(key, &Op::Delete)], false));
        }
        self.world.injected(call).map_or(Ok(()), Err)
    }

    /// Counts a host call. One too many ends the run, as it does in the host.
    fn charge(&self) -> u64 {
        let limit = u64::from(self.manifest.limits.host_calls);
        let calls = self.state.borrow().calls + 1;
        assert!(calls <= limit, "stopped: more than {limit} host calls (host-calls)");
        self.state.borrow_mut().calls = calls;
        calls
    }

    fn check_key(key: &[u8]) -> Result<(), Error> {
        if key.is_empty() { Err(Error::Invalid("the key is empty".to_owned())) } else { Ok(()) }
    }

    fn check_grant(prefixes: &[String], what: &Selection, verb: &str) -> Result<(), Error> {
        let covered = |prefix: &String| match what {
            Selection::Key(key) | Selection::Prefix(key) => key.starts_with(prefix.as_bytes()),
            Selection::Span(from, to) => {
                from.starts_with(prefix.as_bytes())
                    && prefix_end(prefix.as_bytes()).is_none_or(|end| to.as_bytes() <= end.as_slice())
            }
        };
        if prefixes.iter().any(covered) { Ok(()) } else { Err(Error::Denied(format!("no grant to {verb} {what}"))) }
    }

    fn check_read(&self, what: &Selection) -> Result<(), Error> {
        Self::check_grant(&self.manifest.grants.kv_read, what, "read")
    }

    fn may_lease(&self) -> Result<(), Error> {
        if self.manifest.grants.lease { Ok(()) } else { Err(Error::Denied("no grant for leases".to_owned())) }
    }

    /// What every call of `lease` with an id begins with: a plugin handles only leases that it granted.
    fn enter_lease(&self, id: u64) -> Result<(), Error> {
        self.enter(&Call::Lease)?;
        self.may_lease()?;
        if self.world.with(|world| world.own_leases.contains(&id)) { Ok(()) } else { Err(no_lease(id)) }
    }

    fn check_leases<'a>(&self, ops: impl Iterator<Item = &'a Op>) -> Result<(), Error> {
        let attached = ops.filter_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete => None,
        });
        self.world
            .with(|world| attached.into_iter().find(|id| world.store.lease_ttl(*id).is_none()))
            .map_or(Ok(()), |id| Err(no_lease(id)))
    }

    fn stage(&self, key: &[u8], op: Op) -> Result<(), Error> {
        Self::check_key(key)?;
        Self::check_grant(&self.manifest.grants.kv_write, &Selection::key(key), "write")?;
        let state = &mut *self.state.borrow_mut();
        let key = Key::from(key);
        let weight = |op: &Op| match op {
            Op::Put { value, .. } => key.len() + value.len() + OP_OVERHEAD_BYTES,
            Op::Delete => key.len() + OP_OVERHEAD_BYTES,
        };
        let replaced = state.staged.get(&key).map(|(_, op)| weight(op));
        let staged_ops = state.staged.len() + usize::from(replaced.is_none());
        let staged_bytes = state.staged_bytes - replaced.unwrap_or(0) + weight(&op);
        let limits = &self.manifest.limits;
        if staged_ops > limits.staged_ops as usize {
            return Err(Error::Limit(format!("more than {} staged writes", limits.staged_ops)));
        }
        if staged_bytes as u64 > limits.staged_bytes.0 {
            return Err(Error::Limit(format!("more than {} of staged writes", limits.staged_bytes)));
        }
        state.staged_bytes = staged_bytes;
        state.staged.insert(key, (state.staged_next, op));
        state.staged_next += 1;
        Ok(())
    }
}

/// A staged write as its own run reads it: the commit will decide its revisions.
fn staged_entry(key: &Key, op: &Op) -> Option<Entry<Raw>> {
    match op {
        Op::Delete => None,
        Op::Put { value, lease } => Some(Entry {
            key: key.clone(),
            value: value.clone(),
            create_revision: 0,
            mod_revision: 0,
            version: 0,
            lease: *lease,
        }),
    }
}

fn summary(entries: impl Iterator<Item = Entry<Raw>>) -> (usize, u64) {
    entries.fold((0, 0), |(count, highest), entry| (count + 1, highest.max(entry.mod_revision)))
}

/// The first key behind all that start with the prefix; `None` if there is none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

impl Backend for Run {
    fn get(&self, key: &[u8]) -> Result<Option<Entry<Raw>>, Error> {
        self.enter(&Call::Get(key))?;
        Self::check_key(key)?;
        self.check_read(&Selection::key(key))?;
        let state = &mut *self.state.borrow_mut();
        let key = Key::from(key);
        if let Some((_, op)) = state.staged.get(&key) {
            return Ok(staged_entry(&key, op));
        }
        let stored = self.world.with(|world| world.store.get(&key, state.snapshot));
        state.points.entry(key).or_insert(stored.as_ref().map_or(0, |entry| entry.mod_revision));
        Ok(stored)
    }

    fn scan(&self, what: &Selection, after: Option<&[u8]>, limit: u32, keys_only: bool) -> Result<Page, Error> {
        self.enter(&Call::Scan(what))?;
        self.check_read(what)?;
        let state = &mut *self.state.borrow_mut();
        let (usual, most) = self.world.with(|world| (world.page_entries, world.page_entries_max));
        let limit = if limit == 0 { usual } else { (limit as usize).min(most) };
        // Enough for a page even if every staged write is a delete in it.
        let most = limit + state.staged.len() + 1;
        let mut merged: BTreeMap<Key, Entry<Raw>> = self.world.with(|world| {
            let entries = world.store.scan(what, after, state.snapshot).take(most);
            entries.map(|entry| (entry.key.clone(), entry)).collect()
        });
        let stored = merged.clone();
        for (key, (_, op)) in &state.staged {
            if !what.contains(key) || after.is_some_and(|after| key.as_bytes() <= after) {
                continue;
            }
            match staged_entry(key, op) {
                Some(entry) => merged.insert(key.clone(), entry),
                None => merged.remove(key),
            };
        }
        let more = merged.len() > limit;
        let mut entries: Vec<_> = merged.into_values().take(limit).collect();
        let upto = if more { entries.last().map(|entry| entry.key.clone()) } else { None };
        let read = stored.into_values().take_while(|entry| upto.as_ref().is_none_or(|upto| entry.key <= *upto));
        let (count, mod_revision_max) = summary(read);
        let guarded: usize = state.ranges.iter().map(|guard| guard.count).sum();
        if state.ranges.len() + state.points.len() >= GUARDS_MAX || guarded + count > GUARD_KEYS_MAX {
            return Err(Error::Limit("more was read in one run than a commit can guard".to_owned()));
        }
        state.ranges.push(RangeGuard { what: what.clone(), after: after.map(Key::from), upto, count, mod_revision_max });
        if keys_only {
            entries.iter_mut().for_each(|entry| entry.value = Raw::default());
        }
        Ok(Page { entries, more })
    }

    fn put(&self, key: &[u8], value: &[u8], lease: Option<u64>) -> Result<(), Error> {
        self.enter(&Call::Put(key))?;
        // Whether the lease is there shows when the put is committed.
        if lease.is_some() {
            self.may_lease()?;
        }
        self.stage(key, Op::Put { value: Raw(value.to_vec()), lease })
    }

    fn delete(&self, key: &[u8]) -> Result<(), Error> {
        self.enter(&Call::Delete(key))?;
        self.stage(key, Op::Delete)
    }

    fn require_unchanged(&self, key: &[u8]) -> Result<(), Error> {
        self.enter(&Call::RequireUnchanged(key))?;
        Self::check_key(key)?;
        self.check_read(&Selection::key(key))?;
        let state = &mut *self.state.borrow_mut();
        let stored = self.world.with(|world| world.store.get(key, state.snapshot));
        state.points.entry(Key::from(key)).or_insert(stored.map_or(0, |entry| entry.mod_revision));
        Ok(())
    }

    fn snapshot_revision(&self) -> u64 {
        self.charge();
        self.state.borrow().snapshot
    }

    fn plugin(&self) -> String {
        self.charge();
        self.manifest.plugin.name.to_string()
    }

    fn trigger(&self) -> String {
        self.charge();
        self.trigger.clone()
    }

    fn config(&self, name: &str) -> Option<String> {
        self.charge();
        self.config.get(name).cloned()
    }

    fn attempt(&self) -> u32 {
        self.charge();
        self.attempt
    }

    fn now_ms(&self) -> u64 {
        self.charge();
        self.now_ms
    }

    fn cancelled(&self) -> bool {
        let calls = self.charge();
        self.world.with(|world| world.cancel_after.is_some_and(|after| calls > after)) || self.check_lock().is_err()
    }
}

impl TaskBackend for Run {
    fn commit(&self) -> Result<u64, Error> {
        self.enter(&Call::Commit)?;
        self.commit_staged()
    }

    fn fencing_token(&self) -> Option<u64> {
        self.charge();
        self.lock.as_ref().map(|(_, create_revision)| *create_revision)
    }

    fn watch(&self, what: &Selection, start: Option<Position>) -> Result<Box<dyn CursorBackend>, Error> {
        self.enter(&Call::Watch)?;
        self.check_read(what)?;
        // Whether it is compacted shows when changes are pulled.
        let next = start.unwrap_or_else(|| Position::from(self.state.borrow().snapshot + 1));
        Ok(Box::new(RunCursor { world: self.world.clone(), what: what.clone(), trigger: self.trigger.clone(), next }))
    }

    fn lease_grant(&self, ttl_s: u64) -> Result<u64, Error> {
        self.enter(&Call::Lease)?;
        self.may_lease()?;
        if ttl_s == 0 {
            return Err(Error::Invalid("a lease of 0 seconds".to_owned()));
        }
        Ok(self.world.with(|world| {
            let id = world.store.lease_grant(ttl_s);
            world.own_leases.insert(id);
            id
        }))
    }

    fn lease_keep_alive(&self, id: u64) -> Result<LeaseStatus, Error> {
        self.enter_lease(id)?;
        status(id, self.world.with(|world| world.store.lease_renew(id)))
    }

    fn lease_revoke(&self, id: u64) -> Result<(), Error> {
        self.enter_lease(id)?;
        let revoked = self.world.with(|world| {
            world.own_leases.remove(&id);
            world.store.lease_revoke(id)
        });
        if revoked { Ok(()) } else { Err(no_lease(id)) }
    }

    fn lease_time_to_live(&self, id: u64) -> Result<LeaseStatus, Error> {
        self.enter_lease(id)?;
        status(id, self.world.with(|world| world.store.lease_ttl(id)))
    }

    fn lock(&self, name: &[u8], wait_ms: u64) -> Result<Box<dyn LockBackend>, Error> {
        self.enter(&Call::Lock(name))?;
        Self::check_grant(&self.manifest.grants.lock, &Selection::key(name), "lock")?;
        match acquire(&self.world, name) {
            Ok(held) => return Ok(Box::new(held)),
            Err(error) if wait_ms == 0 => return Err(error),
            Err(_) => self.world.interfere(Moment::Wait),
        }
        acquire(&self.world, name).map(|held| Box::new(held) as Box<dyn LockBackend>)
    }
}

fn no_lease(id: u64) -> Error {
    Error::NotFound(format!("lease {id}"))
}

fn status(id: u64, ttl: Option<(u64, u64)>) -> Result<LeaseStatus, Error> {
    ttl.map(|(ttl_s, granted_ttl_s)| LeaseStatus { ttl_s, granted_ttl_s }).ok_or_else(|| no_lease(id))
}
