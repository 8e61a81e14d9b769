//! What a reactor is called with: changes, batches of them, and pages of a resync.
//!
//! Invariant: events of a batch are in order of (revision, sub).

use crate::{Entry, Error, Fault, Key, Payload, Raw};

/// What happened to the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T = Raw> {
    /// It was put; this is its state now.
    Put(Entry<T>),
    /// It was deleted, by a client or because its lease ended.
    Delete,
}

impl<T> Change<T> {
    /// The entry of a put.
    pub fn put(&self) -> Option<&Entry<T>> {
        match self {
            Change::Put(entry) => Some(entry),
            Change::Delete => None,
        }
    }
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<T = Raw> {
    /// Id of the trigger that asked for it.
    pub trigger: String,
    /// The key.
    pub key: Key,
    /// What happened.
    pub change: Change<T>,
    /// The revision of the change.
    pub revision: u64,
    /// Position among the changes of the same revision.
    pub sub: u32,
    /// The key's state just before, if the trigger asks for it (`prev = true`), it is not compacted, and it decodes.
    pub previous: Option<Entry<T>>,
    /// This is not a change but an entry of a resync: earlier changes of the key may have gone unseen.
    pub replayed: bool,
}

impl<T> Event<T> {
    /// The last segment of the key: `"b"` of `/a/b`.
    pub fn name(&self) -> &str {
        self.key.name()
    }

    /// The value of a put.
    pub fn value(&self) -> Option<&T> {
        self.change.put().map(|entry| &entry.value)
    }
}

impl Event<Raw> {
    /// The event with its values decoded. A previous value that does not decode is left out: a bad value of the past is no
    /// reason to refuse a good one now.
    ///
    /// # Errors
    /// [`Error::Decode`] naming the key, if the value that was put does not decode.
    pub fn decode<T: Payload>(self) -> Result<Event<T>, Error> {
        let change = match self.change {
            Change::Put(entry) => Change::Put(entry.decode()?),
            Change::Delete => Change::Delete,
        };
        let previous = self.previous.and_then(|entry| match entry.decode() {
            Ok(entry) => Some(entry),
            Err(error) => {
                log::debug!("the previous state is left out: {error}");
                None
            }
        });
        Ok(Event {
            trigger: self.trigger,
            key: self.key,
            change,
            revision: self.revision,
            sub: self.sub,
            previous,
            replayed: self.replayed,
        })
    }
}

/// The events of one run. What the run stages is committed together with the trigger's cursor behind the last of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T = Raw> {
    /// Id of the trigger.
    pub trigger: String,
    /// In order of (revision, sub). Not empty.
    pub events: Vec<Event<T>>,
    /// False when the last event's revision continues in the next batch.
    pub whole: bool,
}

impl Batch<Raw> {
    /// The batch with its values decoded.
    ///
    /// # Errors
    /// [`Fault::Reject`] naming the first key whose value does not decode.
    pub fn decode<T: Payload>(self) -> Result<Batch<T>, Fault> {
        let decode = |event: Event<Raw>| {
            let revision = event.revision;
            event.decode().map_err(|error| Fault::Reject(format!("event at revision {revision}: {error}")))
        };
        let events = self.events.into_iter().map(decode).collect::<Result<_, _>>()?;
        Ok(Batch { trigger: self.trigger, events, whole: self.whole })
    }
}

/// One page of the watched range, delivered when the changes since the trigger's cursor are compacted away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resync<T = Raw> {
    /// Id of the trigger.
    pub trigger: String,
    /// The revision of the scan.
    pub at: u64,
    /// In order of key; empty if the range is.
    pub entries: Vec<Entry<T>>,
    /// This is the first page.
    pub first: bool,
    /// This is the last page.
    pub last: bool,
}

impl Resync<Raw> {
    /// The page with its values decoded.
    ///
    /// # Errors
    /// [`Fault::Reject`] naming the first key whose value does not decode.
    pub fn decode<T: Payload>(self) -> Result<Resync<T>, Fault> {
        let at = self.at;
        let decode =
            |entry: Entry<Raw>| entry.decode().map_err(|error| Fault::Reject(format!("resync at revision {at}: {error}")));
        let entries = self.entries.into_iter().map(decode).collect::<Result<_, _>>()?;
        Ok(Resync { trigger: self.trigger, at, entries, first: self.first, last: self.last })
    }

    /// The page's entries as puts.
    pub fn into_events(self) -> Vec<Event<Raw>> {
        let trigger = self.trigger;
        let put = |entry: Entry<Raw>| Event {
            trigger: trigger.clone(),
            key: entry.key.clone(),
            revision: entry.mod_revision,
            sub: 0,
            change: Change::Put(entry),
            previous: None,
            replayed: true,
        };
        self.entries.into_iter().map(put).collect()
    }
}
