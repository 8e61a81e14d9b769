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
use kvasir_machine::{DEFAULT_TENANT, PluginState};
use tokio_util::sync::CancellationToken;

use crate::advance::Advancer;
use crate::board::{Counters, PluginBoard, TriggerBoard};
use crate::installed::Installed;
use crate::logs::Source;
use crate::manifest::Failure;
use crate::program::Program;
use crate::slots::Slots;
use crate::store::Store;

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

    /// Ids of its triggers.
    pub(crate) fn triggers(&self) -> Vec<String> {
        let triggers = &self.installed.manifest.trigger;
        let watches = triggers.watch.iter().map(|watch| watch.id.to_string());
        watches.chain(triggers.schedule.iter().map(|schedule| schedule.id.to_string())).collect()
    }

    /// The epoch under which this node is to run a trigger; `None` while another node is.
    pub(crate) fn assigned(&self, trigger: &str) -> Option<u64> {
        let record = self.store.trigger(&self.name, trigger).filter(|record| record.owner_node == self.store.node_id())?;
        let plugin = self.store.plugin(&self.name)?;
        (plugin.generation == self.generation && plugin.state == PluginState::Active).then_some(record.owner_epoch)
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
            tokio::select! {
                () = tokio::time::sleep(TROUBLE_WAIT) => {}
                () = self.cancel.cancelled() => return,
            }
        }
        self.cancel.cancel();
    }
}

/// Counts a run while it goes on, also when it ends in a panic.
pub(crate) struct Running<'a>(&'a Counters);

impl<'a> Running<'a> {
    pub(crate) fn new(counters: &'a Counters) -> Self {
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
