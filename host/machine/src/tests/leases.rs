//! Leases, in cluster time.

use kvasir_api::command::{Alarm, Command, LeaseGrant, LeaseRenew, Origin, Tick, command::Body};
use kvasir_api::{Error, limits};

use super::harness::*;
use crate::{Reply, Rev};

#[test]
fn a_short_ttl_is_raised_and_a_long_one_refused() {
    let mut machine = Machine::new();
    assert!(matches!(machine.grant(1, 1), Reply::LeaseGrant { id: 1, ttl_s: 2, .. }));
    assert!(matches!(machine.grant(2, -5), Reply::LeaseGrant { ttl_s: 2, .. }));
    assert!(matches!(machine.grant(3, limits::LEASE_TTL_MAX_S), Reply::LeaseGrant { .. }));
    assert_eq!(error_of(machine.grant(4, limits::LEASE_TTL_MAX_S + 1)), Error::LeaseTtlTooLarge);
    assert_eq!(error_of(machine.grant(1, 10)), Error::LeaseExists);
    assert_eq!(error_of(machine.grant(0, 10)), Error::LeaseNotFound);
    assert_eq!(machine.state.revision(), 1, "leases bump no revision");
    assert!(matches!(machine.grant(-7, 10), Reply::LeaseGrant { .. }), "etcd takes any id but 0");
    machine.assert_restorable();
}

#[test]
fn cluster_time_never_goes_back_and_wall_time_may() {
    let mut machine = Machine::new();
    let stamp = |machine: &mut Machine, cluster_ms, wall_ms| {
        let mut command = machine.command(Body::Tick(Tick {}));
        command.stamp = Some(kvasir_api::command::Stamp { cluster_ms, wall_ms });
        machine.apply(command);
        (machine.state.cluster_ms(), machine.state.wall_ms())
    };
    assert_eq!(stamp(&mut machine, 100, 1_000), (100, 1_000));
    assert_eq!(stamp(&mut machine, 50, 900), (100, 900));
    assert_eq!(stamp(&mut machine, 101, 0), (101, 900));
}

#[test]
fn revoking_deletes_the_keys_in_order_in_one_revision() {
    let mut machine = Machine::new();
    machine.grant(1, 10);
    for key in ["c", "a", "b"] {
        machine.put_leased(key, 1);
    }
    machine.put("d", "stays");
    let Reply::LeaseRevoke { revision, revoked } = machine.revoke(&[1], 0) else { panic!() };
    assert_eq!((revision, revoked), (6, vec![1]));
    let revs: Vec<_> = machine.last.changes.iter().map(|change| (change.row.key.clone(), change.row.rev)).collect();
    assert_eq!(revs, [(bytes("a"), Rev::new(6, 0)), (bytes("b"), Rev::new(6, 1)), (bytes("c"), Rev::new(6, 2))]);
    assert!(machine.state.lease(1).is_none());
    assert_eq!(keys(&machine.range(everything()).unwrap()), ["d"]);
    machine.assert_restorable();
}

#[test]
fn revoking_a_lease_without_keys_does_not_bump_the_revision() {
    let mut machine = Machine::new();
    machine.grant(1, 10);
    assert_eq!(machine.revoke(&[1], 0).revision(), 1);
    assert_eq!(error_of(machine.revoke(&[1], 0)), Error::LeaseNotFound);
}

#[test]
fn many_leases_in_one_entry_have_a_revision_each() {
    let mut machine = Machine::new();
    for id in 1..=3 {
        machine.grant(id, 2);
        machine.put_leased(&format!("k{id}"), id);
    }
    machine.grant(4, 2);
    machine.cluster_ms = 2_000;
    let Reply::LeaseRevoke { revision, revoked } = machine.revoke(&[3, 9, 1, 4, 2, 1], 1) else { panic!() };
    assert_eq!((revision, revoked), (7, vec![3, 1, 4, 2]));
    machine.assert_restorable();
}

