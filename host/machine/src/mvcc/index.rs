//! The ordered index: every key of a tenant with its versions, and the current values. Touches nothing else.
//!
//! Live keys and deleted ones are apart, so that what looks at the present is bounded by what is live: how many deleted keys are
//! still there is a matter of trimming, which each replica does at its own pace.
//!
//! **Invariant:** a key's versions ascend; only a version that is not current may be missing from the front. A key is in exactly
//! one of the two maps, and in `live` if and only if its current version is no tombstone.

use std::collections::{BTreeMap, VecDeque, btree_map};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Rev, Row};

/// What the index knows of one version of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) rev: Rev,
    pub(crate) create_revision: u64,
    pub(crate) version: u64,
    pub(crate) lease: i64,
    pub(crate) value_bytes: u32,
    pub(crate) tombstone: bool,
}

impl Version {
    pub(crate) fn of(row: &Row) -> Self {
        Self {
            rev: row.rev,
            create_revision: row.create_revision,
            version: row.version,
            lease: row.lease,
            value_bytes: u32::try_from(row.value.len()).unwrap_or(u32::MAX),
            tombstone: row.tombstone,
        }
    }
}

/// Where a current value is.
#[derive(Debug, Clone)]
pub(crate) enum Slot {
    /// Here.
    Memory(Arc<Row>),
    /// Only in history: a tombstone has nothing worth keeping here.
    Disk,
}

impl Slot {
    fn of(row: Arc<Row>) -> Self {
        if row.tombstone { Self::Disk } else { Self::Memory(row) }
    }

    pub(crate) fn row(&self) -> Option<&Arc<Row>> {
        match self {
            Self::Memory(row) => Some(row),
            Self::Disk => None,
        }
    }
}

/// A key's versions: the current one with its value, the older ones without.
#[derive(Debug, Clone)]
pub(crate) struct KeyRecord {
    pub(crate) head: Version,
    pub(crate) slot: Slot,
    pub(crate) older: VecDeque<Version>,
}

impl KeyRecord {
    pub(crate) fn new(row: Arc<Row>) -> Self {
        Self { head: Version::of(&row), slot: Slot::of(row), older: VecDeque::new() }
    }

    /// The live version that was current at `main`, with its row if memory has it.
    pub(crate) fn at(&self, main: u64) -> Option<(&Version, Option<&Arc<Row>>)> {
        let (version, row) = if self.head.rev.main <= main {
            (&self.head, self.slot.row())
        } else {
            let later = self.older.partition_point(|version| version.rev.main <= main);
            (&self.older[later.checked_sub(1)?], None)
        };
        (!version.tombstone).then_some((version, row))
    }

    /// Makes `row` current.
    pub(crate) fn push(&mut self, row: Arc<Row>) {
        assert!(row.rev > self.head.rev, "history only grows");
        self.older.push_back(self.head);
        self.head = Version::of(&row);
        self.slot = Slot::of(row);
    }

    /// How many versions, from the oldest, nobody needs who reads at `floor` or later: all before the last one at or below it,
    /// and that one too when it is a tombstone below it. Changes *at* the floor are kept for watchers, tombstones too.
    pub(crate) fn droppable(&self, floor: u64) -> usize {
        let below = self.older.partition_point(|version| version.rev.main < floor);
        if below < self.older.len() {
            return self.kept_from(below, self.older[below].rev.main == floor);
        }
        match self.head.rev.main {
            main if main >= floor => self.kept_from(below, main == floor),
            _ if self.head.tombstone => self.older.len() + 1,
            _ => self.older.len(),
        }
    }

    /// `below` versions are under the floor; the last of them is still current there unless one is exactly at it.
    fn kept_from(&self, below: usize, one_at_floor: bool) -> usize {
        match below.checked_sub(1) {
            Some(last) if !one_at_floor && !self.older[last].tombstone => last,
            _ => below,
        }
    }
}

/// One tenant's keys.
#[derive(Debug, Default)]
pub(crate) struct Space {
    pub(crate) live: BTreeMap<Bytes, KeyRecord>,
    /// Deleted keys whose history is not trimmed yet.
    pub(crate) dead: BTreeMap<Bytes, KeyRecord>,
    /// Live keys in logical bytes.
    pub(crate) live_bytes: u64,
    /// 0: none of its own.
    pub(crate) quota_bytes: u64,
}

/// A range as etcd writes it: an empty end means one key, `\0` means all from the first on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span<'a> {
    /// One key.
    Key(&'a [u8]),
    /// From the first, included, to the second, excluded.
    Between(&'a [u8], &'a [u8]),
    /// From the key on.
    From(&'a [u8]),
}

impl<'a> Span<'a> {
    pub(crate) fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => Self::Key(key),
            [0] => Self::From(key),
            end => Self::Between(key, end),
        }
    }
}

