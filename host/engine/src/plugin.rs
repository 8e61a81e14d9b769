//! What the plugin host needs: the registry, components, history from a cursor on, reads at a pinned revision, and the commands
//! that only it proposes.
//!
//! **Invariant:** what is proposed here is the plugin host's own; clients' commands go through the methods that authorise them.

mod history;

use bytes::{Bytes, BytesMut};
use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::command::{Assign, Origin};
use kvasir_api::etcdserverpb::RangeRequest;
use kvasir_api::limits::{DEAD_LETTERS_LISTED_MAX, RANGE_SLICE_KEYS};
use kvasir_api::mvccpb::KeyValue;
use kvasir_machine::{
    DeadLetterRecord, Item, PluginRecord, RangeReply, Reply, Rev, Table, TriggerRecord, blob_chunk_key, dead_letter_key,
    read_dead_letter_key,
};
use tokio::sync::watch;

use crate::authorise;
use crate::caller::{Caller, KeyRange};
use crate::engine::Engine;
use crate::write::unexpected;

pub use history::HistoryBatch;

/// A part of a range at one revision.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Keys in order.
    pub kvs: Vec<KeyValue>,
    /// The scan goes on after this key; `None` when the range is through.
    pub more: Option<Bytes>,
    /// The revision that was read.
    pub revision: u64,
}

/// A parked event, with where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterView {
    /// The trigger.
    pub trigger: String,
    /// Its partition.
    pub partition: u32,
    /// The event's place in history.
    pub at: Rev,
    /// What is kept of it.
    pub record: DeadLetterRecord,
}

impl Engine {
    /// Takes a command of the plugin host to its reply. Client requests go through their own methods, which authorise them; the
    /// ops of an `EffectTxn` must have been authorised one by one with [`Engine::authorise`] when they were staged.
    ///
    /// # Errors
    /// `Invalid` for a client's command, whatever apply refuses it with, and what a proposal can fail with.
    pub async fn propose(&self, body: Body, origin: Origin, tenant: u64) -> Result<Reply, Error> {
        match body {
            Body::BlobChunk(_)
            | Body::PluginSet(_)
            | Body::PluginRemove(_)
            | Body::PluginControl(_)
            | Body::EffectTxn(_)
            | Body::CursorAdvance(_)
            | Body::DeadLetterDrop(_)
            | Body::TriggerControl(_)
            | Body::TaskDone(_) => self.propose_as(body, origin, tenant).await,
            _ => Err(Error::Invalid("only the plugin host's own commands are proposed this way".to_owned())),
        }
    }

    /// Gives a trigger's partition to a node, as the leader of a term; returns the owner's epoch.
    ///
    /// # Errors
    /// `NotLeader` when this node does not lead in that term, `Precondition` when the partition is at another epoch, `Missing` when it
    /// is gone, and what a proposal can fail with.
    pub async fn assign(&self, term: u64, assign: Assign) -> Result<u64, Error> {
        match self.propose_in_term(term, Body::Assign(assign)).await? {
            Reply::Assign { owner_epoch, .. } => Ok(owner_epoch),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Every partition of every trigger, in order of plugin, trigger and partition.
    pub fn triggers(&self) -> Vec<TriggerRecord> {
        self.consensus().state().read().triggers().cloned().collect()
    }

    /// Installed plugins, in order of name.
    pub fn registry(&self) -> Vec<PluginRecord> {
        self.consensus().state().read().plugins().cloned().collect()
    }

    /// One installed plugin.
    pub fn plugin(&self, name: &str) -> Option<PluginRecord> {
        self.consensus().state().read().plugin(name).cloned()
    }

    /// Changes when the registry does; the number only ever grows.
    pub fn registry_changes(&self) -> watch::Receiver<u64> {
        self.inner().feed.registry.subscribe()
    }

    /// One partition of a trigger.
    pub fn trigger(&self, plugin: &str, trigger: &str, partition: u32) -> Option<TriggerRecord> {
        self.consensus().state().read().trigger(plugin, trigger, partition).cloned()
    }

    /// Whether a lease is there that was granted to this plugin, as far as this node has applied.
    pub fn lease_is_of(&self, id: i64, plugin: &str) -> bool {
        self.consensus().state().read().lease(id).is_some_and(|lease| lease.plugin == Some(plugin))
    }

    /// What is known of a component.
    pub fn blob_record(&self, digest: &[u8]) -> Option<kvasir_machine::BlobRecord> {
        self.consensus().state().read().blob(digest)
    }

    /// Parked events of a plugin after one of them, in order of trigger and history, at most a thousand; true when there are more.
    ///
    /// # Errors
    /// A disk fault.
    pub async fn dead_letters(&self, plugin: &str, after: Option<(&str, Rev)>) -> Result<(Vec<DeadLetterView>, bool), Error> {
        let mut prefix = plugin.as_bytes().to_vec();
        prefix.push(0);
        // There is one partition.
        let after = after.map(|(trigger, at)| dead_letter_key(plugin, trigger, 0, at));
        self.blocking(move |store| {
            let page = store.table_scan(Table::DeadLetter, &prefix, after.as_deref(), DEAD_LETTERS_LISTED_MAX)?;
            let invalid =
                |error: kvasir_machine::FormatError| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string());
            let more = page.more;
            let letters = page.rows.into_iter().map(|(key, value)| {
                let (_, trigger, partition, at) = read_dead_letter_key(&key).map_err(invalid)?;
                let record = DeadLetterRecord::decode(&value).map_err(invalid)?;
                Ok(DeadLetterView { trigger, partition, at, record })
            });
            Ok((letters.collect::<std::io::Result<_>>()?, more))
        })
        .await
    }

    /// One parked event of a trigger.
    ///
    /// # Errors
    /// A disk fault.
    pub async fn dead_letter(&self, plugin: &str, trigger: &str, at: Rev) -> Result<Option<DeadLetterRecord>, Error> {
        let key = dead_letter_key(plugin, trigger, 0, at);
        self.blocking(move |store| {
            let value = store.table_get(Table::DeadLetter, &key)?;
            let invalid =
                |error: kvasir_machine::FormatError| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string());
            value.map(|value| DeadLetterRecord::decode(&value).map_err(invalid)).transpose()
        })
        .await
    }

