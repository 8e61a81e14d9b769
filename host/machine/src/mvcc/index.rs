//! The ordered index: every key of a tenant with its versions, and the current values. Touches nothing else.
//!
//! **Invariant:** a key's versions ascend; only a version that is not current may be missing from the front.

use std::collections::BTreeMap;
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
    pub(crate) tombstone: bool,
}

impl Version {
    pub(crate) fn of(row: &Row) -> Self {
        Self {
            rev: row.rev,
            create_revision: row.create_revision,
            version: row.version,
            lease: row.lease,
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
    pub(crate) older: Vec<Version>,
}

impl KeyRecord {
    pub(crate) fn new(row: Arc<Row>) -> Self {
        Self { head: Version::of(&row), slot: Slot::Memory(row), older: Vec::new() }
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

    /// The current version if it is live.
    pub(crate) fn live(&self) -> Option<&Version> {
        (!self.head.tombstone).then_some(&self.head)
    }

    /// Makes `row` current.
    pub(crate) fn push(&mut self, row: Arc<Row>) {
        assert!(row.rev > self.head.rev, "history only grows");
        self.older.push(self.head);
        self.head = Version::of(&row);
        self.slot = if row.tombstone { Slot::Disk } else { Slot::Memory(row) };
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
    pub(crate) keys: BTreeMap<Bytes, KeyRecord>,
    pub(crate) live_keys: u64,
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

impl Space {
    /// The keys of a range in order, dead ones too.
    pub(crate) fn range<'a>(&'a self, span: Span<'_>) -> impl DoubleEndedIterator<Item = (&'a Bytes, &'a KeyRecord)> {
        let bounds = match span {
            Span::Key(key) => Some((Bound::Included(key), Bound::Included(key))),
            // The map panics on a range that ends before it begins; here it is just empty.
            Span::Between(key, end) if end <= key => None,
            Span::Between(key, end) => Some((Bound::Included(key), Bound::Excluded(end))),
            Span::From(key) => Some((Bound::Included(key), Bound::Unbounded)),
        };
        bounds.into_iter().flat_map(|bounds| self.keys.range::<[u8], _>(bounds))
    }
}
