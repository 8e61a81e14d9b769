//! Restore: the state again from the rows of the state file.
//!
//! **Invariant:** what is restored answers as the state did that wrote the rows, or is refused.

use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::limits;

use crate::authority::Authorities;
use crate::codec::FormatError;
use crate::cursor::letter_bytes;
use crate::lease::Grant;
use crate::mvcc::index::{KeyRecord, unbury};
use crate::registry::{PluginRecord, TriggerEntry, TriggerKey, TriggerRecord};
use crate::state::{Mark, Meta};
use crate::table::{self, DeadLetterRecord};
use crate::version;
use crate::{Rev, Row, State, Table, TokenRecord, quota};

/// A state being rebuilt. Rows of the small tables come in any order, before or after the rows of history, which ascend.
pub struct Restore {
    state: State,
    last: Rev,
    has_meta: bool,
    letters: Vec<(TriggerKey, Rev, u64)>,
}

impl State {
    /// Begins to rebuild a state from the state file. With no rows at all it comes out empty.
    pub fn restore() -> Restore {
        Restore { state: Self::new(), last: Rev::default(), has_meta: false, letters: Vec::new() }
    }
}

impl Restore {
    /// Takes a row of a small table.
    ///
    /// # Errors
    /// Bytes that are not a row of that table.
    pub fn table_row(&mut self, table: Table, key: &[u8], value: &Bytes) -> Result<(), FormatError> {
        let state = &mut self.state;
        match table {
            Table::Meta if key == table::META_STATE => {
                state.meta = Meta::decode(value)?;
                self.has_meta = true;
            }
            Table::Meta if key.starts_with(table::META_MARK) => {
                state.marks.insert(table::read_mark_key(key)?, Mark::decode(value)?);
            }
            Table::Meta if key == table::META_CLUSTER_VERSION => state.cluster_version = version::decode(value)?,
            Table::Meta if key == table::META_AUTHORITIES => state.authorities = Some(Authorities::decode(value)?),
            Table::Meta => {
                let tenant = table::read_quota_key(key)?;
                state.spaces.entry(tenant).or_default().quota_bytes = table::decode_quota(value)?;
            }
            Table::Lease => {
                let (id, grant) = (table::read_lease_key(key)?, Grant::decode(value)?);
                if state.leases.exists(id) {
                    return Err(FormatError::Invalid { what: "lease", why: "it is there twice" });
                }
                state.leases.insert(id, grant);
            }
            Table::Plugin => {
                let record = PluginRecord::decode(key, value)?;
                state.registry.plugins.insert(record.name.clone(), record);
            }
            Table::Trigger => {
                let key = table::read_trigger_key(key)?;
                let record = TriggerRecord::decode(key.clone(), value)?;
                state.registry.triggers.insert(key, TriggerEntry { record, letters: Default::default() });
            }
            Table::Blob => {
                let digest = table::read_digest("component", key)?;
                state.blobs.insert(digest, crate::blob::BlobRecord::decode(value)?);
            }
            Table::BlobChunk => table::check_blob_chunk_key(key)?,
            Table::DeadLetter => {
                let (plugin, trigger, partition, at) = table::read_dead_letter_key(key)?;
                let bytes = letter_bytes(&DeadLetterRecord::decode(value)?);
                self.letters.push((TriggerKey { plugin, trigger, partition }, at, bytes));
            }
            Table::Alarm => {
                table::decode_alarm(value)?;
                state.alarms.insert(table::read_alarm_key(key)?);
            }
            Table::Token => {
                let record = TokenRecord::decode(key, value)?;
                state.tokens.insert(record.id, record);
            }
        }
        Ok(())
    }

