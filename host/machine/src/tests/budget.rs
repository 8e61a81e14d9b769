//! What one transaction may ask for is bounded before it runs, however its operations are nested.

use kvasir_api::etcdserverpb::compare::{CompareResult, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use kvasir_api::{Error, limits};

use super::harness::*;

fn then(ops: Vec<RequestOp>) -> TxnRequest {
    txn(vec![], ops, vec![])
}

fn op(request: RangeRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestRange(request)) }
}

/// A machine with so many keys, written by few entries.
fn with_keys(count: usize) -> Machine {
    let mut machine = Machine::new();
    for keys in (0..count).collect::<Vec<_>>().chunks(limits::TXN_OPS_MAX) {
        machine.txn(then(keys.iter().map(|n| op_put(&format!("k{n:06}"), "v")).collect())).unwrap();
    }
    machine
}

fn refused(machine: &mut Machine, txn: TxnRequest) -> bool {
    let revision = machine.state.revision();
    match machine.txn(txn) {
        Ok(_) => false,
        Err(error) => {
            assert!(matches!(error, Error::Exhausted(_)), "{error:?}");
            assert_eq!(machine.state.revision(), revision);
            assert!(machine.last.changes.is_empty());
            true
        }
    }
}

/// Levels of each 16 ranges and 16 nested transactions.
fn nested(levels: usize) -> TxnRequest {
    let mut ops = vec![op_range("\0", "\0"); 16];
    if levels > 1 {
        ops.extend(vec![op_txn(nested(levels - 1)); 16]);
    }
    then(ops)
}

#[test]
fn operations_are_bounded_over_all_levels() {
    let mut machine = with_keys(1);
    assert!(machine.txn(nested(2)).is_ok());
    assert_eq!(machine.txn(nested(3)), Err(Error::TooManyOps), "each level is within etcd's bound, all together are not");
    let of = |count: usize, more: usize| {
        let branch = vec![op_range("a", ""); 32];
        let mut ops: Vec<_> = vec![op_txn(txn(vec![], branch.clone(), branch)); count];
        ops.extend(vec![op_range("a", ""); more]);
        then(ops)
    };
    // 63 nested ones with 64 operations each count 65.
    assert!(machine.txn(of(63, 1)).is_ok());
    assert_eq!(machine.txn(of(63, 2)), Err(Error::TooManyOps), "the branch that does not run counts as well");
}

#[test]
fn ranges_over_the_same_keys_count_each_time() {
    let keys_max = limits::TXN_KEYS_MAX as usize / limits::TXN_OPS_MAX;
    let mut machine = with_keys(keys_max);
    let all = vec![op(RangeRequest { count_only: true, ..everything() }); limits::TXN_OPS_MAX];
    assert!(!refused(&mut machine, then(all.clone())));
    assert!(machine.state.read_txn(0, &then(all.clone())).is_ok());
    machine.put("one more", "");
    assert!(refused(&mut machine, then(all.clone())));
    assert!(
        matches!(machine.state.read_txn(0, &then(all.clone())), Err(Error::Exhausted(_))),
        "whether it goes through the log or not"
    );
    // Not on the branch that does not run.
    let always = when("one more", CompareResult::Equal, TargetUnion::Version(1));
    assert!(!refused(&mut machine, txn(vec![always], vec![], all)));
}

#[test]
fn compares_over_ranges_count() {
    let mut machine = with_keys(limits::TXN_KEYS_MAX as usize / limits::TXN_OPS_MAX);
    let all = |key: &str| Compare { range_end: bytes("\0"), ..when(key, CompareResult::Greater, TargetUnion::Version(0)) };
    let compares = vec![all("k"); limits::TXN_OPS_MAX];
    assert!(!refused(&mut machine, txn(compares.clone(), vec![], vec![])));
    machine.put("k", "");
    assert!(refused(&mut machine, txn(compares.clone(), vec![], vec![])));
    // A compare that fails early ends the list.
    let fails = Compare { range_end: bytes("\0"), ..when("k", CompareResult::Greater, TargetUnion::Version(9)) };
    let list = [vec![fails], compares].concat();
    assert!(!refused(&mut machine, txn(list[..limits::TXN_OPS_MAX].to_vec(), vec![], vec![])));
}

