//! Every event of a store, by revision: what happened, as the store itself tells it.

use std::collections::BTreeMap;

use kvasir_api::mvccpb::Event;

use super::{Keys, Violation};

/// The revision of a store in which nothing was ever written.
pub(super) const EMPTY: i64 = 1;

/// The whole history of a store from its first write on.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// The events of each revision, with previous values, in order.
    revisions: BTreeMap<i64, Vec<Event>>,
    /// The keys after the last.
    keys: Keys,
}

impl Timeline {
    /// From the events of a watch of every key from revision 1 on, and the keys that a range showed after the last of them.
    ///
    /// # Errors
    /// `dense`: a revision is missing, or events are out of order; `rules`: an event, or the range, is not what etcd's rules make of
    /// the events before.
    pub fn new(events: impl IntoIterator<Item = Event>, range: Option<&Keys>) -> Result<Self, Violation> {
        let mut revisions = BTreeMap::<i64, Vec<Event>>::new();
        let mut keys = Keys::default();
        let mut last = EMPTY;
        for event in events {
            let Some(kv) = &event.kv else { return Err(dense(format!("an event without a key: {event:?}"))) };
            let at = kv.mod_revision;
            if at != last && at != last + 1 {
                return Err(dense(format!("revision {at} after revision {last}")));
            }
            if at == EMPTY {
                return Err(dense(format!("an event at revision {EMPTY}, which is the empty store's: {event:?}")));
            }
            last = at;
            let Some(expected) = keys.follow(&event, at) else {
                return Err(rules(format!("revision {at} deletes a key that is not there: {event:?}")));
            };
            if (event.r#type(), &event.kv) != (expected.r#type(), &expected.kv) {
                return Err(rules(format!("revision {at}: {event:?}, and etcd's rules make it {expected:?}")));
            }
            if event.prev_kv.is_some() && event.prev_kv != expected.prev_kv {
                return Err(rules(format!("revision {at}: {event:?}, and before it was {:?}", expected.prev_kv)));
            }
            let there = revisions.entry(at).or_default();
            if there.iter().any(|it| it.kv.as_ref().map(|kv| &kv.key) == expected.kv.as_ref().map(|kv| &kv.key)) {
                return Err(rules(format!("revision {at} changes a key twice: {event:?}")));
            }
            there.push(expected);
        }
        match range {
            Some(range) if *range != keys => {
                let how = format!("the keys at revision {last} are {range:?}, and the events make them {keys:?}");
                Err(rules(how))
            }
            _ => Ok(Self { revisions, keys }),
        }
    }

    /// The newest revision.
    pub fn last(&self) -> i64 {
        self.revisions.keys().next_back().copied().unwrap_or(EMPTY)
    }

    /// The events of a revision, with previous values.
    pub fn at(&self, revision: i64) -> &[Event] {
        self.revisions.get(&revision).map_or(&[], Vec::as_slice)
    }

    /// Revisions in order, and their events.
    pub fn revisions(&self) -> impl Iterator<Item = (i64, &[Event])> {
        self.revisions.iter().map(|(at, events)| (*at, events.as_slice()))
    }

    /// The keys after the last event.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }
}

fn dense(how: String) -> Violation {
    Violation { promise: "revisions are dense and in order", how }
}

fn rules(how: String) -> Violation {
    Violation { promise: "events are what etcd's rules make of the writes before", how }
}
