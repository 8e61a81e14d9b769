//! What a watch promises: its events are ordered, unique, complete and whole per revision, it can be resumed, and previous values
//! are those that were there.

use bytes::Bytes;
use kvasir_api::mvccpb::Event;

use super::{Timeline, Violation, covers, shown};

/// One response of a watch; without events it is a notice of progress.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// The revision in its header.
    pub revision: i64,
    /// Its events.
    pub events: Vec<Event>,
}

/// A watch with all that it was told, over all the streams it was resumed on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Watched {
    /// For messages.
    pub name: String,
    /// As in the request.
    pub key: Bytes,
    /// As in the request.
    pub range_end: Bytes,
    /// Whether previous values were asked for.
    pub prev_kv: bool,
    /// The streams, in order: the revision that each began from, and its responses.
    pub streams: Vec<(i64, Vec<Batch>)>,
}

impl Watched {
    /// The revision to go on from: one after the last that was told, or after what a notice of progress said.
    pub fn resume_from(&self) -> Option<i64> {
        let batches = self.streams.iter().flat_map(|(_, batches)| batches);
        let told = batches.map(|batch| batch.events.iter().map(revision_of).max().unwrap_or(batch.revision) + 1).max();
        told.max(self.streams.first().map(|(from, _)| *from))
    }
}

/// Checks a watch. `complete_to` is a revision that it has certainly come to; without one it may have been cut anywhere.
///
/// # Errors
/// The broken promise.
pub fn watched(watch: &Watched, timeline: &Timeline, complete_to: Option<i64>) -> Result<(), Violation> {
    let mut told_to = 0;
    for (from, batches) in &watch.streams {
        let (start, mut next) = (*from, *from);
        for batch in batches {
            next = told(watch, timeline, batch, start, next)?;
        }
        told_to = told_to.max(next - 1);
    }
    // What was told by one stream is not asked for again, and what was not is.
    for pair in watch.streams.windows(2) {
        let [(from, batches), (again, _)] = pair else { continue };
        let part = Watched { streams: vec![(*from, batches.clone())], ..Watched::default() };
        let expected = part.resume_from().unwrap_or(*from);
        if *again != expected {
            let how = format!("a stream from {from} was resumed from {again}, and {expected} was to be next");
            return Err(broken(watch, "watches are resumed where they were", how));
        }
    }
    match complete_to {
        Some(to) if told_to < to => {
            let missing = timeline
                .revisions()
                .find(|(at, events)| *at > told_to && *at <= to && events.iter().any(|event| concerns(watch, event)));
            match missing {
                Some((at, events)) => {
                    let how = format!("told up to {told_to}, and {at} is missing: {events:?}");
                    Err(broken(watch, "watches are complete", how))
                }
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Checks one response; `next` is the revision up to which everything was told before, and the answer is the one from now on.
fn told(watch: &Watched, timeline: &Timeline, batch: &Batch, from: i64, next: i64) -> Result<i64, Violation> {
    let Some(first) = batch.events.first().map(revision_of) else {
        // A notice of progress: nothing up to its revision is still to come.
        nothing_between(watch, timeline, next, batch.revision)?;
        return Ok(next.max(batch.revision + 1));
    };
    let last = batch.events.iter().map(revision_of).max().unwrap_or(first);
    if first < from {
        return Err(broken(watch, "watches begin where they were asked to", format!("{first} before {from}")));
    }
    if first < next {
        let how = format!("{first} after everything up to {} was told: {:?}", next - 1, batch.events);
        return Err(broken(watch, "watches are ordered, and tell each event once, each revision whole", how));
    }
    if last > timeline.last() || batch.revision < last {
        let how = format!("an event of {last} in a response of {}, and the store is at {}", batch.revision, timeline.last());
        return Err(broken(watch, "watches tell what happened", how));
    }
    nothing_between(watch, timeline, next, first - 1)?;
    let expected: Vec<&Event> = (first..=last).flat_map(|at| timeline.at(at)).filter(|event| concerns(watch, event)).collect();
    for (nth, event) in batch.events.iter().enumerate() {
        let Some(expected) = expected.get(nth) else {
            return Err(broken(watch, "watches tell what happened", format!("{event:?} is one too many")));
        };
        if (event.r#type, &event.kv) != (expected.r#type, &expected.kv) {
            let how = format!("{event:?} instead of {expected:?}");
            return Err(broken(watch, "watches are ordered, complete, and tell what happened", how));
        }
        let before = if watch.prev_kv { &expected.prev_kv } else { &None };
        if event.prev_kv != *before {
            let how = format!("{event:?} instead of {before:?} before");
            return Err(broken(watch, "watches tell the previous value", how));
        }
    }
    if let Some(missing) = expected.get(batch.events.len()) {
        return Err(broken(watch, "watches tell each revision whole", format!("{missing:?} is missing")));
    }
    Ok(last + 1)
}

fn nothing_between(watch: &Watched, timeline: &Timeline, from: i64, to: i64) -> Result<(), Violation> {
    let skipped = (from.max(1)..=to.min(timeline.last())).flat_map(|at| timeline.at(at)).find(|event| concerns(watch, event));
    match skipped {
        None => Ok(()),
        Some(event) => Err(broken(watch, "watches are complete", format!("{event:?} was left out"))),
    }
}

fn concerns(watch: &Watched, event: &Event) -> bool {
    event.kv.as_ref().is_some_and(|kv| covers(&watch.key, &watch.range_end, &kv.key))
}

fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn broken(watch: &Watched, promise: &'static str, how: String) -> Violation {
    Violation { promise, how: format!("{} ({}): {how}", watch.name, shown(&watch.key)) }
}
