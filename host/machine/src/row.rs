//! `Row`: one version of one key. The unit of history, of the state file and of watch events. Pure data and its format.
//!
//! # Format, version 1
//!
//! The revision is the row's key in the history table ([`Rev::to_key`]: 8 bytes `main`, 4 bytes `sub`, big-endian) and is not
//! repeated in the value. The value, with the pieces of `codec.rs` (varint: shortest unsigned LEB128; bytes: varint length, then
//! the bytes):
//!
//! | field | form | when |
//! |---|---|---|
//! | format version | one byte, `1` | always |
//! | flags | one byte: bit 0 tombstone, bit 1 replaces a live version, bit 2 leased, bit 3 written by a plugin; others 0 | always |
//! | tenant | varint | always |
//! | key | bytes, not empty | always |
//! | replaced version | varint `main - prev.main`, varint `prev.sub` | bit 1 |
//! | creation | varint `main - create_revision` | not a tombstone |
//! | version | varint, at least 1 | not a tombstone |
//! | lease | 8 bytes little-endian, two's complement, not 0 | bit 2 |
//! | origin | bytes: the plugin's name, UTF-8, not empty; varint: causality depth | bit 3 |
//! | value | all that is left; empty for a tombstone | always |
//!
//! A tombstone always replaces a live version, and has no creation, version, lease or value.
//!
//! **Invariant:** `decode(rev, encode(row)) == row`, and bytes that `encode` does not write are refused.

use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::mvccpb::KeyValue;

use crate::Rev;
use crate::codec::{FormatError, Reader, Writer};

const FORMAT: u8 = 1;
const WHAT: &str = "history row";
const TOMBSTONE: u8 = 1;
const REPLACES: u8 = 1 << 1;
const LEASED: u8 = 1 << 2;
const BY_PLUGIN: u8 = 1 << 3;

/// One version of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// When it was written.
    pub rev: Rev,
    /// The live version it replaces; `None` for the first put of a generation.
    pub prev: Option<Rev>,
    /// Whose key.
    pub tenant: u64,
    /// The key, without the tenant.
    pub key: Bytes,
    /// The value; empty for a tombstone.
    pub value: Bytes,
    /// Revision of the put that began this generation of the key; 0 for a tombstone.
    pub create_revision: u64,
    /// Puts since creation, 1 on the first; 0 for a tombstone.
    pub version: u64,
    /// The lease it is attached to, 0 for none.
    pub lease: i64,
    /// The key was deleted.
    pub tombstone: bool,
    /// The plugin that wrote it; `None` for a client.
    pub origin_plugin: Option<Arc<str>>,
    /// How many plugins in a row wrote because of each other's writes; 0 for a client.
    pub origin_depth: u32,
}

impl Row {
    /// The row in format version 1.
    pub fn encode(&self) -> Vec<u8> {
        let name = self.origin_plugin.as_deref().unwrap_or_default();
        let mut out = Writer::new(FORMAT, self.key.len() + self.value.len() + name.len() + 48);
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        out.byte(
            flag(self.tombstone, TOMBSTONE)
                | flag(self.prev.is_some(), REPLACES)
                | flag(self.lease != 0, LEASED)
                | flag(self.origin_plugin.is_some(), BY_PLUGIN),
        );
        out.varint(self.tenant);
        out.bytes(&self.key);
        if let Some(prev) = self.prev {
            out.varint(self.rev.main - prev.main);
            out.varint(u64::from(prev.sub));
        }
        if !self.tombstone {
            out.varint(self.rev.main - self.create_revision);
            out.varint(self.version);
        }
        if self.lease != 0 {
            out.fixed64(self.lease as u64);
        }
        if self.origin_plugin.is_some() {
            out.bytes(name.as_bytes());
            out.varint(u64::from(self.origin_depth));
        }
        out.rest(&self.value);
        out.finish()
    }

    /// Reads a row back; key and value share `bytes`.
    ///
    /// # Errors
    /// Bytes that [`Row::encode`] does not write.
    pub fn decode(rev: Rev, bytes: &Bytes) -> Result<Self, FormatError> {
        let mut input = Reader::new(WHAT, FORMAT, bytes)?;
        let flags = input.byte()?;
        if flags & !(TOMBSTONE | REPLACES | LEASED | BY_PLUGIN) != 0 {
            return Err(input.invalid("an unknown flag is set"));
        }
        let tombstone = flags & TOMBSTONE != 0;
        let tenant = input.varint()?;
        let key = input.bytes()?;
        if key.is_empty() {
            return Err(input.invalid("the key is empty"));
        }
        let prev = if flags & REPLACES != 0 {
            let back = input.varint()?;
            let main = rev.main.checked_sub(back).ok_or_else(|| input.invalid("it replaces a version before the first"))?;
            let prev = Rev { main, sub: input.varint32()? };
            if prev >= rev {
                return Err(input.invalid("it replaces a later version"));
            }
            Some(prev)
        } else {
            None
        };
        let (create_revision, version) = if tombstone {
            (0, 0)
        } else {
            let back = input.varint()?;
            let created = rev.main.checked_sub(back).filter(|created| *created > 0);
            (created.ok_or_else(|| input.invalid("it was created before the first revision"))?, input.varint()?)
        };
        let lease = if flags & LEASED != 0 { input.fixed64()? as i64 } else { 0 };
        if (lease == 0) != (flags & LEASED == 0) {
            return Err(input.invalid("its lease is 0"));
        }
        let (origin_plugin, origin_depth) = if flags & BY_PLUGIN != 0 {
            let name = input.text()?;
            if name.is_empty() {
                return Err(input.invalid("its plugin has no name"));
            }
            (Some(Arc::from(name)), input.varint32()?)
        } else {
            (None, 0)
        };
        if tombstone && (prev.is_none() || lease != 0) || !tombstone && version == 0 {
            return Err(input.invalid("its fields contradict each other"));
        }
        if version > i64::MAX as u64 || rev.main > i64::MAX as u64 {
            return Err(input.invalid("a number is too large"));
        }
        if !tombstone && (version == 1) != prev.is_none() {
            return Err(input.invalid("its version does not fit what it replaces"));
        }
        if version == 1 && create_revision != rev.main {
            return Err(input.invalid("it is a first version and was created before"));
        }
        let value = input.rest();
        if tombstone && !value.is_empty() {
            return Err(FormatError::Invalid { what: WHAT, why: "a tombstone has a value" });
        }
        Ok(Self { rev, prev, tenant, key, value, create_revision, version, lease, tombstone, origin_plugin, origin_depth })
    }

    /// What the row counts in history, in bytes: the same on every replica, whatever its file looks like.
    pub fn history_bytes(&self) -> u64 {
        64 + self.key.len() as u64 + self.value.len() as u64
    }

    /// As etcd's clients see it; for a tombstone only the key and the revision, as in a DELETE event.
    pub fn to_key_value(&self) -> KeyValue {
        KeyValue {
            key: self.key.clone(),
            create_revision: self.create_revision as i64,
            mod_revision: self.rev.main as i64,
            version: self.version as i64,
            value: self.value.clone(),
            lease: self.lease,
        }
    }
}
