//! How events and resyncs reach the reactor: one batch or page at a time, with retries, bisection and parking.
//!
//! Invariant: the cursor moves only behind what is committed or parked.

use std::rc::Rc;

use super::{DeadLetter, Ended, Harness, RERUNS_MAX, Ran, catch};
use crate::testing::manifest::{EventKind, Mode, OnExhausted, Watch, selection};
use crate::testing::run::event;
use crate::testing::store::Logged;
use crate::{Batch, Cx, Entry, Error, Event, Key, Outcome, Raw, Resync};

impl Harness {
    /// Delivers one batch or page. False if there was nothing to do.
    pub(super) fn step(&mut self, index: usize, ran: &mut Ran) -> bool {
        if self.triggers[index].halted.is_some() || self.reactor.is_none() {
            return false;
        }
        let (compacted, revision) = self.world.with(|world| (world.store.compacted(), world.store.revision()));
        let trigger = &mut self.triggers[index];
        if trigger.cursor.0 < compacted && trigger.resync.is_none() {
            trigger.resync = Some((revision, None));
        }
        if trigger.resync.is_some() { self.step_resync(index, ran) } else { self.step_events(index, ran) }
    }

    fn step_events(&mut self, index: usize, ran: &mut Ran) -> bool {
        let manifest = Rc::clone(&self.manifest);
        let watch = &manifest.trigger.watch[index];
        let mut limit = watch.batch.max_events as usize;
        loop {
            let (events, whole, last) = self.pending(watch, self.triggers[index].cursor, limit);
            if events.is_empty() {
                self.triggers[index].cursor = last;
                return false;
            }
            let first = events[0].clone();
            let count = events.len();
            let batch = Batch { trigger: watch.id.to_string(), events, whole };
            let Some((on_events, _)) = self.reactor else { return false };
            let failed = self.attempts(watch.id.as_str(), ran, |cx| on_events(cx, batch.clone()));
            let trigger = &mut self.triggers[index];
            match failed {
                None => {
                    trigger.cursor_before = trigger.cursor;
                    trigger.cursor = last;
                    return true;
                }
                // Bisect: the poison is in one half.
                Some(_) if count > 1 => limit = count.div_ceil(2),
                Some(Ended::Retry(reason) | Ended::Reject(reason))
                    if self.manifest.failure.on_exhausted == OnExhausted::Halt =>
                {
                    trigger.halted = Some(reason);
                    return true;
                }
                Some(Ended::Retry(reason) | Ended::Reject(reason)) => {
                    let (key, revision) = (first.key, first.revision);
                    self.dead_letters.push(DeadLetter { trigger: watch.id.to_string(), key, revision, reason });
                    trigger.cursor = last;
                    ran.parked += 1;
                    return true;
                }
                Some(Ended::Ok) => return true,
            }
        }
    }

    fn step_resync(&mut self, index: usize, ran: &mut Ran) -> bool {
        let manifest = Rc::clone(&self.manifest);
        let watch = &manifest.trigger.watch[index];
        let Some((at, after)) = self.triggers[index].resync.clone() else { return false };
        let page_entries = self.resync_page;
        let mut entries: Vec<Entry<Raw>> = self.world.with(|world| {
            let after = after.as_ref().map(Key::as_bytes);
            world.store.scan(&selection(watch), after, at).take(page_entries + 1).collect()
        });
        let last = entries.len() <= page_entries;
        entries.truncate(page_entries);
        let upto = entries.last().map(|entry| entry.key.clone());
        let page = Resync { trigger: watch.id.to_string(), at, entries, first: after.is_none(), last };
        let Some((_, on_resync)) = self.reactor else { return false };
        let failed = self.attempts(watch.id.as_str(), ran, |cx| on_resync(cx, page.clone()));
        let trigger = &mut self.triggers[index];
        match failed {
            Some(Ended::Retry(reason) | Ended::Reject(reason)) => trigger.halted = Some(format!("resync: {reason}")),
            _ if last => {
                trigger.resync = None;
                trigger.cursor = (at, u32::MAX);
                trigger.cursor_before = trigger.cursor;
            }
            _ => trigger.resync = Some((at, upto)),
        }
        true
    }

    /// Runs a handler until its effects are committed (`None`) or it has failed for good.
    fn attempts(&mut self, trigger: &str, ran: &mut Ran, handler: impl Fn(&mut Cx) -> Outcome) -> Option<Ended> {
        let mut attempt = 1;
        let mut reruns = 0;
        loop {
            let run = self.start(trigger, attempt, None);
            ran.calls += 1;
            let ended = match catch(|| handler(&mut Cx::new(run.clone()))) {
                Ended::Ok if self.crashes > 0 => {
                    self.crashes -= 1;
                    attempt += 1;
                    continue;
                }
                Ended::Ok => match run.commit_staged() {
                    Ok(_) => {
                        ran.committed += 1;
                        return None;
                    }
                    // Not the handler's fault: again on a newer snapshot.
                    Err(Error::Conflict(what)) => {
                        reruns += 1;
                        assert!(reruns < RERUNS_MAX, "the handler's guards broke {reruns} times in a row: {what}");
                        continue;
                    }
                    Err(error) => Ended::Retry(error.to_string()),
                },
                ended => ended,
            };
            match ended {
                Ended::Retry(_) if attempt <= self.manifest.failure.retries => attempt += 1,
                failed => return Some(failed),
            }
        }
    }

    /// The next events of a trigger, whether the last one's revision ends with them, and the cursor behind them.
    fn pending(&self, watch: &Watch, cursor: (u64, u32), limit: usize) -> (Vec<Event<Raw>>, bool, (u64, u32)) {
        let selection = selection(watch);
        let wanted = |change: &Logged| {
            let kind = if change.entry.is_some() { EventKind::Put } else { EventKind::Delete };
            watch.events.contains(&kind) && (watch.self_events || !change.own)
        };
        self.world.with(|world| {
            let all: Vec<&Logged> = world.store.changes(cursor).filter(|change| selection.contains(&change.key)).collect();
            // `latest`: a change that a later one of the same key follows is not delivered, whether the later one is or not.
            let superseded =
                |at: usize| watch.mode == Mode::Latest && all[at + 1..].iter().any(|later| later.key == all[at].key);
            let (mut events, mut size, mut cut) = (Vec::new(), 0, None);
            for (at, change) in all.iter().enumerate().filter(|(at, change)| wanted(change) && !superseded(*at)) {
                size += change.key.len() + change.entry.as_ref().map_or(0, |entry| entry.value.len());
                if !events.is_empty() && (events.len() == limit || size as u64 > watch.batch.max_bytes.0) {
                    cut = Some(at);
                    break;
                }
                events.push(event(watch.id.as_str(), change, watch.prev));
            }
            match (cut, events.last()) {
                (Some(cut), Some(last)) => {
                    let (whole, position) = (all[cut].main != last.revision, (last.revision, last.sub));
                    (events, whole, position)
                }
                _ => (events, true, (world.store.revision(), u32::MAX)),
            }
        })
    }
}
