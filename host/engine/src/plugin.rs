//! What the plugin host needs: the registry, components, history from a cursor on, reads at a pinned revision, and the commands
//! that only it proposes.
//!
//! **Invariant:** history is given out only up to what is applied and stored, in order, every change of the range once.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kvasir_api::Error;
use kvasir_api::command::Origin;
use kvasir_api::command::command::Body;
use kvasir_api::etcdserverpb::RangeRequest;
use kvasir_api::limits::{DEAD_LETTERS_LISTED_MAX, HISTORY_PIECES_MAX, HISTORY_READ_ROWS_MAX, RANGE_SLICE_KEYS};
use kvasir_api::mvccpb::KeyValue;
use kvasir_machine::{
    Change, DeadLetterRecord, Item, PluginRecord, RangeReply, Reply, Rev, Row, Table, TriggerRecord, blob_chunk_key,
    read_dead_letter_key,
};
use tokio::sync::watch;

use crate::authorise;
use crate::caller::{Caller, KeyRange};
use crate::engine::Engine;
use crate::watch::history::{self, Want};

/// Changes from a cursor on.
#[derive(Debug, Clone, Default)]
pub struct HistoryBatch {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// The next change to look at: the cursor after these.
    pub next: Rev,
    /// Everything up to `revision` was looked at; otherwise there may be more from `next` on.
    pub whole: bool,
    /// The applied revision that was looked up to.
    pub revision: u64,
}

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
            | Body::Assign(_)
            | Body::EffectTxn(_)
            | Body::CursorAdvance(_)
            | Body::DeadLetterDrop(_) => self.propose_as(body, origin, tenant).await,
            _ => Err(Error::Invalid("only the plugin host's own commands are proposed this way".to_owned())),
        }
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

    /// What is known of a component.
    pub fn blob_record(&self, digest: &[u8]) -> Option<kvasir_machine::BlobRecord> {
        self.consensus().state().read().blob(digest)
    }

    /// Parked events of a plugin, in order of trigger and history, at most a thousand.
    ///
    /// # Errors
    /// A disk fault.
    pub async fn dead_letters(&self, plugin: &str) -> Result<Vec<DeadLetterView>, Error> {
        let mut prefix = plugin.as_bytes().to_vec();
        prefix.push(0);
        self.blocking(move |store| {
            let rows = store.table_scan(Table::DeadLetter, &prefix, None, DEAD_LETTERS_LISTED_MAX)?;
            let invalid =
                |error: kvasir_machine::FormatError| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string());
            rows.rows
                .into_iter()
                .map(|(key, value)| {
                    let (_, trigger, partition, at) = read_dead_letter_key(&key).map_err(invalid)?;
                    let record = DeadLetterRecord::decode(&value).map_err(invalid)?;
                    Ok(DeadLetterView { trigger, partition, at, record })
                })
                .collect()
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

    /// Changes of a range in order, from `from` (included) up to what is applied. At most `max_events` changes and about
    /// `max_bytes` bytes of keys and values, at least one change if there is any; with `with_prev` each with the version it
    /// replaced, as far as that is still there.
    ///
    /// # Errors
    /// `Compacted` when history from there on is no longer whole; a disk fault.
    pub async fn history(
        &self,
        from: Rev,
        range: &KeyRange,
        tenant: u64,
        max_events: usize,
        max_bytes: usize,
        with_prev: bool,
    ) -> Result<HistoryBatch, Error> {
        let mut batch = HistoryBatch { next: from, revision: self.revision(), ..HistoryBatch::default() };
        let mut bytes = 0;
        for _ in 0..HISTORY_PIECES_MAX {
            if batch.next.main > batch.revision {
                batch.whole = true;
                return Ok(batch);
            }
            let (changes, upto) = self.history_piece(batch.next, batch.revision, range, tenant, with_prev).await?;
            for change in changes {
                let row = &change.row;
                if row.rev < batch.next {
                    continue;
                }
                let weight = row.key.len() + row.value.len();
                let full = batch.changes.len() >= max_events || bytes + weight > max_bytes;
                if full && !batch.changes.is_empty() {
                    batch.next = row.rev;
                    return Ok(batch);
                }
                bytes += weight;
                batch.next = Rev { main: row.rev.main, sub: row.rev.sub.saturating_add(1) };
                batch.changes.push(change);
            }
            batch.next = Rev { main: upto + 1, sub: 0 };
        }
        Ok(batch)
    }

    /// Whole revisions from `from.main` on; wanted changes and the revision they go up to.
    async fn history_piece(
        &self,
        from: Rev,
        to: u64,
        range: &KeyRange,
        tenant: u64,
        with_prev: bool,
    ) -> Result<(Vec<Change>, u64), Error> {
        let wanted = |row: &Row| row.tenant == tenant && range.contains_key(&row.key);
        let recent = self.inner().feed.hub.recent(from.main.saturating_sub(1), HISTORY_READ_ROWS_MAX);
        if let Some((events, upto)) = recent {
            let changes = events
                .iter()
                .filter(|event| event.main() <= to && wanted(event.row()))
                .map(|event| Change { row: Arc::clone(event.row()), prev: event.change().prev.clone().filter(|_| with_prev) })
                .collect();
            return Ok((changes, upto.min(to)));
        }
        self.inner().counters.history_reads.add(1);
        let range = range.clone();
        let piece = self
            .blocking(move |store| {
                history::read(store, from.main, to, |row| {
                    if row.tenant != tenant || !range.contains_key(&row.key) {
                        Want::Nothing
                    } else if with_prev {
                        Want::WithPrev
                    } else {
                        Want::Row
                    }
                })
            })
            .await?;
        // Asked after reading: what was whole then was whole while it was read.
        if from.main < self.consensus().state().read().retention_floor() {
            return Err(Error::Compacted);
        }
        Ok((piece.changes, piece.upto))
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
