//! The small replicated tables: which there are, and the bytes of their keys and values. Pure formats.
//!
//! # Format, version 1
//!
//! Pieces as in `codec.rs`: *varint* is shortest unsigned LEB128, *bytes* and *text* are a varint length and the bytes, *u64* is
//! 8 bytes little-endian. `be64`, `be32` are big-endian, so that byte order is the order of the numbers. Every value but a
//! component's piece begins with the version byte `1`.
//!
//! | table | key | value after the version byte |
//! |---|---|---|
//! | `Meta` | `state` | 13 u64: applied index, revision, compact revision + 1 (0: never), cluster ms, wall ms, quota bytes (0: default), last generation, last epoch, history bytes, old versions, the last two at the compact revision, 0 |
//! | `Meta` | `mark/` be64 revision | varint history bytes, varint old versions: totals after that revision |
//! | `Meta` | `quota/` be64 tenant | u64 quota bytes |
//! | `Meta` | `authorities` | varint epoch, varint place of the one that signs, varint count, bytes certificate (DER) each |
//! | `Lease` | be64 id (two's complement) | varint tenant, varint TTL s, varint deadline (cluster ms); in version 2 also text plugin |
//! | `Plugin` | name | bytes digest (32), bytes manifest, varint generation, byte state, text reason |
//! | `Trigger` | plugin `0x00` trigger `0x00` be32 partition | byte kind, bytes key, bytes range end, byte self events, varint cursor main, varint cursor sub, varint owner node, varint owner epoch, byte state, varint effects that landed; in version 2 also text reason, varint start of the last run (ms since 1970) |
//! | `Blob` | digest (32) | varint total bytes, varint chunks, varint received, varint bytes received, varint index of the first piece's entry |
//! | `BlobChunk` | digest (32) be32 chunk | the piece itself, no version byte: `Blob`'s version covers it |
//! | `DeadLetter` | plugin `0x00` trigger `0x00` be32 partition be64 main be32 sub | bytes key, text error, varint attempts |
//! | `Alarm` | be64 member be32 alarm | nothing |
//! | `Token` | be64 id | bytes hash of the secret (32), varint expiry (wall ms), byte use, and unless that is 0 bytes hash of the user's key (32), varint node |
//!
//! Plugin state: 0 active, 1 paused, 2 quarantined. Trigger kind: 0 watch, 1 schedule; state: 0 active, 1 lost, 2 halted, 3 halted
//! and lost. Names are `[a-z0-9-]{1,63}`, so that `0x00` ends them. Token use: 0 not yet, 1 a node id was given, 2 that node has
//! joined. Version 2 of a lease and of a trigger is written only where one of its own fields says something.
//!
//! **Invariant:** a value reads back as it was written, and nothing else is accepted.

use bytes::Bytes;
use kvasir_api::etcdserverpb::AlarmType;
use kvasir_api::limits;

use crate::Rev;
use crate::blob::{BlobRecord, Digest};
use crate::codec::{FormatError, Reader, Writer};
use crate::lease::Grant;
use crate::registry::{PluginRecord, PluginState, TriggerKey, TriggerKind, TriggerRecord, TriggerState, valid_name};
use crate::state::{Mark, Meta};

pub(crate) const FORMAT: u8 = 1;
/// Of leases and triggers that have fields which version 1 has not.
const FORMAT_WIDER: u8 = 2;
const NAME_END: u8 = 0;
pub(crate) const META_STATE: &[u8] = b"state";
pub(crate) const META_MARK: &[u8] = b"mark/";
pub(crate) const META_QUOTA: &[u8] = b"quota/";
pub(crate) const META_AUTHORITIES: &[u8] = b"authorities";
pub(crate) const META_CLUSTER_VERSION: &[u8] = b"version";

/// A small replicated table. The number of each is its place in file formats and never changes.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Table {
    /// Scalars, marks and quotas.
    Meta = 0,
    /// Leases.
    Lease = 1,
    /// Installed plugins.
    Plugin = 2,
    /// Their triggers: cursor, owner and state.
    Trigger = 3,
    /// Components, by digest.
    Blob = 4,
    /// Their pieces, which only the state file holds.
    BlobChunk = 5,
    /// Parked events.
    DeadLetter = 6,
    /// Raised alarms.
    Alarm = 7,
    /// Join tokens.
    Token = 8,
}

