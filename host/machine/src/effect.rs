//! Effects of plugins' runs: applied whole or not at all, and at most once.
//!
//! A run happened on one node, some time ago. What makes its effect land exactly once is checked here, where all replicas agree:
//! the plugin's generation, the trigger's owner epoch, how many effects it has had, its cursor, and guards over what the run read. Then writes, parked events and
//! the new cursor are applied together.
//!
//! **Invariant:** a rejected effect changes no key and no cursor.

use kvasir_api::command::guard::Guard as GuardKind;
use kvasir_api::command::{EffectTxn, Guard, LockGuard, PointGuard, RangeGuard};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::limits;

use crate::cursor::{are_within, has_room};
use crate::mvcc::budget::Budget;
use crate::mvcc::check::{check_delete_range, check_ops, check_put};
use crate::mvcc::index::{KeyRecord, Span};
use crate::mvcc::txn;
use crate::mvcc::write::{Revision, Writer};
use crate::registry::{PluginState, TriggerKey, TriggerKind, TriggerRecord, TriggerState};
use crate::reply::Rejection;
use crate::{EffectReply, Effects, Reply, Rev, State, quota};

impl State {
    pub(crate) fn apply_effect(&mut self, writer: &Writer, effect: &EffectTxn, effects: &mut Effects) -> Reply {
        let reply = match self.effect(writer, effect, effects) {
            Ok(()) => EffectReply::Applied { revision: self.revision() },
            Err(reason) => EffectReply::Rejected { reason },
        };
        Reply::Effect { revision: self.revision(), reply }
    }

    fn effect(&mut self, writer: &Writer, effect: &EffectTxn, effects: &mut Effects) -> Result<(), Rejection> {
        check_form(writer, effect)?;
        let (plugin, trigger) = (effect.plugin.clone(), effect.trigger.clone());
        let key = TriggerKey { plugin, trigger, partition: effect.partition };
        let record = self.check_ownership(&key, effect)?;
        let cursor = self.check_cursor(record, effect)?;
        let full = !has_room(record, effect.dead_letters.len());
        let mut keys_left = limits::EFFECT_GUARD_KEYS_MAX;
        for (index, guard) in effect.guards.iter().enumerate() {
            self.check_guard(writer.tenant, guard, index, &mut keys_left)?;
        }
        if full {
            self.change_trigger(&key, effects, |trigger, epoch| {
                trigger.state = trigger.state.halting();
                trigger.reason = "its dead letters are full".to_owned();
                trigger.owner_epoch = epoch;
            });
            return Err(Rejection::Halted);
        }
        let ops = &effect.ops[..];
        self.check_ops(writer.tenant, ops, &mut [].iter(), &mut Budget::new()).map_err(Rejection::Refused)?;
        let cost = txn::cost(ops, &mut [].iter()) + letters_cost(effect);
        if txn::some_put(ops) || !effect.dead_letters.is_empty() {
            self.check_space(cost, writer, effects).map_err(Rejection::Refused)?;
        }
        let mut revision = Revision::begin(self, effects, writer);
        txn::run_ops(&mut revision, writer.tenant, ops, &mut [].iter());
        revision.end();
        self.park(&key, &effect.dead_letters, effects);
        let compacted = self.compact_revision();
        let mut became_active = false;
        self.change_trigger(&key, effects, |trigger, _| {
            trigger.sequence += 1;
            let Some(cursor) = cursor else { return };
            trigger.cursor = cursor;
            became_active = cursor.main >= compacted && trigger.state == TriggerState::Lost;
            if became_active {
                trigger.state = TriggerState::Active;
            }
        });
        effects.registry_changed |= became_active;
        effects.registry_changed |= !effect.dead_letters.is_empty();
        Ok(())
    }

    fn check_ownership(&self, key: &TriggerKey, effect: &EffectTxn) -> Result<&TriggerRecord, Rejection> {
        let stale = |what: String| Rejection::Stale(what);
        let plugin = self.plugin(&key.plugin).ok_or_else(|| stale("the plugin is not installed".into()))?;
        if plugin.generation != effect.generation {
            return Err(stale(format!("the plugin is at generation {}", plugin.generation)));
        }
        if plugin.state != PluginState::Active {
            return Err(stale("the plugin is not active".into()));
        }
        let entry = self.registry.triggers.get(key).ok_or_else(|| stale("the trigger is gone".into()))?;
        if entry.record.owner_epoch != effect.owner_epoch {
            return Err(stale(format!("the trigger is at owner epoch {}", entry.record.owner_epoch)));
        }
        if entry.record.state.is_halted() {
            return Err(stale("the trigger is halted".into()));
        }
        if entry.record.sequence != effect.sequence {
            return Err(stale(format!("the trigger is at effect {}, not {}", entry.record.sequence, effect.sequence)));
        }
        Ok(&entry.record)
    }

