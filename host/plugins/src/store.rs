//! The engine as plugins need it: the one file of this crate that calls it.
//!
//! **Invariant:** what a guest asks for was authorised by `Engine::authorise` before it comes here.

use std::time::Duration;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::command::{
    Assign, BlobChunk, CursorAdvance, DeadLetterDrop, EffectTxn, Origin, PluginControl, PluginRemove, PluginSet, TaskDone,
    TriggerControl,
};
use kvasir_api::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest};
use kvasir_api::v3lockpb::LockRequest;
use kvasir_engine::{Access, Caller, Engine, HistoryBatch, KeyRange};
use kvasir_machine::{DEFAULT_TENANT, DeadLetterRecord, EffectReply, PluginRecord, Reply, Rev, Row, TriggerRecord};
use tokio::sync::watch;

/// A key's state at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) create_revision: u64,
    pub(crate) mod_revision: u64,
    pub(crate) version: u64,
    /// 0 for none.
    pub(crate) lease: i64,
}

impl Entry {
    pub(crate) fn of(row: &Row) -> Self {
        Self {
            key: row.key.clone(),
            value: row.value.clone(),
            create_revision: row.create_revision,
            mod_revision: row.rev.main,
            version: row.version,
            lease: row.lease,
        }
    }
}

/// Some entries of a range, in order of key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Entry>,
    /// There is more after the last entry.
    pub(crate) more: bool,
}

/// A handle on the engine.
#[derive(Clone)]
pub(crate) struct Store {
    engine: Engine,
}

/// Keys read at once by a scan, and bytes after which it is cut.
const SCAN_KEYS: usize = 128;
const SCAN_BYTES_MAX: usize = 1 << 20;