#[test]
fn bytes_count_where_they_are_asked_for() {
    let mut machine = Machine::new();
    let big = "x".repeat(1 << 20);
    machine.put("a", &big);
    machine.put("b", &big);
    let ranges = |range: RangeRequest| then(vec![op_put("w", ""), op_txn(then(vec![op(range); 40]))]);
    assert!(refused(&mut machine, ranges(everything())));
    assert!(!refused(&mut machine, ranges(RangeRequest { keys_only: true, ..everything() })));
    assert!(!refused(&mut machine, ranges(RangeRequest { count_only: true, ..everything() })));
    assert!(!refused(&mut machine, ranges(RangeRequest { limit: 1, ..everything() })));
    assert!(refused(&mut machine, ranges(RangeRequest { limit: 2, ..everything() })));
    let deletes = DeleteRangeRequest { key: bytes("a"), range_end: bytes("c"), prev_kv: true };
    let deletes = |prev_kv| {
        let delete = DeleteRangeRequest { prev_kv, ..deletes.clone() };
        then(vec![RequestOp { request: Some(Request::RequestDeleteRange(delete)) }; 40])
    };
    assert!(refused(&mut machine, deletes(true)), "though only the first would find anything");
    let kept = machine.revision_of("a");
    let put = |n: usize| PutRequest { prev_kv: true, ..put_request(&format!("p{n}"), &big) };
    let puts = |prev_kv| -> Vec<_> {
        (0..70).map(|n| RequestOp { request: Some(Request::RequestPut(PutRequest { prev_kv, ..put(n) })) }).collect()
    };
    assert!(!refused(&mut machine, then(puts(true))), "what is not there is not brought back");
    assert!(refused(&mut machine, then(puts(true))));
    assert!(!refused(&mut machine, then(puts(false))));
    assert_eq!(machine.revision_of("a"), kept);
    assert!(!refused(&mut machine, deletes(false)));
}

#[test]
fn a_range_is_counted_with_what_the_transaction_itself_puts_before_it() {
    let mut machine = Machine::new();
    let big = "x".repeat(1 << 20);
    let reads = |count| op_txn(then(vec![op_range("a", ""); count]));
    assert!(!refused(&mut machine, then(vec![op_put("a", &big), reads(60)])));
    machine.delete("a", "");
    assert!(refused(&mut machine, then(vec![op_put("a", &big), reads(70)])));
    // What it deletes counts on: a range after it may then find other keys than before.
    machine.put("b", &big);
    let first = RangeRequest { limit: 1, ..range("a", "c") };
    let txn = then(vec![op_delete("b", ""), op_txn(then(vec![op(first); 70]))]);
    assert!(refused(&mut machine, txn));
}

#[test]
fn old_revisions_count_what_was_there_and_a_share_for_what_is_gone() {
    let mut machine = Machine::new();
    machine.put("a", &"x".repeat(1 << 20));
    machine.put("a", "small");
    machine.delete("a", "");
    let old = |count: usize, key: &str, end: &str| then(vec![op(RangeRequest { revision: 2, ..range(key, end) }); count]);
    assert!(refused(&mut machine, old(65, "a", "")), "the old value counts, not the current one");
    assert!(!refused(&mut machine, old(60, "a", "")));
    let shares = (limits::TXN_KEYS_MAX / limits::TXN_OLD_RANGE_KEYS) as usize;
    assert!(!refused(&mut machine, old(shares, "b", "c")), "nothing found");
    machine.put("b", "");
    // The newest revision is an old one once the transaction has written.
    let newest = op(RangeRequest { revision: machine.state.revision() as i64, ..range("x", "y") });
    assert!(!refused(&mut machine, then(vec![newest.clone(); shares])));
    let ops = [vec![op_put("c", "")], vec![newest; shares - 1]].concat();
    assert!(!refused(&mut machine, then(ops)));
}

/// How far trimming has come is each replica's own matter, so it must not decide what is refused.
#[test]
fn a_replica_that_has_trimmed_refuses_the_same() {
    let (mut trimmed, mut other) = (with_keys(3_000), with_keys(3_000));
    for machine in [&mut trimmed, &mut other] {
        assert_eq!(machine.delete("k001500", "\0"), 1_500);
        machine.compact(machine.state.revision() as i64).unwrap();
        machine.put("z", "");
    }
    trimmed.trim();
    for count in [50, 90, 100, 120, 128] {
        for revision in [0, trimmed.state.revision() as i64 - 1] {
            let all = then(vec![op(RangeRequest { revision, ..everything() }); count]);
            let (one, two) = (trimmed.state.forecast(0, &all), other.state.forecast(0, &all));
            assert_eq!(one.map(|left| (left.keys, left.bytes)), two.map(|left| (left.keys, left.bytes)));
        }
    }
}
