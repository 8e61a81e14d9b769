//! The host's side on wasm: bindings generated from `wit/`, and the backend over them.
//!
//! Invariant: the only file that knows the bindings' types. `TaskBackend` is implemented for [`Host`] but reached from tasks only,
//! so the linker drops what a reactor may not import.

use std::rc::Rc;

use crate::backend::{Backend, CursorBackend, LeaseStatus, LockBackend, Page, Position, TaskBackend};
use crate::handler::{Reactor, Task};
use crate::{Batch, Change, Cx, Entry, Error, Event, Fault, Key, Outcome, Raw, Resync, Selection, TaskCx};

/// Bindings of world `reactor-plugin`.
#[allow(missing_docs, unsafe_code, unreachable_pub, unused_qualifications, clippy::all)]
pub mod reactor_world {
    wit_bindgen::generate!({
        path: "../wit",
        world: "reactor-plugin",
        pub_export_macro: true,
        export_macro_name: "export_reactor",
    });
}

/// Bindings of world `task-plugin`, with the types of the other one.
#[allow(missing_docs, unsafe_code, unreachable_pub, unused_qualifications, clippy::all)]
pub mod task_world {
    wit_bindgen::generate!({
        path: "../wit",
        world: "task-plugin",
        pub_export_macro: true,
        export_macro_name: "export_task",
        with: {
            "kvasir:plugin/types@0.1.0": crate::host::reactor_world::kvasir::plugin::types,
            "kvasir:plugin/kv@0.1.0": crate::host::reactor_world::kvasir::plugin::kv,
            "kvasir:plugin/log@0.1.0": crate::host::reactor_world::kvasir::plugin::log,
            "kvasir:plugin/context@0.1.0": crate::host::reactor_world::kvasir::plugin::context,
        },
    });
}

use reactor_world::exports::kvasir::plugin::reactor as wit_reactor;
use reactor_world::kvasir::plugin::{context, kv, log as wit_log, types};
use task_world::kvasir::plugin::{lease, lock, watch};

/// Sends a line to the host.
pub(crate) fn log(level: log::Level, target: &str, message: &str) {
    let level = match level {
        log::Level::Error => wit_log::Level::Error,
        log::Level::Warn => wit_log::Level::Warn,
        log::Level::Info => wit_log::Level::Info,
        log::Level::Debug => wit_log::Level::Debug,
        log::Level::Trace => wit_log::Level::Trace,
    };
    wit_log::log(level, target, message);
}

/// Runs a reactor's `on-events`.
pub fn on_events<R: Reactor>(batch: wit_reactor::Batch) -> Result<(), types::Fault> {
    crate::logger::install();
    let events = batch.events.into_iter().map(|event| from_event(&batch.trigger, event)).collect();
    let batch = Batch { trigger: batch.trigger, events, whole: batch.whole };
    into_fault(R::on_events(&mut Cx::new(Rc::new(Host)), batch))
}

/// Runs a reactor's `on-resync`.
pub fn on_resync<R: Reactor>(page: wit_reactor::Resync) -> Result<(), types::Fault> {
    crate::logger::install();
    let entries = page.entries.into_iter().map(from_entry).collect();
    let page = Resync { trigger: page.trigger, at: page.at, entries, first: page.first, last: page.last };
    into_fault(R::on_resync(&mut Cx::new(Rc::new(Host)), page))
}

/// Runs a task.
pub fn run<T: Task>() -> Result<(), types::Fault> {
    crate::logger::install();
    into_fault(T::run(&mut TaskCx::new(Rc::new(Host))))
}

fn into_fault(outcome: Outcome) -> Result<(), types::Fault> {
    outcome.map_err(|fault| match fault {
        Fault::Retry(message) => types::Fault::Retry(message),
        Fault::Reject(message) => types::Fault::Reject(message),
    })
}

/// The host's imports.
struct Host;

impl Backend for Host {
    fn get(&self, key: &[u8]) -> Result<Option<Entry<Raw>>, Error> {
        kv::get(key).map(|entry| entry.map(from_entry)).map_err(from_error)
    }

    fn scan(&self, what: &Selection, after: Option<&[u8]>, limit: u32, keys_only: bool) -> Result<Page, Error> {
        let options = kv::ScanOptions { after: after.map(<[u8]>::to_vec), limit, keys_only };
        let page = kv::scan(&into_selection(what), &options).map_err(from_error)?;
        Ok(Page { entries: page.entries.into_iter().map(from_entry).collect(), more: page.more })
    }

    fn put(&self, key: &[u8], value: &[u8], lease: Option<u64>) -> Result<(), Error> {
        kv::put(key, value, lease).map_err(from_error)
    }

    fn delete(&self, key: &[u8]) -> Result<(), Error> {
        kv::delete(key).map_err(from_error)
    }

    fn require_unchanged(&self, key: &[u8]) -> Result<(), Error> {
        kv::require_unchanged(key).map_err(from_error)
    }

