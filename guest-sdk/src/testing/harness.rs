//! `Harness`: what a test drives.
//!
//! Invariant: a trigger's cursor moves in the same step as its effects become visible, or its event is parked.

mod delivery;

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::manifest::{self, Manifest, Watch};
use super::run::{Call, Run, acquire};
use super::store::{Op, Writes};
use super::world::{Moment, PAGE_ENTRIES, Shared};
use super::{LINES, LogLine};
use crate::{Batch, Cx, Entry, Error, Fault, Key, Outcome, Raw, Reactor, Resync, Selection, Task, TaskCx};

/// Runs in a row that a broken guard may cause before the test is told that the handler cannot get through.
const RERUNS_MAX: u32 = 100;

/// An event that was given up, with the last reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Id of the trigger.
    pub trigger: String,
    /// The event's key.
    pub key: Key,
    /// The event's revision.
    pub revision: u64,
    /// The fault's text, or the panic's.
    pub reason: String,
}

/// What [`Harness::run`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Calls of the handler.
    pub calls: usize,
    /// Batches and resync pages whose effects are committed.
    pub committed: usize,
    /// Events parked.
    pub parked: usize,
}

type OnEvents = fn(&mut Cx, Batch<Raw>) -> Outcome;
type OnResync = fn(&mut Cx, Resync<Raw>) -> Outcome;

struct TriggerState {
    /// Position of the last event that is done with.
    cursor: (u64, u32),
    /// Where the cursor was before the last committed batch.
    cursor_before: (u64, u32),
    /// A resync that is under way: its revision and the last key delivered.
    resync: Option<(u64, Option<Key>)>,
    /// Why the trigger stands still.
    halted: Option<String>,
}

enum Ended {
    Ok,
    Retry(String),
    Reject(String),
}

/// A plugin with a store of its own. See the [module](super).
pub struct Harness {
    world: Shared,
    manifest: Rc<Manifest>,
    config: BTreeMap<String, String>,
    reactor: Option<(OnEvents, OnResync)>,
    task: Option<fn(&mut TaskCx) -> Outcome>,
    triggers: Vec<TriggerState>,
    dead_letters: Vec<DeadLetter>,
    crashes: u32,
    resync_page: usize,
}

impl Harness {
    /// A plugin that reacts: the function with `#[reactor]`, by its name.
    #[must_use]
    pub fn reactor<R: Reactor>() -> Self {
        Harness::new(R::MANIFEST).with_reactor::<R>()
    }

    /// A plugin that runs under a lock: the function with `#[task]`, by its name.
    #[must_use]
    pub fn task<T: Task>() -> Self {
        Harness::new(T::MANIFEST).with_task::<T>()
    }

    /// Adds the task of a plugin that has both.
    #[must_use]
    pub fn with_task<T: Task>(mut self) -> Self {
        self.task = Some(T::run);
        self
    }

    /// Adds the reactor of a plugin that has both.
    #[must_use]
    pub fn with_reactor<R: Reactor>(mut self) -> Self {
        self.reactor = Some((R::on_events, R::on_resync));
        self
    }

    /// Another manifest than the crate's: other grants or limits.
    #[must_use]
    pub fn with_manifest(self, text: &str) -> Self {
        Harness { reactor: self.reactor, task: self.task, ..Harness::new(text) }
    }

    fn new(manifest: &str) -> Self {
        crate::logger::install();
        LINES.with_borrow_mut(Vec::clear);
        let manifest = manifest::parse(manifest);
        let config = manifest.config.iter().map(|(name, value)| (name.clone(), value.to_string())).collect();
        let trigger = |_: &Watch| TriggerState { cursor: (0, 0), cursor_before: (0, 0), resync: None, halted: None };
        Harness {
            world: Shared::new(),
            config,
            reactor: None,
            task: None,
            triggers: manifest.trigger.watch.iter().map(trigger).collect(),
            manifest: Rc::new(manifest),
            dead_letters: Vec::new(),
            crashes: 0,
            resync_page: PAGE_ENTRIES,
        }
    }

    // The store, as a client sees it.

