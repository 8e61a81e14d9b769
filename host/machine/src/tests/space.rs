//! Quotas and alarms.

use kvasir_api::Error;
use kvasir_api::command::{Alarm, Command, QuotaSet, command::Body};
use kvasir_api::etcdserverpb::compare::{CompareResult, TargetUnion};

use super::harness::*;
use crate::Reply;

fn quota(machine: &mut Machine, bytes: u64, of_tenant: bool) {
    machine.run(Body::QuotaSet(QuotaSet { bytes, of_tenant }));
}

fn disarm(machine: &mut Machine, member_id: u64) -> Vec<(u64, i32)> {
    match machine.run(Body::Alarm(Alarm { activate: false, member_id, alarm: AlarmType::Nospace as i32 })) {
        Reply::Alarm { alarms, .. } => alarms,
        other => panic!("{other:?}"),
    }
}

#[test]
fn logical_bytes_follow_the_live_keys() {
    let mut machine = Machine::new();
    machine.put("ab", "123");
    assert_eq!(machine.state.logical_bytes(), KEY_COST + 5);
    assert_eq!(machine.state.tenant_bytes(0), KEY_COST + 5);
    machine.grant(1, 5);
    assert_eq!(machine.state.logical_bytes(), KEY_COST + 5 + 64);
    machine.revoke(&[1], 0);
    machine.delete("ab", "");
    machine.compact(3).unwrap();
    assert_eq!((machine.state.logical_bytes(), machine.state.tenant_bytes(0)), (0, 0));
}

#[test]
fn a_put_past_the_quota_is_refused_and_raises_the_alarm_for_all() {
    let mut machine = Machine::new();
    quota(&mut machine, 2 * (KEY_COST + 2), false);
    machine.put("a", "1");
    machine.put("b", "1");
    assert_eq!(error_of(machine.run(put("c", "1"))), Error::NoSpace);
    assert!(machine.get("c").is_none(), "refused means that nothing was written");
    assert_eq!(machine.state.alarms().collect::<Vec<_>>(), [(0, AlarmType::Nospace)]);
    machine.assert_restorable();
    // Even a write that would fit is refused now.
    assert_eq!(error_of(machine.run(put("a", ""))), Error::NoSpace);
    assert_eq!(machine.delete("b", ""), 1);
    machine.compact(4).unwrap();
    assert!(machine.range(everything()).is_ok());
    assert!(disarm(&mut machine, 0).is_empty());
    machine.put("c", "1");
    assert!(machine.get("c").is_some());
    machine.assert_restorable();
}

#[test]
fn a_txn_that_may_put_is_refused_while_there_is_no_space() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    machine.run(Body::Alarm(Alarm { activate: true, member_id: 7, alarm: AlarmType::Nospace as i32 }));
    let never = when("a", CompareResult::Equal, TargetUnion::Version(99));
    let puts = txn(vec![never.clone()], vec![op_put("b", "")], vec![]);
    assert_eq!(machine.txn(puts.clone()), Err(Error::NoSpace), "whichever branch would run");
    assert_eq!(machine.txn(txn(vec![], vec![op_txn(puts)], vec![])), Err(Error::NoSpace));
    assert!(machine.txn(txn(vec![never], vec![], vec![op_delete("a", "")])).is_ok());
    assert!(disarm(&mut machine, 1).len() == 1, "another member's alarm stays");
    assert!(disarm(&mut machine, 7).is_empty());
}

#[test]
fn a_txn_is_weighed_whole_and_only_its_chosen_branch() {
    let mut machine = Machine::new();
    quota(&mut machine, 2 * KEY_COST, false);
    let big = "x".repeat(10_000);
    let never = when("a", CompareResult::Equal, TargetUnion::Version(99));
    let large = txn(vec![never.clone()], vec![op_put("b", &big)], vec![op_put("c", "")]);
    assert!(machine.txn(large).is_ok());
    let two = txn(vec![], vec![op_put("d", ""), op_put("e", "")], vec![]);
    assert_eq!(machine.txn(two), Err(Error::NoSpace));
    assert_eq!(machine.state.live_keys(0), 1);
}

#[test]
fn a_tenants_own_quota_stops_the_tenant_and_raises_no_alarm() {
    let mut machine = Machine::new();
    let of_tenant = |machine: &Machine, body| Command { tenant: 5, ..machine.command(body) };
    let command = of_tenant(&machine, Body::QuotaSet(QuotaSet { bytes: KEY_COST + 2, of_tenant: true }));
    machine.apply(command);
    let command = of_tenant(&machine, put("a", "1"));
    assert!(matches!(machine.apply(command), Reply::Put(_)));
    let command = of_tenant(&machine, put("b", "1"));
    assert_eq!(error_of(machine.apply(command)), Error::NoSpace);
    assert_eq!(machine.state.alarms().count(), 0);
    assert_eq!(machine.state.tenant_quota_bytes(5), Some(KEY_COST + 2));
    machine.put("b", "others go on");
    machine.assert_restorable();
    let command = of_tenant(&machine, Body::QuotaSet(QuotaSet { bytes: 0, of_tenant: true }));
    machine.apply(command);
    assert_eq!(machine.state.tenant_quota_bytes(5), None);
    machine.assert_restorable();
}

#[test]
fn a_corrupt_alarm_stops_writes() {
    let mut machine = Machine::new();
    machine.run(Body::Alarm(Alarm { activate: true, member_id: 1, alarm: AlarmType::Corrupt as i32 }));
    assert_eq!(error_of(machine.run(put("a", ""))), Error::Corrupt);
    assert_eq!(error_of(machine.run(delete("a", ""))), Error::Corrupt);
    machine.run(Body::Alarm(Alarm { activate: true, member_id: 1, alarm: 77 }));
    assert_eq!(machine.state.alarms().count(), 1, "an alarm of no known kind is not raised");
}
