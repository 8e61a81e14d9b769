//! `TaskCx`: what a task may do, which runs under a lock and commits as it goes.
//!
//! Invariant: whatever a task commits is guarded by its lock where it counts, when the entry is applied: a paused old holder
//! writes nothing.

use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::time::Duration;

use crate::backend::{Backend, CursorBackend, LeaseStatus, LockBackend, Position, TaskBackend};
use crate::cx::Cx;
use crate::event::Event;
use crate::{Error, Key, Payload, Selection};

/// A task's view of the store and of itself: everything of [`Cx`], and `commit`, leases, locks and watches.
///
/// What is staged and not yet committed is committed when the task returns `Ok`, and discarded when it returns a fault.
pub struct TaskCx {
    cx: Cx,
    backend: Rc<dyn TaskBackend>,
}

impl TaskCx {
    pub(crate) fn new<B: TaskBackend + 'static>(backend: Rc<B>) -> Self {
        TaskCx { cx: Cx::new(Rc::clone(&backend) as Rc<dyn Backend>), backend }
    }

    /// Commits what is staged, guarded by the task's lock and by what was read, then continues on a new snapshot, whose
    /// revision is returned. With nothing staged it is the way to a newer snapshot.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the lock is lost or what was read has changed: nothing was written, the staged writes are discarded
    /// and the run continues on a new snapshot.
    pub fn commit(&mut self) -> Result<u64, Error> {
        self.backend.commit()
    }

    /// The create revision of the key of the task's own lock: it grows with every holder.
    pub fn fencing_token(&self) -> Option<u64> {
        self.backend.fencing_token()
    }

    /// A cursor over changes from a place on, included, such as `Position::from(revision)`; `None` means just after the current
    /// snapshot.
    ///
    /// # Errors
    /// [`Error::Denied`] without a read grant for the range.
    pub fn watch(&self, what: &Selection, start: impl Into<Option<Position>>) -> Result<Watch, Error> {
        Ok(Watch { cursor: self.backend.watch(what, start.into())? })
    }

    /// Grants a lease.
    ///
    /// # Errors
    /// [`Error::Denied`] without the lease grant; [`Error::Invalid`] for a TTL out of range.
    pub fn lease(&self, ttl_s: u64) -> Result<Lease, Error> {
        Ok(Lease { id: self.backend.lease_grant(ttl_s)?, backend: Rc::clone(&self.backend) })
    }

    /// A lease that exists already, by its id.
    pub fn lease_of(&self, id: u64) -> Lease {
        Lease { id, backend: Rc::clone(&self.backend) }
    }

    /// Waits for a lock; dropping it releases it. The same keys as etcd's lock service, fair in order of arrival.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is still held by another after `wait`; [`Error::Denied`] without a lock grant for the name.
    pub fn lock(&self, name: impl AsRef<[u8]>, wait: Duration) -> Result<Lock, Error> {
        Ok(Lock { handle: self.backend.lock(name.as_ref(), millis(wait))? })
    }
}

impl Deref for TaskCx {
    type Target = Cx;
    fn deref(&self) -> &Cx {
        &self.cx
    }
}

impl DerefMut for TaskCx {
    fn deref_mut(&mut self) -> &mut Cx {
        &mut self.cx
    }
}

/// A cursor over changes that a task pulls at its own pace.
pub struct Watch {
    cursor: Box<dyn CursorBackend>,
}

impl Watch {
    /// The next changes in order, at most `max_events`: a revision with more comes in pieces. Waits up to `wait` for the first,
    /// empty when none came.
    ///
    /// # Errors
    /// [`Error::Decode`] for a value that does not decode; [`Error::Compacted`] when the cursor is behind compaction.
    pub fn next<T: Payload>(&mut self, max_events: u32, wait: Duration) -> Result<Vec<Event<T>>, Error> {
        self.cursor.next(max_events, millis(wait))?.into_iter().map(Event::decode).collect()
    }

    /// Where [`Watch::next`] goes on: a watch from there repeats nothing and misses nothing.
    pub fn position(&self) -> Position {
        self.cursor.position()
    }
}

/// A lease. It is not revoked when this is dropped.
pub struct Lease {
    id: u64,
    backend: Rc<dyn TaskBackend>,
}

impl Lease {
    /// For [`Cx::put_with_lease`].
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Starts the TTL again.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the lease has ended.
    pub fn keep_alive(&self) -> Result<LeaseStatus, Error> {
        self.backend.lease_keep_alive(self.id)
    }

    /// Ends the lease and deletes its keys.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the lease has ended.
    pub fn revoke(self) -> Result<(), Error> {
        self.backend.lease_revoke(self.id)
    }

    /// How long it lives.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the lease has ended.
    pub fn time_to_live(&self) -> Result<LeaseStatus, Error> {
        self.backend.lease_time_to_live(self.id)
    }
}

/// A held lock; dropping it releases the lock. Its lease is kept alive by the host meanwhile.
pub struct Lock {
    handle: Box<dyn LockBackend>,
}

impl Lock {
    /// Grows with every holder: the create revision of the lock's key.
    pub fn fencing_token(&self) -> u64 {
        self.handle.fencing_token()
    }

    /// The key that holds the lock.
    pub fn key(&self) -> Key {
        self.handle.key()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
