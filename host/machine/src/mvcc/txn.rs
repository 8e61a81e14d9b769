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

use crate::mvcc::budget::{Budget, Forecast, value_bytes};
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
    /// A malformed one, one that writes or nests, one that looks at too much (`mvcc/budget.rs`), or a range's revision that is
    /// compacted or not there yet.
    pub fn read_txn(&self, tenant: u64, txn: &TxnRequest) -> Result<TxnReply, Error> {
        check_txn(txn)?;
        if !Self::is_read_only(txn) {
            return Err(Error::Invalid("this transaction is not read-only: it must go through the log".into()));
        }
        let mut path = Vec::new();
        let mut budget = Budget::new();
        self.choose(tenant, txn, &mut path, &mut budget)?;
        self.check_path(tenant, txn, &mut path.iter(), &mut budget)?;
        let succeeded = path.first().copied().unwrap_or(false);
        let responses = branch(txn, succeeded).iter().filter_map(|op| match &op.request {
            Some(Request::RequestRange(range)) => Some(OpReply::Range(self.range_at(tenant, range, self.revision()))),
            _ => None,
        });
        Ok(TxnReply { revision: self.revision(), succeeded, responses: responses.collect() })
    }

    /// Evaluates the compares of a transaction and of all nested ones on its path, in the order in which they will run.
    pub(crate) fn choose(&self, tenant: u64, txn: &TxnRequest, path: &mut Vec<bool>, budget: &mut Budget) -> Result<(), Error> {
        let mut succeeded = true;
        for compare in &txn.compare {
            if !self.holds(tenant, compare, budget)? {
                succeeded = false;
                break;
            }
        }
        path.push(succeeded);
        for op in branch(txn, succeeded) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.choose(tenant, nested, path, budget)?;
            }
        }
        Ok(())
    }

    /// Whether a compare holds for every key of its range; on no key at all, numbers are compared with 0 and values never hold.
    fn holds(&self, tenant: u64, compare: &Compare, budget: &mut Budget) -> Result<bool, Error> {
        let span = Span::new(&compare.key, &compare.range_end);
        let wanted = if let Some(TargetUnion::Value(wanted)) = &compare.target_union { wanted.len() as u64 } else { 0 };
        let mut some = false;
        for (_, record) in self.spaces.get(&tenant).into_iter().flat_map(|space| space.scan_live(span, false)) {
            some = true;
            budget.take_keys(1)?;
            budget.take_bytes(wanted.min(value_bytes(record)))?;
            if !compare_key(compare, Some(record)) {
                return Ok(false);
            }
        }
        Ok(some || (compare.target != CompareTarget::Value as i32 && compare_key(compare, None)))
    }

    /// Refuses what cannot be carried out on the chosen path, and what is left of `budget` does not cover.
    pub(crate) fn check_path(
        &self,
        tenant: u64,
        txn: &TxnRequest,
        path: &mut Iter<'_, bool>,
        budget: &mut Budget,
    ) -> Result<(), Error> {
        let succeeded = path.next().copied().unwrap_or(false);
        self.check_ops(tenant, branch(txn, succeeded), path, budget)
    }

    /// What would be left of the budget.
    #[cfg(test)]
    pub(crate) fn forecast(&self, tenant: u64, txn: &TxnRequest) -> Result<Budget, Error> {
        let (mut path, mut budget) = (Vec::new(), Budget::new());
        self.choose(tenant, txn, &mut path, &mut budget)?;
        self.check_path(tenant, txn, &mut path.iter(), &mut budget)?;
        Ok(budget)
    }

    /// As [`State::check_path`], of a list of operations.
    pub(crate) fn check_ops(
        &self,
        tenant: u64,
        ops: &[RequestOp],
        path: &mut Iter<'_, bool>,
        budget: &mut Budget,
    ) -> Result<(), Error> {
        let mut forecast = Forecast::new(self.spaces.get(&tenant), self.revision(), budget);
        // Puts are only counted for what may see them.
        let all_put = ops.iter().all(|op| matches!(op.request, Some(Request::RequestPut(_))));
        self.check_branch(tenant, ops, path, all_put, &mut forecast)
    }

    fn check_branch<'a>(
        &'a self,
        tenant: u64,
        ops: &'a [RequestOp],
        path: &mut Iter<'_, bool>,
        all_put: bool,
        forecast: &mut Forecast<'a>,
    ) -> Result<(), Error> {
        for op in ops {
            match &op.request {
                Some(Request::RequestRange(range)) => {
                    self.check_revision(range.revision)?;
                    forecast.range(range)?;
                }
                Some(Request::RequestPut(put)) => {
                    self.check_put(tenant, put)?;
                    forecast.put(put, all_put)?;
                }
                Some(Request::RequestTxn(nested)) => {
                    let succeeded = path.next().copied().unwrap_or(false);
                    self.check_branch(tenant, branch(nested, succeeded), path, false, forecast)?;
                }
                Some(Request::RequestDeleteRange(delete)) => forecast.delete_range(delete)?,
                None => {}
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

/// Logical bytes that the puts of some operations on the chosen path may add.
pub(crate) fn cost(ops: &[RequestOp], path: &mut Iter<'_, bool>) -> u64 {
    let cost = ops.iter().map(|op| match &op.request {
        Some(Request::RequestPut(put)) => quota::key_cost(&put.key, &put.value),
        Some(Request::RequestTxn(nested)) => {
            let succeeded = path.next().copied().unwrap_or(false);
            cost(branch(nested, succeeded), path)
        }
        _ => 0,
    });
    cost.sum()
}

/// Whether either branch, at any level, puts: such a transaction is refused while there is no space.
pub(crate) fn may_put(txn: &TxnRequest) -> bool {
    some_put(&txn.success) || some_put(&txn.failure)
}

/// Whether any of the operations puts, or may.
pub(crate) fn some_put(ops: &[RequestOp]) -> bool {
    ops.iter().any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => may_put(nested),
        _ => false,
    })
}

/// Runs the chosen path of a checked transaction.
pub(crate) fn run(revision: &mut Revision<'_>, tenant: u64, txn: &TxnRequest, path: &mut Iter<'_, bool>) -> TxnReply {
    let succeeded = path.next().copied().unwrap_or(false);
    let responses = run_ops(revision, tenant, branch(txn, succeeded), path);
    TxnReply { revision: revision.current(), succeeded, responses }
}

/// Runs checked operations; those of nested transactions on their path.
pub(crate) fn run_ops(revision: &mut Revision<'_>, tenant: u64, ops: &[RequestOp], path: &mut Iter<'_, bool>) -> Vec<OpReply> {
    let wants_reply = revision.wants_reply();
    let mut responses = Vec::with_capacity(if wants_reply { ops.len() } else { 0 });
    for op in ops {
        let response = match &op.request {
            Some(Request::RequestRange(_)) if !wants_reply => continue,
            Some(Request::RequestRange(range)) => OpReply::Range(revision.state.range_at(tenant, range, revision.current())),
            Some(Request::RequestPut(put)) => OpReply::Put(revision.put(put)),
            Some(Request::RequestDeleteRange(delete)) => OpReply::DeleteRange(revision.delete_range(delete)),
            Some(Request::RequestTxn(nested)) => OpReply::Txn(run(revision, tenant, nested, path)),
            // Refused by `check_txn`.
            None => continue,
        };
        if wants_reply {
            responses.push(response);
        }
    }
    responses
}

/// The operations that a transaction runs.
pub(crate) fn branch(txn: &TxnRequest, succeeded: bool) -> &[RequestOp] {
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