impl Table {
    /// Every table, in order of number.
    pub const ALL: [Self; 9] = [
        Self::Meta,
        Self::Lease,
        Self::Plugin,
        Self::Trigger,
        Self::Blob,
        Self::BlobChunk,
        Self::DeadLetter,
        Self::Alarm,
        Self::Token,
    ];

    /// The table of a number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// A parked event, as the `DeadLetter` table holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterRecord {
    /// The event's key.
    pub key: Bytes,
    /// The last error.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
}

impl DeadLetterRecord {
    /// The table's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(FORMAT, self.key.len() + self.error.len() + 16);
        out.bytes(&self.key);
        out.bytes(self.error.as_bytes());
        out.varint(u64::from(self.attempts));
        out.finish()
    }

    /// Reads the table's value.
    ///
    /// # Errors
    /// Bytes that [`DeadLetterRecord::encode`] does not write.
    pub fn decode(value: &Bytes) -> Result<Self, FormatError> {
        let mut input = Reader::new("dead letter", FORMAT, value)?;
        let record = Self { key: input.bytes()?, error: input.text()?, attempts: input.varint32()? };
        input.end()?;
        Ok(record)
    }
}

/// Keys of the `BlobChunk` table.
pub fn blob_chunk_key(digest: &[u8], chunk: u32) -> Vec<u8> {
    [digest, &chunk.to_be_bytes()].concat()
}

pub(crate) fn check_blob_chunk_key(key: &[u8]) -> Result<(), FormatError> {
    let whole = key.len() == size_of::<Digest>() + size_of::<u32>();
    if whole { Ok(()) } else { Err(FormatError::Invalid { what: "component piece", why: "its key is malformed" }) }
}

pub(crate) fn numbered_key(prefix: &[u8], number: u64) -> Vec<u8> {
    [prefix, &number.to_be_bytes()].concat()
}

pub(crate) fn alarm_key(member: u64, alarm: i32) -> Vec<u8> {
    [&member.to_be_bytes()[..], &alarm.to_be_bytes()].concat()
}

pub(crate) fn numbered(what: &'static str, prefix: &[u8], key: &[u8]) -> Result<u64, FormatError> {
    let number = key.strip_prefix(prefix).and_then(|rest| rest.try_into().ok());
    Ok(u64::from_be_bytes(number.ok_or(FormatError::Invalid { what, why: "its key is malformed" })?))
}

/// Key of a trigger's row, and the prefix of its dead letters' keys.
pub(crate) fn trigger_key(plugin: &str, trigger: &str, partition: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(plugin.len() + trigger.len() + 6);
    key.extend_from_slice(plugin.as_bytes());
    key.push(NAME_END);
    key.extend_from_slice(trigger.as_bytes());
    key.push(NAME_END);
    key.extend_from_slice(&partition.to_be_bytes());
    key
}

/// Key of a dead letter's row.
pub fn dead_letter_key(plugin: &str, trigger: &str, partition: u32, at: Rev) -> Vec<u8> {
    let mut key = trigger_key(plugin, trigger, partition);
    key.extend_from_slice(&at.to_key());
    key
}

/// Reads a dead letter's key: plugin, trigger, partition and the event's place.
///
/// # Errors
/// A key that [`dead_letter_key`] does not write.
pub fn read_dead_letter_key(key: &[u8]) -> Result<(String, String, u32, Rev), FormatError> {
    let wrong = FormatError::Invalid { what: "dead letter", why: "its key is malformed" };
    let (trigger, at) = key.split_at_checked(key.len().saturating_sub(Rev::KEY_BYTES)).ok_or(wrong.clone())?;
    let key = read_trigger_key(trigger).map_err(|_| wrong.clone())?;
    Ok((key.plugin, key.trigger, key.partition, Rev::from_key(at).ok_or(wrong)?))
}

