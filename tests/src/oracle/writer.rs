//! A client that remembers: it sends one request at a time and keeps what it was told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader,
    TxnRequest,
};

use super::{Door, Edit, Refusal};
use crate::Random;
use crate::client::prefix_end;

/// A lease that does not end while the tests run.
const LEASE_TTL_S: i64 = 86_400;
/// The one key that all writers change, by compare and put.
const SHARED_KEY: &str = "/shared/counter";

/// The highest revision that any client was told.
#[derive(Debug, Default)]
pub struct Floor(AtomicI64);

impl Floor {
    /// The highest so far.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    fn raise(&self, to: i64) {
        self.0.fetch_max(to, Ordering::SeqCst);
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It was answered.
    Answered,
    /// Its fate is unknown until the next verification; the writer must rest.
    Unknown(String),
}

/// A client with a range of keys of its own.
#[derive(Debug)]
pub struct Writer {
    id: u32,
    prefix: String,
    keys_max: u64,
    random: Random,
    sequence: u64,
    /// Its keys as they must be: value and lease.
    keys: BTreeMap<Bytes, (Bytes, i64)>,
    /// Its leases.
    leases: Vec<i64>,
    /// What it was told since the last verification: revision, and what happened at it.
    acknowledged: Vec<(i64, Vec<Edit>)>,
    /// The request whose fate is unknown.
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    edits: Vec<Edit>,
    lease: LeaseChange,
    /// Its edits were found in the history.
    happened: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseChange {
    None,
    Grant(i64),
    Revoke(i64),
}

impl Writer {
    /// A writer of keys that start with `prefix` and the writer's number, at most `keys_max` of them.
    pub fn new(id: u32, prefix: &str, keys_max: u64, random: Random) -> Self {
        Self {
            id,
            prefix: format!("{prefix}{id:03}/"),
            keys_max,
            random,
            sequence: 0,
            keys: BTreeMap::new(),
            leases: Vec::new(),
            acknowledged: Vec::new(),
            pending: None,
        }
    }

    /// The writer's number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// How many requests it has sent.
    pub fn sent(&self) -> u64 {
        self.sequence
    }

    /// Whether a request's fate is unknown, so that the writer must rest until the next verification.
    pub fn is_waiting(&self) -> bool {
        self.pending.is_some()
    }

    /// Sends one request of the seed's choice and waits for its answer.
    ///
    /// # Panics
    /// When the answer contradicts what the writer knows.
    pub async fn step<D: Door>(&mut self, door: &D, floor: &Floor) -> Step {
        assert!(self.pending.is_none(), "a writer rests until the fate of its request is known");
        self.sequence += 1;
        match self.random.below(100) {
            0..45 => self.put(door, floor).await,
            45..53 => self.delete(door, floor).await,
            53..57 => self.delete_range(door, floor).await,
            57..72 => self.txn(door, floor).await,
            72..82 => self.compare_and_put(door, floor).await,
            82..86 => self.grant(door, floor).await,
            86..88 => self.revoke(door, floor).await,
            _ => self.read(door, floor).await,
        }
    }

    async fn put<D: Door>(&mut self, door: &D, floor: &Floor) -> Step {
        let (key, value, lease) = (self.key(), self.value(), self.lease());
        let edit = Edit { key: key.clone(), put: Some((value.clone(), lease)) };
        let before = floor.get();
        self.pending = Some(Pending::of(vec![edit]));
        let answer = door.put(PutRequest { key, value, lease, ..PutRequest::default() }).await;
        self.written(answer.map(|answer| answer.header), before, floor)
    }

    async fn delete<D: Door>(&mut self, door: &D, floor: &Floor) -> Step {
        let key = self.key();
        self.delete_keys(door, floor, DeleteRangeRequest { key, ..DeleteRangeRequest::default() }).await
    }

