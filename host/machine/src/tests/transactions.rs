//! Transactions, as etcd has them.

use kvasir_api::Error;
use kvasir_api::etcdserverpb::compare::{CompareResult, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};

use super::harness::*;
use crate::mvcc::check::COMPARISONS;
use crate::{OpReply, Rev, State};

fn then(ops: Vec<RequestOp>) -> TxnRequest {
    txn(vec![], ops, vec![])
}

fn equal(key: &str, union: TargetUnion) -> Compare {
    when(key, CompareResult::Equal, union)
}

#[test]
fn a_txn_is_one_revision_and_its_changes_have_sub_revisions() {
    let mut machine = Machine::new();
    let reply = machine.txn(then(vec![op_put("a", "1"), op_put("b", "2"), op_range("\0", "\0")])).unwrap();
    assert!(reply.succeeded);
    assert_eq!(reply.revision, 2);
    let revs: Vec<_> = machine.last.changes.iter().map(|change| change.row.rev).collect();
    assert_eq!(revs, [Rev::new(2, 0), Rev::new(2, 1)]);
    let OpReply::Range(range) = &reply.responses[2] else { panic!() };
    assert_eq!((range.count, range.revision), (2, 2), "a range sees what came before it");
}

#[test]
fn a_range_before_the_first_write_of_a_txn_sees_the_revision_before() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    let reply = machine.txn(then(vec![op_range("a", ""), op_put("a", "2"), op_range("a", "")])).unwrap();
    let values: Vec<_> = reply
        .responses
        .iter()
        .filter_map(|response| match response {
            OpReply::Range(range) => Some((range.revision, range.items[0].value())),
            _ => None,
        })
        .collect();
    assert_eq!(values, [(2, bytes("1")), (3, bytes("2"))]);
}

#[test]
fn an_old_revision_in_a_txn_is_seen_as_it_was_before_its_own_puts() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    let old = RequestOp { request: Some(Request::RequestRange(RangeRequest { revision: 2, ..range("a", "") })) };
    let reply = machine.txn(then(vec![op_put("a", "2"), old])).unwrap();
    let OpReply::Range(range) = &reply.responses[1] else { panic!() };
    assert_eq!(range.items[0].value(), bytes("1"));
}

#[test]
fn a_txn_that_changes_nothing_does_not_bump_the_revision() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    let missing = equal("a", TargetUnion::Version(9));
    let reply = machine.txn(txn(vec![missing], vec![op_put("b", "1")], vec![])).unwrap();
    assert_eq!((reply.succeeded, reply.revision), (false, 2));
    let reply = machine.txn(then(vec![op_delete("z", ""), op_range("a", "")])).unwrap();
    assert_eq!((reply.revision, machine.state.revision()), (2, 2));
    assert_eq!(machine.txn(TxnRequest::default()).unwrap().revision, 2);
}

#[test]
fn compares_on_a_missing_key_use_zero_and_values_never_hold() {
    let mut machine = Machine::new();
    let holds = |machine: &mut Machine, compare| machine.txn(txn(vec![compare], vec![], vec![])).unwrap().succeeded;
    for union in [TargetUnion::Version(0), TargetUnion::CreateRevision(0), TargetUnion::ModRevision(0), TargetUnion::Lease(0)] {
        assert!(holds(&mut machine, equal("no", union.clone())));
        assert!(!holds(&mut machine, when("no", CompareResult::Greater, union)));
    }
    assert!(!holds(&mut machine, equal("no", TargetUnion::Value(bytes("")))));
    assert!(!holds(&mut machine, when("no", CompareResult::NotEqual, TargetUnion::Value(bytes("x")))));
    // A deleted key is a missing one.
    machine.put("no", "x");
    machine.delete("no", "");
    assert!(holds(&mut machine, equal("no", TargetUnion::Version(0))));
    assert!(!holds(&mut machine, equal("no", TargetUnion::Value(bytes("x")))));
}

