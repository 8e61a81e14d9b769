//! What a task holds: locks and watch cursors.
//!
//! Invariant: a lock's key lives as long as its handle, unless somebody deletes it.

use crate::backend::{CursorBackend, LockBackend, Position};
use crate::testing::run::Call;
use crate::testing::store::{Logged, Op};
use crate::testing::world::{Moment, Shared};
use crate::{Change, Error, Event, Key, Raw, Selection};

/// Takes a lock as etcd's lock service does: a key under the name, with a lease of its own.
pub(in crate::testing) fn acquire(world: &Shared, name: &[u8]) -> Result<RunLock, Error> {
    let folder = [name, b"/"].concat();
    world.clone().with(|inner| {
        if let Some(holder) = inner.store.scan(&Selection::prefix(&folder), None, u64::MAX).next() {
            return Err(Error::Conflict(format!("the lock is held by {}", holder.key)));
        }
        let lease = inner.store.lease_grant(60);
        let key = Key::from([folder.as_slice(), format!("{lease:x}").as_bytes()].concat());
        let create_revision = inner.store.apply([(&key, &Op::Put { value: Raw::default(), lease: Some(lease) })], true);
        Ok(RunLock { world: world.clone(), key, create_revision, lease })
    })
}

pub(in crate::testing) struct RunLock {
    world: Shared,
    pub(in crate::testing) key: Key,
    pub(in crate::testing) create_revision: u64,
    lease: u64,
}

impl LockBackend for RunLock {
    fn fencing_token(&self) -> u64 {
        self.create_revision
    }

    fn key(&self) -> Key {
        self.key.clone()
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        self.world.with(|world| world.store.lease_revoke(self.lease));
    }
}

/// Changes of one pull at most, as in the host.
const EVENTS_MAX: u32 = 1_024;

pub(super) struct RunCursor {
    pub(super) world: Shared,
    pub(super) what: Selection,
    pub(super) trigger: String,
    /// The next change to look at.
    pub(super) next: Position,
}

impl RunCursor {
    fn pull(&mut self, max_events: u32) -> Vec<Event<Raw>> {
        let max_events = max_events.clamp(1, EVENTS_MAX) as usize;
        let (from, mut events) = (self.next, Vec::new());
        let at = |change: &Logged| Position { revision: change.main, sub: change.sub };
        self.world.clone().with(|world| {
            let changes = world.store.changes((0, 0)).filter(|change| at(change) >= from);
            self.next = Position::from(world.store.revision() + 1).max(from);
            for change in changes.filter(|change| self.what.contains(&change.key)) {
                if events.len() == max_events {
                    self.next = at(change);
                    break;
                }
                events.push(event(&self.trigger, change, false));
            }
        });
        events
    }
}

impl CursorBackend for RunCursor {
    fn next(&mut self, max_events: u32, wait_ms: u64) -> Result<Vec<Event<Raw>>, Error> {
        if let Some(error) = self.world.injected(&Call::Watch) {
            return Err(error);
        }
        let compacted = self.world.with(|world| world.store.compacted());
        if self.next.revision <= compacted {
            return Err(Error::Compacted(compacted));
        }
        let events = self.pull(max_events);
        if !events.is_empty() || wait_ms == 0 {
            return Ok(events);
        }
        self.world.interfere(Moment::Wait);
        Ok(self.pull(max_events))
    }

    fn position(&self) -> Position {
        self.next
    }
}

/// A change as handlers see it.
pub(in crate::testing) fn event(trigger: &str, change: &Logged, with_previous: bool) -> Event<Raw> {
    Event {
        trigger: trigger.to_owned(),
        key: change.key.clone(),
        change: change.entry.clone().map_or(Change::Delete, Change::Put),
        revision: change.main,
        sub: change.sub,
        previous: if with_previous { change.previous.clone() } else { None },
        replayed: false,
    }
}
