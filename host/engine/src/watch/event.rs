//! An event: a change, and its encoding as part of a watch response.
//!
//! **Invariant:** an event is encoded at most once with and once without the replaced version, whoever watches it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use kvasir_api::mvccpb::KeyValue;
use kvasir_api::mvccpb::event::EventType;
use kvasir_machine::{Change, Row};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// Field number of `WatchResponse.events`.
const EVENTS_FIELD: u32 = 11;

/// A change as watchers see it.
#[derive(Debug)]
pub(crate) struct Event {
    change: Change,
    plain: OnceLock<Bytes>,
    with_prev: OnceLock<Bytes>,
}

impl Event {
    pub(crate) fn new(change: Change) -> Arc<Self> {
        Arc::new(Self { change, plain: OnceLock::new(), with_prev: OnceLock::new() })
    }

    pub(crate) fn row(&self) -> &Arc<Row> {
        &self.change.row
    }

    pub(crate) fn change(&self) -> &Change {
        &self.change
    }

    pub(crate) fn main(&self) -> u64 {
        self.change.row.rev.main
    }

    /// What it weighs in memory, in bytes, roughly.
    pub(crate) fn weight(&self) -> usize {
        let row = |row: &Row| row.key.len() + row.value.len() + 128;
        row(&self.change.row) + self.change.prev.as_deref().map_or(0, row)
    }

    #[cfg(test)]
    pub(super) fn is_encoded(&self) -> bool {
        self.plain.get().is_some() || self.with_prev.get().is_some()
    }

    /// The event as a field of a watch response: tag, length, message.
    pub(super) fn field(&self, prev_kv: bool) -> &Bytes {
        // Without a replaced version both encodings are the same one.
        let prev = self.change.prev.as_ref().filter(|_| prev_kv);
        let cell = if prev.is_some() { &self.with_prev } else { &self.plain };
        cell.get_or_init(|| {
            let row = &self.change.row;
            let kind = if row.tombstone { EventType::Delete } else { EventType::Put };
            let event = kvasir_api::mvccpb::Event {
                r#type: kind as i32,
                kv: Some(row.to_key_value()),
                prev_kv: prev.map(|prev| -> KeyValue { prev.to_key_value() }),
            };
            let len = event.encoded_len();
            let mut out = Vec::with_capacity(len + 1 + encoded_len_varint(len as u64));
            encode_key(EVENTS_FIELD, WireType::LengthDelimited, &mut out);
            encode_varint(len as u64, &mut out);
            event.encode_raw(&mut out);
            Bytes::from(out)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasir_api::etcdserverpb::WatchResponse;
    use kvasir_machine::Rev;

    #[test]
    fn an_event_field_decodes_as_an_event_of_a_watch_response() {
        let row = |main, tombstone| Row {
            rev: Rev { main, sub: 0 },
            prev: None,
            tenant: 0,
            key: Bytes::from_static(b"k"),
            value: if tombstone { Bytes::new() } else { Bytes::from_static(b"v") },
            create_revision: if tombstone { 0 } else { 2 },
            version: u64::from(!tombstone),
            lease: 0,
            tombstone,
            origin_plugin: None,
            origin_depth: 0,
        };
        let event = Event::new(Change { row: Arc::new(row(3, true)), prev: Some(Arc::new(row(2, false))) });
        let plain = WatchResponse::decode(event.field(false).clone()).expect("decodes");
        assert_eq!(plain.events.len(), 1);
        assert_eq!(plain.events[0].r#type, EventType::Delete as i32);
        assert!(plain.events[0].prev_kv.is_none());
        let kv = plain.events[0].kv.clone().expect("has a key");
        assert_eq!((kv.key.as_ref(), kv.mod_revision, kv.create_revision), (&b"k"[..], 3, 0));
        let with_prev = WatchResponse::decode(event.field(true).clone()).expect("decodes");
        assert_eq!(with_prev.events[0].prev_kv.clone().expect("prev").value.as_ref(), b"v");
    }
}
