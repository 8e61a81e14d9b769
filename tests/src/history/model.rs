//! etcd's key space as a map: what a request does to it, and what it is answered.
//!
//! **Invariant:** it is naive: one map, no history, every rule as etcd's documents say it.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request as Op;
use kvasir_api::etcdserverpb::response_op::Response as OpAnswer;
use kvasir_api::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseOp, TxnRequest, TxnResponse,
};
use kvasir_api::mvccpb::event::EventType;
use kvasir_api::mvccpb::{Event, KeyValue};

use super::{Request, Response, covers};

/// The keys at one revision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Keys {
    pub(super) live: BTreeMap<Bytes, KeyValue>,
}

impl FromIterator<KeyValue> for Keys {
    /// Of what a range of every key shows.
    fn from_iter<I: IntoIterator<Item = KeyValue>>(kvs: I) -> Self {
        Self { live: kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect() }
    }
}

impl Keys {
    /// Every live key.
    pub fn live(&self) -> &BTreeMap<Bytes, KeyValue> {
        &self.live
    }

    /// Executes a request whose changes, if it makes any, are of this revision. Answers with its events, previous values in them,
    /// and with its response without headers; `None` for a request that is not about keys.
    pub fn execute(&mut self, request: &Request, revision: i64) -> (Vec<Event>, Option<Response>) {
        let mut events = Vec::new();
        let response = match request {
            Request::Range(it) => Some(Response::Range(self.range(it))),
            Request::Put(it) => Some(Response::Put(self.put(it, revision, &mut events))),
            Request::Delete(it) => Some(Response::Delete(self.delete(it, revision, &mut events))),
            Request::Txn(it) => Some(Response::Txn(self.txn(it, revision, &mut events))),
            Request::Revoke { id } => {
                self.end_lease(*id, revision, &mut events);
                None
            }
            Request::Grant { .. } | Request::KeepAlive { .. } => None,
        };
        (events, response)
    }

    /// Applies an event of a timeline; answers with the event as the rules have it, with its previous value.
    pub(super) fn follow(&mut self, event: &Event, revision: i64) -> Option<Event> {
        let kv = event.kv.as_ref()?;
        let mut events = Vec::new();
        if event.r#type() == EventType::Put {
            let put = PutRequest { key: kv.key.clone(), value: kv.value.clone(), lease: kv.lease, ..PutRequest::default() };
            self.put(&put, revision, &mut events);
        } else {
            self.remove(&kv.key, revision, &mut events);
        }
        events.pop()
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        let found = self.live.values().filter(|kv| covers(&request.key, &request.range_end, &kv.key));
        let mut kvs: Vec<KeyValue> = found.cloned().collect();
        let count = kvs.len() as i64;
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if request.count_only {
            kvs.clear();
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        RangeResponse { header: None, kvs, more: more && !request.count_only, count }
    }

