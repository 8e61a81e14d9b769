//! A plugin's generation while it runs here: what every runner of it shares.
//!
//! **Invariant:** one generation's runners share one cancellation; when it fires none of them starts another run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvasir_api::command::plugin_control::Action;
use kvasir_api::command::{Origin, PluginControl};
use kvasir_engine::{Caller, Grants};
use kvasir_machine::{DEFAULT_TENANT, PluginState, TriggerRecord};
use tokio_util::sync::CancellationToken;

use crate::advance::Advancer;
use crate::board::{Counters, PluginBoard, TriggerBoard};
use crate::installed::Installed;
use crate::logs::{Source, wall_ms};
use crate::manifest::Failure;
use crate::program::Program;
use crate::run::{Answer, Ended, Facts, Input, run};
use crate::slots::{Slot, Slots};
use crate::stop::Stop;
use crate::store::Store;
use crate::view::View;

/// Wait before asking again when the node has trouble.
pub(crate) const TROUBLE_WAIT: Duration = Duration::from_millis(500);

/// A running generation.
pub(crate) struct Active {
    pub(crate) name: String,
    pub(crate) generation: u64,
    pub(crate) installed: Installed,
    pub(crate) config: Arc<BTreeMap<String, String>>,
    pub(crate) grants: Arc<Grants>,
    pub(crate) program: Program,
    pub(crate) board: Arc<PluginBoard>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) store: Store,
    pub(crate) advancer: Advancer,
    pub(crate) slots: Slots,
    pub(crate) cancel: CancellationToken,
}

/// What was asked of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Over,
    Cancelled,
}

impl Active {
    pub(crate) fn source(&self, trigger: &str, attempt: u32) -> Source {
        Source { trigger: trigger.to_owned(), generation: self.generation, attempt }
    }

    /// The plugin as a caller of the engine.
    pub(crate) fn caller(&self, depth: u32) -> Caller {
        Caller { tenant: DEFAULT_TENANT, origin: self.origin(depth), grants: Some(self.grants.clone()) }
    }

    pub(crate) fn origin(&self, depth: u32) -> Origin {
        Origin { plugin: self.name.clone(), depth }
    }

    /// Sleeps, unless the plugin is stopped first.
    pub(crate) async fn sleep(&self, time: Duration) -> Wait {
        tokio::select! {
            () = tokio::time::sleep(time) => Wait::Over,
            () = self.cancel.cancelled() => Wait::Cancelled,
        }
    }

    pub(crate) async fn sleep_on_trouble(&self) -> Wait {
        self.sleep(TROUBLE_WAIT).await
    }

    /// Makes this node the owner of a trigger under a fresh epoch, and makes sure of seeing everything that was applied before.
    /// `None` when the plugin or this generation is over.
    pub(crate) async fn own(&self, trigger: &str) -> Option<u64> {
        loop {
            let current = self.store.plugin(&self.name).filter(|plugin| plugin.generation == self.generation)?;
            let record = self.store.trigger(&self.name, trigger)?;
            if current.state == PluginState::Active && self.store.is_leader() {
                match self.assign(&record).await {
                    Ok(epoch) => return Some(epoch),
                    Err(error) => tracing::debug!(plugin = self.name, trigger, %error, "a trigger is not ours yet"),
                }
            }
            if self.sleep_on_trouble().await == Wait::Cancelled {
                return None;
            }
        }
    }

    async fn assign(&self, record: &TriggerRecord) -> Result<u64, kvasir_api::Error> {
        let epoch = self.store.assign(&self.name, &record.id, record.owner_epoch).await?;
        self.store.linearize().await?;
        Ok(epoch)
    }

    /// Waits for a place to run. What a run is told and reads is looked at after that. `None` when the plugin is stopped first.
    pub(crate) async fn slot(&self, task: bool) -> Option<Slot> {
        tokio::select! {
            slot = self.slots.take(task) => Some(slot),
            () = self.cancel.cancelled() => None,
        }
    }

