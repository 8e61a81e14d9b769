//! A machine with its stored rows beside it, and short words for commands.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_api::command::{self, Command, command::Body};
use kvasir_api::etcdserverpb::{
    self as pb, CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};
use kvasir_api::{Error, limits};

use crate::state::Hold;
use crate::{COMMAND_VERSION, CompactProgress, Effects, EntryId, Item, RangeReply, Reply, Rev, Row, State, Table, TxnReply};

/// A machine, and what storage would hold of it: encoded rows.
pub(super) struct Machine {
    pub(super) state: State,
    /// A replica that nobody waits for: it applies the same and answers nothing.
    shadow: State,
    pub(super) history: BTreeMap<Rev, Bytes>,
    pub(super) tables: BTreeMap<(Table, Bytes), Bytes>,
    pub(super) last: Effects,
    pub(super) term: u64,
    pub(super) cluster_ms: u64,
    index: u64,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            state: State::new(),
            shadow: State::new(),
            history: BTreeMap::new(),
            tables: BTreeMap::new(),
            last: Effects::default(),
            term: 1,
            cluster_ms: 0,
            index: 0,
        }
    }

    pub(super) fn command(&self, body: Body) -> Command {
        Command {
            version: COMMAND_VERSION,
            tenant: 0,
            origin: None,
            stamp: Some(command::Stamp { cluster_ms: self.cluster_ms, wall_ms: 0 }),
            forwarded: None,
            term: 0,
            body: Some(body),
        }
    }

    pub(super) fn run(&mut self, body: Body) -> Reply {
        self.apply(self.command(body))
    }

    /// Applies a command and stores its effects, as storage would.
    pub(super) fn apply(&mut self, command: Command) -> Reply {
        self.index += 1;
        let (mut effects, mut quiet) = (Effects::default(), Effects::default());
        let entry = EntryId { index: self.index, term: self.term, leader: LEADER };
        let mut reply = self.state.apply(entry, &command, true, &mut effects);
        let answer = self.shadow.apply(entry, &command, false, &mut quiet);
        assert_eq!(answer.revision(), reply.revision());
        let tables = effects.take_tables();
        assert_eq!(quiet.take_tables(), tables);
        assert!(is_same(&quiet, &effects), "what changes is the same when nobody waits for the reply");
        for change in &effects.changes {
            let before = self.history.insert(change.row.rev, change.row.encode().into());
            assert!(before.is_none(), "a row is written once");
            assert_eq!(change.row.prev, change.prev.as_ref().map(|prev| prev.rev));
        }
        for op in &tables {
            let key = (op.table, op.key.clone());
            match &op.value {
                Some(value) => self.tables.insert(key, value.clone()),
                None => self.tables.remove(&key),
            };
        }
        self.last = effects;
        let history = &self.history;
        reply.fill(&mut |rev| fetch(history, rev)).unwrap();
        reply
    }

    pub(super) fn put(&mut self, key: &str, value: &str) -> u64 {
        self.run(put(key, value)).revision()
    }

    pub(super) fn put_leased(&mut self, key: &str, lease: i64) -> Reply {
        self.run(Body::Put(PutRequest { lease, ..put_request(key, "v") }))
    }

    pub(super) fn delete(&mut self, key: &str, range_end: &str) -> u64 {
        match self.run(delete(key, range_end)) {
            Reply::DeleteRange(reply) => reply.deleted,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn compact(&mut self, revision: i64) -> Result<(), Error> {
        match self.run(Body::Compact(CompactionRequest { revision, physical: false })) {
            Reply::Compact { .. } => Ok(()),
            Reply::Error { error, .. } => Err(error),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn txn(&mut self, txn: TxnRequest) -> Result<TxnReply, Error> {
        match self.run(Body::Txn(txn)) {
            Reply::Txn(reply) => Ok(reply),
            Reply::Error { error, .. } => Err(error),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn grant(&mut self, id: i64, ttl_s: i64) -> Reply {
        self.run(Body::LeaseGrant(command::LeaseGrant { id, ttl_s, slack_ms: 0 }))
    }

    pub(super) fn revoke(&mut self, ids: &[i64], expiry_term: u64) -> Reply {
        self.run(Body::LeaseRevoke(command::LeaseRevoke { ids: ids.to_vec(), expiry_term }))
    }

    pub(super) fn range(&self, request: RangeRequest) -> Result<RangeReply, Error> {
        let mut reply = self.state.range(0, &request)?;
        reply.fill(&mut |rev| fetch(&self.history, rev)).unwrap();
        Ok(reply)
    }

    pub(super) fn get(&self, key: &str) -> Option<Item> {
        self.range(range(key, "")).unwrap().items.pop()
    }

    pub(super) fn revision_of(&self, key: &str) -> Option<Rev> {
        self.get(key).map(|item| item.mod_revision)
    }

    /// Changes how long cursors hold history back.
    pub(super) fn hold(&mut self, change: impl Fn(&mut Hold)) {
        change(&mut self.state.hold);
        change(&mut self.shadow.hold);
    }

    /// Trims until nothing is left to trim.
    pub(super) fn trim(&mut self) {
        let mut progress = CompactProgress::default();
        while !progress.done {
            self.trim_slice(&mut progress, 3);
        }
        assert!(!self.state.has_garbage());
    }

    pub(super) fn trim_slice(&mut self, progress: &mut CompactProgress, keys_max: usize) {
        let digest = self.state.digest();
        for rev in self.state.compact_slice(progress, keys_max, 2) {
            assert!(self.history.remove(&rev).is_some(), "a row is trimmed once");
        }
        assert_eq!(self.state.digest(), digest, "trimming is not seen");
    }

    /// The state again, from what is stored.
    pub(super) fn restored(&self) -> State {
        let mut restore = State::restore();
        for (rev, bytes) in &self.history {
            let row = Row::decode(*rev, bytes).unwrap();
            assert_eq!(row.encode(), bytes[..]);
            restore.history_row(row).unwrap();
        }
        for ((table, key), value) in &self.tables {
            restore.table_row(*table, key, value).unwrap();
        }
        restore.finish().unwrap()
    }

    pub(super) fn assert_restorable(&self) {
        assert_eq!(self.restored().digest(), self.state.digest(), "a restored state is equal");
        assert_eq!(self.shadow.digest(), self.state.digest());
    }

    /// Sends a component and returns its digest.
    pub(super) fn upload(&mut self, mark: u8) -> Bytes {
        let digest = Bytes::from(vec![mark; 32]);
        let data = Bytes::from(vec![mark; 10]);
        let chunk = command::BlobChunk { digest: digest.clone(), index: 0, chunks: 1, total_bytes: 10, data };
        let reply = self.run(Body::BlobChunk(chunk));
        assert!(matches!(reply, Reply::BlobChunk { complete: true, .. }), "{reply:?}");
        digest
    }

    /// Installs a plugin with a watch trigger `w` on `/in/` and a schedule trigger `s`; returns its generation.
    pub(super) fn install(&mut self, name: &str, start_revision: u64) -> u64 {
        let digest = self.upload(name.len() as u8);
        match self.run(Body::PluginSet(plugin_set(name, digest, start_revision))) {
            Reply::Plugin { generation, .. } => generation,
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn plugin_set(name: &str, digest: Bytes, start_revision: u64) -> command::PluginSet {
    command::PluginSet {
        name: name.into(),
        digest,
        manifest: Bytes::from_static(b"{}"),
        triggers: vec![
            command::Trigger {
                id: "w".into(),
                kind: command::trigger::Kind::Watch as i32,
                key: Bytes::from_static(b"/in/"),
                range_end: Bytes::from_static(b"/in0"),
                start_revision,
                self_events: false,
            },
            command::Trigger { id: "s".into(), kind: command::trigger::Kind::Schedule as i32, ..Default::default() },
        ],
        expect_generation: 0,
        exclusive_create: false,
    }
}

fn is_same(one: &Effects, other: &Effects) -> bool {
    let rows =
        |effects: &Effects| effects.changes.iter().map(|change| (change.row.clone(), change.prev.clone())).collect::<Vec<_>>();
    rows(one) == rows(other)
        && (one.compacted, one.history_bytes, one.registry_changed, one.leases_changed)
            == (other.compacted, other.history_bytes, other.registry_changed, other.leases_changed)
}

fn fetch(history: &BTreeMap<Rev, Bytes>, rev: Rev) -> Result<Bytes, String> {
    let bytes = history.get(&rev).ok_or_else(|| format!("no row at {rev}"))?;
    Ok(Row::decode(rev, bytes).map_err(|error| error.to_string())?.value)
}

pub(super) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn put_request(key: &str, value: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

pub(super) fn put(key: &str, value: &str) -> Body {
    Body::Put(put_request(key, value))
}

pub(super) fn delete(key: &str, range_end: &str) -> Body {
    Body::DeleteRange(DeleteRangeRequest { key: bytes(key), range_end: bytes(range_end), prev_kv: false })
}

pub(super) fn range(key: &str, range_end: &str) -> RangeRequest {
    RangeRequest { key: bytes(key), range_end: bytes(range_end), ..Default::default() }
}

pub(super) fn everything() -> RangeRequest {
    range("\0", "\0")
}

pub(super) fn op_put(key: &str, value: &str) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(put_request(key, value))) }
}

pub(super) fn op_delete(key: &str, range_end: &str) -> RequestOp {
    let delete = DeleteRangeRequest { key: bytes(key), range_end: bytes(range_end), prev_kv: true };
    RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}

pub(super) fn op_range(key: &str, range_end: &str) -> RequestOp {
    RequestOp { request: Some(Request::RequestRange(range(key, range_end))) }
}

pub(super) fn op_txn(txn: TxnRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestTxn(txn)) }
}

pub(super) fn txn(compare: Vec<Compare>, success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { compare, success, failure }
}

pub(super) fn when(key: &str, result: CompareResult, union: TargetUnion) -> Compare {
    let target = match union {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    Compare {
        result: result as i32,
        target: target as i32,
        key: bytes(key),
        range_end: Bytes::new(),
        target_union: Some(union),
    }
}

pub(super) fn keys(reply: &RangeReply) -> Vec<String> {
    reply.items.iter().map(|item| String::from_utf8_lossy(&item.key).into_owned()).collect()
}

pub(super) fn error_of(reply: Reply) -> Error {
    match reply {
        Reply::Error { error, .. } => error,
        other => panic!("not refused: {other:?}"),
    }
}

/// The node that proposes every entry.
pub(super) const LEADER: u64 = 42;
pub(super) const KEY_COST: u64 = limits::KEY_OVERHEAD_BYTES;
pub(super) use pb::AlarmType;