#[test]
fn every_target_and_result_of_a_compare() {
    let mut machine = Machine::new();
    machine.grant(5, 100);
    machine.put_leased("a", 5);
    machine.put_leased("a", 5);
    for (union, less, more) in [
        (TargetUnion::Version(2), TargetUnion::Version(1), TargetUnion::Version(3)),
        (TargetUnion::CreateRevision(2), TargetUnion::CreateRevision(1), TargetUnion::CreateRevision(3)),
        (TargetUnion::ModRevision(3), TargetUnion::ModRevision(2), TargetUnion::ModRevision(4)),
        (TargetUnion::Lease(5), TargetUnion::Lease(4), TargetUnion::Lease(6)),
        (TargetUnion::Value(bytes("v")), TargetUnion::Value(bytes("u")), TargetUnion::Value(bytes("v0"))),
    ] {
        for (result, union, expected) in [
            (CompareResult::Equal, &union, true),
            (CompareResult::Equal, &less, false),
            (CompareResult::NotEqual, &less, true),
            (CompareResult::NotEqual, &union, false),
            (CompareResult::Greater, &less, true),
            (CompareResult::Greater, &union, false),
            (CompareResult::Less, &more, true),
            (CompareResult::Less, &union, false),
        ] {
            let reply = machine.txn(txn(vec![when("a", result, union.clone())], vec![], vec![])).unwrap();
            assert_eq!(reply.succeeded, expected, "{result:?} {union:?}");
        }
    }
}

#[test]
fn a_compare_of_a_range_must_hold_for_every_key() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    machine.put("b", "1");
    machine.put("b", "2");
    let all = |result, union| Compare { range_end: bytes("z"), ..when("a", result, union) };
    let holds = |machine: &mut Machine, compare| machine.txn(txn(vec![compare], vec![], vec![])).unwrap().succeeded;
    assert!(holds(&mut machine, all(CompareResult::Greater, TargetUnion::Version(0))));
    assert!(!holds(&mut machine, all(CompareResult::Greater, TargetUnion::Version(1))));
    let empty = Compare { range_end: bytes("z"), ..when("x", CompareResult::Equal, TargetUnion::Version(0)) };
    assert!(holds(&mut machine, empty), "an empty range is compared as one missing key");
}

#[test]
fn nested_compares_see_the_state_before_the_whole_txn() {
    let mut machine = Machine::new();
    let absent = || equal("a", TargetUnion::Version(0));
    let nested = txn(vec![absent()], vec![op_put("saw-absent", "1")], vec![op_put("saw-present", "1")]);
    let reply = machine.txn(txn(vec![absent()], vec![op_put("a", "1"), op_txn(nested)], vec![])).unwrap();
    let OpReply::Txn(nested) = &reply.responses[1] else { panic!() };
    assert!(nested.succeeded);
    assert!(machine.get("saw-absent").is_some() && machine.get("saw-present").is_none());
    assert_eq!(reply.revision, 2);
}

#[test]
fn nested_txns_take_their_own_branches_in_order() {
    let mut machine = Machine::new();
    machine.put("yes", "1");
    let yes = || equal("yes", TargetUnion::Version(1));
    let no = || equal("yes", TargetUnion::Version(9));
    let inner = txn(vec![no()], vec![op_put("i1", "")], vec![op_put("i2", "")]);
    let first = txn(vec![yes()], vec![op_txn(inner), op_put("f1", "")], vec![op_put("f2", "")]);
    let second = txn(vec![no()], vec![op_put("s1", "")], vec![op_put("s2", "")]);
    machine.txn(then(vec![op_txn(first), op_txn(second)])).unwrap();
    assert_eq!(keys(&machine.range(everything()).unwrap()), ["f1", "i2", "s2", "yes"]);
}

