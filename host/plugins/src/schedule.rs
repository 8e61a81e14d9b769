//! Runs a schedule trigger: waits for its time, takes its lock, runs the task, gives the lock back.
//!
//! The trigger's owner alone queues up for the lock, not every node: one place in its line is enough for a task that runs on one
//! node, and what the lock is for is to keep out clients, and an owner that does not know yet that it is none. When that one's node is
//! gone its lock goes with its lease.
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
use crate::logs::{cut, wall_ms};
use crate::manifest::{OnExhausted, Schedule};
use crate::run::{Answer, Input};
use crate::tenure::Tenure;

const ERROR_BYTES_MAX: usize = 2_048;
/// Longest wait after a run that the node or a competitor kept from finishing.
const TROUBLE_WAIT_MAX: Duration = Duration::from_secs(30);

/// Schedules of shorter intervals begin at once wherever they begin: to record each run would be most of their work.
const NOTED_FROM: Duration = Duration::from_secs(1);

/// A trigger's runner.
pub(crate) struct Scheduler {
    tenure: Tenure,
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
    pub(crate) fn new(tenure: Tenure, schedule: &Schedule) -> Self {
        let id = schedule.id.to_string();
        let (active, board) = (tenure.active.clone(), tenure.board.clone());
        let lock = Bytes::from(schedule.lock(&active.installed.manifest.plugin.name).into_bytes());
        Self { tenure, active, every: schedule.every.0, id, lock, board }
    }

    /// Runs until the tenure is over. The first run ever is at once; after that one is due an interval after the start of the last,
    /// whichever node that was on.
    pub(crate) async fn drive(self) {
        self.board.state("idle");
        if !self.tenure.settle().await {
            return;
        }
        let Some(record) = self.tenure.record() else { return };
        if record.state.is_halted() {
            self.board.state("halted");
            // To be let go on takes a fresh epoch.
            self.tenure.over().await;
            return;
        }
        let mut due = Instant::now() + until_due(self.every, record.last_run_wall_ms, wall_ms());
        let (mut attempts, mut unlucky) = (0, 0);
        loop {
            self.board.state("idle");
            if self.tenure.sleep(due.saturating_duration_since(Instant::now())).await == Wait::Cancelled {
                return;
            }
            let (started, started_wall_ms) = (Instant::now(), wall_ms());
            attempts += 1;
            let outcome = self.attempt(attempts).await;
            if self.tenure.is_over() {
                return;
            }
            // Late runs are not caught up with: the next is a whole interval after the start of this one.
            let regular = started + self.every;
            unlucky = if matches!(outcome, Outcome::Unlucky(_)) { unlucky + 1 } else { 0 };
            match outcome {
                Outcome::Done => {
                    self.note(started_wall_ms).await;
                    (attempts, due) = (0, regular);
                }
                Outcome::Stale => {
                    // Either the tenure is about to end, or what was read of it was old.
                    attempts -= 1;
                    if !self.tenure.settle().await || self.tenure.record().is_none() {
                        return;
                    }
                }
                Outcome::Unlucky(why) => {
                    attempts -= 1;
                    self.board.update(|numbers| {
                        numbers.state = "backoff";
                        numbers.last_error = why;
                    });
                    // Not counted, so nothing else ends it: each time a longer wait.
                    if self.tenure.sleep(doubled(TROUBLE_WAIT, TROUBLE_WAIT_MAX, unlucky)).await == Wait::Cancelled {
                        return;
                    }
                }
                Outcome::Failed { stopped, rejected, why } => {
                    let source = self.tenure.source(attempts);
                    if self.active.fault(&self.board, &source, stopped, &why).await {
                        return;
                    }
                    let failure = self.active.installed.manifest.failure;
                    if rejected || attempts > failure.retries {
                        if failure.on_exhausted == OnExhausted::Halt {
                            let reason = format!("it failed {attempts} times (on-exhausted = halt): {why}");
                            self.tenure.halt(&source, &reason).await;
                            return;
                        }
                        self.note(started_wall_ms).await;
                        (attempts, due) = (0, regular);
                    } else {
                        due = Instant::now() + backoff(&failure, attempts);
                        self.board.state("backoff");
                        if self.tenure.sleep(due.saturating_duration_since(Instant::now())).await == Wait::Cancelled {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Records that the run that began then is over. One that is not recorded is repeated, where the next owner begins.
    async fn note(&self, started_wall_ms: u64) {
        if self.every < NOTED_FROM {
            return;
        }
        let noted = self.active.store.task_done(&self.active.name, &self.id, self.tenure.epoch, started_wall_ms);
        tokio::select! {
            noted = noted => if let Err(error) = noted {
                tracing::debug!(plugin = self.active.name, trigger = self.id, %error, "a task's run is not recorded");
            },
            () = self.tenure.over() => {}
        }
    }

    async fn attempt(&self, attempt: u32) -> Outcome {
        // Before the lock: a task that has it does not keep others waiting for want of a place.
        let Some(slot) = self.tenure.slot(true).await else { return Outcome::Stale };
        self.board.state("waiting-for-lock");
        let caller = self.active.caller(1);
        let held = tokio::select! {
            held = Held::acquire(&self.active.store, &caller, &self.lock) => held,
            () = self.tenure.over() => return Outcome::Stale,
        };
        let held = match held {
            Ok(held) => held,
            Err(error) => return Outcome::Unlucky(cut(&error.to_string(), ERROR_BYTES_MAX)),
        };
        if self.tenure.record().is_none() {
            held.release().await;
            return Outcome::Stale;
        }
        self.board.state("running");
        let task = Task::new(held, self.id.clone(), self.active.generation, self.tenure.epoch);
        let revision = self.active.store.revision();
        let source = self.tenure.source(attempt);
        let mut ended = self.tenure.run(slot, source, 1, revision, Input::Task(Box::new(task))).await;
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

/// How long until a schedule is due whose last run began then, by clocks that may differ: never longer than its interval.
fn until_due(every: Duration, last_run_wall_ms: u64, now_wall_ms: u64) -> Duration {
    if last_run_wall_ms == 0 {
        return Duration::ZERO;
    }
    every.saturating_sub(Duration::from_millis(now_wall_ms.saturating_sub(last_run_wall_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_due_an_interval_after_its_last_run_wherever_that_was() {
        let every = Duration::from_secs(60);
        assert_eq!(until_due(every, 0, 1_000_000), Duration::ZERO, "the first run is at once");
        assert_eq!(until_due(every, 1_000_000, 1_020_000), Duration::from_secs(40));
        assert_eq!(until_due(every, 1_000_000, 9_000_000), Duration::ZERO, "one that is overdue is at once");
        assert_eq!(until_due(every, 5_000_000, 1_000_000), every, "a clock that is behind does not put it off for longer");
    }
}