    fn put(&mut self, request: &PutRequest, revision: i64, events: &mut Vec<Event>) -> PutResponse {
        let before = self.live.get(&request.key).cloned();
        let old = before.as_ref();
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: old.map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: old.map_or(0, |kv| kv.version) + 1,
            value: if request.ignore_value {
                old.map(|kv| kv.value.clone()).unwrap_or_default()
            } else {
                request.value.clone()
            },
            lease: if request.ignore_lease { old.map_or(0, |kv| kv.lease) } else { request.lease },
        };
        self.live.insert(request.key.clone(), kv.clone());
        events.push(Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: before.clone() });
        PutResponse { header: None, prev_kv: before.filter(|_| request.prev_kv) }
    }

    fn remove(&mut self, key: &Bytes, revision: i64, events: &mut Vec<Event>) -> Option<KeyValue> {
        let before = self.live.remove(key)?;
        let kv = KeyValue { key: key.clone(), mod_revision: revision, ..KeyValue::default() };
        events.push(Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: Some(before.clone()) });
        Some(before)
    }

    fn delete(&mut self, request: &DeleteRangeRequest, revision: i64, events: &mut Vec<Event>) -> DeleteRangeResponse {
        let covered = self.live.keys().filter(|key| covers(&request.key, &request.range_end, key));
        let keys: Vec<Bytes> = covered.cloned().collect();
        let prev_kvs: Vec<KeyValue> = keys.iter().filter_map(|key| self.remove(key, revision, events)).collect();
        let deleted = prev_kvs.len() as i64;
        DeleteRangeResponse { header: None, deleted, prev_kvs: if request.prev_kv { prev_kvs } else { Vec::new() } }
    }

    fn txn(&mut self, request: &TxnRequest, revision: i64, events: &mut Vec<Event>) -> TxnResponse {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let branch = if succeeded { &request.success } else { &request.failure };
        let responses = branch.iter().filter_map(|op| self.op(op, revision, events)).collect();
        TxnResponse { header: None, succeeded, responses }
    }

    fn op(&mut self, op: &RequestOp, revision: i64, events: &mut Vec<Event>) -> Option<ResponseOp> {
        let response = match op.request.as_ref()? {
            Op::RequestRange(it) => OpAnswer::ResponseRange(self.range(it)),
            Op::RequestPut(it) => OpAnswer::ResponsePut(self.put(it, revision, events)),
            Op::RequestDeleteRange(it) => OpAnswer::ResponseDeleteRange(self.delete(it, revision, events)),
            Op::RequestTxn(it) => OpAnswer::ResponseTxn(self.txn(it, revision, events)),
        };
        Some(ResponseOp { response: Some(response) })
    }

    /// Deletes the keys of a lease.
    pub(super) fn end_lease(&mut self, lease: i64, revision: i64, events: &mut Vec<Event>) {
        let attached: Vec<Bytes> = self.live.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect();
        for key in attached {
            self.remove(&key, revision, events);
        }
    }

    /// Whether a condition of a transaction holds.
    fn holds(&self, compare: &Compare) -> bool {
        let found = self.live.values().filter(|kv| covers(&compare.key, &compare.range_end, &kv.key));
        let found: Vec<&KeyValue> = found.collect();
        match found.as_slice() {
            // A value that is not there is not even unequal to another.
            [] if compare.target() == CompareTarget::Value => false,
            [] => compares(compare, &KeyValue::default()),
            found => found.iter().all(|kv| compares(compare, kv)),
        }
    }
}

/// Whether a condition holds of this key.
pub(super) fn compares(compare: &Compare, kv: &KeyValue) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let number = |it: i64, wanted: Option<i64>| it.cmp(&wanted.unwrap_or(0));
    let wanted = compare.target_union.as_ref();
    let order = match compare.target() {
        CompareTarget::Version => number(kv.version, wanted.and_then(|it| pick(it, compare.target()))),
        CompareTarget::Create => number(kv.create_revision, wanted.and_then(|it| pick(it, compare.target()))),
        CompareTarget::Mod => number(kv.mod_revision, wanted.and_then(|it| pick(it, compare.target()))),
        CompareTarget::Lease => number(kv.lease, wanted.and_then(|it| pick(it, compare.target()))),
        CompareTarget::Value => match wanted {
            Some(TargetUnion::Value(value)) => kv.value.cmp(value),
            _ => kv.value.cmp(&Bytes::new()),
        },
    };
    match compare.result() {
        CompareResult::Equal => order == Equal,
        CompareResult::NotEqual => order != Equal,
        CompareResult::Greater => order == Greater,
        CompareResult::Less => order == Less,
    }
}

fn pick(union: &TargetUnion, target: CompareTarget) -> Option<i64> {
    match (union, target) {
        (TargetUnion::Version(it), CompareTarget::Version)
        | (TargetUnion::CreateRevision(it), CompareTarget::Create)
        | (TargetUnion::ModRevision(it), CompareTarget::Mod)
        | (TargetUnion::Lease(it), CompareTarget::Lease) => Some(*it),
        _ => None,
    }
}

/// A response without its headers: what the model can say of it.
pub(super) fn bare(response: &Response) -> Response {
    match response.clone() {
        Response::Range(it) => Response::Range(RangeResponse { header: None, ..it }),
        Response::Put(it) => Response::Put(PutResponse { header: None, ..it }),
        Response::Delete(it) => Response::Delete(DeleteRangeResponse { header: None, ..it }),
        Response::Txn(it) => Response::Txn(bare_txn(it)),
        Response::Lease { ttl, .. } => Response::Lease { header: None, ttl },
    }
}

fn bare_txn(mut txn: TxnResponse) -> TxnResponse {
    txn.header = None;
    for op in &mut txn.responses {
        match &mut op.response {
            Some(OpAnswer::ResponseRange(it)) => it.header = None,
            Some(OpAnswer::ResponsePut(it)) => it.header = None,
            Some(OpAnswer::ResponseDeleteRange(it)) => it.header = None,
            Some(OpAnswer::ResponseTxn(it)) => *it = bare_txn(std::mem::take(it)),
            None => {}
        }
    }
    txn
}
