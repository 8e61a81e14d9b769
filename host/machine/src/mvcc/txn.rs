//! Transactions: compare, choose, check, then run (`server/etcdserver/txn/txn.go` of etcd).
//!
//! **Invariant:** every compare, at every level, sees the state before the transaction; whatever can be refused is refused before
//! the first write.

use std::cmp::Ordering;
use std::slice::Iter;

use kvasir_api::Error;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::{Compare, PutRequest, RequestOp, TxnRequest};

use crate::mvcc::check::check_txn;
use crate::mvcc::index::{KeyRecord, Span};
use crate::mvcc::write::Revision;
use crate::reply::{OpReply, TxnReply};
use crate::{State, quota};

impl State {
    /// Whether a transaction can be answered without raft: it only has ranges. One without any operation counts, too; the caller
    /// makes it linearizable all the same.
    pub fn is_read_only(txn: &TxnRequest) -> bool {
        txn.success.iter().chain(&txn.failure).all(|op| matches!(op.request, Some(Request::RequestRange(_))))
    }

    /// Answers a transaction that only reads.
    ///
    /// # Errors
    /// A malformed one, one that writes or nests, or a range's revision that is compacted or not there yet.
    pub fn read_txn(&self, tenant: u64, txn: &TxnRequest) -> Result<TxnReply, Error> {
        check_txn(txn)?;
        if !Self::is_read_only(txn) {
            return Err(Error::Invalid("this transaction is not read-only: it must go through the log".into()));
        }
        let mut path = Vec::new();
        self.choose(tenant, txn, &mut path);
        self.check_path(tenant, txn, &mut path.iter())?;
        let succeeded = path.first().copied().unwrap_or(false);
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let responses = ops.iter().filter_map(|op| match &op.request {
            Some(Request::RequestRange(range)) => Some(OpReply::Range(self.range_at(tenant, range, self.revision()))),
            _ => None,
        });
        Ok(TxnReply { revision: self.revision(), succeeded, responses: responses.collect() })
    }

    /// Evaluates the compares of a transaction and of all nested ones on its path, in the order in which they will run.
    pub(crate) fn choose(&self, tenant: u64, txn: &TxnRequest, path: &mut Vec<bool>) {
        let succeeded = txn.compare.iter().all(|compare| self.holds(tenant, compare));
        path.push(succeeded);
        for op in branch(txn, succeeded) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.choose(tenant, nested, path);
            }
        }
    }

    /// Whether a compare holds for every key of its range; on no key at all, numbers are compared with 0 and values never hold.
    fn holds(&self, tenant: u64, compare: &Compare) -> bool {
        let span = Span::new(&compare.key, &compare.range_end);
        let mut some = false;
        if let Some(space) = self.spaces.get(&tenant) {
            let all = space.scan_live(span, false).all(|(_, record)| {
                some = true;
                compare_key(compare, Some(record))
            });
            if !all {
                return false;
            }
        }
        some || (compare.target != CompareTarget::Value as i32 && compare_key(compare, None))
    }

    /// Refuses what cannot be carried out, on the chosen path.
    pub(crate) fn check_path(&self, tenant: u64, txn: &TxnRequest, path: &mut Iter<'_, bool>) -> Result<(), Error> {
        let succeeded = path.next().copied().unwrap_or(false);
        for op in branch(txn, succeeded) {
            match &op.request {
                Some(Request::RequestRange(range)) => self.check_revision(range.revision)?,
                Some(Request::RequestPut(put)) => self.check_put(tenant, put)?,
                Some(Request::RequestTxn(nested)) => self.check_path(tenant, nested, path)?,
                Some(Request::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    /// Refuses a put whose lease is not there, or that keeps something of a key that is not there.
    pub(crate) fn check_put(&self, tenant: u64, put: &PutRequest) -> Result<(), Error> {
        if put.lease != 0 && !self.leases.is_held_by(put.lease, tenant) {
            return Err(Error::LeaseNotFound);
        }
        if put.ignore_value || put.ignore_lease {
            let space = self.spaces.get(&tenant);
            space.and_then(|space| space.live.get(&put.key[..])).ok_or(Error::KeyNotFound)?;
        }
        Ok(())
    }
}

/// Logical bytes that the puts on the chosen path may add.
pub(crate) fn path_cost(txn: &TxnRequest, path: &mut Iter<'_, bool>) -> u64 {
    let succeeded = path.next().copied().unwrap_or(false);
    let cost = branch(txn, succeeded).iter().map(|op| match &op.request {
        Some(Request::RequestPut(put)) => quota::key_cost(&put.key, &put.value),
        Some(Request::RequestTxn(nested)) => path_cost(nested, path),
        _ => 0,
    });
    cost.sum()
}

/// Whether either branch, at any level, puts: such a transaction is refused while there is no space.
pub(crate) fn may_put(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => may_put(nested),
        _ => false,
    })
}

/// Runs the chosen path of a checked transaction.
pub(crate) fn run(revision: &mut Revision<'_>, tenant: u64, txn: &TxnRequest, path: &mut Iter<'_, bool>) -> TxnReply {
    let succeeded = path.next().copied().unwrap_or(false);
    let ops = branch(txn, succeeded);
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        responses.push(match &op.request {
            Some(Request::RequestRange(range)) => OpReply::Range(revision.state.range_at(tenant, range, revision.current())),
            Some(Request::RequestPut(put)) => OpReply::Put(revision.put(put)),
            Some(Request::RequestDeleteRange(delete)) => OpReply::DeleteRange(revision.delete_range(delete)),
            Some(Request::RequestTxn(nested)) => OpReply::Txn(run(revision, tenant, nested, path)),
            // Refused by `check_txn`.
            None => continue,
        });
    }
    TxnReply { revision: revision.current(), succeeded, responses }
}

fn branch(txn: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &txn.success } else { &txn.failure }
}

fn compare_key(compare: &Compare, record: Option<&KeyRecord>) -> bool {
    let head = record.map(|record| &record.head);
    let union = compare.target_union.as_ref();
    // As in etcd, an operand of another kind than the target's counts as 0 or empty.
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => {
            let wanted = if let Some(TargetUnion::Version(wanted)) = union { *wanted } else { 0 };
            head.map_or(0, |head| head.version as i64).cmp(&wanted)
        }
        Ok(CompareTarget::Create) => {
            let wanted = if let Some(TargetUnion::CreateRevision(wanted)) = union { *wanted } else { 0 };
            head.map_or(0, |head| head.create_revision as i64).cmp(&wanted)
        }
        Ok(CompareTarget::Mod) => {
            let wanted = if let Some(TargetUnion::ModRevision(wanted)) = union { *wanted } else { 0 };
            head.map_or(0, |head| head.rev.main as i64).cmp(&wanted)
        }
        Ok(CompareTarget::Lease) => {
            let wanted = if let Some(TargetUnion::Lease(wanted)) = union { *wanted } else { 0 };
            head.map_or(0, |head| head.lease).cmp(&wanted)
        }
        Ok(CompareTarget::Value) => {
            let wanted: &[u8] = if let Some(TargetUnion::Value(wanted)) = union { wanted } else { &[] };
            let value = record.and_then(|record| record.slot.row()).map_or(&[][..], |row| &row.value[..]);
            value.cmp(wanted)
        }
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering == Ordering::Equal,
        Ok(CompareResult::NotEqual) => ordering != Ordering::Equal,
        Ok(CompareResult::Greater) => ordering == Ordering::Greater,
        Ok(CompareResult::Less) => ordering == Ordering::Less,
        Err(_) => true,
    }
}
