//! Packets that wait: what is delayed or held back, in the order in which it is due.
//!
//! **Invariants:** sans I/O; packets of one direction leave in the order they came, but for those that are held back. At most
//! [`WAITING_BYTES_MAX`] wait.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::Rule;
use crate::Random;

/// The most bytes that wait in the whole relay.
pub(super) const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How much longer a packet is held back so that later ones overtake it, at least and at most.
const HOLD_MS: (u64, u64) = (2, 25);

/// What is to be done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Pass,
    Lose,
    /// Leaves at this moment.
    Wait(Instant),
    /// The same, and later ones may leave before it.
    HoldBack(Instant),
}

/// One direction: what its rule makes of the next packet.
#[derive(Debug, Default, Clone)]
pub(super) struct Direction {
    /// When the last packet that keeps its place leaves.
    last: Option<Instant>,
}

impl Direction {
    pub(super) fn fate(&mut self, rule: Rule, now: Instant, random: &mut Random) -> Fate {
        if rule.cut || random.chance(rule.drop_percent.into()) {
            return Fate::Lose;
        }
        let jitter = match u64::try_from(rule.jitter.as_micros()).unwrap_or(u64::MAX) {
            0 => Duration::ZERO,
            most => Duration::from_micros(random.below(most)),
        };
        let due = now + rule.delay + jitter;
        if random.chance(rule.reorder_percent.into()) {
            let (least, most) = HOLD_MS;
            return Fate::HoldBack(due + Duration::from_millis(least + random.below(most - least)));
        }
        // A rule that has become shorter must not let the next packet overtake those that wait by the old one.
        let due = self.last.filter(|last| *last > now).map_or(due, |last| last.max(due));
        if due <= now {
            return Fate::Pass;
        }
        self.last = Some(due);
        Fate::Wait(due)
    }
}

/// All packets that wait, with where they go.
#[derive(Debug)]
pub(super) struct Line<T> {
    heap: BinaryHeap<Reverse<Waiting<T>>>,
    bytes: usize,
    sequence: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    due: Instant,
    /// Among those due at the same moment, the first comes first.
    sequence: u64,
    packet: Vec<u8>,
    target: T,
}

impl<T> Line<T> {
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new(), bytes: 0, sequence: 0 }
    }

    /// Takes a packet in; `false` when there is no room for it.
    pub(super) fn push(&mut self, due: Instant, packet: &[u8], target: T) -> bool {
        if self.bytes + packet.len() > WAITING_BYTES_MAX {
            return false;
        }
        self.bytes += packet.len();
        self.sequence += 1;
        self.heap.push(Reverse(Waiting { due, sequence: self.sequence, packet: packet.to_vec(), target }));
        true
    }

    /// When the next packet is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(waiting)| waiting.due)
    }

    /// The next packet that is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Vec<u8>, T)> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse(waiting) = self.heap.pop()?;
        self.bytes -= waiting.packet.len();
        Some((waiting.packet, waiting.target))
    }
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.sequence) == (other.due, other.sequence)
    }
}

impl<T> Eq for Waiting<T> {}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Waiting<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_a_direction_keep_their_order_whatever_the_jitter() {
        let mut random = Random::new(7);
        let now = Instant::now();
        let mut direction = Direction::default();
        let mut line = Line::new();
        let jittery = Rule { delay: Duration::from_millis(5), jitter: Duration::from_millis(50), ..Rule::default() };
        for number in 0..200_u32 {
            // The rule is lifted half way: those that wait still go first.
            let rule = if number < 100 { jittery } else { Rule::default() };
            match direction.fate(rule, now, &mut random) {
                Fate::Wait(due) => assert!(line.push(due, &[0], number)),
                other => panic!("{number}: {other:?}"),
            }
        }
        let end = now + Duration::from_secs(1);
        let left: Vec<u32> = std::iter::from_fn(|| line.pop(end)).map(|(_, number)| number).collect();
        assert_eq!(left, (0..200).collect::<Vec<_>>());
        assert_eq!(direction.fate(Rule::default(), end, &mut random), Fate::Pass);
    }

    #[test]
    fn some_are_held_back_and_overtaken() {
        let mut random = Random::new(7);
        let now = Instant::now();
        let mut direction = Direction::default();
        let rule = Rule { reorder_percent: 20, ..Rule::default() };
        let fates: Vec<Fate> = (0..1_000).map(|_| direction.fate(rule, now, &mut random)).collect();
        let held = fates.iter().filter(|fate| matches!(fate, Fate::HoldBack(_))).count();
        assert!((100..300).contains(&held), "{held}");
        assert_eq!(fates.iter().filter(|fate| **fate == Fate::Pass).count(), 1_000 - held, "the others pass at once");
    }

    #[test]
    fn losses_follow_the_percentage_and_a_cut_loses_all() {
        let mut random = Random::new(7);
        let now = Instant::now();
        let mut lost = |rule| {
            let mut direction = Direction::default();
            (0..1_000).filter(|_| direction.fate(rule, now, &mut random) == Fate::Lose).count()
        };
        assert!((200..400).contains(&lost(Rule { drop_percent: 30, ..Rule::default() })));
        assert_eq!(lost(Rule::CUT), 1_000);
        assert_eq!(lost(Rule::default()), 0);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut line = Line::new();
        let due = Instant::now();
        let packet = vec![0; 1024 * 1024];
        assert_eq!((0..100).filter(|_| line.push(due, &packet, ())).count(), WAITING_BYTES_MAX / packet.len());
        assert!(line.pop(due).is_some());
        assert!(line.push(due, &packet, ()), "room again");
    }
}
