//! What can be said of a request by looking at it alone, as etcd's `server/etcdserver/api/v3rpc/key.go` does. Pure.
//!
//! The engine calls these before it proposes; apply calls them again, because an entry is bytes from outside.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use kvasir_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use kvasir_api::{Error, limits};

/// Whether a range is well-formed.
///
/// # Errors
/// No key, or an order that does not exist.
pub fn check_range(request: &RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let known = SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(Error::InvalidSortOption) }
}

/// Whether a put is well-formed.
///
/// # Errors
/// No key; a value or lease given that is also to be ignored.
pub fn check_put(request: &PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// Whether a delete is well-formed.
///
/// # Errors
/// No key.
pub fn check_delete_range(request: &DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// Whether a transaction is well-formed at every level.
///
/// # Errors
/// Too many operations, at a level or in all, or levels; a malformed operation, a key that two operations of one outcome write.
pub fn check_txn(request: &TxnRequest) -> Result<(), Error> {
    // etcd's bound is for each level, and what its levels can multiply to is as large as a request can be.
    let mut total_left = limits::TXN_OPS_TOTAL_MAX;
    check_level(request, limits::TXN_OPS_MAX, limits::TXN_DEPTH_MAX, &mut total_left)?;
    if is_simple(request) {
        return Ok(());
    }
    check_ops(&request.success)?;
    check_ops(&request.failure)
}

/// Nothing is nested and no branch writes twice, so no key can be given twice.
fn is_simple(request: &TxnRequest) -> bool {
    let is_simple = |ops: &[RequestOp]| {
        let mut writes = 0;
        ops.iter().all(|op| match op.request {
            Some(Request::RequestTxn(_)) => false,
            Some(Request::RequestRange(_)) | None => true,
            Some(_) => {
                writes += 1;
                writes < 2
            }
        })
    };
    is_simple(&request.success) && is_simple(&request.failure)
}

/// Whether no key is put twice, or put and deleted, by operations that may run together.
///
/// # Errors
/// [`Error::DuplicateKey`].
pub(crate) fn check_ops(ops: &[RequestOp]) -> Result<(), Error> {
    written(ops).map(|_| ())
}

/// etcd counts the longest of the three lists; nested transactions get what is left.
fn check_level(request: &TxnRequest, ops_max: usize, depth_left: usize, total_left: &mut usize) -> Result<(), Error> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    if ops > ops_max || depth_left == 0 {
        return Err(Error::TooManyOps);
    }
    let total = request.compare.len() + request.success.len() + request.failure.len();
    *total_left = total_left.checked_sub(total).ok_or(Error::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(range)) => check_range(range)?,
            Some(Request::RequestPut(put)) => check_put(put)?,
            Some(Request::RequestDeleteRange(delete)) => check_delete_range(delete)?,
            Some(Request::RequestTxn(txn)) => check_level(txn, ops_max - ops, depth_left - 1, total_left)?,
            None => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

/// A key, or where a range begins, as the check for duplicates compares it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key<'a>(&'a [u8]);

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        #[cfg(test)]
        COMPARISONS.with(|count| count.set(count.get() + 1));
        self.0.cmp(other.0)
    }
}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
thread_local! {
    /// Keys that this thread has compared.
    pub(crate) static COMPARISONS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Deleted ranges, merged: start to end, `None` for no end.
#[derive(Default)]
struct Deleted<'a>(BTreeMap<Key<'a>, Option<Vec<u8>>>);

impl<'a> Deleted<'a> {
    fn add(&mut self, delete: &'a DeleteRangeRequest) {
        let end = match &delete.range_end[..] {
            [] => Some([&delete.key[..], &[0]].concat()),
            [0] => None,
            end if end <= &delete.key[..] => return,
            end => Some(end.to_vec()),
        };
        self.add_interval(Key(&delete.key), end);
    }

    fn add_interval(&mut self, mut start: Key<'a>, mut end: Option<Vec<u8>>) {
        // At most one interval that begins before can reach in; those that begin inside are swallowed.
        if let Some((before, before_end)) = self.0.range(..start).next_back()
            && before_end.as_deref().is_none_or(|before_end| Key(before_end) >= start)
        {
            start = *before;
        }
        let swallowed: Vec<Key<'_>> = self
            .0
            .range(start..)
            .map(|(inside, _)| *inside)
            .take_while(|inside| end.as_deref().is_none_or(|end| *inside <= Key(end)))
            .collect();
        for inside in swallowed {
            if let Some(inside_end) = self.0.remove(&inside) {
                end = match (end, inside_end) {
                    (Some(a), Some(b)) => Some(a.max(b)),
                    _ => None,
                };
            }
        }
        self.0.insert(start, end);
    }

    fn covers(&self, key: Key<'_>) -> bool {
        let candidate = self.0.range(..=key).next_back();
        candidate.is_some_and(|(_, end)| end.as_deref().is_none_or(|end| key < Key(end)))
    }

    fn extend(&mut self, other: Self) {
        for (start, end) in other.0 {
            self.add_interval(start, end);
        }
    }
}

type Written<'a> = (BTreeSet<Key<'a>>, Deleted<'a>);

/// Keys put and ranges deleted by a list of operations: etcd's `checkIntervals`, in its order, with one difference: a delete from a
/// key on (`range_end = \0`) overlaps every later key, where etcd compares with the byte `\0`.
fn written(ops: &[RequestOp]) -> Result<Written<'_>, Error> {
    let mut deleted = Deleted::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            deleted.add(delete);
        }
    }
    let mut puts: BTreeSet<Key<'_>> = BTreeSet::new();
    for op in ops {
        let Some(Request::RequestTxn(txn)) = &op.request else { continue };
        let (then_puts, then_deleted) = written(&txn.success)?;
        let (else_puts, else_deleted) = written(&txn.failure)?;
        // Only one of the branches runs, so they may put the same key; with anything outside they may not.
        if then_puts.iter().chain(&else_puts).any(|key| puts.contains(key) || deleted.covers(*key)) {
            return Err(Error::DuplicateKey);
        }
        puts.extend(then_puts);
        puts.extend(else_puts);
        deleted.extend(then_deleted);
        deleted.extend(else_deleted);
    }
    for op in ops {
        let Some(Request::RequestPut(put)) = &op.request else { continue };
        if deleted.covers(Key(&put.key)) || !puts.insert(Key(&put.key)) {
            return Err(Error::DuplicateKey);
        }
    }
    Ok((puts, deleted))
}
