//! Marks: how the janitor knows how old a revision is.
//!
//! An entry tells at which revision it was put, not when. So every run notes the revision it reads at as *pending*, and commits
//! that; the next run turns it into a mark `(revision, at_ms)` with its own start as the time. The first run's commit came before
//! the second run's start, because both held the same lock, so every put up to `revision` is older than `at_ms` says: an age taken
//! from a mark is never too great, and too small by the runs' interval and the marks' spacing.
//!
//! Times are the wall clocks of the nodes that ran: a clock that is ahead makes keys look older by as much. Marks of a future that
//! a corrected clock takes back are dropped, which is safe, as is dropping any mark: the next older one counts instead.
//!
//! Invariant: marks ascend strictly in revision and in time; at most [`MARKS_MAX`] are kept, spaced in proportion to their age.

use serde::{Deserialize, Serialize};

/// The key that holds the marks.
pub const MARKS: &str = "/janitor/marks";
/// Marks kept. Over a year, at a first spacing of ten seconds, neighbours are then about an eighth of their age apart.
pub const MARKS_MAX: usize = 128;
/// The spacing of new marks is the shortest policy's age divided by this, ...
const SPACING_DIVISOR: u64 = 16;
/// ... and this without any policy, in ms.
const SPACING_IDLE_MS: u64 = 60_000;

/// Every put up to this revision happened before this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The store's revision.
    pub revision: u64,
    /// Wall time, in ms since 1970.
    pub at_ms: u64,
}

/// What is stored at [`MARKS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// In order.
    pub marks: Vec<Mark>,
    /// A revision that was current during the last run that noted one; the next run knows a time that is later.
    pub pending: Option<u64>,
}

impl Marks {
    /// The marks after a run that started at `now_ms` and reads at `revision`; `shortest_ms` is the least age that a policy asks for.
    #[must_use]
    pub fn observed(mut self, now_ms: u64, revision: u64, shortest_ms: Option<u64>) -> Marks {
        self.repair(now_ms, revision);
        if let Some(pending) = self.pending.take() {
            self.push(Mark { revision: pending, at_ms: now_ms });
        }
        let spacing_ms = shortest_ms.map_or(SPACING_IDLE_MS, |ms| ms / SPACING_DIVISOR);
        if self.marks.last().is_none_or(|last| now_ms - last.at_ms >= spacing_ms) {
            self.pending = Some(revision);
        }
        self.thin(now_ms);
        self
    }

    /// The highest revision that is surely older than `age_ms`.
    pub fn revision_before(&self, now_ms: u64, age_ms: u64) -> Option<u64> {
        self.marks.iter().rev().find(|mark| mark.at_ms.saturating_add(age_ms) <= now_ms).map(|mark| mark.revision)
    }

    /// Drops what cannot be true: of the future, beyond the store's revision, or out of order.
    fn repair(&mut self, now_ms: u64, revision: u64) {
        let mut last: Option<Mark> = None;
        self.marks.retain(|mark| {
            let follows = last.is_none_or(|last| last.revision < mark.revision && last.at_ms < mark.at_ms);
            let keep = follows && mark.at_ms <= now_ms && mark.revision <= revision;
            if keep {
                last = Some(*mark);
            }
            keep
        });
        self.pending = self.pending.filter(|pending| *pending <= revision);
    }

    fn push(&mut self, mark: Mark) {
        match self.marks.last_mut() {
            // Nothing was put since: the earlier time says more.
            Some(last) if last.revision >= mark.revision => {}
            // The same moment: the later revision says more.
            Some(last) if last.at_ms >= mark.at_ms => last.revision = mark.revision,
            _ => self.marks.push(mark),
        }
    }

    /// Keeps at most [`MARKS_MAX`], dropping where neighbours are closest for their age. The oldest and the newest stay.
    fn thin(&mut self, now_ms: u64) {
        while self.marks.len() > MARKS_MAX {
            let gap = |index: usize| {
                let width = self.marks[index + 1].at_ms - self.marks[index - 1].at_ms;
                let age = now_ms.saturating_sub(self.marks[index].at_ms) + 1;
                width as f64 / age as f64
            };
            let closest = (1..self.marks.len() - 1).min_by(|one, other| gap(*one).total_cmp(&gap(*other)));
            match closest {
                Some(index) => drop(self.marks.remove(index)),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_revision_becomes_a_mark_one_run_later() {
        let first = Marks::default().observed(1_000, 5, Some(0));
        assert_eq!((first.marks.as_slice(), first.pending), (&[][..], Some(5)));
        let second = first.observed(2_000, 9, Some(0));
        assert_eq!((second.marks.as_slice(), second.pending), (&[Mark { revision: 5, at_ms: 2_000 }][..], Some(9)));
        assert_eq!(second.revision_before(2_999, 1_000), None);
        assert_eq!(second.revision_before(3_000, 1_000), Some(5));
    }

    #[test]
    fn marks_are_as_far_apart_as_the_shortest_policy_needs() {
        let mut marks = Marks::default();
        for step in 0..1_000 {
            marks = marks.observed(step * 1_000, 10 + step, Some(160_000));
        }
        assert!((90..=100).contains(&marks.marks.len()), "{}", marks.marks.len());
    }

    #[test]
    fn a_clock_that_goes_back_takes_its_future_marks_with_it() {
        let marks =
            Marks { marks: vec![Mark { revision: 5, at_ms: 1_000 }, Mark { revision: 9, at_ms: 9_000 }], pending: Some(11) };
        let marks = marks.observed(2_000, 12, Some(0));
        assert_eq!(marks.marks, [Mark { revision: 5, at_ms: 1_000 }, Mark { revision: 11, at_ms: 2_000 }]);
    }

    #[test]
    fn marks_that_cannot_be_true_are_dropped() {
        let mark = |revision, at_ms| Mark { revision, at_ms };
        let marks = Marks { marks: vec![mark(5, 100), mark(4, 200), mark(6, 100), mark(99, 300)], pending: Some(50) };
        let marks = marks.observed(1_000, 20, Some(0));
        assert_eq!((marks.marks.as_slice(), marks.pending), (&[mark(5, 100)][..], Some(20)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the times between runs: bounded, ordered, and an age taken from a mark never exceeds the true one.
        #[test]
        fn an_age_is_never_too_great(steps in prop::collection::vec((1..100_000_u64, 0..50_u64), 1..600), age_ms in 1..5_000_000_u64) {
            let (mut now_ms, mut revision, mut marks) = (0, 1, Marks::default());
            // When each revision was put: after the run before it.
            let mut born_ms = vec![0, 0];
            for (wait_ms, puts) in steps {
                for _ in 0..puts {
                    revision += 1;
                    born_ms.push(now_ms + wait_ms - 1);
                }
                now_ms += wait_ms;
                marks = marks.observed(now_ms, revision, Some(age_ms));
                prop_assert!(marks.marks.len() <= MARKS_MAX);
                prop_assert!(marks.marks.is_sorted_by(|one, other| one.revision < other.revision && one.at_ms < other.at_ms));
                if let Some(cutoff) = marks.revision_before(now_ms, age_ms) {
                    prop_assert!(now_ms - born_ms[cutoff as usize] >= age_ms);
                }
            }
        }
    }
}