pub(crate) fn read_trigger_key(key: &[u8]) -> Result<TriggerKey, FormatError> {
    let read = || {
        let mut parts = key.splitn(3, |byte| *byte == NAME_END);
        let mut name = || std::str::from_utf8(parts.next()?).ok().filter(|name| valid_name(name));
        let (plugin, trigger) = (name()?.to_owned(), name()?.to_owned());
        let partition = u32::from_be_bytes(parts.next()?.try_into().ok()?);
        Some(TriggerKey { plugin, trigger, partition })
    };
    read().ok_or(FormatError::Invalid { what: "trigger", why: "its key is malformed" })
}

pub(crate) fn read_digest(what: &'static str, key: &[u8]) -> Result<Digest, FormatError> {
    key.try_into().map_err(|_| FormatError::Invalid { what, why: "its digest is not 32 bytes" })
}

pub(crate) fn read_lease_key(key: &[u8]) -> Result<i64, FormatError> {
    match numbered("lease", b"", key)? as i64 {
        0 => Err(FormatError::Invalid { what: "lease", why: "its id is 0" }),
        id => Ok(id),
    }
}

pub(crate) fn read_mark_key(key: &[u8]) -> Result<u64, FormatError> {
    numbered("history mark", META_MARK, key)
}

pub(crate) fn read_quota_key(key: &[u8]) -> Result<u64, FormatError> {
    numbered("quota", META_QUOTA, key)
}

pub(crate) fn read_alarm_key(key: &[u8]) -> Result<(u64, i32), FormatError> {
    let wrong = FormatError::Invalid { what: "alarm", why: "its key is malformed" };
    let (member, alarm) = key.split_first_chunk::<8>().ok_or(wrong.clone())?;
    let alarm = i32::from_be_bytes(alarm.try_into().map_err(|_| wrong)?);
    if !is_known_alarm(alarm) {
        return Err(FormatError::Invalid { what: "alarm", why: "its kind is unknown" });
    }
    Ok((u64::from_be_bytes(*member), alarm))
}

/// Whether an alarm can be raised: every kind but `NONE`.
pub(crate) fn is_known_alarm(alarm: i32) -> bool {
    AlarmType::try_from(alarm).is_ok_and(|alarm| alarm != AlarmType::None)
}

pub(crate) fn encode_alarm() -> Bytes {
    Bytes::from_static(&[FORMAT])
}

pub(crate) fn decode_alarm(value: &Bytes) -> Result<(), FormatError> {
    Reader::new("alarm", FORMAT, value)?.end()
}

pub(crate) fn encode_quota(bytes: u64) -> Vec<u8> {
    let mut out = Writer::new(FORMAT, 8);
    out.fixed64(bytes);
    out.finish()
}

pub(crate) fn decode_quota(value: &Bytes) -> Result<u64, FormatError> {
    let mut input = Reader::new("quota", FORMAT, value)?;
    let bytes = input.fixed64()?;
    if bytes == 0 {
        return Err(input.invalid("it is 0: no quota has no row"));
    }
    input.end()?;
    Ok(bytes)
}

impl Meta {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(FORMAT, 13 * 8);
        for value in [
            self.applied_index,
            self.revision,
            self.compacted.map_or(0, |revision| revision + 1),
            self.cluster_ms,
            self.wall_ms,
            self.quota_bytes,
            self.generation,
            self.epoch,
            self.total.history_bytes,
            self.total.old_versions,
            self.at_compaction.history_bytes,
            self.at_compaction.old_versions,
            0,
        ] {
            out.fixed64(value);
        }
        out.finish()
    }

    pub(crate) fn decode(value: &Bytes) -> Result<Self, FormatError> {
        let mut input = Reader::new("state", FORMAT, value)?;
        let meta = Self {
            applied_index: input.fixed64()?,
            revision: input.fixed64()?,
            compacted: input.fixed64()?.checked_sub(1),
            cluster_ms: input.fixed64()?,
            wall_ms: input.fixed64()?,
            quota_bytes: input.fixed64()?,
            generation: input.fixed64()?,
            epoch: input.fixed64()?,
            total: Mark { history_bytes: input.fixed64()?, old_versions: input.fixed64()? },
            at_compaction: Mark { history_bytes: input.fixed64()?, old_versions: input.fixed64()? },
        };
        // etcd's numbers are signed; that also leaves room to count on.
        let counters = [meta.applied_index, meta.revision, meta.generation, meta.epoch, meta.total.history_bytes];
        let consistent = counters.iter().all(|counter| *counter <= i64::MAX as u64)
            && meta.revision >= 1
            && meta.compacted.is_none_or(|compacted| compacted <= meta.revision)
            && meta.at_compaction.history_bytes <= meta.total.history_bytes
            && meta.at_compaction.old_versions <= meta.total.old_versions;
        if input.fixed64()? != 0 || !consistent {
            return Err(input.invalid("its numbers contradict each other"));
        }
        input.end()?;
        Ok(meta)
    }
}

