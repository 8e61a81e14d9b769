//! Runs a watch trigger: history from the cursor, a fresh instance for each batch, and one entry for what it did and the cursor.
//!
//! Exactly once: the entry names the generation, the owner epoch, the cursor it starts from and how many effects landed before it,
//! and apply checks all four. Whatever this runner does twice, after a crash, a timeout or a lost reply, at most one of the two
//! lands.
//!
//! **Invariant:** the local position runs ahead of the replicated cursor only over changes that had no effect.

mod resync;

use std::sync::Arc;
use std::time::Duration;

use kvasir_api::Error;
use kvasir_api::command::{DeadLetter, EffectTxn};
use kvasir_api::limits::{CAUSALITY_DEPTH_MAX, DEAD_LETTER_KEY_BYTES_MAX};
use kvasir_engine::KeyRange;
use kvasir_machine::{EffectReply, Rejection, Rev, TriggerRecord, TriggerState};

use crate::active::{Active, Wait, backoff, doubled};
use crate::advance::cursor;
use crate::bindings::exports::kvasir::plugin::reactor::Batch;
use crate::board::{Counters, TriggerBoard};
use crate::imports::types::event;

use crate::logs::cut;
use crate::manifest::{Mode, OnExhausted, Watch, short};
use crate::plan::Plan;
use crate::run::{Answer, Ended, Input};
use crate::tenure::Tenure;
use crate::view::{View, Writes};

/// How far a `latest` trigger looks ahead for newer versions.
const LATEST_EVENTS_MAX: usize = 4_096;
const LATEST_BYTES_MAX: usize = 4 << 20;
/// Longest error text that is kept of a failure.
const ERROR_BYTES_MAX: usize = 2_048;
/// Conflicts in a row after which a run waits a moment before it tries again.
const CONFLICTS_AT_ONCE: u32 = 4;
/// The first such wait, and the longest.
const CONFLICT_WAIT: Duration = Duration::from_millis(4);
const CONFLICT_WAIT_MAX: Duration = Duration::from_secs(1);

/// A trigger's runner.
pub(crate) struct Reactor {
    tenure: Tenure,
    active: Arc<Active>,
    watch: Watch,
    id: String,
    keys: KeyRange,
    board: Arc<TriggerBoard>,
    position: Rev,
    /// Batches to run, the next one last.
    plans: Vec<Plan>,
    /// An event that is given up but not parked yet, and why.
    parking: Option<(Plan, String)>,
    resync: Option<resync::Scan>,
    last_effect: u64,
    conflicts: u32,
}

/// How to go on.
enum Next {
    Go,
    /// Begin again from the cursor, if the trigger is still ours.
    Reload,
    /// This tenure is over.
    End,
}

/// What became of an effect.
enum Landed {
    Yes,
    /// Run again: what it relied on changed.
    Conflict,
    /// The guest asked for something that cannot be done.
    Refused(String),
    /// Nothing was applied, and the node is why: the same again later.
    Trouble(String),
    Next(Next),
}

impl Reactor {
    pub(crate) fn new(tenure: Tenure, watch: Watch) -> Self {
        let id = watch.id.to_string();
        let (active, board) = (tenure.active.clone(), tenure.board.clone());
        let keys = crate::manifest::keys(&watch);
        Self {
            tenure,
            active,
            watch,
            id,
            keys,
            board,
            position: Rev::default(),
            plans: Vec::new(),
            parking: None,
            resync: None,
            last_effect: 0,
            conflicts: 0,
        }
    }

    /// Runs until the tenure is over.
    pub(crate) async fn drive(mut self) {
        self.board.state("idle");
        if !self.tenure.settle().await {
            return;
        }
        while let Some(record) = self.tenure.record() {
            match self.step(record).await {
                Next::Go if self.tenure.is_over() => return,
                Next::Go => {}
                Next::End => return,
                Next::Reload => {
                    self.plans.clear();
                    self.parking = None;
                    self.resync = None;
                    self.position = Rev::default();
                    if !self.tenure.settle().await {
                        return;
                    }
                }
            }
        }
    }

