//! The ring: recent changes, in memory.
//!
//! **Invariant:** it holds every change of the revisions `from..=head`, and drops whole revisions, oldest first.

use std::collections::VecDeque;
use std::sync::Arc;

use kvasir_machine::{Change, Rev};

use super::event::Event;

#[derive(Debug)]
pub(super) struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    bytes_max: usize,
    /// First revision all of whose changes are here; `head + 1` when nothing is.
    from: u64,
    /// Everything up to this revision was seen.
    head: u64,
    begun: bool,
}

/// What the ring says about a stretch of history.
pub(super) enum Stretch {
    /// These are its events, up to and including the revision.
    Here(Vec<Arc<Event>>, u64),
    /// It begins before the ring does.
    Gone,
}

impl Ring {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { events: VecDeque::new(), bytes: 0, bytes_max, from: 1, head: 0, begun: false }
    }

    /// Everything up to `revision` is in the state file.
    pub(super) fn begin(&mut self, revision: u64) {
        if !self.begun || revision > self.head {
            self.reset(revision);
        }
    }

    fn reset(&mut self, revision: u64) {
        self.events.clear();
        self.bytes = 0;
        self.from = revision + 1;
        self.head = revision;
        self.begun = true;
    }

    /// Takes the changes that led to `revision`.
    pub(super) fn push(&mut self, changes: Vec<Change>, revision: u64) {
        let first = changes.first().map(|change| change.row.rev.main);
        match first {
            Some(first) if !self.begun => self.reset(first - 1),
            // A snapshot was installed: what led here is not known.
            None if revision > self.head => {
                self.reset(revision);
                return;
            }
            _ => {}
        }
        for change in changes {
            // Replays of what was seen change nothing.
            if change.row.rev.main <= self.head {
                continue;
            }
            let event = Event::new(change);
            self.bytes += event.weight();
            self.events.push_back(event);
        }
        self.head = self.head.max(revision);
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.events.front().map(|event| event.main()) else { break };
            while self.events.front().is_some_and(|event| event.main() == oldest) {
                if let Some(event) = self.events.pop_front() {
                    self.bytes -= event.weight();
                }
            }
            self.from = oldest + 1;
        }
    }

    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// The events of `after + 1` and later, whole revisions until there are `events_max` of them or `bytes_max` bytes.
    pub(super) fn after(&self, after: u64, events_max: usize, bytes_max: usize) -> Stretch {
        if after + 1 < self.from {
            return Stretch::Gone;
        }
        let start = self.events.partition_point(|event| event.main() <= after);
        let mut end = start;
        let mut upto = self.head;
        let mut bytes = 0;
        while end < self.events.len() {
            let main = self.events[end].main();
            if end - start >= events_max || bytes >= bytes_max {
                upto = main - 1;
                break;
            }
            while end < self.events.len() && self.events[end].main() == main {
                bytes += self.events[end].weight();
                end += 1;
            }
        }
        Stretch::Here(self.events.range(start..end).cloned().collect(), upto)
    }

    /// The events from `from` on, which may be within a revision, at most `events_max`, and the place after them; `None` when that
    /// is not within the ring.
    pub(super) fn since(&self, from: Rev, events_max: usize) -> Option<(Vec<Arc<Event>>, Rev)> {
        if from.main < self.from || from.main > self.head {
            return None;
        }
        let start = self.events.partition_point(|event| event.row().rev < from);
        let end = start.saturating_add(events_max).min(self.events.len());
        let next = self.events.get(end).map_or(Rev::start_of(self.head + 1), |event| event.row().rev);
        Some((self.events.range(start..end).cloned().collect(), next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use kvasir_machine::Row;

    fn change(main: u64, sub: u32) -> Change {
        Change {
            row: Arc::new(Row {
                rev: Rev { main, sub },
                prev: None,
                tenant: 0,
                key: Bytes::from_static(b"k"),
                value: Bytes::from(vec![0; 1_000]),
                create_revision: main,
                version: 1,
                lease: 0,
                tombstone: false,
                origin_plugin: None,
                origin_depth: 0,
            }),
            prev: None,
        }
    }

    fn mains(stretch: Stretch) -> Option<(Vec<u64>, u64)> {
        match stretch {
            Stretch::Here(events, upto) => Some((events.iter().map(|event| event.main()).collect(), upto)),
            Stretch::Gone => None,
        }
    }

    #[test]
    fn a_reader_goes_on_within_a_revision() {
        let mut ring = Ring::new(1 << 20);
        ring.begin(10);
        ring.push(vec![change(11, 0), change(11, 1), change(12, 0)], 12);
        let since = |main, sub, most| {
            let (events, next) = ring.since(Rev { main, sub }, most)?;
            Some((events.iter().map(|event| event.row().rev).collect::<Vec<_>>(), next))
        };
        let at = |main, sub| Rev { main, sub };
        assert_eq!(since(11, 0, 1), Some((vec![at(11, 0)], at(11, 1))));
        assert_eq!(since(11, 1, 1), Some((vec![at(11, 1)], at(12, 0))));
        assert_eq!(since(11, 2, 9), Some((vec![at(12, 0)], at(13, 0))));
        assert_eq!(since(13, 0, 9), None);
        assert_eq!(since(10, 0, 9), None);
    }

    #[test]
    fn a_stretch_is_whole_revisions_and_says_how_far_it_goes() {
        let mut ring = Ring::new(1 << 20);
        ring.begin(10);
        ring.push(vec![change(11, 0), change(11, 1), change(12, 0)], 12);
        ring.push(Vec::new(), 12);
        assert_eq!(mains(ring.after(10, 1, usize::MAX)), Some((vec![11, 11], 11)));
        assert_eq!(mains(ring.after(11, 10, usize::MAX)), Some((vec![12], 12)));
        assert_eq!(mains(ring.after(12, 10, usize::MAX)), Some((vec![], 12)));
        assert_eq!(mains(ring.after(9, 10, usize::MAX)), None);
        // Two changes weigh more than 2,000 bytes, one does not.
        assert_eq!(mains(ring.after(10, 10, 2_000)), Some((vec![11, 11], 11)));
        assert_eq!(mains(ring.after(10, 10, 2_500)), Some((vec![11, 11, 12], 12)));
    }

    #[test]
    fn the_oldest_revisions_are_dropped_whole_when_there_are_too_many_bytes() {
        let mut ring = Ring::new(4_000);
        ring.begin(1);
        for main in 2..20 {
            ring.push(vec![change(main, 0)], main);
        }
        assert_eq!(mains(ring.after(1, 100, usize::MAX)), None);
        assert_eq!(mains(ring.after(16, 100, usize::MAX)), Some((vec![17, 18, 19], 19)));
    }

    #[test]
    fn a_jump_without_changes_empties_the_ring() {
        let mut ring = Ring::new(1 << 20);
        ring.begin(1);
        ring.push(vec![change(2, 0)], 2);
        ring.push(Vec::new(), 50);
        assert_eq!(mains(ring.after(2, 10, usize::MAX)), None);
        assert_eq!(mains(ring.after(50, 10, usize::MAX)), Some((vec![], 50)));
    }
}