#[test]
fn a_put_without_the_lease_detaches_and_another_lease_takes_over() {
    let mut machine = Machine::new();
    machine.grant(1, 10);
    machine.grant(2, 10);
    machine.put_leased("a", 1);
    machine.put_leased("b", 1);
    assert_eq!(machine.state.lease(1).unwrap().keys.len(), 2);
    machine.put("a", "free");
    machine.put_leased("b", 2);
    assert!(machine.state.lease(1).unwrap().keys.is_empty());
    machine.revoke(&[1], 0);
    assert_eq!(machine.state.live_keys(0), 2);
    machine.delete("b", "");
    assert!(machine.state.lease(2).unwrap().keys.is_empty());
    assert_eq!(error_of(machine.put_leased("c", 1)), Error::LeaseNotFound);
    machine.assert_restorable();
}

#[test]
fn an_expiry_never_comes_early() {
    let mut machine = Machine::new();
    machine.cluster_ms = 1_000;
    machine.grant(1, 5);
    machine.put_leased("a", 1);
    assert_eq!(machine.state.lease(1).unwrap().deadline_ms, 6_000);
    assert_eq!(machine.state.next_deadline_ms(), Some(6_000));
    machine.cluster_ms = 5_999;
    assert!(machine.state.expired(5_999, 10).is_empty());
    assert!(matches!(machine.revoke(&[1], 1), Reply::LeaseRevoke { revoked, .. } if revoked.is_empty()));
    assert!(machine.get("a").is_some());
    machine.cluster_ms = 6_000;
    assert_eq!(machine.state.expired(6_000, 10), [1]);
    assert!(matches!(machine.revoke(&[1], 1), Reply::LeaseRevoke { revoked, .. } if revoked == [1]));
    assert!(machine.get("a").is_none());
}

#[test]
fn an_expiry_of_another_term_is_refused() {
    let mut machine = Machine::new();
    machine.grant(1, 2);
    machine.cluster_ms = 60_000;
    machine.term = 5;
    for stale in [4, 6] {
        assert!(matches!(machine.revoke(&[1], stale), Reply::LeaseRevoke { revoked, .. } if revoked.is_empty()));
    }
    assert!(machine.state.lease(1).is_some());
    assert!(matches!(machine.revoke(&[1], 5), Reply::LeaseRevoke { revoked, .. } if revoked == [1]));
}

#[test]
fn a_renewal_moves_the_deadline_even_of_a_lease_that_is_due() {
    let mut machine = Machine::new();
    machine.grant(1, 5);
    machine.cluster_ms = 7_000;
    let reply = machine.run(Body::LeaseRenew(LeaseRenew { ids: vec![1, 2], slack_ms: 0 }));
    assert!(matches!(reply, Reply::LeaseRenew { leases, .. } if leases == [(1, 5), (2, 0)]));
    assert_eq!(machine.state.lease(1).unwrap().deadline_ms, 12_000);
    assert!(matches!(machine.revoke(&[1], 1), Reply::LeaseRevoke { revoked, .. } if revoked.is_empty()));
    machine.assert_restorable();
}

#[test]
fn expiry_is_bounded_by_keys_but_takes_one_lease_whole() {
    let mut machine = Machine::new();
    machine.grant(1, 2);
    machine.grant(2, 2);
    for n in 0..limits::LEASE_REVOKE_KEYS_MAX + 1 {
        machine.put_leased(&format!("{n:06}"), 1);
    }
    machine.put_leased("x", 2);
    machine.cluster_ms = 2_000;
    assert_eq!(machine.state.expired(2_000, 10), [1]);
    assert!(matches!(machine.revoke(&[1, 2], 1), Reply::LeaseRevoke { revoked, .. } if revoked == [1]));
    assert_eq!(machine.state.expired(2_000, 10), [2]);
    assert_eq!(machine.state.live_keys(0), 1);
}

