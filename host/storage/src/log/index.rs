//! Where each live entry stands on disk.
//!
//! **Invariant:** follows the log in the order of its records, not of the calls: an entry appears once it was written.

use super::segment::Segment;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The place of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u32,
    pub(super) span: u32,
}

/// The places of all live entries, and the segments they stand in.
#[derive(Debug, Default)]
pub(super) struct Index {
    first: u64,
    positions: VecDeque<Position>,
    /// What they take on the disk.
    bytes: u64,
    segments: BTreeMap<u64, SegmentUse>,
}

#[derive(Debug)]
struct SegmentUse {
    segment: Arc<Segment>,
    /// The index after the highest entry ever written to the segment, void ones too; 0 if there is none.
    end: u64,
}

impl Index {
    pub(super) fn add_segment(&mut self, segment: Arc<Segment>) {
        self.segments.insert(segment.number, SegmentUse { segment, end: 0 });
    }

    pub(super) fn push(&mut self, index: u64, position: Position) {
        if self.positions.is_empty() {
            self.first = index;
        }
        self.positions.push_back(position);
        self.bytes += u64::from(position.span);
        if let Some(used) = self.segments.get_mut(&position.segment) {
            used.end = used.end.max(index.saturating_add(1));
        }
    }

    /// Forgets entries from `next` on.
    pub(super) fn truncate(&mut self, next: u64) {
        let keep = next.saturating_sub(self.first) as usize;
        while self.positions.len() > keep {
            self.bytes -= self.positions.pop_back().map_or(0, |gone| u64::from(gone.span));
        }
    }

    /// Forgets entries below `first`.
    pub(super) fn purge(&mut self, first: u64) {
        let gone = first.saturating_sub(self.first).min(self.positions.len() as u64);
        self.bytes -= self.positions.drain(..gone as usize).map(|gone| u64::from(gone.span)).sum::<u64>();
        self.first += gone;
    }

    /// Bytes that the live entries take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The oldest entry from which on they take `bytes` at most; the one after the last if even that takes more.
    pub(super) fn newest_within(&self, bytes: u64) -> u64 {
        let mut sum = 0;
        let fitting = self.positions.iter().rev().take_while(|position| {
            sum += u64::from(position.span);
            sum <= bytes
        });
        self.first + (self.positions.len() - fitting.count()) as u64
    }

    /// The index of the first entry that has a place.
    pub(super) fn first(&self) -> Option<u64> {
        (!self.positions.is_empty()).then_some(self.first)
    }

    pub(super) fn get(&self, index: u64) -> Option<(Arc<Segment>, Position)> {
        let at = index.checked_sub(self.first)?;
        let position = *self.positions.get(usize::try_from(at).ok()?)?;
        Some((self.segments.get(&position.segment)?.segment.clone(), position))
    }

    /// Takes out the oldest segments whose every entry is below `first`, but never `active` or one after it.
    pub(super) fn take_purged(&mut self, first: u64, active: u64) -> Vec<Arc<Segment>> {
        let mut taken = Vec::new();
        while let Some(entry) = self.segments.first_entry() {
            if *entry.key() >= active || entry.get().end > first {
                break;
            }
            taken.push(entry.remove().segment);
        }
        taken
    }

    /// How many segments there are.
    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }
}
