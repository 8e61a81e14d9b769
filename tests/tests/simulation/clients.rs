//! Clients of the simulated cluster: each sends one request at a time, to whichever member serves it, and notes what it was told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request as Op;
use kvasir_api::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use kvasir_engine::{Caller, Engine};
use kvasir_tests::Random;
use kvasir_tests::history::{Operation, Outcome, Request, Response};
use kvasir_tests::oracle::Refusal;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::nodes::{Cluster, Incarnation};
use crate::trace::Trace;
use crate::world;

/// Where every key of the clients is.
const PREFIX: &str = "/k/";
const PREFIX_END: &str = "/k0";

/// What all clients were told. A clone is the same.
#[derive(Clone, Default)]
pub(crate) struct Record {
    operations: Arc<Mutex<Vec<Operation>>>,
}

impl Record {
    pub(crate) fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut self.operations.lock())
    }

    pub(crate) fn answered(&self) -> usize {
        self.operations.lock().iter().filter(|it| it.answered_at().is_some()).count()
    }
}

/// All clients of a life. A clone is the same.
#[derive(Clone)]
pub(crate) struct Crowd {
    cluster: Cluster,
    record: Record,
    trace: Trace,
    keys: u64,
    running: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Crowd {
    pub(crate) fn new(cluster: Cluster, record: Record, trace: Trace, keys: u64) -> Self {
        Self { cluster, record, trace, keys, running: Arc::default() }
    }

    /// One more client, until it is told to stop. `to` says to which members it talks, if not to all; one that `only_reads` never
    /// has to wait for a quorum that is not there.
    pub(crate) fn join(&self, random: Random, stop: CancellationToken, pause_ms: u64, to: Vec<u64>, only_reads: bool) {
        let mut running = self.running.lock();
        let client = Client {
            id: running.len() as u32,
            random,
            cluster: self.cluster.clone(),
            record: self.record.clone(),
            trace: self.trace.clone(),
            keys: self.keys,
            sent: 0,
            seen: BTreeMap::new(),
            leases: Vec::new(),
            granted: 0,
            member: None,
            to,
            only_reads,
        };
        running.push(tokio::spawn(client.run(stop, pause_ms)));
    }

    /// Waits until all have stopped.
    pub(crate) async fn stopped(&self) {
        let running = std::mem::take(&mut *self.running.lock());
        for client in running {
            client.await.expect("a client does not fail");
        }
    }
}

/// A client.
struct Client {
    id: u32,
    random: Random,
    cluster: Cluster,
    record: Record,
    trace: Trace,
    keys: u64,
    sent: u64,
    /// What it last saw of a key: its mod revision.
    seen: BTreeMap<Bytes, i64>,
    leases: Vec<i64>,
    granted: i64,
    /// Whom it talks to.
    member: Option<Incarnation>,
    /// Whom it may talk to; none for anybody.
    to: Vec<u64>,
    only_reads: bool,
}

impl Client {
    /// Sends requests until it is told to stop.
    async fn run(mut self, stop: CancellationToken, pause_ms: u64) {
        while !stop.is_cancelled() {
            let pause = self.random.below(1 + pause_ms);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let Some(member) = self.member() else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let request = self.choose();
            self.send(&member, request).await;
        }
    }

    /// The member that it talks to, now and then another one.
    fn member(&mut self) -> Option<Incarnation> {
        if self.random.chance(5) {
            self.member = None;
        }
        self.member = self.member.take().filter(|member| !member.gone.is_cancelled());
        if self.member.is_none() {
            let mut serving = self.cluster.serving();
            serving.retain(|member| self.to.is_empty() || self.to.contains(&member.node));
            self.member = (!serving.is_empty()).then(|| self.random.pick(&serving).clone());
        }
        self.member.clone()
    }

    async fn send(&mut self, member: &Incarnation, request: Request) {
        self.sent += 1;
        let patience = Duration::from_millis(200 + self.random.below(4_000));
        let called = world::now();
        self.trace.note(&format!("client {} asks {:x}: {request:?}", self.id, member.node));
        let answer = tokio::select! {
            biased;
            () = member.gone.cancelled() => Err(Refusal::Unknown("the member is gone".to_owned())),
            answer = ask(&member.engine, &request) => answer,
            () = tokio::time::sleep(patience) => Err(Refusal::Unknown("the client has waited long enough".to_owned())),
        };
        self.trace.note(&format!("client {} is told {answer:?}", self.id));
        let outcome = match answer {
            Ok(response) => {
                self.learn(&request, &response);
                Outcome::Answered { at: world::now(), response }
            }
            Err(refusal) => {
                self.member = None;
                match refusal {
                    Refusal::Definite(_) => Outcome::Refused,
                    Refusal::Unknown(_) => Outcome::Unknown,
                }
            }
        };
        self.record.operations.lock().push(Operation { client: self.id, called, request, outcome });
    }

    fn learn(&mut self, request: &Request, response: &Response) {
        match (request, response) {
            (Request::Range(_), Response::Range(range)) => {
                for kv in &range.kvs {
                    self.seen.insert(kv.key.clone(), kv.mod_revision);
                }
            }
            (Request::Put(put), response) => drop(self.seen.insert(put.key.clone(), response.revision())),
            (Request::Grant { id, .. }, Response::Lease { ttl, .. }) if *ttl > 0 => self.leases.push(*id),
            (Request::KeepAlive { id }, Response::Lease { ttl, .. }) if *ttl <= 0 => self.leases.retain(|it| it != id),
            (Request::Revoke { id }, _) => self.leases.retain(|it| it != id),
            _ => {}
        }
    }

