//! Which synced watchers a key concerns: a hash map for single keys, a probe per prefix length for prefixes, and an interval tree
//! over sorted starts for the ranges that are left.
//!
//! **Invariant:** a slot that was inserted under a range is removed under the same one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use crate::caller::KeyRange;

/// A watcher's place in the hub.
pub(super) type Slot = usize;

#[derive(Debug, Default)]
pub(super) struct Index {
    keys: HashMap<u64, HashMap<Bytes, BTreeSet<Slot>>>,
    prefixes: HashMap<u64, Prefixes>,
    ranges: HashMap<u64, Ranges>,
}

/// Watchers of prefixes, by prefix.
#[derive(Debug, Default)]
struct Prefixes {
    slots: HashMap<Bytes, BTreeSet<Slot>>,
    /// How many different prefixes there are of each length.
    lengths: BTreeMap<usize, usize>,
}

/// Watchers of other ranges: sorted by start, with the furthest end of every subtree of the implicit balanced tree, which is
/// made anew when it is asked after a change.
#[derive(Debug, Default)]
struct Ranges {
    sorted: Vec<Range>,
    furthest: Vec<End>,
    stale: bool,
}

#[derive(Debug)]
struct Range {
    start: Bytes,
    end: End,
    slots: BTreeSet<Slot>,
}

/// The end of a range.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Open,
}

impl End {
    fn is_after(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < end.as_ref(),
            Self::Open => true,
        }
    }
}

/// The prefix that a range is all of, if it is one.
fn as_prefix(range: &KeyRange) -> Option<Bytes> {
    if range.is_open() && range.key.as_ref() == [0] {
        return Some(Bytes::new());
    }
    let prefix = KeyRange::prefix(range.key.clone());
    (!range.key.is_empty() && prefix == *range).then(|| range.key.clone())
}

fn remove(slots: &mut BTreeSet<Slot>, slot: Slot) -> bool {
    slots.remove(&slot);
    slots.is_empty()
}

impl Index {
    pub(super) fn insert(&mut self, tenant: u64, range: &KeyRange, slot: Slot) {
        if range.is_single() {
            self.keys.entry(tenant).or_default().entry(range.key.clone()).or_default().insert(slot);
        } else if let Some(prefix) = as_prefix(range) {
            let prefixes = self.prefixes.entry(tenant).or_default();
            let length = prefix.len();
            let slots = prefixes.slots.entry(prefix).or_default();
            if slots.is_empty() {
                *prefixes.lengths.entry(length).or_default() += 1;
            }
            slots.insert(slot);
        } else {
            self.ranges.entry(tenant).or_default().insert(range, slot);
        }
    }

    pub(super) fn remove(&mut self, tenant: u64, range: &KeyRange, slot: Slot) {
        if range.is_single() {
            let Some(keys) = self.keys.get_mut(&tenant) else { return };
            if keys.get_mut(&range.key).is_some_and(|slots| remove(slots, slot)) {
                keys.remove(&range.key);
            }
        } else if let Some(prefix) = as_prefix(range) {
            let Some(prefixes) = self.prefixes.get_mut(&tenant) else { return };
            if prefixes.slots.get_mut(&prefix).is_some_and(|slots| remove(slots, slot)) {
                prefixes.slots.remove(&prefix);
                if let Some(count) = prefixes.lengths.get_mut(&prefix.len()) {
                    *count -= 1;
                    if *count == 0 {
                        prefixes.lengths.remove(&prefix.len());
                    }
                }
            }
        } else if let Some(ranges) = self.ranges.get_mut(&tenant) {
            ranges.remove(range, slot);
        }
    }

    /// Calls `found` for every watcher of the key.
    pub(super) fn matching(&mut self, tenant: u64, key: &[u8], mut found: impl FnMut(Slot)) {
        if let Some(slots) = self.keys.get(&tenant).and_then(|keys| keys.get(key)) {
            slots.iter().copied().for_each(&mut found);
        }
        if let Some(prefixes) = self.prefixes.get(&tenant) {
            for length in prefixes.lengths.range(..=key.len()).map(|(length, _)| *length) {
                if let Some(slots) = prefixes.slots.get(&key[..length]) {
                    slots.iter().copied().for_each(&mut found);
                }
            }
        }
        if let Some(ranges) = self.ranges.get_mut(&tenant) {
            ranges.matching(key, &mut found);
        }
    }
}

