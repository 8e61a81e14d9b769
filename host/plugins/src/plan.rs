//! What one run of a reactor gets: changes in order, filtered as the trigger asks, and the cursor after them.
//!
//! **Invariant:** every change between two cursors is delivered, filtered out or superseded; none is skipped.

use std::collections::BTreeSet;

use kvasir_engine::HistoryBatch;
use kvasir_machine::{Change, Rev};

use crate::manifest::{EventKind, Mode, Watch};

/// A batch for a reactor.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) events: Vec<Change>,
    /// The cursor after them.
    pub(crate) next: Rev,
    /// The last event's revision does not continue in the next batch.
    pub(crate) whole: bool,
    /// Attempts so far.
    pub(crate) attempts: u32,
    /// Part of a batch that used up its retries: one failure decides.
    pub(crate) probe: bool,
}

impl Plan {
    /// Chooses from a piece of history what the trigger delivers.
    pub(crate) fn choose(watch: &Watch, plugin: &str, batch: HistoryBatch) -> Self {
        let HistoryBatch { changes, next, .. } = batch;
        let mut seen = BTreeSet::new();
        let mut events: Vec<Change> = match watch.mode {
            Mode::Every => changes,
            Mode::Latest => {
                // From the back: the first met of a key is its newest.
                let mut newest: Vec<Change> =
                    changes.into_iter().rev().filter(|change| seen.insert(change.row.key.clone())).collect();
                newest.reverse();
                newest
            }
        };
        events.retain(|change| {
            let kind = if change.row.tombstone { EventKind::Delete } else { EventKind::Put };
            let own = change.row.origin_plugin.as_deref() == Some(plugin);
            watch.events.contains(&kind) && (watch.self_events || !own)
        });
        let whole = events.last().is_none_or(|last| last.row.rev.main < next.main);
        let mut plan = Self { events, next, whole, attempts: 0, probe: false };
        let most = watch.batch.max_events as usize;
        if plan.events.len() > most {
            plan = plan.split_at(most).0;
        }
        plan
    }

    /// The longest chain of plugins' writes behind these events.
    pub(crate) fn depth(&self) -> u32 {
        self.events.iter().map(|change| change.row.origin_depth).max().unwrap_or(0)
    }

    /// The first `count` events and the rest, each with its own cursor; `count` is at least 1 and less than there are.
    pub(crate) fn split_at(mut self, count: usize) -> (Self, Self) {
        let rest = self.events.split_off(count);
        let at = |change: Option<&Change>| change.map(|change| change.row.rev).unwrap_or_default();
        let (last, first_left) = (at(self.events.last()), at(rest.first()));
        let next = Rev { main: last.main, sub: last.sub + 1 };
        let first = Self { events: self.events, next, whole: last.main != first_left.main, attempts: 0, probe: self.probe };
        let rest = Self { events: rest, next: self.next, whole: self.whole, attempts: 0, probe: self.probe };
        (first, rest)
    }

    /// Both halves of a batch that cannot be handled whole; `None` for a single event.
    pub(crate) fn bisect(self, probe: bool) -> Result<(Self, Self), Box<Self>> {
        if self.events.len() < 2 {
            return Err(Box::new(self));
        }
        let half = self.events.len() / 2;
        let (mut first, mut rest) = self.split_at(half);
        first.probe |= probe;
        rest.probe |= probe;
        Ok((first, rest))
    }
}