    fn choose(&mut self) -> Request {
        if self.only_reads {
            return self.range(false);
        }
        match self.random.below(100) {
            0..30 => self.put(),
            30..45 => self.range(false),
            45..50 => self.range(true),
            50..56 => Request::Range(RangeRequest {
                key: PREFIX.into(),
                range_end: PREFIX_END.into(),
                serializable: self.random.chance(30),
                ..RangeRequest::default()
            }),
            56..64 => self.delete(),
            64..80 => self.swap(),
            80..86 => self.several(),
            _ => self.lease(),
        }
    }

    fn put(&mut self) -> Request {
        let lease = if self.random.chance(30) { self.some_lease() } else { 0 };
        let prev_kv = self.random.chance(30);
        Request::Put(PutRequest { key: self.key(), value: self.value(), lease, prev_kv, ..PutRequest::default() })
    }

    fn range(&mut self, serializable: bool) -> Request {
        Request::Range(RangeRequest { key: self.key(), serializable, ..RangeRequest::default() })
    }

    fn delete(&mut self) -> Request {
        let range_end = if self.random.chance(15) { Bytes::from_static(PREFIX_END.as_bytes()) } else { Bytes::new() };
        let prev_kv = self.random.chance(50);
        Request::Delete(DeleteRangeRequest { key: self.key(), range_end, prev_kv })
    }

    /// Puts a key if nobody changed it since it was seen; otherwise looks.
    fn swap(&mut self) -> Request {
        let key = self.key();
        let seen = self.seen.get(&key).copied().unwrap_or(0);
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(seen)),
            ..Compare::default()
        };
        let op = |request| RequestOp { request: Some(request) };
        let put = PutRequest { key: key.clone(), value: self.value(), ..PutRequest::default() };
        let look = RangeRequest { key, ..RangeRequest::default() };
        let (success, failure) = (vec![op(Op::RequestPut(put))], vec![op(Op::RequestRange(look))]);
        Request::Txn(TxnRequest { compare: vec![compare], success, failure })
    }

    /// Puts some keys and deletes another, at once.
    fn several(&mut self) -> Request {
        let mut keys: Vec<Bytes> = (0..2 + self.random.below(3)).map(|_| self.key()).collect();
        keys.sort();
        keys.dedup();
        let delete = (keys.len() > 1 && self.random.chance(50)).then(|| keys.pop()).flatten();
        let mut success: Vec<RequestOp> = Vec::new();
        for key in keys {
            let put = PutRequest { key, value: self.value(), ..PutRequest::default() };
            success.push(RequestOp { request: Some(Op::RequestPut(put)) });
        }
        if let Some(key) = delete {
            let delete = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
            success.push(RequestOp { request: Some(Op::RequestDeleteRange(delete)) });
        }
        Request::Txn(TxnRequest { success, ..TxnRequest::default() })
    }

    fn lease(&mut self) -> Request {
        let lease = self.some_lease();
        if lease == 0 || (self.leases.len() < 3 && self.random.chance(30)) {
            self.granted += 1;
            return Request::Grant { id: i64::from(self.id + 1) << 32 | self.granted, ttl: 1 + self.random.below(4) as i64 };
        }
        match self.random.below(100) {
            0..75 => Request::KeepAlive { id: lease },
            75..85 => Request::Revoke { id: lease },
            _ => {
                let put = PutRequest { key: self.key(), value: self.value(), lease, ..PutRequest::default() };
                Request::Put(put)
            }
        }
    }

    fn some_lease(&mut self) -> i64 {
        if self.leases.is_empty() { 0 } else { *self.random.pick(&self.leases) }
    }

    fn key(&mut self) -> Bytes {
        format!("{PREFIX}{:02}", self.random.below(self.keys)).into()
    }

    /// A value that no other request has.
    fn value(&mut self) -> Bytes {
        let mut value = format!("{}.{}.{}", self.id, self.sent, self.random.below(1_000)).into_bytes();
        if self.random.chance(5) {
            value.resize(value.len() + self.random.below(4_000) as usize, b'.');
        }
        value.into()
    }
}

fn told<T>(answer: Result<T, kvasir_api::Error>) -> Result<T, Refusal> {
    answer.map_err(|error| Refusal::from(Status::from(error)))
}

/// Sends one request to a member.
async fn ask(engine: &Engine, request: &Request) -> Result<Response, Refusal> {
    let caller = &Caller::client();
    Ok(match request.clone() {
        Request::Range(it) => Response::Range(told(engine.range(caller, it).await)?),
        Request::Put(it) => Response::Put(told(engine.put(caller, it).await)?),
        Request::Delete(it) => Response::Delete(told(engine.delete_range(caller, it).await)?),
        Request::Txn(it) => Response::Txn(told(engine.txn(caller, it).await)?),
        Request::Grant { id, ttl } => {
            let granted = told(engine.lease_grant(caller, LeaseGrantRequest { id, ttl }).await)?;
            Response::Lease { header: granted.header, ttl: granted.ttl }
        }
        Request::KeepAlive { id } => {
            let renewed = told(engine.lease_keep_alive(caller, id).await)?;
            // Its header is of before.
            Response::Lease { header: None, ttl: renewed.ttl }
        }
        Request::Revoke { id } => {
            let revoked = told(engine.lease_revoke(caller, LeaseRevokeRequest { id }).await)?;
            Response::Lease { header: revoked.header, ttl: 0 }
        }
    })
}