    async fn delete_range<D: Door>(&mut self, door: &D, floor: &Floor) -> Step {
        let (a, b) = (self.key(), self.key());
        let (key, range_end) = if a < b { (a, b) } else { (b, a) };
        if key == range_end {
            return self.read(door, floor).await;
        }
        self.delete_keys(door, floor, DeleteRangeRequest { key, range_end, prev_kv: false }).await
    }

    async fn delete_keys<D: Door>(&mut self, door: &D, floor: &Floor, request: DeleteRangeRequest) -> Step {
        let edits = self.deletes(&request);
        let count = edits.len() as i64;
        let before = floor.get();
        self.pending = Some(Pending::of(edits));
        let answer = door.delete_range(request).await;
        if let Ok(answer) = &answer {
            assert_eq!(answer.deleted, count, "writer {}: keys deleted", self.id);
        }
        self.written(answer.map(|answer| answer.header), before, floor)
    }

    /// Several keys at once, under a condition that the writer knows to hold or not to hold.
    async fn txn<D: Door>(&mut self, door: &D, floor: &Floor) -> Step {
        let guard = self.key();
        let exists = self.keys.contains_key(&guard);
        let holds = self.random.chance(70);
        // "The key's version is above 0" is "the key exists"; the other branch is taken when that is not so.
        let result = if exists == holds { CompareResult::Greater } else { CompareResult::Equal };
        let compare = Compare {
            result: result.into(),
            target: CompareTarget::Version.into(),
            key: guard,
            target_union: Some(TargetUnion::Version(0)),
            ..Compare::default()
        };
        let mut edits = Vec::new();
        let mut ops = Vec::new();
        for _ in 0..2 + self.random.below(4) {
            let key = self.key();
            if edits.iter().any(|edit: &Edit| edit.key == key) {
                continue;
            }
            if self.random.chance(75) {
                let (value, lease) = (self.value(), self.lease());
                edits.push(Edit { key: key.clone(), put: Some((value.clone(), lease)) });
                let put = PutRequest { key, value, lease, ..PutRequest::default() };
                ops.push(RequestOp { request: Some(Request::RequestPut(put)) });
            } else if self.keys.contains_key(&key) {
                edits.push(Edit { key: key.clone(), put: None });
                let delete = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
                ops.push(RequestOp { request: Some(Request::RequestDeleteRange(delete)) });
            }
        }
        let other = vec![RequestOp { request: Some(Request::RequestPut(self.must_not_happen())) }];
        let (success, failure) = if holds { (ops, other) } else { (other, ops) };
        let before = floor.get();
        self.pending = Some(Pending::of(edits));
        let answer = door.txn(TxnRequest { compare: vec![compare], success, failure }).await;
        if let Ok(answer) = &answer {
            assert_eq!(answer.succeeded, holds, "writer {}: the branch taken", self.id);
        }
        self.written(answer.map(|answer| answer.header), before, floor)
    }

