//! Places for runs: how many there are at once on this node, and how many of them one plugin or all tasks may have.
//!
//! **Invariant:** whoever runs has a place of each kind that it needs, and takes them in one order: no two wait for each other.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::wasm::RUNS_MAX;

/// Runs of one plugin at the same time.
const RUNS_PER_PLUGIN_MAX: usize = RUNS_MAX as usize / 4;
/// Tasks at the same time, those included that wait for their lock: reactors always have the other half.
const TASKS_MAX: usize = RUNS_MAX as usize / 2;

/// The places of a node, seen by one plugin.
#[derive(Clone)]
pub(crate) struct Slots {
    own: Arc<Semaphore>,
    tasks: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// A place; dropping it gives it to the next.
pub(crate) struct Slot {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Slots {
    pub(crate) fn new() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { own: places(RUNS_PER_PLUGIN_MAX), tasks: places(TASKS_MAX), all: places(RUNS_MAX as usize) }
    }

    /// The same places with a plugin's own share of them.
    pub(crate) fn of_plugin(&self) -> Self {
        Self { own: Arc::new(Semaphore::new(RUNS_PER_PLUGIN_MAX)), ..self.clone() }
    }

    /// Waits for a place.
    pub(crate) async fn take(&self, task: bool) -> Slot {
        let kinds = [Some(&self.own), task.then_some(&self.tasks), Some(&self.all)];
        let mut permits = Vec::new();
        for places in kinds.into_iter().flatten() {
            // Never closed.
            permits.extend(places.clone().acquire_owned().await.ok());
        }
        Slot { _permits: permits }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, timeout};

    use super::*;

    /// Takes places until there are none.
    async fn exhaust(slots: &Slots, task: bool) -> Vec<Slot> {
        let mut taken = Vec::new();
        while let Ok(slot) = timeout(Duration::ZERO, slots.take(task)).await {
            taken.push(slot);
        }
        taken
    }

    #[tokio::test]
    async fn no_plugin_takes_all_places_and_tasks_leave_some_to_reactors() {
        let node = Slots::new();
        let plugins: Vec<Slots> = (0..4).map(|_| node.of_plugin()).collect();
        let one = exhaust(&plugins[0], true).await;
        assert_eq!(one.len(), RUNS_PER_PLUGIN_MAX);
        let two = exhaust(&plugins[1], true).await;
        assert_eq!(two.len(), RUNS_PER_PLUGIN_MAX);
        assert!(exhaust(&plugins[2], true).await.is_empty(), "tasks have their share");
        let three = exhaust(&plugins[2], false).await;
        let four = exhaust(&plugins[3], false).await;
        assert_eq!(one.len() + two.len() + three.len() + four.len(), RUNS_MAX as usize);
        drop(one);
        assert_eq!(exhaust(&plugins[0], true).await.len(), RUNS_PER_PLUGIN_MAX);
    }
}
