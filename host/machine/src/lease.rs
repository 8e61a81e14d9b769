//! Leases, in cluster time: granted, renewed, revoked by clients or on expiry, with the keys attached to them.
//!
//! Time here is what commands were stamped with. Who measures it, and proposes expiry, lives above (etcd `server/lease/lessor.go`).
//!
//! **Invariant:** a lease never ends early: an expiry is refused when it was proposed in another term, or when the lease's deadline
//! is later than the time of the entry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::command::{LeaseGrant, LeaseRenew, LeaseRevoke};
use kvasir_api::{Error, limits};

use crate::mvcc::write::{Revision, Writer};
use crate::registry::valid_name;
use crate::{Effects, Reply, State, Table};

/// What is stored of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) tenant: u64,
    pub(crate) ttl_s: i64,
    pub(crate) deadline_ms: u64,
    /// Which plugin it was granted to; a client otherwise.
    pub(crate) plugin: Option<Arc<str>>,
}

#[derive(Debug, Clone)]
struct Lease {
    grant: Grant,
    keys: BTreeSet<Bytes>,
}

/// All leases, by id and by deadline.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leases {
    by_id: BTreeMap<i64, Lease>,
    by_deadline: BTreeSet<(u64, i64)>,
    /// How many each plugin has.
    of_plugins: BTreeMap<Arc<str>, usize>,
}

/// A lease as it is seen from outside.
#[derive(Debug, Clone, Copy)]
pub struct LeaseView<'a> {
    /// Its id.
    pub id: i64,
    /// The tenant it belongs to.
    pub tenant: u64,
    /// The TTL it was granted, in seconds.
    pub ttl_s: i64,
    /// When it may be revoked, in cluster time.
    pub deadline_ms: u64,
    /// Which plugin it was granted to; a client otherwise.
    pub plugin: Option<&'a str>,
    /// Keys attached to it, in order.
    pub keys: &'a BTreeSet<Bytes>,
}

impl Leases {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn is_held_by(&self, id: i64, tenant: u64) -> bool {
        self.by_id.get(&id).is_some_and(|lease| lease.grant.tenant == tenant)
    }

    pub(crate) fn exists(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(crate) fn insert(&mut self, id: i64, grant: Grant) {
        self.by_deadline.insert((grant.deadline_ms, id));
        if let Some(plugin) = &grant.plugin {
            *self.of_plugins.entry(Arc::clone(plugin)).or_default() += 1;
        }
        let before = self.by_id.insert(id, Lease { grant, keys: BTreeSet::new() });
        assert!(before.is_none(), "a lease's id is given out once at a time");
    }

    /// 0 is no lease.
    pub(crate) fn attach(&mut self, id: i64, key: &Bytes) {
        if id == 0 {
            return;
        }
        let lease = self.by_id.get_mut(&id);
        assert!(lease.is_some(), "a key is attached to a lease that exists");
        if let Some(lease) = lease {
            lease.keys.insert(key.clone());
        }
    }

    /// Of a lease that is there; one that is being revoked is not any more.
    pub(crate) fn detach(&mut self, id: i64, key: &Bytes) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            let was_attached = lease.keys.remove(key);
            assert!(was_attached, "a key's lease knows the key");
        }
    }

    /// The lease's deadline becomes `now + ttl`, if that is later.
    fn renew(&mut self, id: i64, now_ms: u64) -> Option<&Grant> {
        let lease = self.by_id.get_mut(&id)?;
        self.by_deadline.remove(&(lease.grant.deadline_ms, id));
        let deadline_ms = deadline(now_ms, lease.grant.ttl_s);
        lease.grant.deadline_ms = lease.grant.deadline_ms.max(deadline_ms);
        self.by_deadline.insert((lease.grant.deadline_ms, id));
        Some(&lease.grant)
    }

    fn remove(&mut self, id: i64) -> Option<Lease> {
        let lease = self.by_id.remove(&id)?;
        self.by_deadline.remove(&(lease.grant.deadline_ms, id));
        if let Some(plugin) = &lease.grant.plugin
            && let Some(count) = self.of_plugins.get_mut(plugin)
        {
            *count -= 1;
            if *count == 0 {
                self.of_plugins.remove(plugin);
            }
        }
        Some(lease)
    }
}

