//! The two things a plugin can be, and how per-event handlers are run over batches.
//!
//! Invariant: a fault names the key and revision of the event that caused it; the events before it in the batch have no effect.

use crate::{Batch, Cx, Event, Fault, Outcome, Payload, Raw, Resync, TaskCx};

/// What [`#[kvasir_guest::reactor]`](macro@crate::reactor) implements, for a type with the function's name.
pub trait Reactor: 'static {
    /// The crate's `plugin.toml`.
    const MANIFEST: &'static str;

    /// Reacts to a batch.
    ///
    /// # Errors
    /// The fault of the first event that did not succeed.
    fn on_events(cx: &mut Cx, batch: Batch<Raw>) -> Outcome;

    /// Takes a page of the range instead of changes that are compacted away.
    ///
    /// # Errors
    /// The fault of the first entry that did not succeed.
    fn on_resync(cx: &mut Cx, page: Resync<Raw>) -> Outcome;
}

/// What [`#[kvasir_guest::task]`](macro@crate::task) implements, for a type with the function's name.
pub trait Task: 'static {
    /// The crate's `plugin.toml`.
    const MANIFEST: &'static str;

    /// Runs once, under the lock.
    ///
    /// # Errors
    /// The task's fault.
    fn run(cx: &mut TaskCx) -> Outcome;
}

/// Runs a per-event handler over a batch.
#[doc(hidden)]
pub fn each<T: Payload>(cx: &mut Cx, events: Vec<Event<Raw>>, handler: fn(&mut Cx, Event<T>) -> Outcome) -> Outcome {
    for event in events {
        let (key, revision) = (event.key.clone(), event.revision);
        event
            .decode()
            .map_err(|error| Fault::Reject(error.to_string()))
            .and_then(|event| handler(cx, event))
            .map_err(|fault| fault.context(format_args!("{key} at revision {revision}")))?;
    }
    Ok(())
}

/// Runs a batch handler.
#[doc(hidden)]
pub fn whole<T: Payload>(cx: &mut Cx, batch: Batch<Raw>, handler: fn(&mut Cx, Batch<T>) -> Outcome) -> Outcome {
    handler(cx, batch.decode()?)
}

/// Runs a resync handler.
#[doc(hidden)]
pub fn page<T: Payload>(cx: &mut Cx, page: Resync<Raw>, handler: fn(&mut Cx, Resync<T>) -> Outcome) -> Outcome {
    handler(cx, page.decode()?)
}

/// Replays a resync's page through a batch handler; an empty page is nothing to replay.
#[doc(hidden)]
pub fn replay<T: Payload>(cx: &mut Cx, page: Resync<Raw>, handler: fn(&mut Cx, Batch<T>) -> Outcome) -> Outcome {
    let trigger = page.trigger.clone();
    let events = page.into_events();
    if events.is_empty() {
        return Ok(());
    }
    whole(cx, Batch { trigger, events, whole: true }, handler)
}
