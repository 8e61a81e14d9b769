//! Runs a schedule trigger: waits for its time, takes its lock, runs the task, gives the lock back.
//!
//! **Invariant:** the task runs only while its lock is held here, and what it commits is guarded by that lock where it counts, in
//! apply.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvasir_machine::DEFAULT_TENANT;
use tokio::time::Instant;

use crate::active::{Active, TROUBLE_WAIT, Wait, backoff, doubled};
use crate::board::{Counters, TriggerBoard};
use crate::held::Held;
use crate::imports::task::Task;
use crate::imports::types::is_trouble;
use crate::logs::cut;
use crate::manifest::{OnExhausted, Schedule};
use crate::run::{Answer, Input};

const ERROR_BYTES_MAX: usize = 2_048;
/// Longest wait after a run that the node or a competitor kept from finishing.
const TROUBLE_WAIT_MAX: Duration = Duration::from_secs(30);

/// A trigger's runner.
pub(crate) struct Scheduler {
    active: Arc<Active>,
    every: Duration,
    id: String,
    lock: Bytes,
    board: Arc<TriggerBoard>,
}

/// How a run ended for the schedule.
enum Outcome {
    Done,
    /// The guest failed.
    Failed {
        stopped: bool,
        rejected: bool,
        why: String,
    },
    /// The node or a competitor kept it from finishing.
    Unlucky(String),
    /// The trigger was taken over, paused or upgraded.
    Stale,
}

impl Scheduler {
    pub(crate) fn new(active: Arc<Active>, schedule: &Schedule) -> Self {
        let id = schedule.id.to_string();
        let board = active.board.trigger(&id);
        let lock = Bytes::from(schedule.lock(&active.installed.manifest.plugin.name).into_bytes());
        Self { active, every: schedule.every.0, id, lock, board }
    }

    /// Runs until the generation is over. The first run is at once.
    pub(crate) async fn drive(self) {
        let mut due = Instant::now();
        let (mut attempts, mut unlucky) = (0, 0);
        'own: while let Some(epoch) = self.active.own(&self.id).await {
            loop {
                self.board.state("idle");
                if self.active.sleep(due.saturating_duration_since(Instant::now())).await == Wait::Cancelled {
                    return;
                }
                let started = Instant::now();
                attempts += 1;
                let outcome = self.attempt(epoch, attempts).await;
                if self.active.cancel.is_cancelled() {
                    return;
                }
                // Late runs are not caught up with: the next is a whole interval after the start of this one.
                let regular = started + self.every;
                unlucky = if matches!(outcome, Outcome::Unlucky(_)) { unlucky + 1 } else { 0 };
                match outcome {
                    Outcome::Done => (attempts, due) = (0, regular),
                    Outcome::Stale => {
                        attempts = 0;
                        due = Instant::now();
                        continue 'own;
                    }
                    Outcome::Unlucky(why) => {
                        attempts -= 1;
                        self.board.update(|numbers| {
                            numbers.state = "backoff";
                            numbers.last_error = why;
                        });
                        // Not counted, so nothing else ends it: each time a longer wait.
                        if self.active.sleep(doubled(TROUBLE_WAIT, TROUBLE_WAIT_MAX, unlucky)).await == Wait::Cancelled {
                            return;
                        }
                    }
                    Outcome::Failed { stopped, rejected, why } => {
                        let source = self.active.source(&self.id, attempts);
                        if self.active.fault(&self.board, &source, stopped, &why).await {
                            return;
                        }
                        let failure = self.active.installed.manifest.failure;
                        if rejected || attempts > failure.retries {
                            if failure.on_exhausted == OnExhausted::Halt {
                                let reason =
                                    format!("trigger {} failed {attempts} times (on-exhausted = halt): {why}", self.id);
                                self.active.quarantine(&source, &reason).await;
                                return;
                            }
                            (attempts, due) = (0, regular);
                        } else {
                            due = Instant::now() + backoff(&failure, attempts);
                            self.board.state("backoff");
                            if self.active.sleep(due.saturating_duration_since(Instant::now())).await == Wait::Cancelled {
                                return;
                            }
                        }
                    }
                }
            }
        }
    }

    async fn attempt(&self, epoch: u64, attempt: u32) -> Outcome {
        // Before the lock: a task that has it does not keep others waiting for want of a place.
        let Some(slot) = self.active.slot(true).await else { return Outcome::Stale };
        self.board.state("waiting-for-lock");
        let caller = self.active.caller(1);
        let held = tokio::select! {
            held = Held::acquire(&self.active.store, &caller, &self.lock) => held,
            () = self.active.cancel.cancelled() => return Outcome::Stale,
        };
        let held = match held {
            Ok(held) => held,
            Err(error) => return Outcome::Unlucky(cut(&error.to_string(), ERROR_BYTES_MAX)),
        };
        let owned = |record: &kvasir_machine::TriggerRecord| record.owner_epoch == epoch;
        if !self.active.store.trigger(&self.active.name, &self.id).is_some_and(|record| owned(&record)) {
            held.release().await;
            return Outcome::Stale;
        }
        self.board.state("running");
        let task = Task::new(held, self.active.board.leases.clone(), self.id.clone(), self.active.generation, epoch);
        let revision = self.active.store.revision();
        let source = self.active.source(&self.id, attempt);
        let mut ended = self.active.run(&self.board, slot, source.clone(), 1, revision, Input::Task(Box::new(task))).await;
        let Some(mut task) = ended.task.take() else {
            return outcome(ended.answer, ended.trouble);
        };
        if ended.answer == Answer::Ok {
            // What the task left staged when it returned ok is committed as by a last `commit`.
            (ended.answer, ended.trouble) = self.commit_rest(&mut task, &mut ended.view).await;
        }
        Counters::add(&self.active.counters.effects, task.commits());
        let lost = task.lock_is_lost();
        task.release().await;
        match outcome(ended.answer, ended.trouble) {
            Outcome::Failed { stopped: false, why, .. } if lost => Outcome::Unlucky(format!("the lock was lost: {why}")),
            outcome => outcome,
        }
    }

    async fn commit_rest(&self, task: &mut Task, view: &mut crate::view::View) -> (Answer, Option<String>) {
        let (store, caller) = (&self.active.store, self.active.caller(1));
        debug_assert_eq!(caller.tenant, DEFAULT_TENANT);
        match task.commit_as(&self.active.name, store, &caller, view).await {
            Ok(_) => (Answer::Ok, None),
            Err(error) => {
                let why = format!("what it left staged was not committed: {error:?}");
                (Answer::Retry(why.clone()), is_trouble(&error).then_some(why))
            }
        }
    }
}

fn outcome(answer: Answer, trouble: Option<String>) -> Outcome {
    let cut = |why: String| cut(&why, ERROR_BYTES_MAX);
    match (answer, trouble) {
        (Answer::Ok, _) => Outcome::Done,
        (Answer::Retry(_), Some(trouble)) => Outcome::Unlucky(cut(trouble)),
        (Answer::Retry(why), None) => Outcome::Failed { stopped: false, rejected: false, why: cut(why) },
        (Answer::Reject(why), _) => Outcome::Failed { stopped: false, rejected: true, why: cut(why) },
        (Answer::Stopped(stop), _) => Outcome::Failed { stopped: true, rejected: false, why: stop.to_string() },
    }
}