    /// Takes a row of history; they come in order.
    ///
    /// # Errors
    /// The row is out of order, or does not continue its key's history.
    pub fn history_row(&mut self, mut row: Row) -> Result<(), FormatError> {
        let at = row.rev;
        let wrong = |why| FormatError::History { at, why };
        if at <= self.last || at.main < 2 {
            return Err(wrong("rows are out of order"));
        }
        self.last = at;
        let space = self.state.spaces.entry(row.tenant).or_default();
        if let Some(record) = space.live.get_mut(&row.key) {
            if row.prev != Some(record.head.rev) {
                return Err(wrong("it does not replace the version before it"));
            }
            let generation = (record.head.version + 1, record.head.create_revision);
            if !row.tombstone && (row.version, row.create_revision) != generation {
                return Err(wrong("it does not continue its generation"));
            }
            // Versions share their key.
            row.key = record.slot.row().map_or(row.key, |before| before.key.clone());
            let row = Arc::new(row);
            self.state.trim.note(&row);
            if row.tombstone {
                space.bury(row)
            } else {
                record.push(row)
            }
            return Ok(());
        }
        let buried = unbury(&mut space.dead, &row.key);
        if buried.is_some() && row.prev.is_some() {
            return Err(wrong("it does not replace the version before it"));
        }
        let (key, record) = buried.map_or((None, None), |(key, record)| (Some(key), Some(record)));
        row.key = key.unwrap_or_else(|| Bytes::copy_from_slice(&row.key));
        let row = Arc::new(row);
        self.state.trim.note(&row);
        if row.tombstone {
            // The versions that it ends were trimmed before it.
            space.dead.insert(row.key.clone(), KeyRecord::new(row));
        } else {
            space.insert(record, row);
        }
        Ok(())
    }

    /// The state, whole.
    ///
    /// # Errors
    /// The rows do not fit together.
    pub fn finish(self) -> Result<State, FormatError> {
        let Self { mut state, last, has_meta, letters } = self;
        let invalid = |what, why| Err(FormatError::Invalid { what, why });
        if last.main > state.meta.revision {
            return Err(FormatError::History { at: last, why: "it is later than the store's revision" });
        }
        if !has_meta && (last != Rev::default() || !state.registry.plugins.is_empty() || state.leases.len() > 0) {
            return invalid("state", "there are rows but no revision");
        }
        if state.marks.values().any(|mark| {
            mark.history_bytes > state.meta.total.history_bytes || mark.old_versions > state.meta.total.old_versions
        }) {
            return invalid("history mark", "it is higher than the totals");
        }
        for (tenant, space) in &mut state.spaces {
            for (key, record) in &space.live {
                let Some(row) = record.slot.row() else { continue };
                space.live_bytes += quota::key_cost(key, &row.value);
                if row.lease != 0 && !state.leases.is_held_by(row.lease, *tenant) {
                    return Err(FormatError::History { at: row.rev, why: "its lease does not exist" });
                }
                state.leases.attach(row.lease, key);
            }
            state.live_bytes += space.live_bytes;
        }
        for (key, at, bytes) in letters {
            let Some(entry) = state.registry.triggers.get_mut(&key) else {
                return invalid("dead letter", "its trigger does not exist");
            };
            entry.letters.insert(at, bytes);
            entry.record.dead_letters = entry.letters.len() as u64;
            state.registry.dead_letter_bytes += bytes;
        }
        for (key, entry) in &state.registry.triggers {
            let Some(plugin) = state.registry.plugins.get_mut(&key.plugin) else {
                return invalid("trigger", "its plugin does not exist");
            };
            if plugin.triggers.last() != Some(&key.trigger) {
                plugin.triggers.push(key.trigger.clone());
            }
            if entry.record.owner_epoch > state.meta.epoch {
                return invalid("trigger", "its owner epoch was never given out");
            }
        }
        for plugin in state.registry.plugins.values() {
            if plugin.generation > state.meta.generation || !state.blob(&plugin.digest).is_some_and(|blob| blob.complete) {
                return invalid("plugin", "its generation was never given out, or its component is missing");
            }
        }
        // An index entry is about so much; the bound only keeps arithmetic from wrapping on a forged file.
        if state.meta.total.old_versions > u64::MAX / limits::VERSION_OVERHEAD_BYTES / 2 {
            return invalid("state", "its totals are too large");
        }
        Ok(state)
    }
}
