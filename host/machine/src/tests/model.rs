//! Random commands against a model that is obviously right: a full copy of all keys for every revision.

use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map::Entry};

use bytes::Bytes;
use kvasir_api::command::{Command, LeaseRenew, Tick, command::Body};
use kvasir_api::etcdserverpb::compare::{CompareResult, TargetUnion};
use kvasir_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use kvasir_api::{Error, limits};
use proptest::prelude::*;
use proptest::sample::select;

use super::harness::*;
use crate::{CompactProgress, DeleteRangeReply, Item, OpReply, PutReply, RangeReply, Reply, Rev, TxnReply, ValueSlot};

/// A second tenant.
const OTHER: u64 = 7;

#[derive(Debug, Clone, PartialEq)]
struct Value {
    bytes: Bytes,
    created: u64,
    modified: u64,
    version: u64,
    lease: i64,
}

type Keys = BTreeMap<Bytes, Value>;

/// Every revision, whole; every change; every lease with its deadline.
struct Model {
    revisions: Vec<Keys>,
    changes: Vec<(Rev, Bytes, bool)>,
    leases: BTreeMap<i64, (u64, u64)>,
    compacted: i64,
    /// What another tenant has now: its writes bump the same revisions.
    other: Keys,
}

/// A revision being written: the keys, and changes so far.
struct Draft {
    main: u64,
    keys: Keys,
    changes: Vec<(Rev, Bytes, bool)>,
}

fn in_range(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}

impl Draft {
    fn note(&mut self, key: &Bytes, tombstone: bool) {
        self.changes.push((Rev::new(self.main, self.changes.len() as u32), key.clone(), tombstone));
    }

    fn put(&mut self, put: &PutRequest) {
        let main = self.main;
        let old = self.keys.get(&put.key).cloned();
        let new = Value {
            bytes: if put.ignore_value { old.clone().unwrap().bytes } else { put.value.clone() },
            lease: if put.ignore_lease { old.clone().unwrap().lease } else { put.lease },
            created: old.as_ref().map_or(main, |old| old.created),
            modified: main,
            version: old.as_ref().map_or(0, |old| old.version) + 1,
        };
        self.keys.insert(put.key.clone(), new);
        self.note(&put.key, false);
    }

    /// Returns what was deleted.
    fn delete(&mut self, start: &[u8], end: &[u8]) -> Vec<Item> {
        let doomed: Vec<_> =
            self.keys.iter().filter(|(key, _)| in_range(key, start, end)).map(|(k, v)| item(k, v, false)).collect();
        for item in &doomed {
            self.keys.remove(&item.key);
            self.note(&item.key, true);
        }
        doomed
    }

    /// Runs a put and compares what the machine answered.
    fn check_put(&mut self, put: &PutRequest, reply: &PutReply) {
        let before = self.keys.get(&put.key).filter(|_| put.prev_kv).map(|value| item(&put.key, value, false));
        assert_eq!(before.as_slice(), without_subs(reply.prev.as_slice()));
        self.put(put);
        assert_eq!(reply.revision, self.main);
    }

    /// Runs a delete and compares what the machine answered.
    fn check_delete(&mut self, delete: &DeleteRangeRequest, reply: &DeleteRangeReply) {
        let deleted = self.delete(&delete.key, &delete.range_end);
        assert_eq!(reply.deleted, deleted.len() as u64);
        assert_eq!(without_subs(&reply.prevs), if delete.prev_kv { deleted } else { Vec::new() });
        assert_eq!(reply.revision, self.current());
    }

    fn current(&self) -> u64 {
        if self.changes.is_empty() { self.main - 1 } else { self.main }
    }
}

