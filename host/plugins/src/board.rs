//! What is known of each plugin on this node: the numbers and words behind `plugin ls`, `inspect` and `/metrics`.
//!
//! **Invariant:** a board outlives restarts of its runners, so that an operator sees what happened before.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvasir_machine::Rev;
use parking_lot::Mutex;

use crate::logs::PluginLog;

/// A plugin that is stopped so often within [`BREAKER_WINDOW`], without one good run in between, is quarantined.
pub(crate) const BREAKER_STOPS_MAX: usize = 20;
const BREAKER_WINDOW: Duration = Duration::from_secs(600);

/// Whether the code of the installed generation can run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Code {
    Compiling,
    Ready,
    Failed(String),
}

/// One plugin on this node.
pub(crate) struct PluginBoard {
    pub(crate) log: Arc<PluginLog>,
    code: Mutex<(u64, Code)>,
    stops: Mutex<VecDeque<Instant>>,
    triggers: Mutex<BTreeMap<String, Arc<TriggerBoard>>>,
}

impl PluginBoard {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            log: PluginLog::new(),
            code: Mutex::new((0, Code::Compiling)),
            stops: Mutex::default(),
            triggers: Mutex::default(),
        })
    }

    pub(crate) fn set_code(&self, generation: u64, code: Code) {
        *self.code.lock() = (generation, code);
    }

    /// How the code of `generation` stands.
    pub(crate) fn code(&self, generation: u64) -> Code {
        let code = self.code.lock();
        if code.0 == generation { code.1.clone() } else { Code::Compiling }
    }

    pub(crate) fn trigger(&self, id: &str) -> Arc<TriggerBoard> {
        self.triggers.lock().entry(id.to_owned()).or_default().clone()
    }

    /// Counts a stop; true when the breaker opens.
    pub(crate) fn stopped(&self) -> bool {
        let mut stops = self.stops.lock();
        let now = Instant::now();
        stops.push_back(now);
        while stops.front().is_some_and(|first| now.duration_since(*first) > BREAKER_WINDOW) {
            stops.pop_front();
        }
        let open = stops.len() >= BREAKER_STOPS_MAX;
        if open {
            stops.clear();
        }
        open
    }

    /// A good run closes the breaker.
    pub(crate) fn succeeded(&self) {
        let mut stops = self.stops.lock();
        if !stops.is_empty() {
            stops.clear();
        }
    }
}

/// One trigger on this node.
#[derive(Default)]
pub(crate) struct TriggerBoard(Mutex<TriggerNumbers>);

/// What a trigger did so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct TriggerNumbers {
    pub(crate) state: &'static str,
    pub(crate) runs: u64,
    pub(crate) faults: u64,
    pub(crate) last_error: String,
    pub(crate) last_run: Duration,
    /// Where the runner is; the replicated cursor may follow a little later.
    pub(crate) position: Rev,
}

impl TriggerBoard {
    pub(crate) fn update(&self, change: impl FnOnce(&mut TriggerNumbers)) {
        change(&mut self.0.lock());
    }

    pub(crate) fn state(&self, state: &'static str) {
        self.0.lock().state = state;
    }

    pub(crate) fn numbers(&self) -> TriggerNumbers {
        self.0.lock().clone()
    }
}

/// Counters of the whole host.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) runs: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) stopped: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) effects: AtomicU64,
    pub(crate) parked: AtomicU64,
    pub(crate) quarantined: AtomicU64,
    pub(crate) cpu_us: AtomicU64,
    pub(crate) run_us: AtomicU64,
    pub(crate) running: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breaker_opens_after_many_stops_in_a_row_and_a_good_run_closes_it() {
        let board = PluginBoard::new();
        for _ in 1..BREAKER_STOPS_MAX {
            assert!(!board.stopped());
        }
        board.succeeded();
        for _ in 1..BREAKER_STOPS_MAX {
            assert!(!board.stopped());
        }
        assert!(board.stopped());
        assert!(!board.stopped(), "it starts again from zero");
    }
}