    fn snapshot_revision(&self) -> u64 {
        kv::snapshot_revision()
    }

    fn plugin(&self) -> String {
        context::plugin()
    }

    fn trigger(&self) -> String {
        context::trigger()
    }

    fn config(&self, name: &str) -> Option<String> {
        context::config(name)
    }

    fn attempt(&self) -> u32 {
        context::attempt()
    }

    fn now_ms(&self) -> u64 {
        context::now_ms()
    }

    fn cancelled(&self) -> bool {
        context::cancelled()
    }
}

impl TaskBackend for Host {
    fn commit(&self) -> Result<u64, Error> {
        kv::commit().map_err(from_error)
    }

    fn fencing_token(&self) -> Option<u64> {
        context::fencing_token()
    }

    fn watch(&self, what: &Selection, start: Option<Position>) -> Result<Box<dyn CursorBackend>, Error> {
        let start = start.map(|Position { revision, sub }| watch::Position { revision, sub });
        let cursor = watch::Cursor::open(&into_selection(what), start).map_err(from_error)?;
        Ok(Box::new(HostCursor { cursor, trigger: context::trigger() }))
    }

    fn lease_grant(&self, ttl_s: u64) -> Result<u64, Error> {
        lease::grant(ttl_s).map_err(from_error)
    }

    fn lease_keep_alive(&self, id: u64) -> Result<LeaseStatus, Error> {
        lease::keep_alive(id).map(from_status).map_err(from_error)
    }

    fn lease_revoke(&self, id: u64) -> Result<(), Error> {
        lease::revoke(id).map_err(from_error)
    }

    fn lease_time_to_live(&self, id: u64) -> Result<LeaseStatus, Error> {
        lease::time_to_live(id).map(from_status).map_err(from_error)
    }

    fn lock(&self, name: &[u8], wait_ms: u64) -> Result<Box<dyn LockBackend>, Error> {
        let handle = lock::acquire(name, wait_ms).map_err(from_error)?;
        Ok(Box::new(HostLock(handle)))
    }
}

struct HostCursor {
    cursor: watch::Cursor,
    trigger: String,
}

impl CursorBackend for HostCursor {
    fn next(&mut self, max_events: u32, wait_ms: u64) -> Result<Vec<Event<Raw>>, Error> {
        let events = self.cursor.next(max_events, wait_ms).map_err(from_error)?;
        Ok(events.into_iter().map(|event| from_event(&self.trigger, event)).collect())
    }

    fn position(&self) -> Position {
        let watch::Position { revision, sub } = self.cursor.position();
        Position { revision, sub }
    }
}

struct HostLock(lock::Handle);

impl LockBackend for HostLock {
    fn fencing_token(&self) -> u64 {
        self.0.fencing_token()
    }

    fn key(&self) -> Key {
        Key::from(self.0.key())
    }
}

fn from_status(status: lease::Status) -> LeaseStatus {
    LeaseStatus { ttl_s: status.ttl_s, granted_ttl_s: status.granted_ttl_s }
}

fn from_entry(entry: types::Entry) -> Entry<Raw> {
    Entry {
        key: Key::from(entry.key),
        value: Raw(entry.value),
        create_revision: entry.create_revision,
        mod_revision: entry.mod_revision,
        version: entry.version,
        lease: entry.lease,
    }
}

fn from_event(trigger: &str, event: types::Event) -> Event<Raw> {
    let (key, revision, change) = match event.change {
        types::Change::Put(entry) => {
            let entry = from_entry(entry);
            (entry.key.clone(), entry.mod_revision, Change::Put(entry))
        }
        types::Change::Delete(tombstone) => (Key::from(tombstone.key), tombstone.mod_revision, Change::Delete),
    };
    let previous = event.previous.map(from_entry);
    Event { trigger: trigger.to_owned(), key, change, revision, sub: event.sub, previous, replayed: false }
}

fn from_error(error: types::Error) -> Error {
    match error {
        types::Error::Denied(text) => Error::Denied(text),
        types::Error::Invalid(text) => Error::Invalid(text),
        types::Error::Conflict(text) => Error::Conflict(text),
        types::Error::Limit(text) => Error::Limit(text),
        types::Error::NotFound(text) => Error::NotFound(text),
        types::Error::Compacted(revision) => Error::Compacted(revision),
        types::Error::Unavailable(text) => Error::Unavailable(text),
        types::Error::Unsupported(text) => Error::Unsupported(text),
        types::Error::Other(text) => Error::Other(text),
    }
}

fn into_selection(what: &Selection) -> types::Selection {
    match what {
        Selection::Key(key) => types::Selection::Key(key.to_vec()),
        Selection::Prefix(prefix) => types::Selection::Prefix(prefix.to_vec()),
        Selection::Span(from, to) => types::Selection::Span((from.to_vec(), to.to_vec())),
    }
}