fn holds(keys: &Keys, compare: &Compare) -> bool {
    let one = |value: Option<&Value>| {
        let ordering = match compare.target_union.as_ref().unwrap() {
            TargetUnion::Version(x) => (value.map_or(0, |value| value.version) as i64).cmp(x),
            TargetUnion::CreateRevision(x) => (value.map_or(0, |value| value.created) as i64).cmp(x),
            TargetUnion::ModRevision(x) => (value.map_or(0, |value| value.modified) as i64).cmp(x),
            TargetUnion::Lease(x) => value.map_or(0, |value| value.lease).cmp(x),
            TargetUnion::Value(x) => match value {
                None => return false,
                Some(value) => value.bytes.cmp(x),
            },
        };
        match compare.result() {
            CompareResult::Equal => ordering == Ordering::Equal,
            CompareResult::NotEqual => ordering != Ordering::Equal,
            CompareResult::Less => ordering == Ordering::Less,
            CompareResult::Greater => ordering == Ordering::Greater,
        }
    };
    let values: Vec<_> =
        keys.iter().filter(|(key, _)| in_range(key, &compare.key, &compare.range_end)).map(|(_, value)| value).collect();
    if values.is_empty() { one(None) } else { values.into_iter().all(|value| one(Some(value))) }
}

impl Model {
    fn new() -> Self {
        // Revision 0 is not one; the empty store is revision 1.
        Self {
            revisions: vec![Keys::new(); 2],
            changes: Vec::new(),
            leases: BTreeMap::new(),
            compacted: -1,
            other: Keys::new(),
        }
    }

    fn revision(&self) -> u64 {
        self.revisions.len() as u64 - 1
    }

    fn now(&self) -> &Keys {
        &self.revisions[self.revisions.len() - 1]
    }

    fn draft(&self) -> Draft {
        Draft { main: self.revision() + 1, keys: self.now().clone(), changes: Vec::new() }
    }

    fn commit(&mut self, draft: Draft) {
        if !draft.changes.is_empty() {
            self.revisions.push(draft.keys);
            self.changes.extend(draft.changes);
        }
    }

    /// Another tenant's revision.
    fn write_other(&mut self, write: impl FnOnce(&mut Draft)) {
        let mut draft = Draft { keys: self.other.clone(), ..self.draft() };
        write(&mut draft);
        self.other = std::mem::replace(&mut draft.keys, self.now().clone());
        self.commit(draft);
    }

    fn check_revision(&self, revision: i64) -> Result<(), Error> {
        if revision > self.revision() as i64 {
            Err(Error::FutureRevision)
        } else if revision > 0 && revision < self.compacted {
            Err(Error::Compacted)
        } else {
            Ok(())
        }
    }