impl Mark {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(FORMAT, 20);
        out.varint(self.history_bytes);
        out.varint(self.old_versions);
        out.finish()
    }

    pub(crate) fn decode(value: &Bytes) -> Result<Self, FormatError> {
        let mut input = Reader::new("history mark", FORMAT, value)?;
        let mark = Self { history_bytes: input.varint()?, old_versions: input.varint()? };
        input.end()?;
        Ok(mark)
    }
}

impl Grant {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(if self.plugin.is_some() { FORMAT_WIDER } else { FORMAT }, 24);
        out.varint(self.tenant);
        out.varint(self.ttl_s as u64);
        out.varint(self.deadline_ms);
        if let Some(plugin) = &self.plugin {
            out.bytes(plugin.as_bytes());
        }
        out.finish()
    }

    pub(crate) fn decode(value: &Bytes) -> Result<Self, FormatError> {
        let (mut input, version) = Reader::of_versions("lease", FORMAT..=FORMAT_WIDER, value)?;
        let tenant = input.varint()?;
        let ttl_s = i64::try_from(input.varint()?).unwrap_or(i64::MAX);
        if !(limits::LEASE_TTL_MIN_S..=limits::LEASE_TTL_MAX_S).contains(&ttl_s) {
            return Err(input.invalid("its TTL is never granted"));
        }
        let deadline_ms = input.varint()?;
        let plugin = if version == FORMAT_WIDER { Some(input.text()?) } else { None };
        if plugin.as_deref().is_some_and(|plugin| !valid_name(plugin)) {
            return Err(input.invalid("its plugin's name is malformed"));
        }
        input.end()?;
        Ok(Self { tenant, ttl_s, deadline_ms, plugin: plugin.map(Into::into) })
    }
}

impl PluginRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(FORMAT, self.manifest.len() + self.reason.len() + 64);
        out.bytes(&self.digest);
        out.bytes(&self.manifest);
        out.varint(self.generation);
        out.byte(match self.state {
            PluginState::Active => 0,
            PluginState::Paused => 1,
            PluginState::Quarantined => 2,
        });
        out.bytes(self.reason.as_bytes());
        out.finish()
    }

    pub(crate) fn decode(key: &[u8], value: &Bytes) -> Result<Self, FormatError> {
        let mut input = Reader::new("plugin", FORMAT, value)?;
        let name = std::str::from_utf8(key).ok().filter(|name| valid_name(name));
        let name = name.ok_or_else(|| input.invalid("its name is malformed"))?.to_owned();
        let digest = read_digest("plugin", &input.bytes()?)?;
        let manifest = input.bytes()?;
        let generation = input.varint()?;
        let state = match input.byte()? {
            0 => PluginState::Active,
            1 => PluginState::Paused,
            2 => PluginState::Quarantined,
            _ => return Err(input.invalid("its state is unknown")),
        };
        let reason = input.text()?;
        input.end()?;
        Ok(Self { name, digest, manifest, generation, state, reason, triggers: Vec::new() })
    }
}