    async fn step(&mut self, record: TriggerRecord) -> Next {
        if record.state.is_halted() {
            self.board.state("halted");
            // To be let go on takes a fresh epoch.
            self.tenure.over().await;
            return Next::End;
        }
        if record.state == TriggerState::Lost || self.resync.is_some() {
            return self.step_resync(record).await;
        }
        if let Some((plan, why)) = self.parking.take() {
            return self.park(record, plan, why).await;
        }
        if let Some(plan) = self.plans.pop() {
            return self.step_plan(record, plan).await;
        }
        self.position = self.position.max(record.cursor);
        let mut revisions = self.active.store.revisions();
        revisions.mark_unchanged();
        let (max_events, max_bytes) = match self.watch.mode {
            Mode::Every => (self.watch.batch.max_events as usize, self.watch.batch.max_bytes.0 as usize),
            Mode::Latest => (LATEST_EVENTS_MAX, LATEST_BYTES_MAX),
        };
        let tenant = kvasir_machine::DEFAULT_TENANT;
        let batch =
            match self.active.store.history(self.position, &self.keys, tenant, max_events, max_bytes, self.watch.prev).await {
                Ok(batch) => batch,
                // `Compacted` among them: the record that is read next says that the trigger is lost.
                Err(error) => return self.trouble(&error.to_string()).await,
            };
        let plan = Plan::choose(&self.watch, &self.active.name, batch);
        if !plan.events.is_empty() {
            self.plans.push(plan);
            return Next::Go;
        }
        let moved = plan.next > self.position;
        self.pass(&record, plan.next);
        if moved {
            return Next::Go;
        }
        self.board.state("idle");
        tokio::select! {
            changed = revisions.changed() => if changed.is_ok() { Next::Go } else { Next::End },
            () = self.tenure.over() => Next::End,
        }
    }

    /// Goes past changes that had no effect; the cursor follows with others' some time.
    fn pass(&mut self, record: &TriggerRecord, to: Rev) {
        self.position = self.position.max(to);
        self.board.update(|numbers| numbers.position = self.position);
        if self.position > record.cursor {
            self.active.advancer.ask(&self.active.name, &self.id, self.tenure.epoch, record.cursor, self.position);
        }
    }

    async fn step_plan(&mut self, record: TriggerRecord, mut plan: Plan) -> Next {
        let Some(slot) = self.tenure.slot(false).await else { return Next::End };
        self.board.state("running");
        plan.attempts += 1;
        let depth = plan.depth() + 1;
        let source = self.tenure.source(plan.attempts);
        let batch = Batch { trigger: self.id.clone(), events: plan.events.iter().map(event).collect(), whole: plan.whole };
        let revision = self.active.store.revision().max(self.last_effect);
        let mut ended = self.tenure.run(slot, source, depth, revision, Input::Events(batch)).await;
        if ended.answer != Answer::Ok {
            return self.failed(record, plan, ended).await;
        }
        let writes = std::mem::replace(&mut ended.view, View::at(revision)).into_writes();
        if writes.ops.is_empty() {
            self.pass(&record, plan.next);
            return Next::Go;
        }
        if depth > CAUSALITY_DEPTH_MAX {
            let why = format!(
                "these writes would be the {depth}th in a chain of plugins that write because of each other; {CAUSALITY_DEPTH_MAX} are allowed"
            );
            self.board.update(|numbers| numbers.last_error.clone_from(&why));
            return self.give_up(record, plan, why).await;
        }
        match self.land(&record, plan.next, writes, Vec::new(), depth).await {
            Landed::Yes => Next::Go,
            Landed::Conflict => {
                plan.attempts -= 1;
                self.plans.push(plan);
                self.after_conflict().await
            }
            Landed::Trouble(why) => {
                plan.attempts -= 1;
                self.plans.push(plan);
                self.trouble(&why).await
            }
            Landed::Refused(why) => {
                ended.answer = Answer::Retry(why);
                self.failed(record, plan, ended).await
            }
            Landed::Next(next) => next,
        }
    }

