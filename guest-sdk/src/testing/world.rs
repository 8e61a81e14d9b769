//! What is shared between the harness and the run it started: the store, the clocks and the faults to inject.
//!
//! Invariant: hooks are called with nothing borrowed, so they may do what they like to the store.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::run::Call;
use super::store::{Store, Writes};
use crate::Error;

type Interference = Box<dyn FnMut(&mut Writes)>;
type Injection = Box<dyn FnMut(&Call<'_>) -> Option<Error>>;

/// Entries of a page when the guest asks for none in particular, and at most; as in the host.
pub(super) const PAGE_ENTRIES: usize = 256;
const PAGE_ENTRIES_MAX: usize = 1_024;

pub(super) struct World {
    pub(super) store: Store,
    pub(super) now_ms: u64,
    /// Entries in a page when the guest leaves it to the host.
    pub(super) page_entries: usize,
    pub(super) page_entries_max: usize,
    /// Leases that the plugin granted: the only ones that it may handle.
    pub(super) own_leases: BTreeSet<u64>,
    /// Host calls into a task's run after which it is cancelled.
    pub(super) cancel_after: Option<u64>,
    /// Host calls into a task's run after which another holds its lock.
    pub(super) lose_lock_after: Option<u64>,
    before_next_commit: Option<Interference>,
    before_every_commit: Option<Interference>,
    while_waiting: Option<Interference>,
    injection: Option<Injection>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    NextCommit,
    EveryCommit,
    Wait,
}

#[derive(Clone)]
pub(super) struct Shared(Rc<RefCell<World>>);

impl Shared {
    pub(super) fn new() -> Self {
        Shared(Rc::new(RefCell::new(World {
            store: Store::new(),
            now_ms: 1_700_000_000_000,
            page_entries: PAGE_ENTRIES,
            page_entries_max: PAGE_ENTRIES_MAX,
            own_leases: BTreeSet::new(),
            cancel_after: None,
            lose_lock_after: None,
            before_next_commit: None,
            before_every_commit: None,
            while_waiting: None,
            injection: None,
        })))
    }

    pub(super) fn with<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        f(&mut self.0.borrow_mut())
    }

    pub(super) fn set_hook(&self, moment: Moment, hook: Interference) {
        self.with(|world| *world.hook(moment) = Some(hook));
    }

    pub(super) fn set_injection(&self, injection: Injection) {
        self.with(|world| world.injection = Some(injection));
    }

    /// Lets others write at this moment.
    pub(super) fn interfere(&self, moment: Moment) {
        let Some(mut hook) = self.with(|world| world.hook(moment).take()) else { return };
        let mut writes = Writes::default();
        hook(&mut writes);
        self.write(&writes);
        if moment != Moment::NextCommit {
            self.with(|world| {
                world.hook(moment).get_or_insert(hook);
            });
        }
    }

    /// The error that the test wants this call to answer.
    pub(super) fn injected(&self, call: &Call<'_>) -> Option<Error> {
        let mut injection = self.with(|world| world.injection.take())?;
        let error = injection(call);
        self.with(|world| {
            world.injection.get_or_insert(injection);
        });
        error
    }

    pub(super) fn write(&self, writes: &Writes) -> u64 {
        self.with(|world| world.store.apply(writes.ops.iter().map(|(key, op)| (key, op)), false))
    }
}

impl World {
    fn hook(&mut self, moment: Moment) -> &mut Option<Interference> {
        match moment {
            Moment::NextCommit => &mut self.before_next_commit,
            Moment::EveryCommit => &mut self.before_every_commit,
            Moment::Wait => &mut self.while_waiting,
        }
    }
}
