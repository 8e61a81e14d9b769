//! A key's state, and how its value becomes the plugin's type.
//!
//! Invariant: decoding happens once, at the edge; a handler sees values of its own type or does not run.

use serde::de::DeserializeOwned;

use crate::{Error, Key};

/// A key's state at some revision. Of a put that this run has staged, the revisions and the version are 0: its commit decides them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<T = Raw> {
    /// The key.
    pub key: Key,
    /// The value, decoded.
    pub value: T,
    /// Revision of the put that created this generation of the key.
    pub create_revision: u64,
    /// Revision of the last put.
    pub mod_revision: u64,
    /// Puts since creation; 1 on the first.
    pub version: u64,
    /// Lease the key is attached to.
    pub lease: Option<u64>,
}

impl<T> Entry<T> {
    /// The same entry with another value.
    pub fn with_value<U>(self, value: U) -> Entry<U> {
        Entry {
            key: self.key,
            value,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

impl Entry<Raw> {
    /// The entry with its value decoded.
    ///
    /// # Errors
    /// [`Error::Decode`] naming the key.
    pub fn decode<T: Payload>(mut self) -> Result<Entry<T>, Error> {
        let raw = std::mem::take(&mut self.value);
        match T::decode(raw) {
            Ok(value) => Ok(self.with_value(value)),
            Err(reason) => Err(Error::Decode { key: self.key.to_string(), reason }),
        }
    }
}

/// A value as it is stored: the way to opt out of JSON, as in `Event<Raw>`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Hash)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    /// The value as text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl std::ops::Deref for Raw {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Raw {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A type that values are decoded into: everything that serde reads from JSON, and [`Raw`].
pub trait Payload: Sized {
    /// Reads a stored value.
    ///
    /// # Errors
    /// A reason for a person, without the key.
    fn decode(raw: Raw) -> Result<Self, String>;
}

impl<T: DeserializeOwned> Payload for T {
    fn decode(raw: Raw) -> Result<Self, String> {
        serde_json::from_slice(&raw.0).map_err(|error| error.to_string())
    }
}

impl Payload for Raw {
    fn decode(raw: Raw) -> Result<Self, String> {
        Ok(raw)
    }
}
