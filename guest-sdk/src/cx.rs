//! `Cx`: what a handler may do with the store.
//!
//! Invariant: nothing here is visible to others before the run's commit. Reads see one snapshot with this run's own staged writes
//! over it; what was read becomes guards of the commit.

use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::Backend;
use crate::scan::Scan;
use crate::{Entry, Error, Key, Raw, Selection};

/// A run's view of the store and of itself.
///
/// In a reactor, what is staged is committed when the handler returns `Ok`, together with the trigger's cursor: exactly once. In a
/// task, [`TaskCx::commit`](crate::TaskCx::commit) does it.
pub struct Cx {
    backend: Rc<dyn Backend>,
}

impl Cx {
    pub(crate) fn new(backend: Rc<dyn Backend>) -> Self {
        Cx { backend }
    }

    /// The key's state, `None` if it does not exist. The run depends on it from now on.
    ///
    /// # Errors
    /// [`Error::Denied`] without a read grant for the key; [`Error::Limit`] past the host-call limit.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Entry<Raw>>, Error> {
        self.backend.get(key.as_ref())
    }

    /// The key's state with its value read as JSON.
    ///
    /// # Errors
    /// [`Error::Decode`] if the value is not such JSON; otherwise as [`Cx::get`].
    pub fn get_json<T: DeserializeOwned>(&self, key: impl AsRef<[u8]>) -> Result<Option<Entry<T>>, Error> {
        self.get(key)?.map(Entry::decode).transpose()
    }

    /// Every selected key with its value, in order of key, page by page. Writes staged meanwhile are seen if they are ahead.
    ///
    /// ```
    /// # fn example(cx: &kvasir_guest::Cx) -> kvasir_guest::Outcome {
    /// use kvasir_guest::Selection;
    /// for entry in cx.scan(Selection::prefix("/config/")) {
    ///     log::info!("{}", entry?.key);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan(&self, what: Selection) -> Scan {
        Scan::new(Rc::clone(&self.backend), what)
    }

    /// Stages a put. A second put of the same key in one run replaces the first.
    ///
    /// # Errors
    /// [`Error::Denied`] without a write grant for the key; [`Error::Limit`] past the staged-ops or staged-bytes limit.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.backend.put(key.as_ref(), value.as_ref(), None)
    }

    /// Stages a put of a key that disappears with the lease.
    ///
    /// # Errors
    /// As [`Cx::put`]; [`Error::NotFound`] if there is no such lease.
    pub fn put_with_lease(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, lease: u64) -> Result<(), Error> {
        self.backend.put(key.as_ref(), value.as_ref(), Some(lease))
    }

    /// Stages a put of the value written as JSON.
    ///
    /// # Errors
    /// [`Error::Encode`] if the value cannot be JSON; otherwise as [`Cx::put`].
    pub fn put_json<T: Serialize + ?Sized>(&mut self, key: impl AsRef<[u8]>, value: &T) -> Result<(), Error> {
        let key = key.as_ref();
        let bytes = serde_json::to_vec(value)
            .map_err(|error| Error::Encode { key: Key::from(key).to_string(), reason: error.to_string() })?;
        self.put(key, bytes)
    }

    /// Stages a delete; of a key that does not exist, it does nothing.
    ///
    /// # Errors
    /// As [`Cx::put`].
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> Result<(), Error> {
        self.backend.delete(key.as_ref())
    }

    /// Makes the run depend on the key being as this snapshot has it, without reading the value.
    ///
    /// # Errors
    /// As [`Cx::get`].
    pub fn require_unchanged(&self, key: impl AsRef<[u8]>) -> Result<(), Error> {
        self.backend.require_unchanged(key.as_ref())
    }

    /// The revision this run reads at.
    pub fn snapshot_revision(&self) -> u64 {
        self.backend.snapshot_revision()
    }

    /// The plugin's name.
    pub fn plugin(&self) -> String {
        self.backend.plugin()
    }

    /// Id of the trigger that started this run.
    pub fn trigger(&self) -> String {
        self.backend.trigger()
    }

    /// A value of the manifest's `[config]`, as overridden at installation.
    pub fn config(&self, name: &str) -> Option<String> {
        self.backend.config(name)
    }

    /// 1 on the first attempt at this input.
    pub fn attempt(&self) -> u32 {
        self.backend.attempt()
    }

    /// Wall time at the start of the run. The same for the whole run.
    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.now_ms())
    }

    /// [`Cx::now`] in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.backend.now_ms()
    }

    /// The run should end soon: its lock is lost, the plugin is stopped or the node shuts down.
    pub fn cancelled(&self) -> bool {
        self.backend.cancelled()
    }
}
