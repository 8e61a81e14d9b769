//! Who does the work that a disk's users have threads for, where there shall be none: in a simulation, whose one thread also has
//! the time in hand.
//!
//! **Invariant:** a worker that is driven does in a step what its thread would do in a turn, no more and no less; whoever waits
//! for it takes the steps himself.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

/// Calls on workers when they have something to do.
pub trait Driver: Debug + Send + Sync + 'static {
    /// Takes a worker on: some time after each call of what is returned, its `step` is to be called, until it answers
    /// [`Due::Never`]; never from within a step.
    fn take_on(&self, worker: Arc<dyn Worker>) -> Wake;
}

/// Says that a worker has something to do.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What a thread would do.
pub trait Worker: Send + Sync {
    /// The name that its thread would have.
    fn name(&self) -> &'static str;

    /// Does one turn of it.
    fn step(&self) -> Due;
}

/// When a worker's next step is due, unless it is woken before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// There is more to do.
    Now,
    /// Then.
    At(Instant),
    /// Not before it is woken.
    Woken,
    /// It has ended.
    Never,
}