/// Keys of a map in order, or against it.
enum Side<'a> {
    Up(btree_map::Range<'a, Bytes, KeyRecord>),
    Down(std::iter::Rev<btree_map::Range<'a, Bytes, KeyRecord>>),
}

impl<'a> Side<'a> {
    fn new(keys: &'a BTreeMap<Bytes, KeyRecord>, bounds: (Bound<&[u8]>, Bound<&[u8]>), descend: bool) -> Self {
        let range = keys.range::<[u8], _>(bounds);
        if descend { Self::Down(range.rev()) } else { Self::Up(range) }
    }

    fn next(&mut self) -> Option<(&'a Bytes, &'a KeyRecord)> {
        match self {
            Self::Up(keys) => keys.next(),
            Self::Down(keys) => keys.next(),
        }
    }
}

/// The keys of a range.
pub(crate) enum Scan<'a> {
    /// At most one.
    One(Option<(&'a Bytes, &'a KeyRecord)>),
    /// Live ones.
    Live(LiveScan<'a>),
    /// Live and dead ones, merged.
    All(AllScan<'a>),
}

pub(crate) struct LiveScan<'a>(Side<'a>);

pub(crate) struct AllScan<'a> {
    live: Side<'a>,
    dead: Side<'a>,
    next_live: Option<(&'a Bytes, &'a KeyRecord)>,
    next_dead: Option<(&'a Bytes, &'a KeyRecord)>,
    descend: bool,
}

impl<'a> Iterator for Scan<'a> {
    type Item = (&'a Bytes, &'a KeyRecord);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::One(found) => found.take(),
            Self::Live(LiveScan(side)) => side.next(),
            Self::All(scan) => {
                let live_first = match (scan.next_live, scan.next_dead) {
                    (Some((live, _)), Some((dead, _))) => (live < dead) != scan.descend,
                    (live, _) => live.is_some(),
                };
                let (side, next) =
                    if live_first { (&mut scan.live, &mut scan.next_live) } else { (&mut scan.dead, &mut scan.next_dead) };
                std::mem::replace(next, side.next())
            }
        }
    }
}

impl Space {
    /// The live keys of a range, in order or against it.
    pub(crate) fn scan_live<'a>(&'a self, span: Span<'_>, descend: bool) -> Scan<'a> {
        match bounds(span) {
            Err(key) => Scan::One(self.live.get_key_value(key)),
            Ok(None) => Scan::One(None),
            Ok(Some(bounds)) => Scan::Live(LiveScan(Side::new(&self.live, bounds, descend))),
        }
    }

    /// The keys of a range, dead ones too, in order or against it.
    pub(crate) fn scan_all<'a>(&'a self, span: Span<'_>, descend: bool) -> Scan<'a> {
        match bounds(span) {
            Err(key) => Scan::One(self.live.get_key_value(key).or_else(|| self.dead.get_key_value(key))),
            Ok(None) => Scan::One(None),
            Ok(Some(bounds)) => {
                let (mut live, mut dead) = (Side::new(&self.live, bounds, descend), Side::new(&self.dead, bounds, descend));
                let (next_live, next_dead) = (live.next(), dead.next());
                Scan::All(AllScan { live, dead, next_live, next_dead, descend })
            }
        }
    }

    /// Takes the first row of a key that is not live, and what [`unbury`] gave of the key.
    pub(crate) fn insert(&mut self, buried: Option<KeyRecord>, row: Arc<Row>) {
        let key = row.key.clone();
        let record = match buried {
            Some(mut record) => {
                record.push(row);
                record
            }
            None => KeyRecord::new(row),
        };
        self.live.insert(key, record);
    }

    /// Takes the tombstone of a live key.
    pub(crate) fn bury(&mut self, tombstone: Arc<Row>) {
        let Some((key, mut record)) = self.live.remove_entry(&tombstone.key) else { return };
        assert!(Some(record.head.rev) == tombstone.prev, "only the current version can be deleted");
        record.push(tombstone);
        self.dead.insert(key, record);
    }
}

/// Takes a key out of the dead ones; the key is shared by whatever row comes next.
pub(crate) fn unbury(dead: &mut BTreeMap<Bytes, KeyRecord>, key: &[u8]) -> Option<(Bytes, KeyRecord)> {
    if dead.is_empty() { None } else { dead.remove_entry(key) }
}

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// What the maps take: one key as the error, nothing for a range that ends before it begins (on which they panic).
fn bounds(span: Span<'_>) -> Result<Option<Bounds<'_>>, &[u8]> {
    match span {
        Span::Key(key) => Err(key),
        Span::Between(key, end) if end <= key => Ok(None),
        Span::Between(key, end) => Ok(Some((Bound::Included(key), Bound::Excluded(end)))),
        Span::From(key) => Ok(Some((Bound::Included(key), Bound::Unbounded))),
    }
}
