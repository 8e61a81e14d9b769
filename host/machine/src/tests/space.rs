//! Quotas and alarms.

use kvasir_api::Error;
use kvasir_api::command::{Alarm, Command, QuotaSet, command::Body};
use kvasir_api::etcdserverpb::compare::{CompareResult, TargetUnion};

use super::harness::*;
use crate::Reply;

fn quota(machine: &mut Machine, bytes: u64, of_tenant: bool) {
    machine.run(Body::QuotaSet(QuotaSet { bytes, of_tenant }));
}

/// Raises or lifts NOSPACE; the alarm that the reply has.
fn alarm(machine: &mut Machine, activate: bool, member_id: u64) -> Option<(u64, i32)> {
    match machine.run(Body::Alarm(Alarm { activate, member_id, alarm: AlarmType::Nospace as i32 })) {
        Reply::Alarm { alarm, .. } => alarm,
        other => panic!("{other:?}"),
    }
}

fn disarm(machine: &mut Machine, member_id: u64) -> Option<(u64, i32)> {
    alarm(machine, false, member_id)
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
    let raised: Vec<_> = machine.state.alarms().collect();
    assert_eq!(raised, [(LEADER, AlarmType::Nospace)], "in the name of the leader that proposed it");
    machine.assert_restorable();
    // Even a write that would fit is refused now.
    assert_eq!(error_of(machine.run(put("a", ""))), Error::NoSpace);
    assert_eq!(machine.delete("b", ""), 1);
    machine.compact(4).unwrap();
    assert!(machine.range(everything()).is_ok());
    assert_eq!(disarm(&mut machine, LEADER), Some((LEADER, AlarmType::Nospace as i32)));
    machine.put("c", "1");
    assert!(machine.get("c").is_some());
    machine.assert_restorable();
}

/// As etcd's `applierV3backend.Alarm`.
#[test]
fn a_reply_has_only_the_alarm_that_was_raised_or_lifted() {
    let mut machine = Machine::new();
    let nospace = AlarmType::Nospace as i32;
    assert_eq!(alarm(&mut machine, true, 1), Some((1, nospace)));
    assert_eq!(alarm(&mut machine, true, 2), Some((2, nospace)));
    assert_eq!(alarm(&mut machine, true, 2), Some((2, nospace)), "raised already");
    assert_eq!(disarm(&mut machine, 1), Some((1, nospace)), "the other that stands is not told");
    assert_eq!(disarm(&mut machine, 1), None);
    let none = Body::Alarm(Alarm { activate: true, member_id: 1, alarm: AlarmType::None as i32 });
    assert!(matches!(machine.run(none), Reply::Alarm { alarm: None, .. }));
    assert_eq!(machine.state.alarms().collect::<Vec<_>>(), [(2, AlarmType::Nospace)]);
}

#[test]
fn a_quota_that_is_exceeded_under_another_leader_raises_no_second_alarm() {
    let mut machine = Machine::new();
    alarm(&mut machine, true, 7);
    quota(&mut machine, 1, false);
    assert_eq!(error_of(machine.run(put("a", ""))), Error::NoSpace);
    assert_eq!(machine.state.alarms().collect::<Vec<_>>(), [(7, AlarmType::Nospace)]);
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
    assert_eq!(disarm(&mut machine, 1), None);
    assert!(machine.state.is_out_of_space(), "another member's alarm stays");
    assert!(disarm(&mut machine, 7).is_some() && !machine.state.is_out_of_space());
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
    machine.grant(1, 10);
    machine.put_leased("leased", 1);
    machine.run(Body::Alarm(Alarm { activate: true, member_id: 1, alarm: AlarmType::Corrupt as i32 }));
    assert_eq!(error_of(machine.run(put("a", ""))), Error::Corrupt);
    assert_eq!(error_of(machine.run(delete("a", ""))), Error::Corrupt);
    assert_eq!(error_of(machine.grant(2, 10)), Error::Corrupt);
    // A revocation deletes keys, whether a client or time asks for it.
    assert_eq!(error_of(machine.revoke(&[1], 0)), Error::Corrupt);
    machine.cluster_ms = 60_000;
    assert_eq!(error_of(machine.revoke(&[1], machine.term)), Error::Corrupt);
    assert!(machine.get("leased").is_some() && machine.state.lease_count() == 1);
    machine.run(Body::Alarm(Alarm { activate: true, member_id: 1, alarm: 77 }));
    assert_eq!(machine.state.alarms().count(), 1, "an alarm of no known kind is not raised");
}
