//! The task's side of a run: its lock, the locks and leases it took, and its commits.

use std::collections::BTreeMap;

use kvasir_api::Error;
use kvasir_api::command::EffectTxn;
use kvasir_api::limits::EFFECT_LOCK_GUARDS_MAX;
use kvasir_engine::Caller;
use kvasir_machine::{EffectReply, Rejection};

use crate::bindings::kvasir::plugin::types as wit;
use crate::held::Held;
use crate::run::Facts;
use crate::store::Store;
use crate::view::View;

/// Locks that one run holds at most besides its own.
pub(crate) const LOCKS_MAX: usize = EFFECT_LOCK_GUARDS_MAX - 1;

/// What a task's run has and a reactor's has not.
pub(crate) struct Task {
    own: Held,
    more: BTreeMap<u32, Held>,
    next: u32,
    trigger: String,
    generation: u64,
    owner_epoch: u64,
    commits: u64,
}

impl Task {
    pub(crate) fn new(own: Held, trigger: String, generation: u64, owner_epoch: u64) -> Self {
        Self { own, more: BTreeMap::new(), next: 0, trigger, generation, owner_epoch, commits: 0 }
    }

    pub(crate) fn fencing_token(&self) -> u64 {
        self.own.create_revision()
    }

    pub(crate) fn lock_is_lost(&self) -> bool {
        self.own.is_lost()
    }

    pub(crate) fn commits(&self) -> u64 {
        self.commits
    }

    /// Locks that the guest took besides the task's own.
    pub(crate) fn locks_held(&self) -> usize {
        self.more.len()
    }

    /// Keeps a lock the guest took.
    pub(crate) fn add_lock(&mut self, held: Held) -> u32 {
        let slot = self.next;
        self.next += 1;
        self.more.insert(slot, held);
        slot
    }

    pub(crate) fn lock(&self, slot: u32) -> Option<&Held> {
        self.more.get(&slot)
    }

    pub(crate) fn remove_lock(&mut self, slot: u32) -> Option<Held> {
        self.more.remove(&slot)
    }

    /// Gives all locks back.
    pub(crate) async fn release(self) {
        for held in self.more.into_values() {
            held.release().await;
        }
        self.own.release().await;
    }

    /// Commits what is staged, guarded by every lock that is held and by what was read; the view goes on at the new revision.
    ///
    /// # Errors
    /// `conflict` when a guard was broken: nothing was written, and what was staged is gone.
    pub(crate) async fn commit(&mut self, facts: &Facts, view: &mut View) -> Result<u64, wit::Error> {
        self.commit_as(&facts.plugin, &facts.store, &facts.caller, view).await
    }

    /// As [`Task::commit`], from outside of a run.
    pub(crate) async fn commit_as(
        &mut self,
        plugin: &str,
        store: &Store,
        caller: &Caller,
        view: &mut View,
    ) -> Result<u64, wit::Error> {
        let staged = std::mem::replace(view, View::at(store.revision()));
        if self.own.is_lost() {
            return Err(wit::Error::Conflict("the task's lock is lost".to_owned()));
        }
        if staged.is_clean() {
            return Ok(view.revision());
        }
        let writes = staged.into_writes();
        let mut guards: Vec<_> = self.more.values().chain([&self.own]).map(Held::guard).collect();
        guards.extend(writes.guards);
        let effect = EffectTxn {
            plugin: plugin.to_owned(),
            trigger: self.trigger.clone(),
            partition: 0,
            generation: self.generation,
            owner_epoch: self.owner_epoch,
            expect_cursor: None,
            new_cursor: None,
            guards,
            ops: writes.ops,
            dead_letters: Vec::new(),
            sequence: store.trigger(plugin, &self.trigger).map_or(0, |record| record.sequence),
        };
        let reply = store.effect(effect, caller.origin.clone(), caller.tenant).await;
        *view = View::at(store.revision());
        match reply {
            Ok(EffectReply::Applied { revision }) => {
                self.commits += 1;
                *view = View::at(revision.max(store.revision()));
                Ok(view.revision())
            }
            Ok(EffectReply::Rejected { reason }) => Err(refused(reason)),
            Err(error @ (Error::RequestTooLarge | Error::Invalid(_) | Error::PermissionDenied)) => {
                Err(super::types::refusal(&error, "the writes", 0))
            }
            Err(error) => Err(wit::Error::Unavailable(format!("whether the commit was applied is not known: {error}"))),
        }
    }
}

fn refused(reason: Rejection) -> wit::Error {
    match reason {
        Rejection::GuardBroken { what, .. } => wit::Error::Conflict(what),
        Rejection::Stale(why) => wit::Error::Conflict(format!("this run is over: {why}")),
        Rejection::Halted => wit::Error::Conflict("the trigger is halted".to_owned()),
        Rejection::TooDeep => wit::Error::Limit("the chain of plugins that write because of each other is too long".to_owned()),
        Rejection::Invalid(why) => wit::Error::Invalid(why),
        Rejection::Refused(error) => super::types::refusal(&error, "the writes", 0),
    }
}
