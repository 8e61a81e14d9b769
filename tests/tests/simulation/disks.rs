//! The hands that do a simulated disk's work: each step of a writer takes simulated time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kvasir_storage::disk::{Driver, Due, Wake, Worker};
use kvasir_tests::Random;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Steps of one worker that may follow each other at once.
const STEPS_AT_ONCE_MAX: u32 = 8;

/// Drives the writers of one node's disk.
pub(crate) struct Hands {
    random: Mutex<Random>,
    pace: Pace,
}

/// How long a disk takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Milliseconds of a usual step, at most.
    pub(crate) usual_ms: u64,
    /// Now and then a step takes up to so many milliseconds.
    pub(crate) slow_ms: u64,
    /// In so many of a hundred steps.
    pub(crate) slow_percent: u64,
}

impl Hands {
    pub(crate) fn new(random: Random, pace: Pace) -> Arc<Self> {
        Arc::new(Self { random: Mutex::new(random), pace })
    }
}

impl fmt::Debug for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hands").field("pace", &self.pace).finish_non_exhaustive()
    }
}

impl Pace {
    fn draw(&self, random: &mut Random) -> Duration {
        let slow = random.chance(self.slow_percent);
        Duration::from_millis(random.below(1 + if slow { self.slow_ms } else { self.usual_ms }))
    }
}

impl Driver for Hands {
    fn take_on(&self, worker: Arc<dyn Worker>) -> Wake {
        let woken = Arc::new(Notify::new());
        let random = self.random.lock().fork();
        tokio::spawn(drive(worker, Arc::clone(&woken), random, self.pace));
        Arc::new(move || woken.notify_one())
    }
}

async fn drive(worker: Arc<dyn Worker>, woken: Arc<Notify>, mut random: Random, pace: Pace) {
    let mut due = Due::Woken;
    let mut at_once = 0;
    loop {
        match due {
            Due::Now => {}
            Due::At(then) => {
                // Both are the world's choice: whichever comes first, and then the wake.
                tokio::select! {
                    biased;
                    () = woken.notified() => {}
                    () = tokio::time::sleep_until(Instant::from_std(then)) => {}
                }
            }
            Due::Woken => woken.notified().await,
            Due::Never => return,
        }
        at_once += 1;
        if due != Due::Now || at_once > STEPS_AT_ONCE_MAX {
            at_once = 0;
            tokio::time::sleep(pace.draw(&mut random)).await;
        }
        due = worker.step();
    }
}