    /// Runs the guest once, on a task of its own so that a panic under it stays there.
    pub(crate) async fn run(
        self: &Arc<Self>,
        board: &TriggerBoard,
        slot: Slot,
        source: Source,
        depth: u32,
        revision: u64,
        input: Input,
    ) -> Ended {
        let facts = Facts {
            plugin: self.name.clone(),
            source,
            config: self.config.clone(),
            limits: self.installed.manifest.limits,
            now_ms: wall_ms(),
            caller: self.caller(depth),
            log: self.board.log.clone(),
            store: self.store.clone(),
            cancel: self.cancel.clone(),
        };
        let active = self.clone();
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
        Counters::add(&self.counters.runs, 1);
        Counters::add(&self.counters.cpu_us, ended.cpu.as_micros() as u64);
        Counters::add(&self.counters.run_us, ended.took.as_micros() as u64);
        board.update(|numbers| {
            numbers.runs += 1;
            numbers.last_run = ended.took;
        });
        if ended.answer == Answer::Ok {
            self.board.succeeded();
        }
        ended
    }

    /// Writes a guest's failure where its operator looks. True when the crash breaker opened, and the plugin is quarantined.
    pub(crate) async fn fault(&self, board: &TriggerBoard, source: &Source, stopped: bool, why: &str) -> bool {
        Counters::add(&self.counters.faults, 1);
        board.update(|numbers| {
            numbers.faults += 1;
            numbers.last_error = why.to_owned();
        });
        self.board.log.host(source, "error", why);
        if !stopped {
            return false;
        }
        Counters::add(&self.counters.stopped, 1);
        if !self.board.stopped() {
            return false;
        }
        let reason = format!(
            "it was stopped {} times in a row; the last time trigger {}: {why}",
            crate::board::BREAKER_STOPS_MAX,
            source.trigger
        );
        self.quarantine(source, &reason).await;
        true
    }

    /// Stops the plugin until its operator resumes it.
    pub(crate) async fn quarantine(&self, source: &Source, reason: &str) {
        Counters::add(&self.counters.quarantined, 1);
        self.board.log.host(source, "error", &format!("quarantined: {reason}"));
        tracing::warn!(plugin = self.name, reason, "plugin quarantined");
        let control = PluginControl {
            name: self.name.clone(),
            action: Action::Quarantine.into(),
            reason: reason.to_owned(),
            expect_generation: self.generation,
        };
        while let Err(error) = self.store.control(control.clone()).await {
            if matches!(error, kvasir_api::Error::Precondition(_) | kvasir_api::Error::Missing(_)) {
                tracing::debug!(plugin = self.name, %error, "this generation is over; there is nothing left to quarantine");
                break;
            }
            tracing::warn!(plugin = self.name, %error, "the quarantine is not recorded yet");
            if self.sleep_on_trouble().await == Wait::Cancelled {
                return;
            }
        }
        self.cancel.cancel();
    }
}

/// Counts a run while it goes on, also when it ends in a panic.
struct Running<'a>(&'a Counters);

impl<'a> Running<'a> {
    fn new(counters: &'a Counters) -> Self {
        Counters::add(&counters.running, 1);
        Self(counters)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits `failure.backoff`, doubled with each attempt, with a quarter of jitter.
pub(crate) fn backoff(failure: &Failure, attempts: u32) -> Duration {
    let doubled = doubled(failure.backoff.first.0, failure.backoff.last.0, attempts);
    let mut random = [0];
    // Without randomness the wait has no jitter.
    let _ = getrandom::fill(&mut random);
    doubled + doubled.mul_f64(0.25 * f64::from(random[0]) / 255.0)
}

/// `first` on the first of `times`, twice as long each time after, `last` at most.
pub(crate) fn doubled(first: Duration, last: Duration, times: u32) -> Duration {
    first.saturating_mul(1_u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX)).min(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound_with_at_most_a_quarter_more() {
        let failure = Failure::default();
        for (attempts, least) in [(1, 1), (2, 2), (5, 16), (6, 30), (60, 30)] {
            let wait = backoff(&failure, attempts);
            let least = Duration::from_secs(least);
            assert!(wait >= least && wait <= least.mul_f64(1.25), "{attempts}: {wait:?}");
        }
    }
}
