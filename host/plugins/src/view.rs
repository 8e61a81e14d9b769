//! What a run sees and leaves behind: a snapshot overlaid with its own staged writes, and guards for what it read.
//!
//! **Invariant:** reads never see another's write after the snapshot; every read of the snapshot is covered by a guard, so that an
//! effect lands only if what it was computed from still holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_api::command::{Guard, PointGuard, RangeGuard, guard};
use kvasir_api::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, request_op};
use kvasir_api::limits;
use kvasir_engine::KeyRange;

use crate::store::{Entry, Page};

/// Bytes that a run's guards may add to its effect.
const GUARD_BYTES_MAX: usize = 256 << 10;
/// What one staged write weighs besides its key and value.
const OP_OVERHEAD_BYTES: usize = 32;

/// A staged write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Staged {
    Put { value: Bytes, lease: i64 },
    Delete,
}

/// A bound of the run is used up: its manifest name and what was too much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) limit: &'static str,
    pub(crate) what: String,
}

/// The snapshot's revision, staged writes and guards of one run; of a task, since its last commit.
#[derive(Debug)]
pub(crate) struct View {
    revision: u64,
    staged: BTreeMap<Bytes, (u64, Staged)>,
    staged_bytes: usize,
    next: u64,
    points: BTreeMap<Bytes, u64>,
    ranges: Vec<Scanned>,
    guard_bytes: usize,
    guard_keys: u64,
}

#[derive(Debug)]
struct Scanned {
    keys: KeyRange,
    count: u64,
    max_mod_revision: u64,
}

/// What a run asks to be written.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Writes {
    pub(crate) ops: Vec<RequestOp>,
    pub(crate) guards: Vec<Guard>,
}

impl View {
    pub(crate) fn at(revision: u64) -> Self {
        Self {
            revision,
            staged: BTreeMap::new(),
            staged_bytes: 0,
            next: 0,
            points: BTreeMap::new(),
            ranges: Vec::new(),
            guard_bytes: 0,
            guard_keys: 0,
        }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn staged(&self, key: &[u8]) -> Option<&Staged> {
        self.staged.get(key).map(|(_, staged)| staged)
    }

    /// Stages a write in place of an earlier one of the same key.
    pub(crate) fn stage(&mut self, key: Bytes, write: Staged, ops_max: usize, bytes_max: usize) -> Result<(), Full> {
        let weight = |key: &Bytes, write: &Staged| match write {
            Staged::Put { value, .. } => key.len() + value.len() + OP_OVERHEAD_BYTES,
            Staged::Delete => key.len() + OP_OVERHEAD_BYTES,
        };
        let before = self.staged.get(&key).map_or(0, |(_, staged)| weight(&key, staged));
        let bytes = self.staged_bytes - before + weight(&key, &write);
        if before == 0 && self.staged.len() >= ops_max.min(limits::EFFECT_OPS_MAX) {
            return Err(Full { limit: "staged-ops", what: format!("more than {ops_max} writes staged") });
        }
        if bytes > bytes_max {
            return Err(Full { limit: "staged-bytes", what: format!("{bytes} bytes staged, {bytes_max} are allowed") });
        }
        self.staged_bytes = bytes;
        self.staged.insert(key, (self.next, write));
        self.next += 1;
        Ok(())
    }

    /// Remembers that the run depends on this key being as the snapshot has it.
    pub(crate) fn read_key(&mut self, key: &Bytes, found: Option<&Entry>) -> Result<(), Full> {
        if !self.points.contains_key(key) {
            self.weigh(key.len(), 1)?;
            self.points.insert(key.clone(), found.map_or(0, |entry| entry.mod_revision));
        }
        Ok(())
    }

    /// Remembers that the run depends on what a page of the snapshot showed: all keys of the range, up to the page's last when there
    /// are more.
    pub(crate) fn read_page(&mut self, keys: &KeyRange, page: &Page) -> Result<(), Full> {
        let start = keys.key.clone();
        let end = match page.entries.last() {
            Some(last) if page.more => following(&last.key),
            // A page that is cut before its first key showed nothing.
            None if page.more => return Ok(()),
            _ => keys.range_end.clone(),
        };
        let count = page.entries.len() as u64;
        self.weigh(start.len() + end.len(), count.max(1))?;
        let max_mod_revision = page.entries.iter().map(|entry| entry.mod_revision).max().unwrap_or(0);
        self.ranges.push(Scanned { keys: KeyRange::new(start, end), count, max_mod_revision });
        Ok(())
    }

    fn weigh(&mut self, bytes: usize, keys: u64) -> Result<(), Full> {
        let full = |what: String| Full { limit: "reads", what };
        if self.points.len() + self.ranges.len() >= limits::EFFECT_GUARDS_MAX || self.guard_bytes + bytes > GUARD_BYTES_MAX {
            return Err(full(format!("more was read in one run than an effect can guard ({GUARD_BYTES_MAX} bytes of keys)")));
        }
        if self.guard_keys + keys > limits::EFFECT_GUARD_KEYS_MAX {
            return Err(full(format!("more than {} keys were scanned in one run", limits::EFFECT_GUARD_KEYS_MAX)));
        }
        self.guard_bytes += bytes + OP_OVERHEAD_BYTES;
        self.guard_keys += keys;
        Ok(())
    }

    /// A page of the snapshot with the run's own writes over it, at most `limit` entries.
    pub(crate) fn overlay(&self, keys: &KeyRange, page: Page, limit: usize, keys_only: bool) -> Page {
        let cut_at = page.entries.last().filter(|_| page.more).map(|entry| entry.key.clone());
        let mut merged: BTreeMap<Bytes, Entry> = page.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        for (key, (_, staged)) in self.staged.range(keys.key.clone()..) {
            let past = !keys.contains_key(key) || cut_at.as_ref().is_some_and(|last| key > last);
            if past {
                break;
            }
            match staged {
                Staged::Delete => drop(merged.remove(key)),
                Staged::Put { value, lease } => {
                    let value = if keys_only { Bytes::new() } else { value.clone() };
                    merged.insert(key.clone(), own(key, value, *lease));
                }
            }
        }
        let more = page.more || merged.len() > limit;
        Page { entries: merged.into_values().take(limit).collect(), more }
    }

    /// Nothing was staged, so there is nothing to commit.
    pub(crate) fn is_clean(&self) -> bool {
        self.staged.is_empty()
    }

    /// Everything staged, in the order the guest staged it, and a guard for everything read.
    pub(crate) fn into_writes(self) -> Writes {
        let mut staged: Vec<(Bytes, (u64, Staged))> = self.staged.into_iter().collect();
        staged.sort_by_key(|(_, (place, _))| *place);
        let ops = staged.into_iter().map(|(key, (_, write))| op(key, write)).collect();
        let points = self.points.into_iter().map(|(key, mod_revision)| guard::Guard::Point(PointGuard { key, mod_revision }));
        let ranges = self.ranges.into_iter().map(|scanned| {
            guard::Guard::Range(RangeGuard {
                key: scanned.keys.key,
                range_end: scanned.keys.range_end,
                count: scanned.count,
                max_mod_revision: scanned.max_mod_revision,
            })
        });
        Writes { ops, guards: points.chain(ranges).map(|guard| Guard { guard: Some(guard) }).collect() }
    }
}

fn op(key: Bytes, write: Staged) -> RequestOp {
    let request = match write {
        Staged::Put { value, lease } => {
            request_op::Request::RequestPut(PutRequest { key, value, lease, ..PutRequest::default() })
        }
        Staged::Delete => request_op::Request::RequestDeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() }),
    };
    RequestOp { request: Some(request) }
}