    /// Proposes what a run did, with the cursor it leads to.
    async fn land(
        &mut self,
        record: &TriggerRecord,
        to: Rev,
        writes: Writes,
        dead_letters: Vec<DeadLetter>,
        depth: u32,
    ) -> Landed {
        self.active.advancer.cancel(&self.active.name, &self.id);
        // A move of the idle cursor may have landed meanwhile.
        let (expect, sequence) =
            self.tenure.record().map_or((record.cursor, record.sequence), |record| (record.cursor, record.sequence));
        let effect = EffectTxn {
            plugin: self.active.name.clone(),
            trigger: self.id.clone(),
            partition: 0,
            generation: self.active.generation,
            owner_epoch: self.tenure.epoch,
            expect_cursor: Some(cursor(expect)),
            new_cursor: Some(cursor(to)),
            guards: writes.guards,
            ops: writes.ops,
            dead_letters,
            sequence,
        };
        let caller = self.active.caller(depth);
        match self.active.store.effect(effect, caller.origin, caller.tenant).await {
            Ok(EffectReply::Applied { revision }) => {
                Counters::add(&self.active.counters.effects, 1);
                self.last_effect = revision;
                self.conflicts = 0;
                self.position = self.position.max(to);
                self.board.update(|numbers| numbers.position = self.position);
                Landed::Yes
            }
            Ok(EffectReply::Rejected { reason }) => match reason {
                Rejection::GuardBroken { .. } => Landed::Conflict,
                Rejection::Stale(why) => {
                    tracing::debug!(plugin = self.active.name, trigger = self.id, why, "an effect came too late");
                    Landed::Next(Next::Reload)
                }
                Rejection::Halted => {
                    let why = "its dead letters are full; look at `plugin dlq`, then `plugin resume`";
                    self.board.update(|numbers| numbers.last_error = why.to_owned());
                    self.active.board.log.host(&self.tenure.source(0), "error", &format!("halted: {why}"));
                    Landed::Next(Next::Reload)
                }
                Rejection::Refused(error @ (Error::NoSpace | Error::TooManyRequests)) => Landed::Trouble(error.to_string()),
                Rejection::TooDeep => {
                    Landed::Refused("the chain of plugins that write because of each other is too long".to_owned())
                }
                Rejection::Invalid(why) => Landed::Refused(why),
                Rejection::Refused(error) => Landed::Refused(error.to_string()),
            },
            Err(error @ (Error::RequestTooLarge | Error::Invalid(_) | Error::PermissionDenied)) => {
                Landed::Refused(format!("its effect cannot be proposed: {error}"))
            }
            // Whether it landed is not known, nor whether it still will: cursor and sequence tell, and of it and its repetition apply
            // takes one.
            Err(error) => match self.trouble(&error.to_string()).await {
                Next::Go => Landed::Next(Next::Reload),
                next => Landed::Next(next),
            },
        }
    }

    async fn after_conflict(&mut self) -> Next {
        Counters::add(&self.active.counters.conflicts, 1);
        self.conflicts += 1;
        if self.conflicts <= CONFLICTS_AT_ONCE {
            return Next::Go;
        }
        let why =
            format!("run again for the {}th time in a row: others change what it reads faster than it ends", self.conflicts);
        self.board.update(|numbers| {
            numbers.state = "backoff";
            numbers.last_error = why;
        });
        let wait = doubled(CONFLICT_WAIT, CONFLICT_WAIT_MAX, self.conflicts - CONFLICTS_AT_ONCE);
        if self.tenure.sleep(wait).await == Wait::Cancelled { Next::End } else { Next::Go }
    }