    /// A client's put. Returns its revision.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> u64 {
        self.write(|writes| writes.put(key, value))
    }

    /// A client's put of JSON. Returns its revision.
    pub fn put_json<T: Serialize + ?Sized>(&mut self, key: impl AsRef<[u8]>, value: &T) -> u64 {
        match serde_json::to_vec(value) {
            Ok(bytes) => self.put(key, bytes),
            Err(error) => panic!("the test's value is not JSON: {error}"),
        }
    }

    /// A client's delete. Returns the revision after it.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> u64 {
        self.write(|writes| writes.delete(key))
    }

    /// A client's transaction: several writes in one revision. Returns the revision after it.
    pub fn write(&mut self, f: impl FnOnce(&mut Writes)) -> u64 {
        let mut writes = Writes::default();
        f(&mut writes);
        self.world.write(&writes)
    }

    /// A client's put with a lease of `ttl`; let it end with [`Harness::advance`].
    pub fn put_with_ttl(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, ttl: Duration) -> u64 {
        let key = Key::from(key.as_ref());
        self.world.with(|world| {
            let lease = Some(world.store.lease_grant(ttl.as_secs()));
            world.store.apply([(&key, &Op::Put { value: Raw(value.as_ref().to_vec()), lease })], false)
        })
    }

    /// The key's state now.
    #[must_use]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<Entry<Raw>> {
        self.world.with(|world| world.store.get(key.as_ref(), u64::MAX))
    }

    /// The key's value now, as JSON; a value that is not such JSON fails the test.
    #[must_use]
    pub fn get_json<T: DeserializeOwned>(&self, key: impl AsRef<[u8]>) -> Option<T> {
        match self.get(key).map(Entry::decode).transpose() {
            Ok(entry) => entry.map(|entry| entry.value),
            Err(error) => panic!("{error}"),
        }
    }

    /// The key's value now, as text; a value that is not text fails the test.
    #[must_use]
    pub fn get_text(&self, key: impl AsRef<[u8]>) -> Option<String> {
        self.get(key).map(|entry| match entry.value.as_str() {
            Some(text) => text.to_owned(),
            None => panic!("the value of {} is not text", entry.key),
        })
    }

    /// Every entry under a prefix now, in order of key.
    #[must_use]
    pub fn entries(&self, prefix: impl AsRef<[u8]>) -> Vec<Entry<Raw>> {
        self.world.with(|world| world.store.scan(&Selection::prefix(prefix), None, u64::MAX).collect())
    }

    /// Every key under a prefix now, printable, in order.
    #[must_use]
    pub fn keys(&self, prefix: impl AsRef<[u8]>) -> Vec<String> {
        self.entries(prefix).into_iter().map(|entry| entry.key.to_string()).collect()
    }

    /// The store's revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.world.with(|world| world.store.revision())
    }

    // Surroundings.

    /// Overrides a value of `[config]`, as at installation.
    pub fn set_config(&mut self, name: &str, value: &str) {
        self.config.insert(name.to_owned(), value.to_owned());
    }

    /// Wall time, in ms since 1970. It may jump either way.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.world.with(|world| world.now_ms)
    }

    /// Sets the wall clock; leases do not care.
    pub fn set_now_ms(&mut self, now_ms: u64) {
        self.world.with(|world| world.now_ms = now_ms);
    }

    /// Lets time pass on both clocks: wall time and the leases' time.
    pub fn advance(&mut self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.world.with(|world| {
            world.now_ms += ms;
            world.store.advance(ms);
        });
    }

    /// Entries in a page of a scan and of a resync: at most so many instead of 256, or of 1024 if a scan asks for them.
    pub fn set_page_size(&mut self, entries: usize) {
        assert!(entries > 0, "a page has at least one entry");
        self.world.with(|world| (world.page_entries, world.page_entries_max) = (entries, entries));
        self.resync_page = entries;
    }

    /// Forgets the history: a trigger that has not seen all of it must resync.
    pub fn compact(&mut self) {
        self.world.with(|world| world.store.compact());
    }

    // Faults.

    /// The next run that returns `Ok` is lost before its commit, as if the node had died: the input comes again.
    pub fn crash_before_commit(&mut self) {
        self.crashes += 1;
    }

    /// Somebody else writes between the next run's reads and its commit.
    pub fn before_next_commit(&mut self, f: impl FnMut(&mut Writes) + 'static) {
        self.world.set_hook(Moment::NextCommit, Box::new(f));
    }

    /// Somebody else writes before every commit from now on.
    pub fn before_every_commit(&mut self, f: impl FnMut(&mut Writes) + 'static) {
        self.world.set_hook(Moment::EveryCommit, Box::new(f));
    }

    /// Somebody else writes whenever a task waits: for a lock that is held, or on a watch without news.
    pub fn while_waiting(&mut self, f: impl FnMut(&mut Writes) + 'static) {
        self.world.set_hook(Moment::Wait, Box::new(f));
    }

    /// Asked at every host call from now on; `Some` is what the call answers instead.
    pub fn inject(&mut self, f: impl FnMut(&Call<'_>) -> Option<Error> + 'static) {
        self.world.set_injection(Box::new(f));
    }

    /// Tasks are cancelled after so many host calls; `None`: not at all.
    pub fn cancel_after(&mut self, calls: Option<u64>) {
        self.world.with(|world| world.cancel_after = calls);
    }

    /// Tasks lose their lock after so many host calls; `None`: they keep it.
    pub fn lose_lock_after(&mut self, calls: Option<u64>) {
        self.world.with(|world| world.lose_lock_after = calls);
    }

    // Running.

    /// Delivers what is pending to every trigger until nothing is, as if a node had all the time it needs: retries without
    /// waiting, bisects a batch that fails, parks what never succeeds.
    pub fn run(&mut self) -> Ran {
        let mut ran = Ran::default();
        // A trigger may cause events of another one: go on until a whole round has nothing to do.
        loop {
            let before = ran;
            for index in 0..self.triggers.len() {
                while self.step(index, &mut ran) {}
            }
            if ran == before {
                return ran;
            }
        }
    }

    /// Delivers the last committed batch of every trigger again, although its effects are there; a rewind by an operator does
    /// that. A plugin whose effects depend on state alone must not mind.
    pub fn redeliver(&mut self) -> Ran {
        for trigger in &mut self.triggers {
            trigger.cursor = trigger.cursor_before;
        }
        self.run()
    }

    /// Delivers everything from a revision on again.
    pub fn rewind(&mut self, revision: u64) -> Ran {
        for trigger in &mut self.triggers {
            trigger.cursor = (revision.saturating_sub(1), u32::MAX);
            trigger.halted = None;
        }
        self.run()
    }

    /// Delivers the whole range of every trigger as a resync, then what is pending.
    pub fn resync(&mut self) -> Ran {
        let at = self.revision();
        for trigger in &mut self.triggers {
            trigger.resync = Some((at, None));
        }
        self.run()
    }

    /// Runs the task once, under its lock. A panic is told as a retry.
    ///
    /// # Errors
    /// The task's fault; a retry if another holds the task's lock.
    pub fn run_task(&mut self) -> Outcome {
        let Some(task) = self.task else { panic!("this plugin has no task") };
        let Some(schedule) = self.manifest.trigger.schedule.first() else { panic!("plugin.toml: no [[trigger.schedule]]") };
        let name = schedule.lock(&self.manifest.plugin.name);
        let lock = acquire(&self.world, name.as_bytes())?;
        let run = self.start(schedule.id.as_str(), 1, Some((lock.key.clone(), lock.create_revision)));
        let ended = catch(|| task(&mut TaskCx::new(Rc::clone(&run))));
        // What is still staged on `ok` is committed, as the host does.
        let ended = match ended {
            Ended::Ok if run.staged() > 0 => match run.commit_staged() {
                Ok(_) => Ended::Ok,
                Err(error) => Ended::Retry(error.to_string()),
            },
            ended => ended,
        };
        drop(lock);
        match ended {
            Ended::Ok => Ok(()),
            Ended::Retry(reason) => Err(Fault::Retry(reason)),
            Ended::Reject(reason) => Err(Fault::Reject(reason)),
        }
    }

    /// Holds a lock as another client would, until the harness is told to delete the key that is returned.
    pub fn hold_lock(&mut self, name: &str) -> Key {
        let key = Key::from(format!("{name}/other"));
        self.put(&key, "");
        key
    }

    // What came of it.

    /// Events that were given up.
    #[must_use]
    pub fn dead_letters(&self) -> &[DeadLetter] {
        &self.dead_letters
    }

    /// Why a trigger stands still, if one does.
    #[must_use]
    pub fn halted(&self) -> Option<&str> {
        self.triggers.iter().find_map(|trigger| trigger.halted.as_deref())
    }

    /// What was logged on this thread since the harness was made.
    #[must_use]
    pub fn logs(&self) -> Vec<LogLine> {
        LINES.with_borrow(Vec::clone)
    }

    fn start(&self, trigger: &str, attempt: u32, lock: Option<(Key, u64)>) -> Rc<Run> {
        let (manifest, config) = (Rc::clone(&self.manifest), Rc::new(self.config.clone()));
        Rc::new(Run::new(self.world.clone(), manifest, config, trigger.to_owned(), attempt, lock))
    }
}

/// Runs a handler; a panic is what a trap is in the host.
fn catch(handler: impl FnOnce() -> Outcome) -> Ended {
    match catch_unwind(AssertUnwindSafe(handler)) {
        Ok(Ok(())) => Ended::Ok,
        Ok(Err(Fault::Retry(reason))) => Ended::Retry(reason),
        Ok(Err(Fault::Reject(reason))) => Ended::Reject(reason),
        Err(panic) => {
            let reason = format!("trapped: {}", text(panic.as_ref()));
            log::error!(target: "panic", "{reason}");
            Ended::Retry(reason)
        }
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "panicked",
    }
}