impl Store {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.engine.revision()
    }

    /// What a refusal for compaction names: history from here on is readable.
    pub(crate) fn compact_revision(&self) -> u64 {
        self.engine.metrics().compact_revision
    }

    /// Changes with the applied revision.
    pub(crate) fn revisions(&self) -> watch::Receiver<u64> {
        self.engine.revisions()
    }

    pub(crate) fn node_id(&self) -> u64 {
        self.engine.node_id()
    }

    /// The term in which this node leads, as last reported.
    pub(crate) fn leading_term(&self) -> Option<u64> {
        self.engine.leading_term()
    }

    /// Changes with the term and the leader.
    pub(crate) fn standings(&self) -> watch::Receiver<(u64, Option<u64>)> {
        self.engine.standings()
    }

    pub(crate) async fn linearize(&self) -> Result<(), Error> {
        self.engine.linearize().await
    }

    pub(crate) fn authorise(&self, caller: &Caller, access: Access, keys: &KeyRange) -> Result<(), Error> {
        self.engine.authorise(caller, access, keys)
    }

    /// A key as it was at `revision`.
    pub(crate) async fn get(&self, caller: &Caller, key: &Bytes, revision: u64) -> Result<Option<Entry>, Error> {
        Ok(self.engine.snapshot_get(caller, key.clone(), revision).await?.map(Entry::from))
    }

    /// A page of a range as it was at `revision`: at most `limit` entries, fewer when they are large, at least one if there is any.
    pub(crate) async fn scan(
        &self,
        caller: &Caller,
        keys: &KeyRange,
        revision: u64,
        after: Option<&Bytes>,
        limit: usize,
        keys_only: bool,
    ) -> Result<Page, Error> {
        let mut page = Page { entries: Vec::new(), more: false };
        let mut after = after.cloned();
        let mut bytes = 0;
        loop {
            let most = (limit - page.entries.len()).min(SCAN_KEYS);
            let piece = self.engine.snapshot_scan(caller, keys, revision, after, most, keys_only).await?;
            for entry in piece.kvs.into_iter().map(Entry::from) {
                bytes += entry.key.len() + entry.value.len();
                if bytes > SCAN_BYTES_MAX && !page.entries.is_empty() {
                    page.more = true;
                    return Ok(page);
                }
                page.entries.push(entry);
            }
            after = piece.more;
            if after.is_none() {
                return Ok(page);
            }
            if page.entries.len() >= limit {
                page.more = true;
                return Ok(page);
            }
        }
    }

    /// Changes of a range from a cursor on, as [`Engine::history`].
    pub(crate) async fn history(
        &self,
        from: Rev,
        keys: &KeyRange,
        tenant: u64,
        max_events: usize,
        max_bytes: usize,
        with_prev: bool,
    ) -> Result<HistoryBatch, Error> {
        self.engine.history(from, keys, tenant, max_events, max_bytes, with_prev).await
    }

    pub(crate) fn plugins(&self) -> Vec<PluginRecord> {
        self.engine.registry()
    }

    pub(crate) fn plugin(&self, name: &str) -> Option<PluginRecord> {
        self.engine.plugin(name)
    }

    /// A trigger; there is one partition.
    pub(crate) fn trigger(&self, plugin: &str, trigger: &str) -> Option<TriggerRecord> {
        self.engine.trigger(plugin, trigger, 0)
    }

    /// The members' ids and names, this node among them.
    pub(crate) fn members(&self) -> Vec<(u64, String)> {
        self.engine.members().into_iter().map(|known| (known.id, known.member.name)).collect()
    }

    /// Asks another member what [`crate::PluginHost::answer`] answers there.
    pub(crate) async fn ask(&self, node: u64, question: Bytes) -> Result<Bytes, Error> {
        self.engine.ask(node, question).await
    }

    pub(crate) fn triggers(&self) -> Vec<TriggerRecord> {
        self.engine.triggers()
    }

    pub(crate) fn registry_changes(&self) -> watch::Receiver<u64> {
        self.engine.registry_changes()
    }

    /// A page of a plugin's parked events after one of them: trigger, place, and what is kept; true when there are more.
    pub(crate) async fn dead_letters(
        &self,
        plugin: &str,
        after: Option<(&str, Rev)>,
    ) -> Result<(Vec<(String, Rev, DeadLetterRecord)>, bool), Error> {
        let (letters, more) = self.engine.dead_letters(plugin, after).await?;
        Ok((letters.into_iter().map(|letter| (letter.trigger, letter.at, letter.record)).collect(), more))
    }

    pub(crate) async fn dead_letter(&self, plugin: &str, trigger: &str, at: Rev) -> Result<Option<DeadLetterRecord>, Error> {
        self.engine.dead_letter(plugin, trigger, at).await
    }

    /// Forgets parked events of a trigger, all of them when none is named; returns how many there were.
    pub(crate) async fn drop_dead_letters(&self, plugin: &str, trigger: &str, at: Vec<Rev>) -> Result<u64, Error> {
        let at = at.into_iter().map(Into::into).collect();
        let request = DeadLetterDrop { plugin: plugin.to_owned(), trigger: trigger.to_owned(), partition: 0, at };
        match self.propose(Body::DeadLetterDrop(request)).await? {
            Reply::DeadLetterDrop { dropped, .. } => Ok(u64::from(dropped)),
            reply => Err(unexpected(&reply)),
        }
    }

    /// A component's bytes if it is whole; its digest is not checked yet.
    pub(crate) async fn blob(&self, digest: &[u8; 32]) -> Result<Option<Bytes>, Error> {
        self.engine.blob(digest).await
    }

    /// Replicates a piece of a component. Returns the next piece to send, and whether all are there.
    pub(crate) async fn blob_chunk(&self, chunk: BlobChunk) -> Result<(u32, bool), Error> {
        match self.propose(Body::BlobChunk(chunk)).await? {
            Reply::BlobChunk { received, complete, .. } => Ok((received, complete)),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Puts a plugin in force and returns its generation.
    pub(crate) async fn install(&self, set: PluginSet) -> Result<u64, Error> {
        match self.propose(Body::PluginSet(set)).await? {
            Reply::Plugin { generation, .. } => Ok(generation),
            reply => Err(unexpected(&reply)),
        }
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<(), Error> {
        self.propose(Body::PluginRemove(PluginRemove { name: name.to_owned() })).await.map(drop)
    }

    pub(crate) async fn control(&self, control: PluginControl) -> Result<(), Error> {
        self.propose(Body::PluginControl(control)).await.map(drop)
    }

    /// Gives a trigger to a node, as the leader of a term; returns the epoch.
    pub(crate) async fn assign(&self, term: u64, assign: Assign) -> Result<u64, Error> {
        self.engine.assign(term, assign).await
    }

    pub(crate) async fn control_trigger(&self, control: TriggerControl) -> Result<(), Error> {
        self.propose(Body::TriggerControl(control)).await.map(drop)
    }

    /// Records that a task's run is over that began then.
    pub(crate) async fn task_done(
        &self,
        plugin: &str,
        trigger: &str,
        owner_epoch: u64,
        started_wall_ms: u64,
    ) -> Result<(), Error> {
        let (plugin, trigger) = (plugin.to_owned(), trigger.to_owned());
        self.propose(Body::TaskDone(TaskDone { plugin, trigger, partition: 0, owner_epoch, started_wall_ms })).await.map(drop)
    }

    /// Proposes what a run did. An error says that its fate is unknown or that it was refused before it was proposed.
    pub(crate) async fn effect(&self, effect: EffectTxn, origin: Origin, tenant: u64) -> Result<EffectReply, Error> {
        match self.engine.propose(Body::EffectTxn(effect), origin, tenant).await? {
            Reply::Effect { reply, .. } => Ok(reply),
            reply => Err(unexpected(&reply)),
        }
    }

    pub(crate) async fn advance(&self, moves: CursorAdvance) -> Result<(), Error> {
        self.propose(Body::CursorAdvance(moves)).await.map(drop)
    }

    pub(crate) async fn lease_grant(&self, caller: &Caller, ttl_s: i64) -> Result<i64, Error> {
        Ok(self.engine.lease_grant(caller, LeaseGrantRequest { ttl: ttl_s, id: 0 }).await?.id)
    }

    /// Renews a lease; `None` when there is none.
    pub(crate) async fn lease_keep_alive(&self, caller: &Caller, id: i64) -> Result<Option<i64>, Error> {
        let ttl = self.engine.lease_keep_alive(caller, id).await?.ttl;
        Ok((ttl > 0).then_some(ttl))
    }

    pub(crate) async fn lease_revoke(&self, caller: &Caller, id: i64) -> Result<(), Error> {
        self.engine.lease_revoke(caller, LeaseRevokeRequest { id }).await.map(drop)
    }

    /// Whether the lease is there and was granted to the plugin, as far as this node has applied.
    pub(crate) fn lease_is_of(&self, id: i64, plugin: &str) -> bool {
        self.engine.lease_is_of(id, plugin)
    }

    /// Seconds left and seconds granted.
    pub(crate) async fn lease_time_to_live(&self, caller: &Caller, id: i64) -> Result<(i64, i64), Error> {
        let status = self.engine.lease_time_to_live(caller, LeaseTimeToLiveRequest { id, keys: false }).await?;
        if status.ttl < 0 { Err(Error::LeaseNotFound) } else { Ok((status.ttl, status.granted_ttl)) }
    }

    /// Waits for a lock and returns its key; `None` when others still have it after `patience`.
    pub(crate) async fn lock_within(
        &self,
        caller: &Caller,
        name: &Bytes,
        lease: i64,
        patience: Duration,
    ) -> Result<Option<Bytes>, Error> {
        let request = LockRequest { name: name.clone(), lease };
        Ok(self.engine.lock_within(caller, request, patience).await?.map(|locked| locked.key))
    }

    async fn propose(&self, body: Body) -> Result<Reply, Error> {
        self.engine.propose(body, Origin::default(), DEFAULT_TENANT).await
    }
}

impl From<kvasir_api::mvccpb::KeyValue> for Entry {
    fn from(kv: kvasir_api::mvccpb::KeyValue) -> Self {
        Self {
            key: kv.key,
            value: kv.value,
            create_revision: kv.create_revision as u64,
            mod_revision: kv.mod_revision as u64,
            version: kv.version as u64,
            lease: kv.lease,
        }
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::Internal(format!("the store gave an answer of another kind: {reply:?}"))
}
