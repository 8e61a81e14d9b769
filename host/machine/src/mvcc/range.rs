//! Ranges: what keys were at a revision, in any order that etcd offers (`server/etcdserver/txn/range.go`). Only reads.
//!
//! **Invariant:** a range changes nothing and copies no value.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::etcdserverpb::RangeRequest;
use kvasir_api::etcdserverpb::range_request::{SortOrder, SortTarget};

use crate::mvcc::check::check_range;
use crate::mvcc::index::{Space, Span, Version};
use crate::reply::{ByValue, Item, RangeReply, ValueSlot};
use crate::{Row, State};

/// Part of a long scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Live keys in order; there may be none though more follow.
    pub items: Vec<Item>,
    /// The scan did not reach the range's end: go on `after` here.
    pub more: Option<Bytes>,
}

#[derive(Clone, Copy)]
pub(crate) struct Found<'a> {
    pub(crate) key: &'a Bytes,
    pub(crate) version: &'a Version,
    row: Option<&'a Arc<Row>>,
}

impl Found<'_> {
    fn item(self, keys_only: bool) -> Item {
        Item {
            key: self.key.clone(),
            create_revision: self.version.create_revision,
            mod_revision: self.version.rev,
            version: self.version.version,
            lease: self.version.lease,
            value: match self.row {
                _ if keys_only => ValueSlot::Memory(Bytes::new()),
                Some(row) => ValueSlot::Memory(row.value.clone()),
                None => ValueSlot::Row(self.version.rev),
            },
        }
    }

    fn value(&self) -> Option<&[u8]> {
        self.row.map(|row| &row.value[..])
    }
}

impl State {
    /// Answers a range, whole. An old revision's values are holes, to be filled outside of any lock.
    ///
    /// # Errors
    /// A malformed range, or a revision that is compacted or not there yet.
    pub fn range(&self, tenant: u64, request: &RangeRequest) -> Result<RangeReply, Error> {
        check_range(request)?;
        self.check_revision(request.revision)?;
        Ok(self.range_at(tenant, request, self.revision()))
    }

    /// Whether a revision can be read; 0 and below mean the current one.
    ///
    /// # Errors
    /// It is compacted, or not there yet.
    pub fn check_revision(&self, revision: i64) -> Result<(), Error> {
        match u64::try_from(revision) {
            Ok(revision) if revision > self.revision() => Err(Error::FutureRevision),
            Ok(revision) if revision > 0 && revision < self.compact_revision() => Err(Error::Compacted),
            _ => Ok(()),
        }
    }

    /// A part of a range, of at most `keys_max` keys looked at, so that a long scan does not hold a lock for long. `revision` 0 means
    /// the current one; a scan of several slices names one.
    ///
    /// # Errors
    /// No key, or a revision that is compacted or not there yet.
    pub fn range_slice(
        &self,
        tenant: u64,
        key: &[u8],
        range_end: &[u8],
        revision: u64,
        after: Option<&[u8]>,
        keys_max: usize,
    ) -> Result<Slice, Error> {
        if key.is_empty() {
            return Err(Error::EmptyKey);
        }
        self.check_revision(i64::try_from(revision).unwrap_or(i64::MAX))?;
        let main = if revision == 0 { self.revision() } else { revision };
        let mut slice = Slice { items: Vec::new(), more: None };
        let Some(space) = self.spaces.get(&tenant) else { return Ok(slice) };
        let mut last: Option<&Bytes> = None;
        // The smallest key that is larger than another is that key and a zero byte.
        let next = after.filter(|after| *after >= key).map(|after| [after, &[0]].concat());
        let span = match (&next, Span::new(key, range_end)) {
            (Some(_), Span::Key(_)) => return Ok(slice),
            (Some(next), Span::Between(_, end)) => Span::Between(next, end),
            (Some(next), Span::From(_)) => Span::From(next),
            (None, span) => span,
        };
        let keys = if main >= self.revision() { space.scan_live(span, false) } else { space.scan_all(span, false) };
        for (looked_at, (key, record)) in keys.enumerate() {
            if looked_at >= keys_max.max(1) {
                slice.more = last.cloned();
                break;
            }
            if let Some((version, row)) = record.at(main) {
                slice.items.push(Found { key, version, row }.item(false));
            }
            last = Some(key);
        }
        Ok(slice)
    }

