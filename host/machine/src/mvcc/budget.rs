//! What one transaction may look at and bring back: counted before its first write, the same on every replica.
//!
//! A request of a few bytes can ask for the whole store thousands of times. So every compare, range and delete on the chosen path
//! is counted against one budget of keys and one of bytes, in the order in which they will run. An operation sees what earlier
//! ones of its transaction wrote; the count takes every earlier put into account and no earlier delete, so it is never too low.
//!
//! **Invariant:** what is counted follows from live keys and from versions that can still be read, never from how much is trimmed.

use std::collections::BTreeMap;
use std::ops::Bound;

use kvasir_api::etcdserverpb::range_request::SortTarget;
use kvasir_api::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use kvasir_api::{Error, limits};

use crate::mvcc::index::{KeyRecord, Space, Span};

/// What is left of both.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) keys: u64,
    pub(crate) bytes: u64,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { keys: limits::TXN_KEYS_MAX, bytes: limits::TXN_BYTES_MAX }
    }

    pub(crate) fn take_keys(&mut self, keys: u64) -> Result<(), Error> {
        let left = self.keys.checked_sub(keys);
        self.keys = left.ok_or_else(|| {
            let max = limits::TXN_KEYS_MAX;
            Error::Exhausted(format!(
                "the transaction looks at more than {max} keys: ask for narrower ranges, or outside of a transaction"
            ))
        })?;
        Ok(())
    }

    pub(crate) fn take_bytes(&mut self, bytes: u64) -> Result<(), Error> {
        let left = self.bytes.checked_sub(bytes);
        self.bytes = left.ok_or_else(|| {
            let max = limits::TXN_BYTES_MAX;
            Error::Exhausted(format!(
                "the transaction asks for more than {max} bytes: ask for narrower ranges, or outside of a transaction"
            ))
        })?;
        Ok(())
    }
}

/// The operations on the chosen path, counted in the order in which they will run.
pub(crate) struct Forecast<'a> {
    budget: &'a mut Budget,
    space: Option<&'a Space>,
    revision: u64,
    /// Keys that were put so far, with the bytes of their values.
    puts: BTreeMap<&'a [u8], u64>,
    writes: bool,
}

impl<'a> Forecast<'a> {
    /// `revision` is the store's before the transaction.
    pub(crate) fn new(space: Option<&'a Space>, revision: u64, budget: &'a mut Budget) -> Self {
        Self { budget, space, revision, puts: BTreeMap::new(), writes: false }
    }

    /// `is_last`: nothing comes after it that could see it.
    pub(crate) fn put(&mut self, put: &'a PutRequest, is_last: bool) -> Result<(), Error> {
        let before = || self.space?.live.get(&put.key[..]);
        self.budget.take_keys(1)?;
        let kept = if put.ignore_value { before().map_or(0, value_bytes) } else { put.value.len() as u64 };
        if put.prev_kv {
            let before = before().map_or(0, value_bytes);
            self.budget.take_bytes(put.key.len() as u64 + before)?;
        }
        self.writes = true;
        if !is_last {
            let bytes = self.puts.entry(&put.key).or_default();
            *bytes = kept.max(*bytes);
        }
        Ok(())
    }

    pub(crate) fn delete_range(&mut self, delete: &DeleteRangeRequest) -> Result<(), Error> {
        self.writes = true;
        let span = Span::new(&delete.key, &delete.range_end);
        let mut sum = 0;
        self.each_live(span, |key, value_bytes| sum += key + value_bytes)?;
        if delete.prev_kv { self.budget.take_bytes(sum) } else { Ok(()) }
    }

    pub(crate) fn range(&mut self, range: &RangeRequest) -> Result<(), Error> {
        let span = Span::new(&range.key, &range.range_end);
        let sorts_by_value = range.sort_target == SortTarget::Value as i32;
        let with_values = !range.count_only && (!range.keys_only || sorts_by_value);
        let (mut sum, mut largest) = (0_u64, 0_u64);
        let mut note = |key: u64, value: u64| {
            let bytes = key + if with_values { value } else { 0 };
            sum += bytes;
            largest = largest.max(bytes);
        };
        let main = u64::try_from(range.revision).ok().filter(|main| *main > 0);
        // Once the transaction has written, the revision before it is an old one.
        let old = main.filter(|main| *main < self.revision || self.writes);
        match old {
            None => self.each_live(span, note)?,
            Some(main) => {
                if !matches!(span, Span::Key(_)) {
                    self.budget.take_keys(limits::TXN_OLD_RANGE_KEYS)?;
                }
                // Nothing that the transaction writes is seen there.
                for (key, record) in self.space.into_iter().flat_map(|space| space.scan_all(span, false)) {
                    if let Some((version, _)) = record.at(main) {
                        self.budget.take_keys(1)?;
                        note(key.len() as u64, u64::from(version.value_bytes));
                    }
                }
            }
        }
        if range.count_only {
            return Ok(());
        }
        // Values of old versions are fetched before they can be sorted, whatever the limit.
        let fetches_all = sorts_by_value && old.is_some();
        match u64::try_from(range.limit) {
            Ok(limit) if limit > 0 && !fetches_all => self.budget.take_bytes(sum.min(limit.saturating_mul(largest))),
            _ => self.budget.take_bytes(sum),
        }
    }

    /// Every key that may be live when the operation runs, with the length of its key and the most that its value may have.
    fn each_live(&mut self, span: Span<'_>, mut note: impl FnMut(u64, u64)) -> Result<(), Error> {
        for (key, record) in self.space.into_iter().flat_map(|space| space.scan_live(span, false)) {
            self.budget.take_keys(1)?;
            note(key.len() as u64, value_bytes(record));
        }
        let put = match span {
            Span::Key(key) => (Bound::Included(key), Bound::Included(key)),
            Span::Between(key, end) if end <= key => return Ok(()),
            Span::Between(key, end) => (Bound::Included(key), Bound::Excluded(end)),
            Span::From(key) => (Bound::Included(key), Bound::Unbounded),
        };
        for (key, value) in self.puts.range::<[u8], _>(put) {
            self.budget.take_keys(1)?;
            note(key.len() as u64, *value);
        }
        Ok(())
    }
}

pub(crate) fn value_bytes(record: &KeyRecord) -> u64 {
    u64::from(record.head.value_bytes)
}
