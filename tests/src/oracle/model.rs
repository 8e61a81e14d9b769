//! A naive model of etcd's key space, and the judgement of a history by it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kvasir_api::etcdserverpb::{LeaseTimeToLiveRequest, RangeRequest, RangeResponse};
use kvasir_api::mvccpb::event::EventType;
use kvasir_api::mvccpb::{Event, KeyValue};

use super::{Door, Floor, Writer};
use crate::client::revision_of;

/// One change that a request makes to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The key.
    pub key: Bytes,
    /// Value and lease (0: none) of a put; `None` is a delete.
    pub put: Option<(Bytes, i64)>,
}

/// The keys at one revision, by etcd's rules and nothing clever.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    /// Every live key.
    pub keys: BTreeMap<Bytes, KeyValue>,
}

impl Model {
    /// Applies one change and answers with the event that a watcher must see for it.
    pub fn apply(&mut self, edit: &Edit, revision: i64) -> Event {
        let key = edit.key.clone();
        match &edit.put {
            Some((value, lease)) => {
                let before = self.keys.get(&key);
                let kv = KeyValue {
                    key: key.clone(),
                    create_revision: before.map_or(revision, |kv| kv.create_revision),
                    mod_revision: revision,
                    version: before.map_or(0, |kv| kv.version) + 1,
                    value: value.clone(),
                    lease: *lease,
                };
                self.keys.insert(key, kv.clone());
                Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: None }
            }
            None => {
                self.keys.remove(&key);
                let kv = KeyValue { key, mod_revision: revision, ..KeyValue::default() };
                Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: None }
            }
        }
    }

    fn values(&self) -> Vec<&KeyValue> {
        self.keys.values().collect()
    }
}

/// All that is known to be true of a store: its history up to the last verification.
#[derive(Debug, Default)]
pub struct Oracle {
    /// The keys at `verified`.
    model: Model,
    /// Every event up to `verified`, by revision.
    history: BTreeMap<i64, Vec<Edit>>,
    /// Everything up to here is checked, and must never change again.
    verified: i64,
    /// The highest compaction that was acknowledged.
    compacted: i64,
    /// The highest compaction that was asked for: it may be in force, or may not.
    compacting: i64,
}

impl Oracle {
    /// Of an empty store, which is at revision 1.
    pub fn new() -> Self {
        Self { verified: 1, ..Self::default() }
    }

    /// The revision up to which everything is checked.
    pub fn verified(&self) -> i64 {
        self.verified
    }

    /// The keys at the last verification.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Notes that a compaction is asked for.
    pub fn compacting(&mut self, revision: i64) {
        assert!(revision <= self.verified, "the tests compact only what they have verified");
        self.compacting = self.compacting.max(revision);
    }

    /// Notes an acknowledged compaction; only of revisions that have been verified, so that the oracle knows them.
    pub fn compacted(&mut self, revision: i64) {
        assert!(revision <= self.verified, "the tests compact only what they have verified");
        self.compacted = self.compacted.max(revision);
        self.compacting = self.compacting.max(revision);
    }

    /// The keys at an older revision, from the oracle's own records.
    pub fn model_at(&self, revision: i64) -> Model {
        let mut model = Model::default();
        for (at, edits) in self.history.range(..=revision) {
            for edit in edits {
                model.apply(edit, *at);
            }
        }
        model
    }

    /// Every event of the recorded history whose key starts with `prefix`: how many.
    pub fn events_under(&self, prefix: &[u8]) -> usize {
        self.history.values().flatten().filter(|edit| edit.key.starts_with(prefix)).count()
    }

    /// How many events of the recorded history are of this key.
    pub fn events_under_exactly(&self, key: &[u8]) -> usize {
        self.history.values().flatten().filter(|edit| edit.key == key).count()
    }

    /// The lowest revision that is certainly still there.
    pub fn oldest(&self) -> i64 {
        self.compacting.max(2)
    }