#[test]
fn a_key_may_be_written_once_in_a_txn() {
    let mut machine = Machine::new();
    let duplicate = |machine: &mut Machine, ops| machine.txn(then(ops)) == Err(Error::DuplicateKey);
    assert!(duplicate(&mut machine, vec![op_put("a", "1"), op_put("a", "2")]));
    assert!(duplicate(&mut machine, vec![op_put("a", "1"), op_delete("a", "")]));
    assert!(duplicate(&mut machine, vec![op_delete("a", ""), op_put("a", "1")]));
    assert!(duplicate(&mut machine, vec![op_put("b", "1"), op_delete("a", "c")]));
    assert!(duplicate(&mut machine, vec![op_put("b", "1"), op_delete("a", "\0")]));
    assert!(!duplicate(&mut machine, vec![op_put("c", "1"), op_delete("a", "c")]));
    assert!(!duplicate(&mut machine, vec![op_put("a", "1"), op_delete("b", "\0")]));
    assert!(!duplicate(&mut machine, vec![op_put("b", "1"), op_delete("c", "a")]), "an empty range deletes nothing");
    // Overlapping deletes are fine.
    assert!(!duplicate(&mut machine, vec![op_delete("a", "m"), op_delete("b", "z"), op_delete("c", "")]));
    assert!(duplicate(&mut machine, vec![op_delete("a", "m"), op_delete("b", "p"), op_put("o", "")]));
    assert!(duplicate(&mut machine, vec![op_delete("m", "z"), op_delete("a", "n"), op_put("y", "")]));
    // The unchosen branch counts as well.
    let failure = vec![op_put("a", "1"), op_put("a", "2")];
    assert_eq!(machine.txn(txn(vec![], vec![], failure)), Err(Error::DuplicateKey));
}

#[test]
fn branches_of_a_nested_txn_may_put_the_same_key_but_not_one_from_outside() {
    let mut machine = Machine::new();
    let either = |key: &str| op_txn(txn(vec![], vec![op_put(key, "1")], vec![op_put(key, "2")]));
    assert!(machine.txn(then(vec![either("a"), either("b")])).is_ok());
    assert_eq!(machine.txn(then(vec![either("a"), either("a")])), Err(Error::DuplicateKey));
    assert_eq!(machine.txn(then(vec![either("a"), op_put("a", "3")])), Err(Error::DuplicateKey));
    assert_eq!(machine.txn(then(vec![either("b"), op_delete("a", "c")])), Err(Error::DuplicateKey));
    let deletes = op_txn(txn(vec![], vec![op_delete("a", "c")], vec![]));
    assert_eq!(machine.txn(then(vec![deletes.clone(), op_put("b", "3")])), Err(Error::DuplicateKey));
    assert_eq!(machine.txn(then(vec![deletes, either("b")])), Err(Error::DuplicateKey));
    let else_deletes = op_txn(txn(vec![], vec![], vec![op_delete("b", "")]));
    assert_eq!(machine.txn(then(vec![else_deletes, op_put("b", "3")])), Err(Error::DuplicateKey));
}

/// etcd's check looks at nested deletes only for what comes after them; a put before one is carried out, then deleted.
#[test]
fn a_nested_put_and_a_later_nested_delete_of_the_same_key_both_happen() {
    let mut machine = Machine::new();
    let puts = op_txn(then(vec![op_put("a", "1")]));
    let deletes = op_txn(then(vec![op_delete("a", "")]));
    machine.txn(then(vec![puts, deletes])).unwrap();
    assert!(machine.get("a").is_none());
    assert_eq!(machine.last.changes.len(), 2);
    machine.put("b", "1");
    machine.compact(2).unwrap();
    machine.trim();
    assert_eq!(machine.history.len(), 3, "both changes at the compacted revision are kept for watchers");
    machine.compact(3).unwrap();
    machine.trim();
    assert_eq!(machine.history.len(), 1);
    machine.assert_restorable();
}