    /// The cursor to move to: none for a task.
    fn check_cursor(&self, record: &TriggerRecord, effect: &EffectTxn) -> Result<Option<Rev>, Rejection> {
        let invalid = |what: &str| Err(Rejection::Invalid(what.into()));
        match (record.kind, effect.expect_cursor.map(Rev::from), effect.new_cursor.map(Rev::from)) {
            (TriggerKind::Watch, Some(expect), Some(new)) => {
                if record.cursor != expect {
                    return Err(Rejection::Stale(format!("the cursor is at {}, not at {expect}", record.cursor)));
                }
                if !self.is_forward(expect, new) {
                    return invalid("the cursor goes back, or past what there is");
                }
                // The pages of a resync leave it where it is; events that were handled are behind it.
                if record.state == TriggerState::Active && new == expect {
                    return invalid("the cursor stays where it is");
                }
                if record.state == TriggerState::Lost && !effect.dead_letters.is_empty() {
                    // A lost trigger resyncs, and what it is given then are keys and not events. (Were it halted, it would hold
                    // back history that is gone.)
                    return invalid("a lost trigger parks no events");
                }
                if !are_within(&effect.dead_letters, expect, new) {
                    return invalid("a parked event is not of this batch, or is parked twice");
                }
                Ok(Some(new))
            }
            (TriggerKind::Schedule, None, None) => {
                let locked = effect.guards.iter().any(|guard| matches!(guard.guard, Some(GuardKind::Lock(_))));
                if !locked {
                    return invalid("a task's effect has no lock guard");
                }
                if !effect.dead_letters.is_empty() {
                    return invalid("a task parks no events");
                }
                Ok(None)
            }
            (TriggerKind::Watch, _, _) => invalid("an effect of a watch trigger has two cursors"),
            (TriggerKind::Schedule, _, _) => invalid("an effect of a task has no cursor"),
        }
    }

    fn check_guard(&self, tenant: u64, guard: &Guard, index: usize, keys_left: &mut u64) -> Result<(), Rejection> {
        let broken = |what: String| Err(Rejection::GuardBroken { guard: index, what });
        match &guard.guard {
            Some(GuardKind::Point(PointGuard { key, mod_revision })) => match self.live(tenant, key) {
                None if *mod_revision == 0 => Ok(()),
                Some(record) if record.head.rev.main == *mod_revision => Ok(()),
                None => broken("a key that was read is gone".into()),
                Some(record) => broken(format!("a key that was read changed at revision {}", record.head.rev.main)),
            },
            Some(GuardKind::Range(range)) => self.check_range_guard(tenant, range, index, keys_left),
            Some(GuardKind::Lock(LockGuard { key, create_revision })) => match self.live(tenant, key) {
                Some(record) if record.head.create_revision != *create_revision => broken("the lock has another holder".into()),
                // A lease takes its keys with it.
                Some(record) if record.head.lease == 0 => broken("the lock has no lease".into()),
                Some(_) => Ok(()),
                None => broken("the lock is not held".into()),
            },
            None => Err(Rejection::Invalid("a guard is of no known kind".into())),
        }
    }

    fn check_range_guard(&self, tenant: u64, guard: &RangeGuard, index: usize, keys_left: &mut u64) -> Result<(), Rejection> {
        if guard.count > *keys_left {
            return Err(Rejection::Invalid("the range guards cover too many keys".into()));
        }
        *keys_left -= guard.count;
        let (mut count, mut max_mod_revision) = (0, 0);
        if let Some(space) = self.spaces.get(&tenant) {
            let live = space.scan_live(Span::new(&guard.key, &guard.range_end), false);
            // One key too many is enough to know.
            for (_, record) in live.take(usize::try_from(guard.count + 1).unwrap_or(usize::MAX)) {
                count += 1;
                max_mod_revision = max_mod_revision.max(record.head.rev.main);
            }
        }
        if count == guard.count && max_mod_revision == guard.max_mod_revision {
            return Ok(());
        }
        Err(Rejection::GuardBroken { guard: index, what: "a range that was read changed".into() })
    }

    fn live(&self, tenant: u64, key: &[u8]) -> Option<&KeyRecord> {
        self.spaces.get(&tenant)?.live.get(key)
    }
}

/// What can be said of an effect by looking at it alone.
fn check_form(writer: &Writer, effect: &EffectTxn) -> Result<(), Rejection> {
    let invalid = |what: &str| Err(Rejection::Invalid(what.into()));
    if writer.depth > limits::CAUSALITY_DEPTH_MAX {
        return Err(Rejection::TooDeep);
    }
    if writer.plugin.as_deref() != Some(effect.plugin.as_str()) {
        return invalid("the writer is not the plugin");
    }
    let locks = effect.guards.iter().filter(|guard| matches!(guard.guard, Some(GuardKind::Lock(_)))).count();
    let too_many_guards = locks > limits::EFFECT_LOCK_GUARDS_MAX || effect.guards.len() - locks > limits::EFFECT_GUARDS_MAX;
    if effect.ops.len() > limits::EFFECT_OPS_MAX || too_many_guards {
        return invalid("it has too many operations or guards");
    }
    for op in &effect.ops {
        let checked = match &op.request {
            Some(Request::RequestPut(put)) => check_put(put),
            Some(Request::RequestDeleteRange(delete)) => check_delete_range(delete),
            _ => return invalid("it has an operation that is neither a put nor a delete"),
        };
        checked.map_err(Rejection::Refused)?;
    }
    check_ops(&effect.ops).map_err(Rejection::Refused)
}

fn letters_cost(effect: &EffectTxn) -> u64 {
    effect.dead_letters.iter().map(|letter| quota::key_cost(&letter.key, letter.error.as_bytes())).sum()
}