impl Ranges {
    fn place(&self, start: &Bytes, end: &End) -> Result<usize, usize> {
        self.sorted.binary_search_by(|range| (&range.start, &range.end).cmp(&(start, end)))
    }

    fn ends(range: &KeyRange) -> End {
        if range.is_open() { End::Open } else { End::Before(range.range_end.clone()) }
    }

    fn insert(&mut self, range: &KeyRange, slot: Slot) {
        let end = Self::ends(range);
        match self.place(&range.key, &end) {
            Ok(at) => {
                self.sorted[at].slots.insert(slot);
            }
            Err(at) => {
                self.sorted.insert(at, Range { start: range.key.clone(), end, slots: BTreeSet::from([slot]) });
                self.stale = true;
            }
        }
    }

    fn remove(&mut self, range: &KeyRange, slot: Slot) {
        if let Ok(at) = self.place(&range.key, &Self::ends(range))
            && remove(&mut self.sorted[at].slots, slot)
        {
            self.sorted.remove(at);
            self.stale = true;
        }
    }

    fn matching(&mut self, key: &[u8], found: &mut impl FnMut(Slot)) {
        if self.stale {
            self.furthest = vec![End::Before(Bytes::new()); self.sorted.len()];
            self.measure(0, self.sorted.len());
            self.stale = false;
        }
        self.descend(0, self.sorted.len(), key, found);
    }

    /// The furthest end of the subtree over `low..high`, whose root is its middle.
    fn measure(&mut self, low: usize, high: usize) -> Option<End> {
        if low >= high {
            return None;
        }
        let middle = low + (high - low) / 2;
        let left = self.measure(low, middle);
        let right = self.measure(middle + 1, high);
        let furthest = [left, right].into_iter().flatten().fold(self.sorted[middle].end.clone(), End::max);
        self.furthest[middle] = furthest.clone();
        Some(furthest)
    }

    fn descend(&self, low: usize, high: usize, key: &[u8], found: &mut impl FnMut(Slot)) {
        if low >= high {
            return;
        }
        let middle = low + (high - low) / 2;
        if !self.furthest[middle].is_after(key) {
            return;
        }
        self.descend(low, middle, key, found);
        let range = &self.sorted[middle];
        if range.start.as_ref() <= key {
            if range.end.is_after(key) {
                range.slots.iter().copied().for_each(&mut *found);
            }
            self.descend(middle + 1, high, key, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_range_finds_what_a_plain_scan_finds() {
        // Small keys over a small alphabet, so that all shapes of overlap occur.
        let keys: Vec<Vec<u8>> =
            (0u8..3).flat_map(|a| (0u8..4).map(move |b| if b == 3 { vec![a + 97] } else { vec![a + 97, b + 97] })).collect();
        let mut ranges = vec![KeyRange::prefix(""), KeyRange::new("b", &b"\0"[..])];
        for key in &keys {
            ranges.push(KeyRange::single(key.clone()));
            ranges.push(KeyRange::prefix(key.clone()));
            for end in &keys {
                ranges.push(KeyRange::new(key.clone(), end.clone()));
            }
        }
        let mut index = Index::default();
        let mut live: Vec<(Slot, KeyRange)> = ranges.into_iter().enumerate().collect();
        for (slot, range) in &live {
            index.insert(0, range, *slot);
        }
        for round in 0..3 {
            for key in &keys {
                let mut found = Vec::new();
                index.matching(0, key, |slot| found.push(slot));
                found.sort_unstable();
                let expected: Vec<Slot> =
                    live.iter().filter(|(_, range)| range.contains_key(key)).map(|(slot, _)| *slot).collect();
                assert_eq!(found, expected, "key {key:?} in round {round}");
                let mut others = Vec::new();
                index.matching(1, key, |slot| others.push(slot));
                assert!(others.is_empty(), "another tenant's watchers");
            }
            for (slot, range) in live.extract_if(.., |(slot, _)| *slot % 3 == round) {
                index.remove(0, &range, slot);
            }
        }
        assert!(live.is_empty());
    }
}