#[test]
fn whatever_can_be_refused_is_refused_before_any_write() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    machine.put("a", "2");
    machine.compact(3).unwrap();
    let range_at = |revision| RequestOp { request: Some(Request::RequestRange(RangeRequest { revision, ..range("a", "") })) };
    let put_with = |request| RequestOp { request: Some(Request::RequestPut(request)) };
    for (bad, error) in [
        (range_at(4), Error::FutureRevision),
        (range_at(2), Error::Compacted),
        (put_with(PutRequest { lease: 99, ..put_request("l", "") }), Error::LeaseNotFound),
        (put_with(PutRequest { ignore_value: true, ..put_request("none", "") }), Error::KeyNotFound),
        (put_with(PutRequest { ignore_lease: true, ..put_request("none", "") }), Error::KeyNotFound),
    ] {
        let outer = then(vec![op_put("w", "1"), bad.clone()]);
        assert_eq!(machine.txn(outer).unwrap_err(), error);
        let nested = then(vec![op_put("w", "1"), op_txn(then(vec![bad.clone()]))]);
        assert_eq!(machine.txn(nested).unwrap_err(), error);
        assert!(machine.get("w").is_none());
        assert_eq!(machine.state.revision(), 3);
        // On the branch that does not run it is no reason to refuse.
        assert!(machine.txn(txn(vec![equal("a", TargetUnion::Version(2))], vec![], vec![bad])).is_ok());
    }
}

#[test]
fn operations_are_counted_per_level_and_levels_are_bounded() {
    let mut machine = Machine::new();
    let reads = |count| vec![op_range("a", ""); count];
    assert!(machine.txn(then(reads(128))).is_ok());
    assert_eq!(machine.txn(then(reads(129))), Err(Error::TooManyOps));
    assert_eq!(machine.txn(txn(vec![equal("a", TargetUnion::Version(0)); 129], vec![], vec![])), Err(Error::TooManyOps));
    let mut ops = reads(99);
    ops.push(op_txn(then(reads(28))));
    assert!(machine.txn(then(ops.clone())).is_ok());
    ops.push(op_txn(then(reads(28))));
    assert_eq!(machine.txn(then(ops)), Err(Error::TooManyOps));
    let deep = |levels| (1..levels).fold(then(vec![]), |inner, _| then(vec![op_txn(inner)]));
    assert!(machine.txn(deep(8)).is_ok());
    assert_eq!(machine.txn(deep(9)), Err(Error::TooManyOps));
    let empty_key = txn(vec![equal("", TargetUnion::Version(0))], vec![], vec![]);
    assert_eq!(machine.txn(empty_key), Err(Error::EmptyKey));
    assert_eq!(machine.txn(then(vec![op_range("", "")])), Err(Error::EmptyKey));
}

#[test]
fn a_txn_of_ranges_is_read_only_and_answers_without_the_log() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    let reads = txn(vec![equal("a", TargetUnion::Version(1))], vec![op_range("a", "")], vec![op_range("b", "")]);
    assert!(State::is_read_only(&reads));
    let read = machine.state.read_txn(0, &reads).unwrap();
    assert_eq!(Ok(read), machine.txn(reads));
    for writes in [then(vec![op_put("a", "1")]), then(vec![op_delete("a", "")]), then(vec![op_txn(then(vec![]))])] {
        assert!(!State::is_read_only(&writes));
        assert!(matches!(machine.state.read_txn(0, &writes), Err(Error::Invalid(_))));
    }
}

#[test]
fn the_duplicate_check_is_not_quadratic() {
    // Deletes and puts in nested transactions, and puts after them that none of the deletes covers.
    let comparisons = |levels: usize| {
        let mut ops = Vec::new();
        for outer in 0..levels {
            let many = (0..32).map(|n| op_delete(&format!("d{outer:02}{n:02}"), &format!("d{outer:02}{n:02}x")));
            let puts = (0..32).map(|n| op_put(&format!("d{outer:02}{n:02}y"), ""));
            ops.push(op_txn(then(many.chain(puts).collect())));
        }
        let counted = || COMPARISONS.with(std::cell::Cell::get);
        let before = counted();
        assert_eq!(crate::check_txn(&then(ops)), Ok(()));
        counted() - before
    };
    let (some, many) = (comparisons(15), comparisons(60));
    assert!(some > 0);
    assert!(many < 8 * some, "four times the operations, sixteen times the comparisons would be quadratic: {some}, {many}");
}