    /// Raises the shared counter by one if nobody else did meanwhile, and notes it under a key of its own in the same request.
    async fn compare_and_put<D: Door>(&mut self, door: &D, floor: &Floor) -> Step {
        let read = match door.range(RangeRequest { key: SHARED_KEY.into(), ..RangeRequest::default() }).await {
            Ok(answer) => answer.kvs.into_iter().next(),
            // A read has no fate.
            Err(refusal) => return Step::Unknown(format!("{refusal:?}")),
        };
        let count: u64 = read.as_ref().map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap());
        let (key, value) = (self.key(), self.value());
        let next = Bytes::from((count + 1).to_string());
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: SHARED_KEY.into(),
            target_union: Some(TargetUnion::ModRevision(read.map_or(0, |kv| kv.mod_revision))),
            ..Compare::default()
        };
        let edits = vec![
            Edit { key: key.clone(), put: Some((value.clone(), 0)) },
            Edit { key: SHARED_KEY.into(), put: Some((next.clone(), 0)) },
        ];
        let puts = [(key, value), (SHARED_KEY.into(), next)];
        let success = puts.into_iter().map(|(key, value)| RequestOp {
            request: Some(Request::RequestPut(PutRequest { key, value, ..PutRequest::default() })),
        });
        let before = floor.get();
        self.pending = Some(Pending::of(edits));
        let answer = door.txn(TxnRequest { compare: vec![compare], success: success.collect(), failure: vec![] }).await;
        if let Ok(answer) = &answer
            && !answer.succeeded
        {
            self.pending = Some(Pending::of(Vec::new()));
        }
        self.written(answer.map(|answer| answer.header), before, floor)
    }

    async fn grant<D: Door>(&mut self, door: &D, floor: &Floor) -> Step {
        if self.leases.len() >= 3 {
            return self.put(door, floor).await;
        }
        let id = i64::from(self.id + 1) << 32 | self.sequence as i64;
        let before = floor.get();
        self.pending = Some(Pending { lease: LeaseChange::Grant(id), ..Pending::of(Vec::new()) });
        let answer = door.lease_grant(LeaseGrantRequest { ttl: LEASE_TTL_S, id }).await;
        if let Ok(answer) = &answer {
            assert_eq!((answer.id, answer.ttl), (id, LEASE_TTL_S), "writer {}: the lease granted", self.id);
        }
        self.written(answer.map(|answer| answer.header), before, floor)
    }

    async fn revoke<D: Door>(&mut self, door: &D, floor: &Floor) -> Step {
        let Some(&id) = self.leases.first() else { return self.put(door, floor).await };
        let attached = self.keys.iter().filter(|(_, (_, lease))| *lease == id);
        let edits = attached.map(|(key, _)| Edit { key: key.clone(), put: None }).collect();
        let before = floor.get();
        self.pending = Some(Pending { lease: LeaseChange::Revoke(id), ..Pending::of(edits) });
        let answer = door.lease_revoke(LeaseRevokeRequest { id }).await;
        self.written(answer.map(|answer| answer.header), before, floor)
    }

    async fn read<D: Door>(&mut self, door: &D, floor: &Floor) -> Step {
        let before = floor.get();
        let request = RangeRequest {
            key: Bytes::copy_from_slice(self.prefix.as_bytes()),
            range_end: prefix_end(self.prefix.as_bytes()),
            ..RangeRequest::default()
        };
        let answer = match door.range(request).await {
            Ok(answer) => answer,
            Err(refusal) => return Step::Unknown(format!("{refusal:?}")),
        };
        let revision = answer.header.unwrap_or_default().revision;
        assert!(revision >= before, "writer {}: a read at {revision} after {before} was acknowledged", self.id);
        let told: Vec<_> = answer.kvs.iter().map(|kv| (&kv.key, (&kv.value, kv.lease))).collect();
        let known: Vec<_> = self.keys.iter().map(|(key, (value, lease))| (key, (value, *lease))).collect();
        assert_eq!(told, known, "writer {}: a linearizable read of its own keys at {revision}", self.id);
        Step::Answered
    }

    /// Takes in the answer to the pending write.
    fn written(&mut self, answer: Result<Option<ResponseHeader>, Refusal>, before: i64, floor: &Floor) -> Step {
        let header = match answer {
            Ok(header) => header.expect("every response has a header"),
            Err(Refusal::Unknown(why)) => return Step::Unknown(why),
            Err(Refusal::Definite(why)) => {
                // A full store may refuse; anything else the writers do is right and must be taken.
                assert!(why.contains("space exceeded"), "writer {}: refused: {why}", self.id);
                self.pending = None;
                return Step::Answered;
            }
        };
        let pending = self.pending.take().expect("an answer belongs to a request");
        let revision = header.revision;
        if pending.edits.is_empty() {
            assert!(revision >= before, "writer {}: {revision} after {before} was acknowledged", self.id);
        } else {
            assert!(revision > before, "writer {}: revision {revision} after {before} was acknowledged", self.id);
            self.acknowledged.push((revision, pending.edits.clone()));
        }
        floor.raise(revision);
        self.take_effect(pending);
        Step::Answered
    }

    fn take_effect(&mut self, pending: Pending) {
        for Edit { key, put } in pending.edits {
            match put {
                _ if key == SHARED_KEY => {}
                Some(kept) => drop(self.keys.insert(key, kept)),
                None => drop(self.keys.remove(&key)),
            }
        }
        match pending.lease {
            LeaseChange::None => {}
            LeaseChange::Grant(id) => self.leases.push(id),
            LeaseChange::Revoke(id) => self.leases.retain(|lease| *lease != id),
        }
    }

    fn deletes(&self, request: &DeleteRangeRequest) -> Vec<Edit> {
        let covered = |key: &Bytes| match request.range_end.is_empty() {
            true => *key == request.key,
            false => *key >= request.key && *key < request.range_end,
        };
        self.keys.keys().filter(|key| covered(key)).map(|key| Edit { key: key.clone(), put: None }).collect()
    }

    fn key(&mut self) -> Bytes {
        format!("{}{:03}", self.prefix, self.random.below(self.keys_max)).into()
    }

    /// A value that no other request has; now and then one that is longer than a disk's sector, or a page.
    fn value(&mut self) -> Bytes {
        let name = format!("{}.{}.{}", self.id, self.sequence, self.random.below(1_000_000));
        let padding = match self.random.below(20) {
            0 => self.random.below(9_000),
            1..5 => self.random.below(700),
            _ => 0,
        };
        let mut value = name.into_bytes();
        value.resize(value.len() + padding as usize, b'.');
        value.into()
    }

    fn lease(&mut self) -> i64 {
        if !self.leases.is_empty() && self.random.chance(25) { *self.random.pick(&self.leases) } else { 0 }
    }

    fn must_not_happen(&self) -> PutRequest {
        let key = format!("{}wrong-branch", self.prefix).into();
        PutRequest { key, value: self.sequence.to_string().into(), ..PutRequest::default() }
    }

    pub(super) fn take_acknowledged(&mut self) -> Vec<(i64, Vec<Edit>)> {
        std::mem::take(&mut self.acknowledged)
    }

    /// Whether these edits are the request whose fate was unknown; then it is known now.
    pub(super) fn resolve(&mut self, edits: &[Edit]) -> bool {
        match &mut self.pending {
            Some(pending) if !pending.happened && !pending.edits.is_empty() && pending.edits == edits => {
                pending.happened = true;
                true
            }
            _ => false,
        }
    }

    /// Every lease the writer knows, and whether it may be gone.
    pub(super) fn leases_to_check(&self) -> Vec<(i64, bool)> {
        let pending = self.pending.as_ref();
        let mut leases: Vec<_> = self
            .leases
            .iter()
            .map(|id| match pending {
                Some(it) if it.lease == LeaseChange::Revoke(*id) => (*id, it.happened || it.edits.is_empty()),
                _ => (*id, false),
            })
            .collect();
        if let Some(Pending { lease: LeaseChange::Grant(id), .. }) = pending {
            leases.push((*id, true));
        }
        leases
    }

    /// Takes in whether a lease is there; answers whether that can be.
    pub(super) fn lease_is(&mut self, id: i64, there: bool) -> bool {
        match &mut self.pending {
            Some(it) if it.lease == LeaseChange::Grant(id) => {
                it.happened = there;
                true
            }
            Some(it) if it.lease == LeaseChange::Revoke(id) => {
                // With keys the history has told already, and the lease must agree with it.
                let agrees = it.edits.is_empty() || it.happened != there;
                it.happened = !there;
                agrees
            }
            _ => there,
        }
    }

    /// The fate of the pending request is known: it counts, or it never was.
    pub(super) fn settled(&mut self) {
        if let Some(pending) = self.pending.take()
            && pending.happened
        {
            self.take_effect(pending);
        }
    }
}

impl Pending {
    fn of(edits: Vec<Edit>) -> Self {
        Self { edits, lease: LeaseChange::None, happened: false }
    }
}
