//! A digest of everything that the state answers: equal states, equal digests. For tests and consistency checks.
//!
//! What replicas need not have in common is left out: versions that were trimmed here and not there, and notes of garbage.

use crate::mvcc::index::{Span, Version};
use crate::registry::TriggerEntry;
use crate::{FIRST_CLUSTER_VERSION, State};

/// 64-bit FNV-1a: simple, and the same everywhere.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }

    fn number(&mut self, number: u64) {
        self.raw(&number.to_le_bytes());
    }

    fn raw(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn version(&mut self, version: &Version) {
        self.number(version.rev.main);
        self.number(u64::from(version.rev.sub));
        self.number(version.create_revision);
        self.number(version.version);
        self.number(version.lease as u64);
        self.number(u64::from(version.tombstone));
    }

    fn trigger(&mut self, entry: &TriggerEntry) {
        self.bytes(entry.record.plugin.as_bytes());
        self.bytes(entry.record.id.as_bytes());
        self.number(u64::from(entry.record.partition));
        self.number(entry.record.dead_letters);
        self.bytes(&entry.record.encode());
        for (at, bytes) in &entry.letters {
            self.raw(&at.to_key());
            self.number(*bytes);
        }
    }
}

impl State {
    /// A digest of all that is replicated. Looks at every key; not for the hot path.
    pub fn digest(&self) -> u64 {
        let mut out = Fnv::new();
        out.bytes(&self.meta.encode());
        out.number(self.logical_bytes());
        for (revision, mark) in &self.marks {
            out.number(*revision);
            out.bytes(&mark.encode());
        }
        let floor = self.compact_revision();
        for (tenant, space) in &self.spaces {
            // A space may have nothing left but what one replica has trimmed and another has not.
            let mut inner = Fnv::new();
            let mut is_empty = space.quota_bytes == 0;
            for (key, record) in space.scan_all(Span::From(b""), false) {
                let visible = record.older.iter().chain([&record.head]).skip(record.droppable(floor));
                for version in visible {
                    is_empty = false;
                    inner.bytes(key);
                    inner.version(version);
                }
                if let Some(row) = record.slot.row() {
                    inner.bytes(&row.encode());
                }
            }
            if is_empty {
                continue;
            }
            out.number(*tenant);
            out.number(inner.0);
            out.number(space.live.len() as u64);
            out.number(space.live_bytes);
            out.number(space.quota_bytes);
        }
        for lease in self.leases() {
            out.number(lease.id as u64);
            out.number(lease.tenant);
            out.number(lease.ttl_s as u64);
            out.number(lease.deadline_ms);
            out.bytes(lease.plugin.unwrap_or_default().as_bytes());
            lease.keys.iter().for_each(|key| out.bytes(key));
        }
        for plugin in self.plugins() {
            out.bytes(plugin.name.as_bytes());
            out.bytes(&plugin.encode());
            plugin.triggers.iter().for_each(|trigger| out.bytes(trigger.as_bytes()));
        }
        self.registry.triggers.values().for_each(|entry| out.trigger(entry));
        for (digest, record) in self.blobs.iter() {
            out.bytes(digest);
            out.bytes(&record.encode());
        }
        for (member, alarm) in &self.alarms {
            out.number(*member);
            out.number(*alarm as u64);
        }
        for token in self.tokens() {
            out.number(token.id);
            out.bytes(&token.encode());
        }
        if self.cluster_version > FIRST_CLUSTER_VERSION {
            out.number(u64::from(self.cluster_version));
        }
        if let Some(authorities) = self.authorities() {
            out.bytes(&authorities.encode());
        }
        out.0
    }
}