impl TriggerRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let wider = !self.reason.is_empty() || self.last_run_wall_ms != 0;
        let size = self.key.len() + self.range_end.len() + self.reason.len() + 64;
        let mut out = Writer::new(if wider { FORMAT_WIDER } else { FORMAT }, size);
        out.byte(match self.kind {
            TriggerKind::Watch => 0,
            TriggerKind::Schedule => 1,
        });
        out.bytes(&self.key);
        out.bytes(&self.range_end);
        out.byte(u8::from(self.self_events));
        out.varint(self.cursor.main);
        out.varint(u64::from(self.cursor.sub));
        out.varint(self.owner_node);
        out.varint(self.owner_epoch);
        out.byte(match self.state {
            TriggerState::Active => 0,
            TriggerState::Lost => 1,
            TriggerState::Halted => 2,
            TriggerState::HaltedLost => 3,
        });
        out.varint(self.sequence);
        if wider {
            out.bytes(self.reason.as_bytes());
            out.varint(self.last_run_wall_ms);
        }
        out.finish()
    }

    pub(crate) fn decode(key: TriggerKey, value: &Bytes) -> Result<Self, FormatError> {
        let (mut input, version) = Reader::of_versions("trigger", FORMAT..=FORMAT_WIDER, value)?;
        let kind = match input.byte()? {
            0 => TriggerKind::Watch,
            1 => TriggerKind::Schedule,
            _ => return Err(input.invalid("its kind is unknown")),
        };
        let mut record = Self {
            plugin: key.plugin,
            id: key.trigger,
            partition: key.partition,
            kind,
            key: input.bytes()?,
            range_end: input.bytes()?,
            self_events: input.bool()?,
            cursor: Rev { main: input.varint()?, sub: input.varint32()? },
            owner_node: input.varint()?,
            owner_epoch: input.varint()?,
            state: match input.byte()? {
                0 => TriggerState::Active,
                1 => TriggerState::Lost,
                2 => TriggerState::Halted,
                3 => TriggerState::HaltedLost,
                _ => return Err(input.invalid("its state is unknown")),
            },
            sequence: input.varint()?,
            dead_letters: 0,
            reason: String::new(),
            last_run_wall_ms: 0,
        };
        if version == FORMAT_WIDER {
            record.reason = input.text()?;
            record.last_run_wall_ms = input.varint()?;
            if record.reason.is_empty() && record.last_run_wall_ms == 0 {
                return Err(input.invalid("it is of a version that it does not need"));
            }
        }
        let fits = match record.kind {
            TriggerKind::Watch => !record.key.is_empty() && record.cursor.main > 0,
            TriggerKind::Schedule => record.cursor == Rev::default() && !record.state.is_lost(),
        };
        // Room to count on.
        if !fits || record.sequence > i64::MAX as u64 {
            return Err(input.invalid("its fields contradict each other"));
        }
        input.end()?;
        Ok(record)
    }
}

impl BlobRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(FORMAT, 40);
        out.varint(self.total_bytes);
        out.varint(u64::from(self.chunks));
        out.varint(u64::from(self.received));
        out.varint(self.received_bytes);
        out.varint(self.began_at);
        out.finish()
    }

    pub(crate) fn decode(value: &Bytes) -> Result<Self, FormatError> {
        let mut input = Reader::new("component", FORMAT, value)?;
        let total_bytes = input.varint()?;
        let chunks = input.varint32()?;
        let received = input.varint32()?;
        let received_bytes = input.varint()?;
        let began_at = input.varint()?;
        let chunk_bytes = limits::BLOB_CHUNK_BYTES as u64;
        let sized =
            (1..=limits::COMPONENT_BYTES_MAX).contains(&total_bytes) && u64::from(chunks) == total_bytes.div_ceil(chunk_bytes);
        // The row is there from the first piece on; every piece but the last is whole.
        let received_fits =
            (1..=chunks).contains(&received) && received_bytes == (u64::from(received) * chunk_bytes).min(total_bytes);
        if !sized || !received_fits {
            return Err(input.invalid("its numbers contradict each other"));
        }
        input.end()?;
        Ok(Self { total_bytes, chunks, received, received_bytes, complete: received == chunks, began_at })
    }
}