impl State {
    /// A lease.
    pub fn lease(&self, id: i64) -> Option<LeaseView<'_>> {
        self.leases.by_id.get(&id).map(|lease| view(id, lease))
    }

    /// How many leases there are.
    pub fn lease_count(&self) -> usize {
        self.leases.len()
    }

    /// How many leases a plugin was granted that are still there.
    pub fn leases_of(&self, plugin: &str) -> usize {
        self.leases.of_plugins.get(plugin).copied().unwrap_or(0)
    }

    /// All leases, in order of id.
    pub fn leases(&self) -> impl Iterator<Item = LeaseView<'_>> {
        self.leases.by_id.iter().map(|(id, lease)| view(*id, lease))
    }

    /// Leases whose deadline has come by `now_cluster_ms`, those due first: at most `max`, and so many that they have about
    /// [`limits::LEASE_REVOKE_KEYS_MAX`] keys between them.
    pub fn expired(&self, now_cluster_ms: u64, max: usize) -> Vec<i64> {
        let mut keys = 0;
        let due = self.leases.by_deadline.iter().take_while(|(deadline_ms, _)| *deadline_ms <= now_cluster_ms);
        let few = due.take(max).map(|(_, id)| *id).take_while(|id| {
            let fits = keys == 0 || keys < limits::LEASE_REVOKE_KEYS_MAX;
            keys += self.lease(*id).map_or(0, |lease| lease.keys.len());
            fits
        });
        few.collect()
    }

    /// The earliest deadline of any lease, in cluster time.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.leases.by_deadline.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    pub(crate) fn apply_lease_grant(
        &mut self,
        writer: &Writer,
        request: &LeaseGrant,
        effects: &mut Effects,
    ) -> Result<Reply, Error> {
        self.check_space(limits::LEASE_OVERHEAD_BYTES, writer, effects)?;
        if request.id == 0 {
            return Err(Error::LeaseNotFound);
        }
        if request.ttl_s > limits::LEASE_TTL_MAX_S {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.leases.exists(request.id) {
            return Err(Error::LeaseExists);
        }
        let ttl_s = request.ttl_s.max(limits::LEASE_TTL_MIN_S);
        let deadline_ms = deadline(self.counted_from(request.slack_ms), ttl_s);
        let plugin = writer.plugin.clone().filter(|plugin| valid_name(plugin));
        if plugin.as_deref().is_some_and(|plugin| self.leases_of(plugin) >= limits::LEASES_PER_PLUGIN_MAX) {
            return Err(Error::Exhausted(format!("a plugin holds at most {} leases", limits::LEASES_PER_PLUGIN_MAX)));
        }
        let grant = Grant { tenant: writer.tenant, ttl_s, deadline_ms, plugin };
        effects.set(Table::Lease, key(request.id), grant.encode());
        self.leases.insert(request.id, grant);
        effects.leases_changed = true;
        Ok(Reply::LeaseGrant { revision: self.revision(), id: request.id, ttl_s })
    }

    /// Renews what exists, whether its deadline has passed or not: the holder was told so, and nobody has revoked it.
    pub(crate) fn apply_lease_renew(&mut self, request: &LeaseRenew, effects: &mut Effects) -> Reply {
        let mut leases = Vec::with_capacity(request.ids.len());
        let from_ms = self.counted_from(request.slack_ms);
        for &id in &request.ids {
            let Some(grant) = self.leases.renew(id, from_ms) else {
                leases.push((id, 0));
                continue;
            };
            effects.set(Table::Lease, key(id), grant.encode());
            effects.leases_changed = true;
            leases.push((id, grant.ttl_s));
        }
        Reply::LeaseRenew { revision: self.revision(), leases }
    }

    /// What a deadline counts from: the entry's time, and as long as its proposer says that the reply may take.
    fn counted_from(&self, slack_ms: u64) -> u64 {
        self.cluster_ms().saturating_add(slack_ms.min(limits::LEASE_SLACK_MS_MAX))
    }

    pub(crate) fn apply_lease_revoke(
        &mut self,
        term: u64,
        writer: &Writer,
        request: &LeaseRevoke,
        effects: &mut Effects,
    ) -> Result<Reply, Error> {
        let expiry = request.expiry_term != 0;
        let stale = expiry && request.expiry_term != term;
        let (mut revoked, mut keys) = (Vec::new(), 0);
        for &id in if stale { &[][..] } else { &request.ids[..] } {
            let Some(lease) = self.leases.by_id.get(&id) else { continue };
            let allowed =
                if expiry { lease.grant.deadline_ms <= self.cluster_ms() } else { lease.grant.tenant == writer.tenant };
            if !allowed {
                continue;
            }
            // One lease goes whole; a second only if both are within the bound. The rest waits for the next entry.
            if expiry && !revoked.is_empty() && keys + lease.keys.len() > limits::LEASE_REVOKE_KEYS_MAX {
                break;
            }
            keys += lease.keys.len();
            self.revoke(id, writer, effects);
            revoked.push(id);
        }
        if !expiry && revoked.is_empty() && !request.ids.is_empty() {
            return Err(Error::LeaseNotFound);
        }
        Ok(Reply::LeaseRevoke { revision: self.revision(), revoked })
    }

    /// Takes the lease away and deletes its keys, in order, in one revision.
    fn revoke(&mut self, id: i64, writer: &Writer, effects: &mut Effects) {
        let Some(lease) = self.leases.remove(id) else { return };
        let (tenant, keys) = (lease.grant.tenant, lease.keys);
        let writer = Writer { tenant, ..writer.clone() };
        let mut revision = Revision::begin(self, effects, &writer);
        for key in keys {
            let record = revision.state.spaces.get(&tenant).and_then(|space| space.live.get(&key));
            let row = record.and_then(|record| record.slot.row()).cloned();
            assert!(row.is_some(), "a lease's keys are live");
            if let Some(row) = row {
                revision.delete(row);
            }
        }
        revision.end();
        effects.delete(Table::Lease, key(id));
        effects.leases_changed = true;
    }
}

fn view(id: i64, lease: &Lease) -> LeaseView<'_> {
    let Grant { tenant, ttl_s, deadline_ms, ref plugin } = lease.grant;
    LeaseView { id, tenant, ttl_s, deadline_ms, plugin: plugin.as_deref(), keys: &lease.keys }
}

fn deadline(now_ms: u64, ttl_s: i64) -> u64 {
    now_ms.saturating_add((ttl_s.max(0) as u64).saturating_mul(1_000))
}

/// Key of the `Lease` table.
pub(crate) fn key(id: i64) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}