    fn check_put(&self, put: &PutRequest) -> Result<(), Error> {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(Error::LeaseNotFound);
        }
        if (put.ignore_lease || put.ignore_value) && !self.now().contains_key(&put.key) {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    fn check_branch(&self, txn: &TxnRequest) -> Result<(), Error> {
        let ok = txn.compare.iter().all(|compare| holds(self.now(), compare));
        for op in if ok { &txn.success } else { &txn.failure } {
            match op.request.as_ref().unwrap() {
                Request::RequestRange(range) => self.check_revision(range.revision)?,
                Request::RequestPut(put) => self.check_put(put)?,
                Request::RequestTxn(txn) => self.check_branch(txn)?,
                Request::RequestDeleteRange(_) => {}
            }
        }
        Ok(())
    }

    fn range(&self, draft: Option<&Draft>, request: &RangeRequest) -> RangeReply {
        let (keys, current) = match draft {
            Some(draft) => (&draft.keys, draft.current()),
            None => (self.now(), self.revision()),
        };
        let keys = if request.revision > 0 { &self.revisions[request.revision as usize] } else { keys };
        let mut found: Vec<_> = keys.iter().filter(|(key, _)| in_range(key, &request.key, &request.range_end)).collect();
        let count = found.len() as u64;
        let between = |x: u64, min: i64, max: i64| (min == 0 || x as i64 >= min) && (max == 0 || x as i64 <= max);
        found.retain(|(_, value)| {
            between(value.modified, request.min_mod_revision, request.max_mod_revision)
                && between(value.created, request.min_create_revision, request.max_create_revision)
        });
        found.sort_by(|(key_a, a), (key_b, b)| {
            let ordering = match request.sort_target() {
                SortTarget::Key => key_a.cmp(key_b),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.created.cmp(&b.created),
                SortTarget::Mod => a.modified.cmp(&b.modified),
                SortTarget::Value => a.bytes.cmp(&b.bytes),
            };
            if request.sort_order() == SortOrder::Descend { ordering.reverse() } else { ordering }
        });
        let mut more = false;
        if request.limit > 0 && found.len() > request.limit as usize {
            found.truncate(request.limit as usize);
            more = true;
        }
        if request.count_only {
            (found, more) = (Vec::new(), false);
        }
        let mut reply = RangeReply { revision: current, count, more, ..RangeReply::default() };
        reply.items = found.into_iter().map(|(key, value)| item(key, value, request.keys_only)).collect();
        reply
    }

    /// Runs a txn and compares what the machine answered.
    fn run(&self, before: &Keys, draft: &mut Draft, txn: &TxnRequest, reply: &TxnReply) {
        let ok = txn.compare.iter().all(|compare| holds(before, compare));
        assert_eq!(reply.succeeded, ok);
        let ops = if ok { &txn.success } else { &txn.failure };
        assert_eq!(ops.len(), reply.responses.len());
        for (op, response) in ops.iter().zip(&reply.responses) {
            match (op.request.as_ref().unwrap(), response) {
                (Request::RequestRange(range), OpReply::Range(reply)) => {
                    assert_same(&self.range(Some(draft), range), reply);
                }
                (Request::RequestPut(put), OpReply::Put(reply)) => {
                    draft.check_put(put, reply);
                }
                (Request::RequestDeleteRange(delete), OpReply::DeleteRange(reply)) => {
                    draft.check_delete(delete, reply);
                }
                (Request::RequestTxn(txn), OpReply::Txn(reply)) => self.run(before, draft, txn, reply),
                other => panic!("{other:?}"),
            }
        }
    }

    fn delete_lease(&mut self, id: i64) {
        self.leases.remove(&id);
        let mut draft = self.draft();
        let doomed: Vec<_> = draft.keys.iter().filter(|(_, value)| value.lease == id).map(|(key, _)| key.clone()).collect();
        for key in doomed {
            draft.delete(&key, b"");
        }
        self.commit(draft);
    }
}

/// As the model knows it: without the sub-revision, which [`assert_history`] compares.
fn item(key: &Bytes, value: &Value, keys_only: bool) -> Item {
    Item {
        key: key.clone(),
        create_revision: value.created,
        mod_revision: Rev::start_of(value.modified),
        version: value.version,
        lease: value.lease,
        value: ValueSlot::Memory(if keys_only { Bytes::new() } else { value.bytes.clone() }),
    }
}

fn without_subs(items: &[Item]) -> Vec<Item> {
    items.iter().map(|item| Item { mod_revision: Rev::start_of(item.mod_revision.main), ..item.clone() }).collect()
}

/// Keys that some operations put, and ranges that they delete, nested ones included; refuses what writes a key twice. As etcd's
/// `checkIntervals` says it, with every key compared with every other.
#[expect(clippy::type_complexity, reason = "two lists")]
fn written(ops: &[RequestOp]) -> Result<(Vec<Bytes>, Vec<(Bytes, Bytes)>), Error> {
    let requests = || ops.iter().filter_map(|op| op.request.as_ref());
    let is_written = |key: &Bytes, puts: &[Bytes], deletes: &[(Bytes, Bytes)]| {
        puts.contains(key) || deletes.iter().any(|(start, end)| in_range(key, start, end))
    };
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    for request in requests() {
        if let Request::RequestDeleteRange(delete) = request {
            deletes.push((delete.key.clone(), delete.range_end.clone()));
        }
    }
    for request in requests() {
        let Request::RequestTxn(txn) = request else { continue };
        let (then, otherwise) = (written(&txn.success)?, written(&txn.failure)?);
        let either = [then.0, otherwise.0].concat();
        if either.iter().any(|key| is_written(key, &puts, &deletes)) {
            return Err(Error::DuplicateKey);
        }
        puts.extend(either);
        deletes.extend([then.1, otherwise.1].concat());
    }
    for request in requests() {
        let Request::RequestPut(put) = request else { continue };
        if is_written(&put.key, &puts, &deletes) {
            return Err(Error::DuplicateKey);
        }
        puts.push(put.key.clone());
    }
    Ok((puts, deletes))
}

fn assert_same(expected: &RangeReply, found: &RangeReply) {
    let mut found = found.clone();
    found.items.iter_mut().for_each(|item| item.mod_revision.sub = 0);
    assert_eq!(*expected, found);
}

/// What is done to both.
#[derive(Debug, Clone)]
enum Step {
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    /// Another tenant's.
    OtherPut(Bytes, String),
    OtherDelete(DeleteRangeRequest),
    Txn(TxnRequest),
    /// How far back from the current revision; may be before it or after it.
    Compact(i64),
    Range(RangeRequest, i64),
    Grant(i64, i64),
    Revoke(i64),
    Renew(i64),
    /// Time passes, and what is due expires.
    Expire(u64),
    Trim(usize),
    Restore,
}

fn key() -> impl Strategy<Value = Bytes> {
    select(vec!["a", "b", "ba", "c", "d", "e"]).prop_map(bytes)
}

fn end() -> impl Strategy<Value = Bytes> {
    prop_oneof![3 => Just(Bytes::new()), 1 => Just(bytes("\0")), 3 => select(vec!["b", "bb", "d", "f"]).prop_map(bytes)]
}

fn lease() -> impl Strategy<Value = i64> {
    prop_oneof![2 => Just(0_i64), 1 => 1_i64..4]
}

fn put_strategy() -> impl Strategy<Value = PutRequest> {
    (key(), "[xyz]{0,2}", lease(), any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| PutRequest {
            key,
            value: if ignore_value { Bytes::new() } else { bytes(&value) },
            lease: if ignore_lease { 0 } else { lease },
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

fn delete_strategy() -> impl Strategy<Value = DeleteRangeRequest> {
    (key(), end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest { key, range_end, prev_kv })
}

fn range_strategy() -> impl Strategy<Value = RangeRequest> {
    let bound = || prop_oneof![3 => Just(0_i64), 1 => 1_i64..30];
    let bounds = (bound(), bound(), bound(), bound());
    (key(), end(), 0_i64..4, 0_i32..3, 0_i32..5, any::<bool>(), prop::bool::weighted(0.2), bounds).prop_map(
        |(key, range_end, limit, sort_order, sort_target, keys_only, count_only, bounds)| RangeRequest {
            key,
            range_end,
            limit,
            revision: 0,
            sort_order,
            sort_target,
            serializable: false,
            keys_only,
            count_only,
            min_mod_revision: bounds.0,
            max_mod_revision: bounds.1,
            min_create_revision: bounds.2,
            max_create_revision: bounds.3,
        },
    )
}

fn compare_strategy() -> impl Strategy<Value = Compare> {
    let union = prop_oneof![
        (0_i64..4).prop_map(TargetUnion::Version),
        (0_i64..20).prop_map(TargetUnion::CreateRevision),
        (0_i64..20).prop_map(TargetUnion::ModRevision),
        (0_i64..4).prop_map(TargetUnion::Lease),
        "[xyz]{0,1}".prop_map(|value| TargetUnion::Value(bytes(&value))),
    ];
    let results = vec![CompareResult::Equal, CompareResult::NotEqual, CompareResult::Less, CompareResult::Greater];
    (key(), end(), select(results), union).prop_map(|(key, range_end, result, union)| Compare {
        range_end,
        ..when(std::str::from_utf8(&key).unwrap(), result, union)
    })
}

fn txn_strategy() -> impl Strategy<Value = TxnRequest> {
    let op = prop_oneof![
        2 => (range_strategy(), prop_oneof![3 => Just(0_i64), 1 => 1_i64..20])
            .prop_map(|(range, revision)| Request::RequestRange(RangeRequest { revision, ..range })),
        3 => put_strategy().prop_map(Request::RequestPut),
        2 => delete_strategy().prop_map(Request::RequestDeleteRange),
    ]
    .prop_map(|request| RequestOp { request: Some(request) });
    let build = |op: BoxedStrategy<RequestOp>| {
        let compares = prop::collection::vec(compare_strategy(), 0..2);
        (compares, prop::collection::vec(op.clone(), 0..4), prop::collection::vec(op, 0..3))
            .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
    };
    let nested = build(op.clone().boxed()).prop_map(op_txn);
    build(prop_oneof![4 => op, 1 => nested].boxed())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => put_strategy().prop_map(Step::Put),
        4 => delete_strategy().prop_map(Step::Delete),
        3 => (key(), "[xyz]{0,2}").prop_map(|(key, value)| Step::OtherPut(key, value)),
        2 => delete_strategy().prop_map(Step::OtherDelete),
        8 => txn_strategy().prop_map(Step::Txn),
        2 => (-1_i64..12).prop_map(Step::Compact),
        12 => (range_strategy(), prop_oneof![1 => Just(-1_i64), 2 => 0_i64..12]).prop_map(|(range, back)| Step::Range(range, back)),
        3 => (1_i64..4, 0_i64..6).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        1 => (1_i64..4).prop_map(Step::Revoke),
        1 => (1_i64..4).prop_map(Step::Renew),
        2 => (0_u64..4_000).prop_map(Step::Expire),
        2 => (1_usize..4).prop_map(Step::Trim),
        1 => Just(Step::Restore),
    ]
}

fn take(machine: &mut Machine, model: &mut Model, step: Step, progress: &mut CompactProgress) {
    match step {
        Step::Put(put) => {
            let reply = machine.run(Body::Put(put.clone()));
            match model.check_put(&put) {
                Err(error) => assert_eq!(error_of(reply), error),
                Ok(()) => {
                    let Reply::Put(reply) = reply else { panic!("{reply:?}") };
                    let mut draft = model.draft();
                    draft.check_put(&put, &reply);
                    model.commit(draft);
                }
            }
        }
        Step::Delete(delete) => {
            let Reply::DeleteRange(reply) = machine.run(Body::DeleteRange(delete.clone())) else { panic!() };
            let mut draft = model.draft();
            draft.check_delete(&delete, &reply);
            model.commit(draft);
        }
        Step::OtherPut(key, value) => {
            let put = PutRequest { key, value: bytes(&value), prev_kv: true, ..Default::default() };
            let command = Command { tenant: OTHER, ..machine.command(Body::Put(put.clone())) };
            let Reply::Put(reply) = machine.apply(command) else { panic!() };
            model.write_other(|draft| draft.check_put(&put, &reply));
        }
        Step::OtherDelete(delete) => {
            let command = Command { tenant: OTHER, ..machine.command(Body::DeleteRange(delete.clone())) };
            let Reply::DeleteRange(reply) = machine.apply(command) else { panic!() };
            model.write_other(|draft| draft.check_delete(&delete, &reply));
        }
        Step::Txn(txn) => {
            let budget = machine.state.forecast(0, &txn);
            let found = machine.txn(txn.clone());
            if let (Ok(budget), Ok(found)) = (budget, &found) {
                let (keys, bytes) = weight(found);
                assert!(keys <= limits::TXN_KEYS_MAX - budget.keys, "{keys} keys are more than were counted");
                assert!(bytes <= limits::TXN_BYTES_MAX - budget.bytes, "{bytes} bytes are more than were counted");
            }
            let checked = written(&txn.success).and_then(|_| written(&txn.failure));
            match checked.and_then(|_| model.check_branch(&txn)) {
                Err(error) => assert_eq!(found.unwrap_err(), error),
                Ok(()) => {
                    let mut draft = model.draft();
                    model.run(model.now(), &mut draft, &txn, &found.unwrap());
                    model.commit(draft);
                }
            }
        }
        Step::Compact(back) => {
            let revision = model.revision() as i64 - back;
            let expected = if revision <= model.compacted {
                Err(Error::Compacted)
            } else if revision > model.revision() as i64 {
                Err(Error::FutureRevision)
            } else {
                model.compacted = revision;
                Ok(())
            };
            assert_eq!(machine.compact(revision), expected);
        }
        Step::Range(range, back) => {
            let revision = if back == 0 { 0 } else { model.revision() as i64 - back };
            let range = RangeRequest { revision, ..range };
            match model.check_revision(revision) {
                Err(error) => assert_eq!(machine.range(range), Err(error)),
                Ok(()) => assert_same(&model.range(None, &range), &machine.range(range).unwrap()),
            }
        }
        Step::Grant(id, ttl_s) => {
            let reply = machine.grant(id, ttl_s);
            match model.leases.entry(id) {
                Entry::Occupied(_) => assert_eq!(error_of(reply), Error::LeaseExists),
                Entry::Vacant(vacant) => {
                    let ttl_s = ttl_s.max(2) as u64;
                    assert!(matches!(reply, Reply::LeaseGrant { ttl_s: found, .. } if found == ttl_s as i64));
                    vacant.insert((ttl_s, machine.cluster_ms + ttl_s * 1_000));
                }
            }
        }
        Step::Revoke(id) => {
            let reply = machine.revoke(&[id], 0);
            if model.leases.contains_key(&id) {
                model.delete_lease(id);
            } else {
                assert_eq!(error_of(reply), Error::LeaseNotFound);
            }
        }
        Step::Renew(id) => {
            let reply = machine.run(Body::LeaseRenew(LeaseRenew { ids: vec![id], slack_ms: 0 }));
            let ttl_s = model.leases.get_mut(&id).map_or(0, |lease| {
                lease.1 = machine.cluster_ms + lease.0 * 1_000;
                lease.0 as i64
            });
            assert!(matches!(reply, Reply::LeaseRenew { leases, .. } if leases == [(id, ttl_s)]));
        }
        Step::Expire(ms) => {
            machine.cluster_ms += ms;
            machine.run(Body::Tick(Tick {}));
            let due = machine.state.expired(machine.cluster_ms, 10);
            let mut expected: Vec<_> = model.leases.iter().map(|(id, lease)| (lease.1, *id)).collect();
            expected.sort_unstable();
            expected.retain(|(deadline, _)| *deadline <= machine.cluster_ms);
            assert_eq!(due, expected.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
            let Reply::LeaseRevoke { revoked, .. } = machine.revoke(&due, machine.term) else { panic!() };
            assert_eq!(revoked, due);
            due.into_iter().for_each(|id| model.delete_lease(id));
        }
        Step::Trim(keys_max) => machine.trim_slice(progress, keys_max),
        Step::Restore => machine.assert_restorable(),
    }
}

/// Keys and bytes in a reply.
fn weight(reply: &TxnReply) -> (u64, u64) {
    let of = |items: &[Item]| (items.len() as u64, items.iter().map(|i| i.key.len() + i.value().len()).sum::<usize>() as u64);
    reply.responses.iter().fold((0, 0), |(keys, bytes), response| {
        let (more_keys, more_bytes) = match response {
            OpReply::Range(range) => (range.count.max(range.items.len() as u64), of(&range.items).1),
            OpReply::Put(put) => of(put.prev.as_slice()),
            OpReply::DeleteRange(delete) => (delete.deleted, of(&delete.prevs).1),
            OpReply::Txn(txn) => weight(txn),
        };
        (keys + more_keys, bytes + more_bytes)
    })
}

fn assert_equal(machine: &Machine, model: &Model) {
    assert_eq!(machine.state.revision(), model.revision());
    assert_eq!(machine.state.compact_revision() as i64, model.compacted.max(0));
    assert_eq!(machine.state.live_keys(0), model.now().len() as u64);
    assert_eq!(machine.state.live_keys(OTHER), model.other.len() as u64);
    assert_eq!(
        machine.state.tenant_bytes(OTHER),
        model.other.iter().map(|(k, v)| KEY_COST + (k.len() + v.bytes.len()) as u64).sum::<u64>()
    );
    for lease in machine.state.leases() {
        let keys: Vec<_> = model.now().iter().filter(|(_, value)| value.lease == lease.id).map(|(key, _)| key).collect();
        assert_eq!(lease.keys.iter().collect::<Vec<_>>(), keys);
        assert_eq!(model.leases[&lease.id], (lease.ttl_s as u64, lease.deadline_ms));
    }
    assert_eq!(machine.state.leases().count(), model.leases.len());
    assert_eq!(machine.state.next_deadline_ms(), model.leases.values().map(|lease| lease.1).min());
}

/// Every change that a watcher may still ask for is stored, with its key and kind.
fn assert_history(machine: &Machine, model: &Model) {
    let floor = model.compacted.max(0) as u64;
    for (rev, key, tombstone) in model.changes.iter().filter(|(rev, ..)| rev.main >= floor) {
        let row = crate::Row::decode(*rev, &machine.history[rev]).unwrap();
        assert_eq!((&row.key, row.tombstone), (key, *tombstone));
    }
}

/// Every revision that may still be read reads as it was.
fn assert_revisions(machine: &Machine, model: &Model) {
    for revision in model.compacted.max(1)..=model.revision() as i64 {
        let request = RangeRequest { revision, ..everything() };
        assert_same(&model.range(None, &request), &machine.range(request).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_does_what_the_model_does(steps in prop::collection::vec(step(), 1..60)) {
        let (mut machine, mut model) = (Machine::new(), Model::new());
        let mut progress = CompactProgress::default();
        for step in steps {
            take(&mut machine, &mut model, step, &mut progress);
            assert_equal(&machine, &model);
        }
        assert_history(&machine, &model);
        assert_revisions(&machine, &model);
        machine.assert_restorable();
        machine.trim();
        assert_history(&machine, &model);
        assert_revisions(&machine, &model);
        machine.assert_restorable();
    }

    #[test]
    fn two_replicas_that_trim_at_their_own_pace_stay_equal(steps in prop::collection::vec(step(), 1..60)) {
        let (mut one, mut model, mut progress) = (Machine::new(), Model::new(), CompactProgress::default());
        let (mut other, mut other_model, mut other_progress) = (Machine::new(), Model::new(), CompactProgress::default());
        for step in steps {
            take(&mut one, &mut model, step.clone(), &mut progress);
            if !matches!(step, Step::Trim(_)) {
                take(&mut other, &mut other_model, step, &mut other_progress);
            }
            assert_eq!(one.state.digest(), other.state.digest());
        }
    }

    #[test]
    fn a_restored_replica_goes_on_as_one_that_never_stopped(
        before in prop::collection::vec(step(), 1..40),
        after in prop::collection::vec(step(), 1..40),
    ) {
        let (mut machine, mut model, mut progress) = (Machine::new(), Model::new(), CompactProgress::default());
        for step in before {
            take(&mut machine, &mut model, step, &mut progress);
        }
        machine.state = machine.restored();
        for step in after {
            take(&mut machine, &mut model, step, &mut progress);
            assert_equal(&machine, &model);
        }
        machine.trim();
        assert_revisions(&machine, &model);
        machine.assert_restorable();
    }
}
