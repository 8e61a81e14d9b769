//! One node's hold on one trigger: from the assignment that gives it to the one that takes it away.
//!
//! The leader assigns (`placement`), every node follows what is applied: the node that a trigger's record names runs it, under the
//! record's owner epoch, and begins with one linearizable read, so that it goes on from the cursor that its predecessor left.
//!
//! **Invariant:** on one node a trigger's runs belong to one tenure at a time, and end with it; what a run did cannot land after it,
//! because apply checks the epoch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kvasir_api::command::{TriggerControl, trigger_control};
use kvasir_machine::TriggerRecord;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::active::{Active, Running, TROUBLE_WAIT, Wait};
use crate::board::{Counters, TriggerBoard};
use crate::logs::{Source, wall_ms};
use crate::reactor::Reactor;
use crate::run::{Answer, Ended, Facts, Input, run};
use crate::schedule::Scheduler;
use crate::slots::Slot;
use crate::stop::Stop;
use crate::view::View;

/// A hold on a trigger.
pub(crate) struct Tenure {
    pub(crate) active: Arc<Active>,
    pub(crate) trigger: String,
    pub(crate) epoch: u64,
    pub(crate) board: Arc<TriggerBoard>,
    cancel: CancellationToken,
}

impl Tenure {
    /// The trigger's record, while this node owns it under this epoch.
    pub(crate) fn record(&self) -> Option<TriggerRecord> {
        let record = self.active.store.trigger(&self.active.name, &self.trigger);
        record.filter(|record| record.owner_epoch == self.epoch)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Waits for the end of it.
    pub(crate) async fn over(&self) {
        self.cancel.cancelled().await;
    }

    pub(crate) fn source(&self, attempt: u32) -> Source {
        self.active.source(&self.trigger, attempt)
    }

    /// Sleeps, unless the tenure ends first.
    pub(crate) async fn sleep(&self, time: Duration) -> Wait {
        tokio::select! {
            () = tokio::time::sleep(time) => Wait::Over,
            () = self.over() => Wait::Cancelled,
        }
    }

    pub(crate) async fn sleep_on_trouble(&self) -> Wait {
        self.sleep(TROUBLE_WAIT).await
    }

    /// Makes sure of seeing all that was applied before. False when the tenure ends first.
    pub(crate) async fn settle(&self) -> bool {
        loop {
            let settled = tokio::select! {
                settled = self.active.store.linearize() => settled,
                () = self.over() => return false,
            };
            match settled {
                Ok(()) => return true,
                Err(error) => {
                    tracing::debug!(plugin = self.active.name, trigger = self.trigger, %error, "a trigger does not begin yet");
                }
            }
            if self.sleep_on_trouble().await == Wait::Cancelled {
                return false;
            }
        }
    }

    /// Waits for a place to run. What a run is told and reads is looked at after that. `None` when the tenure ends first.
    pub(crate) async fn slot(&self, task: bool) -> Option<Slot> {
        tokio::select! {
            slot = self.active.slots.take(task) => Some(slot),
            () = self.over() => None,
        }
    }

    /// Runs the guest once, on a task of its own so that a panic under it stays there.
    pub(crate) async fn run(&self, slot: Slot, source: Source, depth: u32, revision: u64, input: Input) -> Ended {
        let active = self.active.clone();
        let facts = Facts {
            plugin: active.name.clone(),
            source,
            config: active.config.clone(),
            limits: active.installed.manifest.limits,
            now_ms: wall_ms(),
            caller: active.caller(depth),
            log: active.board.log.clone(),
            store: active.store.clone(),
            cancel: self.cancel.clone(),
        };
        let running = tokio::spawn(async move {
            let _slot = slot;
            let _running = Running::new(&active.counters);
            run(&active.program, facts, revision, input).await
        });
        let ended = running.await.unwrap_or_else(|error| {
            let what = if error.is_panic() { "it panicked inside the host".to_owned() } else { "its thread ended".to_owned() };
            Ended {
                answer: Answer::Stopped(Stop::Panic(what)),
                view: View::at(revision),
                trouble: None,
                cpu: Duration::ZERO,
                took: Duration::ZERO,
                task: None,
            }
        });
        let counters = &self.active.counters;
        Counters::add(&counters.runs, 1);
        Counters::add(&counters.cpu_us, ended.cpu.as_micros() as u64);
        Counters::add(&counters.run_us, ended.took.as_micros() as u64);
        self.board.update(|numbers| {
            numbers.runs += 1;
            numbers.last_run = ended.took;
        });
        if ended.answer == Answer::Ok {
            self.active.board.succeeded();
        }
        ended
    }

    /// Stops this trigger, and no other of the plugin, until its operator lets it go on.
    pub(crate) async fn halt(&self, source: &Source, reason: &str) {
        let active = &self.active;
        active.board.log.host(source, "error", &format!("halted: {reason}"));
        tracing::warn!(plugin = active.name, trigger = self.trigger, reason, "plugin trigger halted");
        let control = TriggerControl {
            plugin: active.name.clone(),
            trigger: self.trigger.clone(),
            partition: 0,
            action: trigger_control::Action::Halt.into(),
            reason: reason.to_owned(),
            expect_epoch: self.epoch,
        };
        while let Err(error) = active.store.control_trigger(control.clone()).await {
            if matches!(error, kvasir_api::Error::Precondition(_) | kvasir_api::Error::Missing(_)) {
                // Halted already by a try whose answer was lost, or no longer ours to halt.
                return;
            }
            tracing::warn!(plugin = active.name, trigger = self.trigger, %error, "the halt is not recorded yet");
            if self.sleep_on_trouble().await == Wait::Cancelled {
                return;
            }
        }
    }
}

/// A trigger's runner here.
struct Held {
    epoch: u64,
    cancel: CancellationToken,
}

/// Follows the assignments of one generation's triggers until it is cancelled, and runs those that are this node's.
pub(crate) async fn follow(active: Arc<Active>) {
    let mut changes = active.store.registry_changes();
    let triggers = active.triggers();
    let mut runners: JoinSet<()> = JoinSet::new();
    let mut by_task: BTreeMap<Id, String> = BTreeMap::new();
    let mut held: BTreeMap<String, Held> = BTreeMap::new();
    // A runner that ended by itself has nothing to do under its epoch any more.
    let mut ended: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        for trigger in &triggers {
            let epoch = active.assigned(trigger);
            if let Some(current) = held.get(trigger) {
                if epoch != Some(current.epoch) {
                    // The next begins when this one is done with.
                    current.cancel.cancel();
                }
                continue;
            }
            let Some(epoch) = epoch.filter(|epoch| ended.get(trigger) != Some(epoch)) else { continue };
            let cancel = active.cancel.child_token();
            let board = active.board.trigger(trigger);
            let tenure = Tenure { active: active.clone(), trigger: trigger.clone(), epoch, board, cancel: cancel.clone() };
            if let Some(id) = launch(&mut runners, tenure) {
                by_task.insert(id, trigger.clone());
                held.insert(trigger.clone(), Held { epoch, cancel });
            }
        }
        let (id, panicked) = tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    break;
                }
                continue;
            }
            Some(over) = runners.join_next_with_id(), if !runners.is_empty() => match over {
                Ok((id, ())) => (id, false),
                Err(error) => (error.id(), error.is_panic()),
            },
            () = active.cancel.cancelled() => break,
        };
        if panicked {
            // A runner is the host's code: its panic is a defect, and this plugin is what stops working.
            let source = active.source("", 0);
            active.quarantine(&source, "its runner failed inside the host; this is a defect of kvasir").await;
        }
        if let Some(trigger) = by_task.remove(&id)
            && let Some(over) = held.remove(&trigger)
        {
            active.board.trigger(&trigger).state("");
            ended.insert(trigger, over.epoch);
        }
    }
    active.cancel.cancel();
    while runners.join_next().await.is_some() {}
}

fn launch(runners: &mut JoinSet<()>, tenure: Tenure) -> Option<Id> {
    let manifest = &tenure.active.installed.manifest.trigger;
    if let Some(watch) = manifest.watch.iter().find(|watch| watch.id.as_str() == tenure.trigger).cloned() {
        return Some(runners.spawn(Reactor::new(tenure, watch).drive()).id());
    }
    let schedule = manifest.schedule.iter().find(|schedule| schedule.id.as_str() == tenure.trigger).cloned()?;
    Some(runners.spawn(Scheduler::new(tenure, &schedule).drive()).id())
}
