//! Space: what things count in logical bytes, when it is too much, and the alarms that say so.
//!
//! Logical bytes are a matter of the replicated state, not of files: live keys with [`limits::KEY_OVERHEAD_BYTES`] each, old versions
//! until they are compacted, leases, components and dead letters. A write that does not fit is refused and raises NOSPACE; while
//! NOSPACE stands, puts, transactions that may put, grants and components are refused, deletes and compactions are not (etcd
//! `server/etcdserver/apply`).
//!
//! **Invariant:** every replica counts the same.

use kvasir_api::command::{Alarm, QuotaSet};
use kvasir_api::etcdserverpb::AlarmType;
use kvasir_api::{Error, limits};

use crate::mvcc::write::Writer;
use crate::{Effects, Reply, State, Table, table};

/// What a live key counts.
pub(crate) fn key_cost(key: &[u8], value: &[u8]) -> u64 {
    limits::KEY_OVERHEAD_BYTES + key.len() as u64 + value.len() as u64
}

impl State {
    /// Logical bytes stored, in all.
    pub fn logical_bytes(&self) -> u64 {
        let old_versions = self.meta.total.old_versions - self.meta.at_compaction.old_versions;
        self.live_bytes
            + old_versions * limits::VERSION_OVERHEAD_BYTES
            + self.leases.len() as u64 * limits::LEASE_OVERHEAD_BYTES
            + self.blobs.bytes()
            + self.registry.dead_letter_bytes
    }

    /// Logical bytes of a tenant's live keys.
    pub(crate) fn tenant_bytes(&self, tenant: u64) -> u64 {
        self.spaces.get(&tenant).map_or(0, |space| space.live_bytes)
    }

    /// How many logical bytes may be stored in all.
    pub fn quota_bytes(&self) -> u64 {
        if self.meta.quota_bytes == 0 { limits::QUOTA_BYTES_DEFAULT } else { self.meta.quota_bytes }
    }

    /// How many logical bytes a tenant's live keys may have, if it has a quota of its own.
    pub(crate) fn tenant_quota_bytes(&self, tenant: u64) -> Option<u64> {
        self.spaces.get(&tenant).map(|space| space.quota_bytes).filter(|bytes| *bytes > 0)
    }

    /// Whether NOSPACE stands.
    pub fn is_out_of_space(&self) -> bool {
        self.has_alarm(AlarmType::Nospace)
    }

    /// Whether `bytes` more fit, without changing anything: the early check before a proposal.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn fits(&self, bytes: u64, tenant: u64) -> Result<(), Error> {
        let in_all = self.logical_bytes().saturating_add(bytes) <= self.quota_bytes();
        let in_tenant = self
            .tenant_quota_bytes(tenant)
            .is_none_or(|quota_bytes| self.tenant_bytes(tenant).saturating_add(bytes) <= quota_bytes);
        if self.is_out_of_space() || !in_all || !in_tenant { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// As [`State::fits`], in apply: a write that does not fit in all raises the alarm; a tenant's own quota does not.
    /// The alarm is the proposing leader's, one at a time: etcd raises it in the name of a member, too.
    pub(crate) fn check_space(&mut self, bytes: u64, writer: &Writer, effects: &mut Effects) -> Result<(), Error> {
        if self.logical_bytes().saturating_add(bytes) > self.quota_bytes() && !self.is_out_of_space() {
            self.raise(writer.leader, AlarmType::Nospace as i32, effects);
        }
        self.fits(bytes, writer.tenant)
    }

    pub(crate) fn has_alarm(&self, wanted: AlarmType) -> bool {
        self.alarms.iter().any(|(_, alarm)| *alarm == wanted as i32)
    }

    fn raise(&mut self, member: u64, alarm: i32, effects: &mut Effects) {
        if self.alarms.insert((member, alarm)) {
            effects.set(Table::Alarm, table::alarm_key(member, alarm), table::encode_alarm());
        }
    }

    pub(crate) fn apply_alarm(&mut self, request: &Alarm, effects: &mut Effects) -> Result<Reply, Error> {
        let known = table::is_known_alarm(request.alarm);
        let alarm = (request.member_id, request.alarm);
        let concerned = if request.activate {
            if known {
                self.raise(request.member_id, request.alarm, effects);
            }
            known
        } else {
            let was_raised = self.alarms.remove(&alarm);
            if was_raised {
                effects.delete(Table::Alarm, table::alarm_key(request.member_id, request.alarm));
            }
            was_raised
        };
        Ok(Reply::Alarm { revision: self.revision(), alarm: concerned.then_some(alarm) })
    }

    pub(crate) fn apply_quota_set(&mut self, tenant: u64, request: &QuotaSet, effects: &mut Effects) -> Reply {
        if !request.of_tenant {
            self.meta.quota_bytes = request.bytes;
        } else {
            self.spaces.entry(tenant).or_default().quota_bytes = request.bytes;
            let key = table::numbered_key(table::META_QUOTA, tenant);
            if request.bytes == 0 {
                effects.delete(Table::Meta, key);
            } else {
                effects.set(Table::Meta, key, table::encode_quota(request.bytes));
            }
        }
        Reply::QuotaSet { revision: self.revision() }
    }
}