    /// Checks a store that is idle (it has just come back, or all writers rest) against everything the writers were told.
    /// Revisions whose keys all satisfy `foreign` are somebody else's writes: only etcd's rules are checked of them.
    ///
    /// # Panics
    /// When the store has broken its word: says which.
    pub async fn verify<D: Door>(&mut self, door: &D, writers: &mut [Writer], floor: &Floor, foreign: impl Fn(&[u8]) -> bool) {
        let everything = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
        let range = door.range(everything).await.expect("a store that came back serves reads");
        let revision = range.header.as_ref().expect("every response has a header").revision;
        assert!(revision >= floor.get(), "revisions went back: {revision}, but {} was acknowledged", floor.get());
        assert!(revision >= self.verified, "revisions went back: {revision}, but {} was seen", self.verified);

        let events = door.history(self.verified + 1, revision).await.expect("the history since the last check can be watched");
        let mut by_revision = BTreeMap::<i64, Vec<Event>>::new();
        let mut last = self.verified;
        for event in events {
            let at = revision_of(&event);
            assert!(at >= last, "events out of order: {at} after {last}");
            last = at;
            by_revision.entry(at).or_default().push(event);
        }
        let expected: Vec<i64> = (self.verified + 1..=revision).collect();
        let seen: Vec<i64> = by_revision.keys().copied().collect();
        assert_eq!(seen, expected, "each revision up to {revision} has its events");

        let mut acknowledged = BTreeMap::<i64, (u32, Vec<Edit>)>::new();
        for writer in writers.iter_mut() {
            for (at, edits) in writer.take_acknowledged() {
                let other = acknowledged.insert(at, (writer.id(), edits));
                assert!(other.is_none(), "revision {at} was given to two requests");
            }
        }
        for (at, events) in by_revision {
            let edits: Vec<Edit> = events.iter().map(edit_of).collect();
            if let Some((writer, told)) = acknowledged.remove(&at) {
                assert_eq!(edits, told, "revision {at}, acknowledged to writer {writer}, is not what it was told");
            } else if !edits.iter().all(|edit| foreign(&edit.key)) {
                let matched = writers.iter_mut().any(|writer| writer.resolve(&edits));
                assert!(matched, "revision {at} is nobody's request, or half of one: {edits:?}");
            }
            let told: Vec<Event> = edits.iter().map(|edit| self.model.apply(edit, at)).collect();
            assert_eq!(events, told, "revision {at}: the events are not what etcd's rules make of the requests");
            self.history.insert(at, edits);
        }
        assert!(acknowledged.is_empty(), "acknowledged, but lost: {acknowledged:?}");
        assert_eq!(
            range.kvs.iter().collect::<Vec<_>>(),
            self.model.values(),
            "the keys at {revision} are not what the history makes"
        );
        self.verified = revision;
        for writer in writers.iter_mut() {
            self.verify_leases(door, writer).await;
        }
    }

    async fn verify_leases<D: Door>(&self, door: &D, writer: &mut Writer) {
        for (id, may_be_missing) in writer.leases_to_check() {
            let request = LeaseTimeToLiveRequest { id, keys: true };
            let answer = door.lease_time_to_live(request).await.expect("a store that came back knows its leases");
            if answer.ttl == -1 {
                assert!(may_be_missing, "lease {id:x} of writer {} was acknowledged, but is not there", writer.id());
                writer.lease_is(id, false);
                continue;
            }
            assert!(writer.lease_is(id, true), "lease {id:x} of writer {} was revoked, but is there", writer.id());
            let attached: BTreeSet<&Bytes> = self.model.keys.values().filter(|kv| kv.lease == id).map(|kv| &kv.key).collect();
            let told: BTreeSet<&Bytes> = answer.keys.iter().collect();
            assert_eq!(told, attached, "keys of lease {id:x}");
            assert!(answer.ttl > 0 && answer.ttl <= answer.granted_ttl, "lease {id:x}: {answer:?}");
        }
        writer.settled();
    }

    /// Checks that an old revision still reads as it was.
    ///
    /// # Panics
    /// When it does not.
    pub async fn verify_past<D: Door>(&self, door: &D, revision: i64) {
        let request = RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..RangeRequest::default() };
        match door.range(request).await {
            Ok(range) => {
                assert!(revision >= self.compacted, "revision {revision} was compacted ({}), but reads", self.compacted);
                self.judge_past(&range, revision);
            }
            Err(refusal) => {
                let compacting = self.compacting;
                assert!(revision < compacting, "revision {revision} is not compacted ({compacting}), but: {refusal:?}");
            }
        }
    }

    /// Checks a range of everything at an old revision.
    ///
    /// # Panics
    /// When it is not as it was.
    pub fn judge_past(&self, range: &RangeResponse, revision: i64) {
        let model = self.model_at(revision);
        assert_eq!(range.kvs.iter().collect::<Vec<_>>(), model.values(), "the keys as they were at {revision}");
    }

    /// Checks that a watch from an old revision still tells everything since.
    ///
    /// # Panics
    /// When it does not.
    pub async fn verify_history<D: Door>(&self, door: &D, from: i64) {
        let events = door.history(from, self.verified).await.expect("a revision that is not compacted can be watched");
        let told: Vec<(i64, Edit)> = events.iter().map(|event| (revision_of(event), edit_of(event))).collect();
        let known = self.history.range(from..=self.verified);
        let known: Vec<(i64, Edit)> = known.flat_map(|(at, edits)| edits.iter().map(move |edit| (*at, edit.clone()))).collect();
        assert_eq!(told.len(), known.len(), "a watch from {from} is not complete");
        assert!(told == known, "a watch from {from} does not tell what happened");
    }
}

fn edit_of(event: &Event) -> Edit {
    let kv = event.kv.as_ref().expect("an event has a key");
    let put = (event.r#type() == EventType::Put).then(|| (kv.value.clone(), kv.lease));
    Edit { key: kv.key.clone(), put }
}