/// A staged put as the run itself reads it: not committed, so without revisions and version.
pub(crate) fn own(key: &Bytes, value: Bytes, lease: i64) -> Entry {
    Entry { key: key.clone(), value, create_revision: 0, mod_revision: 0, version: 0, lease }
}

/// What a scan of `keys` has before it that goes on after `after`: never more than the range. `None` when nothing is left.
pub(crate) fn rest(keys: &KeyRange, after: Option<&Bytes>) -> Option<KeyRange> {
    let Some(after) = after.filter(|after| **after >= keys.key) else { return Some(keys.clone()) };
    let rest = KeyRange::new(following(after), keys.range_end.clone());
    (!keys.is_single() && !rest.is_empty()).then_some(rest)
}

/// The first key after `key`.
pub(crate) fn following(key: &Bytes) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    Bytes::from(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &'static str, mod_revision: u64) -> Entry {
        let key = Bytes::from_static(key.as_bytes());
        Entry { key, value: "old".into(), create_revision: 2, mod_revision, version: 1, lease: 0 }
    }

    fn put(value: &'static str) -> Staged {
        Staged::Put { value: value.into(), lease: 0 }
    }

    fn keys(page: &Page) -> Vec<&[u8]> {
        page.entries.iter().map(|entry| entry.key.as_ref()).collect()
    }

    #[test]
    fn a_scan_sees_the_runs_own_puts_and_deletes() {
        let mut view = View::at(9);
        view.stage("/a/2".into(), put("new"), 10, 1000).unwrap();
        view.stage("/a/1".into(), Staged::Delete, 10, 1000).unwrap();
        view.stage("/b".into(), put("elsewhere"), 10, 1000).unwrap();
        let range = KeyRange::prefix("/a/");
        let page = Page { entries: vec![entry("/a/1", 3), entry("/a/3", 5)], more: false };
        let seen = view.overlay(&range, page, 10, false);
        assert_eq!(keys(&seen), [b"/a/2", b"/a/3"]);
        assert!(!seen.more);
        assert_eq!(seen.entries[0].value, "new");
    }

    #[test]
    fn staged_keys_past_a_cut_page_wait_for_the_next() {
        let mut view = View::at(9);
        view.stage("/a/9".into(), put("new"), 10, 1000).unwrap();
        view.stage("/a/0".into(), put("new"), 10, 1000).unwrap();
        let range = KeyRange::prefix("/a/");
        let first = view.overlay(&range, Page { entries: vec![entry("/a/1", 3)], more: true }, 1, false);
        assert_eq!(keys(&first), [b"/a/0"], "the limit holds with the overlay");
        assert!(first.more);
        let after = Bytes::from_static(b"/a/0");
        let second = view.overlay(
            &rest(&range, Some(&after)).unwrap(),
            Page { entries: vec![entry("/a/1", 3)], more: false },
            10,
            false,
        );
        assert_eq!(keys(&second), [b"/a/1", b"/a/9"]);
    }

    #[test]
    fn writes_come_out_in_the_order_they_were_staged_and_the_last_of_a_key_counts() {
        let mut view = View::at(9);
        view.stage("b".into(), put("1"), 10, 1000).unwrap();
        view.stage("a".into(), put("2"), 10, 1000).unwrap();
        view.stage("b".into(), Staged::Delete, 10, 1000).unwrap();
        let writes = view.into_writes();
        let order: Vec<&[u8]> = writes
            .ops
            .iter()
            .map(|op| match op.request.as_ref().unwrap() {
                request_op::Request::RequestPut(put) => put.key.as_ref(),
                request_op::Request::RequestDeleteRange(delete) => delete.key.as_ref(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(order, [b"a", b"b"]);
    }

    #[test]
    fn a_scan_that_goes_on_after_a_key_stays_in_its_range() {
        let left = |keys: &KeyRange, after: &'static str| rest(keys, Some(&Bytes::from_static(after.as_bytes())));
        let range = KeyRange::prefix("/a/");
        assert_eq!(rest(&range, None), Some(range.clone()));
        assert_eq!(left(&range, "/"), Some(range.clone()), "before the range is its start");
        assert_eq!(left(&range, "/a/"), Some(KeyRange::new("/a/\0", "/a0")));
        assert_eq!(left(&range, "/a/7"), Some(KeyRange::new("/a/7\0", "/a0")));
        assert_eq!(left(&range, "/a0"), None, "behind the range nothing is left");
        assert_eq!(left(&range, "/b"), None);
        let open = KeyRange::prefix("");
        assert_eq!(left(&open, "/b"), Some(KeyRange::new("/b\0", "\0")));
        let single = KeyRange::single("/a");
        assert_eq!(left(&single, "/"), Some(single.clone()));
        assert_eq!(left(&single, "/a"), None);
        assert_eq!(left(&single, "/b"), None);
    }

    #[test]
    fn what_was_read_becomes_guards() {
        let mut view = View::at(9);
        view.read_key(&"here".into(), Some(&entry("here", 7))).unwrap();
        view.read_key(&"absent".into(), None).unwrap();
        let range = KeyRange::prefix("/a/");
        view.read_page(&range, &Page { entries: vec![entry("/a/1", 3), entry("/a/2", 8)], more: true }).unwrap();
        let after = rest(&range, Some(&"/a/2".into())).unwrap();
        view.read_page(&after, &Page { entries: vec![], more: false }).unwrap();
        let guards: Vec<guard::Guard> = view.into_writes().guards.into_iter().filter_map(|guard| guard.guard).collect();
        assert_eq!(
            guards,
            [
                guard::Guard::Point(PointGuard { key: "absent".into(), mod_revision: 0 }),
                guard::Guard::Point(PointGuard { key: "here".into(), mod_revision: 7 }),
                guard::Guard::Range(RangeGuard {
                    key: "/a/".into(),
                    range_end: "/a/2\0".into(),
                    count: 2,
                    max_mod_revision: 8
                }),
                guard::Guard::Range(RangeGuard {
                    key: "/a/2\0".into(),
                    range_end: "/a0".into(),
                    count: 0,
                    max_mod_revision: 0
                }),
            ]
        );
    }

    #[test]
    fn staging_is_bounded_in_writes_and_bytes_and_names_the_limit() {
        let mut view = View::at(9);
        view.stage("a".into(), put("1"), 1, 1000).unwrap();
        view.stage("a".into(), put("2"), 1, 1000).unwrap();
        assert_eq!(view.stage("b".into(), put("1"), 1, 1000).unwrap_err().limit, "staged-ops");
        assert_eq!(
            view.stage("b".into(), Staged::Put { value: vec![0; 2000].into(), lease: 0 }, 9, 1000).unwrap_err().limit,
            "staged-bytes"
        );
        view.stage("a".into(), Staged::Put { value: vec![0; 900].into(), lease: 0 }, 1, 1000).unwrap();
        view.stage("a".into(), put("small"), 1, 1000).unwrap();
        view.stage("b".into(), Staged::Put { value: vec![0; 900].into(), lease: 0 }, 2, 1000).unwrap();
    }
}