    /// A component's bytes; `None` when it is not whole. Whoever loads it checks its digest.
    ///
    /// # Errors
    /// A disk fault, or a piece that is missing.
    pub async fn blob(&self, digest: &[u8]) -> Result<Option<Bytes>, Error> {
        let (record, revision) = {
            let state = self.consensus().state().read();
            (state.blob(digest), state.revision())
        };
        let Some(record) = record.filter(|record| record.complete) else { return Ok(None) };
        self.stored(revision).await?;
        let digest = digest.to_vec();
        self.blocking(move |store| {
            // The size was bounded when the first piece was taken.
            let mut whole = BytesMut::with_capacity(usize::try_from(record.total_bytes).unwrap_or(0));
            for chunk in 0..record.chunks {
                match store.table_get(Table::BlobChunk, &blob_chunk_key(&digest, chunk))? {
                    Some(piece) => whole.extend_from_slice(&piece),
                    // The blob was removed meanwhile.
                    None => return Ok(None),
                }
            }
            Ok(Some(whole.freeze()))
        })
        .await
    }

    /// A key at a revision (0: now), serializable.
    ///
    /// # Errors
    /// `PermissionDenied`, `Compacted`, `FutureRevision`; a disk fault.
    pub async fn snapshot_get(&self, caller: &Caller, key: Bytes, revision: u64) -> Result<Option<KeyValue>, Error> {
        let request = RangeRequest {
            key,
            revision: i64::try_from(revision).unwrap_or(i64::MAX),
            serializable: true,
            ..RangeRequest::default()
        };
        authorise::allow_range(caller, &request)?;
        let found = self.read(caller.tenant, &request).await?;
        Ok(found.items.into_iter().next().map(Item::into_key_value))
    }

    /// A page of a range at a revision (0: now), from after a key on, serializable.
    ///
    /// # Errors
    /// As [`Engine::snapshot_get`].
    pub async fn snapshot_scan(
        &self,
        caller: &Caller,
        range: &KeyRange,
        revision: u64,
        after: Option<Bytes>,
        limit: usize,
        keys_only: bool,
    ) -> Result<Page, Error> {
        authorise::allow(caller, authorise::Access::Read, range)?;
        let (slice, at, seen_at) = {
            let state = self.consensus().state().read();
            let at = if revision == 0 { state.revision() } else { revision };
            let keys = limit.clamp(1, RANGE_SLICE_KEYS);
            let slice = state.range_slice(caller.tenant, &range.key, &range.range_end, at, after.as_deref(), keys)?;
            (slice, at, state.revision())
        };
        let count = slice.items.len() as u64;
        let mut reply = RangeReply { revision: seen_at, items: slice.items, more: false, count, by_value: None };
        if keys_only {
            for item in &mut reply.items {
                item.value = kvasir_machine::ValueSlot::Memory(Bytes::new());
            }
        }
        let reply = self.fill_range(reply).await?;
        let kvs = reply.items.into_iter().map(Item::into_key_value).collect();
        Ok(Page { kvs, more: slice.more, revision: at })
    }
}