    /// The node's trouble, not the guest's: nothing is counted.
    async fn trouble(&mut self, why: &str) -> Next {
        self.board.update(|numbers| {
            numbers.state = "backoff";
            numbers.last_error = cut(why, ERROR_BYTES_MAX);
        });
        if self.tenure.sleep_on_trouble().await == Wait::Cancelled { Next::End } else { Next::Go }
    }

    async fn failed(&mut self, record: TriggerRecord, mut plan: Plan, ended: Ended) -> Next {
        if self.tenure.is_over() {
            return Next::End;
        }
        let (rejected, stopped, why) = match ended.answer {
            Answer::Reject(why) => (true, false, why),
            Answer::Retry(why) => (false, false, why),
            Answer::Stopped(stop) => (false, true, stop.to_string()),
            Answer::Ok => return Next::Go,
        };
        if let (Some(trouble), false, false) = (&ended.trouble, rejected, stopped) {
            plan.attempts -= 1;
            self.plans.push(plan);
            return self.trouble(trouble).await;
        }
        let why = cut(&why, ERROR_BYTES_MAX);
        let source = self.tenure.source(plan.attempts);
        if self.active.fault(&self.board, &source, stopped, &why).await {
            return Next::End;
        }
        let failure = self.active.installed.manifest.failure;
        if rejected || plan.probe || plan.attempts > failure.retries {
            return self.give_up(record, plan, why).await;
        }
        let wait = backoff(&failure, plan.attempts);
        self.plans.push(plan);
        self.board.state("backoff");
        if self.tenure.sleep(wait).await == Wait::Cancelled { Next::End } else { Next::Go }
    }

    /// No attempt helps: halves the batch to find the event that cannot be handled, then parks it or halts.
    async fn give_up(&mut self, record: TriggerRecord, plan: Plan, why: String) -> Next {
        let failure = self.active.installed.manifest.failure;
        let exhausted = plan.probe || plan.attempts > failure.retries;
        let plan = match plan.bisect(exhausted) {
            Ok((first, rest)) => {
                self.plans.push(rest);
                self.plans.push(first);
                return Next::Go;
            }
            Err(plan) => *plan,
        };
        if failure.on_exhausted == OnExhausted::Halt {
            let at = plan.events.first().map(|change| change.row.rev).unwrap_or_default();
            let reason = format!("the event at revision {at} cannot be handled (on-exhausted = halt): {why}");
            self.tenure.halt(&self.tenure.source(plan.attempts), &reason).await;
            return Next::Reload;
        }
        self.park(record, plan, why).await
    }

    /// Puts a single event among the dead letters and goes past it. Until that is done nothing else is.
    async fn park(&mut self, record: TriggerRecord, plan: Plan, why: String) -> Next {
        let Some(change) = plan.events.first() else { return Next::Go };
        let (at, key) = (change.row.rev, &change.row.key);
        let key = key.slice(..key.len().min(DEAD_LETTER_KEY_BYTES_MAX));
        let letter = DeadLetter { at: Some(cursor(at)), key: key.clone(), error: why.clone(), attempts: plan.attempts };
        // A dead letter is no write that others react to, so it adds nothing to a chain; one that is too long ends here.
        match self.land(&record, plan.next, Writes::default(), vec![letter], 0).await {
            Landed::Yes => {
                Counters::add(&self.active.counters.parked, 1);
                let text = format!(
                    "parked the event of {} at revision {at} after {} attempts: {why}",
                    short(&String::from_utf8_lossy(&key)),
                    plan.attempts
                );
                self.active.board.log.host(&self.tenure.source(plan.attempts), "error", &text);
                Next::Go
            }
            Landed::Conflict => Next::Reload,
            Landed::Refused(trouble) | Landed::Trouble(trouble) => {
                self.parking = Some((plan, why));
                self.trouble(&trouble).await
            }
            Landed::Next(next) => next,
        }
    }
}