    /// A checked range; `current` is the revision that a request without one sees.
    pub(crate) fn range_at(&self, tenant: u64, request: &RangeRequest, current: u64) -> RangeReply {
        let main = u64::try_from(request.revision).ok().filter(|revision| *revision > 0).unwrap_or(current);
        let mut reply = RangeReply { revision: current, ..RangeReply::default() };
        let Some(space) = self.spaces.get(&tenant) else { return reply };
        let span = Span::new(&request.key, &request.range_end);
        if request.count_only {
            reply.count = count(space, span, main, current);
            return reply;
        }
        // Unknown numbers were refused by `check_range`.
        let order = SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None);
        let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
        let limit = usize::try_from(request.limit).unwrap_or(0);
        if target == SortTarget::Key && !has_filters(request) {
            take_in_order(space.at(span, main, current, order == SortOrder::Descend), limit, request.keys_only, &mut reply);
        } else {
            take_sorted(space.at(span, main, current, false), request, (order, target), limit, &mut reply);
        }
        reply
    }
}

impl Space {
    /// What was live at `main`; `current` is the revision of the newest change.
    pub(crate) fn at<'a>(
        &'a self,
        span: Span<'_>,
        main: u64,
        current: u64,
        descend: bool,
    ) -> impl Iterator<Item = Found<'a>> + use<'a> {
        let keys = if main >= current { self.scan_live(span, descend) } else { self.scan_all(span, descend) };
        keys.filter_map(move |(key, record)| {
            let (version, row) = record.at(main)?;
            Some(Found { key, version, row })
        })
    }
}

fn take_sorted<'a>(
    keys: impl Iterator<Item = Found<'a>>,
    request: &RangeRequest,
    (order, target): (SortOrder, SortTarget),
    limit: usize,
    reply: &mut RangeReply,
) {
    let mut found: Vec<Found<'_>> = keys.inspect(|_| reply.count += 1).filter(|found| passes(request, found.version)).collect();
    if target == SortTarget::Value && found.iter().any(|found| found.row.is_none()) {
        reply.by_value = Some(ByValue { descend: order == SortOrder::Descend, limit, keys_only: request.keys_only });
        reply.items = found.into_iter().map(|found| found.item(false)).collect();
        return;
    }
    // A target other than the key without an order means ascending; equal ones stay in order of key.
    let by_target = |a: &Found<'_>, b: &Found<'_>| compare(target, a, b);
    match order {
        SortOrder::Descend => found.sort_by(|a, b| by_target(b, a)),
        _ => found.sort_by(by_target),
    }
    if limit > 0 && found.len() > limit {
        found.truncate(limit);
        reply.more = true;
    }
    reply.items = found.into_iter().map(|found| found.item(request.keys_only)).collect();
}

/// Takes the first `limit` (0: all) and counts the rest.
fn take_in_order<'a>(keys: impl Iterator<Item = Found<'a>>, limit: usize, keys_only: bool, reply: &mut RangeReply) {
    for found in keys {
        reply.count += 1;
        if limit == 0 || reply.items.len() < limit {
            reply.items.push(found.item(keys_only));
        } else {
            reply.more = true;
        }
    }
}

fn count(space: &Space, span: Span<'_>, main: u64, current: u64) -> u64 {
    let everything = matches!(span, Span::From(key) if space.live.first_key_value().is_none_or(|(first, _)| key <= &first[..]));
    if everything && main >= current { space.live.len() as u64 } else { space.at(span, main, current, false).count() as u64 }
}

fn has_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// etcd filters by a bound only when it is not 0.
fn passes(request: &RangeRequest, version: &Version) -> bool {
    let (modified, created) = (version.rev.main as i64, version.create_revision as i64);
    (request.max_mod_revision == 0 || modified <= request.max_mod_revision)
        && (request.min_mod_revision == 0 || modified >= request.min_mod_revision)
        && (request.max_create_revision == 0 || created <= request.max_create_revision)
        && (request.min_create_revision == 0 || created >= request.min_create_revision)
}

fn compare(target: SortTarget, a: &Found<'_>, b: &Found<'_>) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(b.key),
        SortTarget::Version => a.version.version.cmp(&b.version.version),
        SortTarget::Create => a.version.create_revision.cmp(&b.version.create_revision),
        SortTarget::Mod => a.version.rev.main.cmp(&b.version.rev.main),
        SortTarget::Value => a.value().cmp(&b.value()),
    }
}