#[test]
fn a_lease_belongs_to_its_tenant() {
    let mut machine = Machine::new();
    machine.grant(1, 10);
    let mut command = machine.command(Body::Put(kvasir_api::etcdserverpb::PutRequest { lease: 1, ..put_request("a", "") }));
    command.tenant = 7;
    assert_eq!(error_of(machine.apply(command)), Error::LeaseNotFound);
    let revoke = kvasir_api::command::LeaseRevoke { ids: vec![1], expiry_term: 0 };
    let mut command = machine.command(Body::LeaseRevoke(revoke));
    command.tenant = 7;
    assert_eq!(error_of(machine.apply(command)), Error::LeaseNotFound);
    assert_eq!(machine.state.lease(1).unwrap().tenant, 0);
}

#[test]
fn a_grant_is_refused_while_there_is_no_space_and_a_revoke_is_not() {
    let mut machine = Machine::new();
    machine.grant(1, 10);
    let alarm = Alarm { activate: true, member_id: 3, alarm: AlarmType::Nospace as i32 };
    machine.run(Body::Alarm(alarm));
    assert_eq!(error_of(machine.grant(2, 10)), Error::NoSpace);
    assert!(matches!(machine.revoke(&[1], 0), Reply::LeaseRevoke { .. }));
}

#[test]
fn slack_moves_the_deadline_and_not_the_ttl_and_is_bounded() {
    let mut machine = Machine::new();
    let grant = |machine: &mut Machine, id, slack_ms| machine.run(Body::LeaseGrant(LeaseGrant { id, ttl_s: 5, slack_ms }));
    assert!(matches!(grant(&mut machine, 1, 250), Reply::LeaseGrant { ttl_s: 5, .. }));
    grant(&mut machine, 2, u64::MAX);
    let deadline = |machine: &Machine, id| machine.state.lease(id).unwrap().deadline_ms;
    assert_eq!((deadline(&machine, 1), deadline(&machine, 2)), (5_250, 5_000 + limits::LEASE_SLACK_MS_MAX));
    machine.cluster_ms = 1_000;
    let reply = machine.run(Body::LeaseRenew(LeaseRenew { ids: vec![1], slack_ms: 500 }));
    assert!(matches!(reply, Reply::LeaseRenew { leases, .. } if leases == [(1, 5)]));
    assert_eq!(deadline(&machine, 1), 6_500);
    machine.assert_restorable();
}

#[test]
fn a_lease_knows_the_plugin_it_was_granted_to_and_a_plugin_holds_so_many() {
    let mut machine = Machine::new();
    let grant = |machine: &mut Machine, plugin: &str, id| {
        let origin = Some(Origin { plugin: plugin.to_owned(), depth: 1 });
        let body = Body::LeaseGrant(LeaseGrant { id, ttl_s: 5, slack_ms: 0 });
        machine.apply(Command { origin, ..machine.command(body) })
    };
    machine.grant(1, 5);
    grant(&mut machine, "p", 2);
    grant(&mut machine, "no name of a plugin", 3);
    let plugin = |machine: &Machine, id| machine.state.lease(id).unwrap().plugin.map(str::to_owned);
    assert_eq!([1, 2, 3].map(|id| plugin(&machine, id)), [None, Some("p".to_owned()), None]);
    machine.assert_restorable();
    for nth in 1..limits::LEASES_PER_PLUGIN_MAX as i64 {
        assert!(matches!(grant(&mut machine, "p", 100 + nth), Reply::LeaseGrant { .. }));
    }
    assert!(matches!(error_of(grant(&mut machine, "p", 99)), Error::Exhausted(_)));
    assert!(matches!(grant(&mut machine, "q", 99), Reply::LeaseGrant { .. }), "another plugin has its own");
    machine.revoke(&[2], 0);
    assert_eq!(machine.state.leases_of("p"), limits::LEASES_PER_PLUGIN_MAX - 1);
    assert!(matches!(grant(&mut machine, "p", 2), Reply::LeaseGrant { .. }));
    assert_eq!(machine.restored().leases_of("p"), limits::LEASES_PER_PLUGIN_MAX);
}
