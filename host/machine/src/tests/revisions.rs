//! Revisions: what bumps them, and what keys remember of them.

use kvasir_api::Error;
use kvasir_api::command::{Origin, command::Body};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp};

use super::harness::*;
use crate::{Reply, Rev};

#[test]
fn the_empty_store_is_at_revision_one_and_the_first_put_makes_two() {
    let mut machine = Machine::new();
    assert_eq!(machine.state.revision(), 1);
    assert_eq!(machine.range(everything()).unwrap().revision, 1);
    assert_eq!(machine.put("a", "1"), 2);
    assert_eq!(machine.state.compact_revision(), 0);
}

#[test]
fn create_revision_and_version_follow_a_keys_generations() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    machine.put("a", "2");
    let item = machine.get("a").unwrap();
    assert_eq!((item.create_revision, item.mod_revision, item.version), (2, Rev::new(3, 0), 2));
    assert_eq!(machine.delete("a", ""), 1);
    assert!(machine.get("a").is_none());
    machine.put("a", "3");
    let item = machine.get("a").unwrap();
    assert_eq!((item.create_revision, item.mod_revision, item.version), (5, Rev::new(5, 0), 1));
    machine.assert_restorable();
}

#[test]
fn a_delete_that_finds_nothing_does_not_bump_the_revision() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    let reply = machine.run(delete("b", ""));
    assert!(matches!(&reply, Reply::DeleteRange(reply) if reply.deleted == 0 && reply.revision == 2));
    assert_eq!(machine.state.revision(), 2);
    assert!(machine.last.changes.is_empty());
}

#[test]
fn a_range_delete_is_one_revision_with_sub_revisions_in_order_of_key() {
    let mut machine = Machine::new();
    for key in ["c", "a", "b", "d"] {
        machine.put(key, "v");
    }
    let request = DeleteRangeRequest { key: bytes("a"), range_end: bytes("d"), prev_kv: true };
    let Reply::DeleteRange(reply) = machine.run(Body::DeleteRange(request)) else { panic!() };
    assert_eq!((reply.revision, reply.deleted, reply.prevs.len()), (6, 3, 3));
    let revs: Vec<_> = machine.last.changes.iter().map(|change| (change.row.key.clone(), change.row.rev)).collect();
    assert_eq!(revs, [(bytes("a"), Rev::new(6, 0)), (bytes("b"), Rev::new(6, 1)), (bytes("c"), Rev::new(6, 2))]);
    assert!(machine.last.changes.iter().all(|change| change.row.tombstone && change.row.lease == 0));
    assert_eq!(machine.state.live_keys(0), 1);
}

#[test]
fn a_put_that_ignores_value_or_lease_keeps_it_and_needs_the_key() {
    let mut machine = Machine::new();
    machine.grant(7, 10);
    let keep_value = |lease| PutRequest { lease, ignore_value: true, ..put_request("a", "") };
    assert_eq!(error_of(machine.run(Body::Put(keep_value(0)))), Error::KeyNotFound);
    machine.put_leased("a", 7);
    machine.run(Body::Put(PutRequest { ignore_lease: true, ..put_request("a", "new") }));
    assert_eq!((machine.get("a").unwrap().lease, machine.get("a").unwrap().value()), (7, bytes("new")));
    machine.run(Body::Put(keep_value(0)));
    assert_eq!((machine.get("a").unwrap().lease, machine.get("a").unwrap().value()), (0, bytes("new")));
    let both = PutRequest { ignore_value: true, ..put_request("a", "given") };
    assert_eq!(error_of(machine.run(Body::Put(both))), Error::ValueProvided);
    let both = PutRequest { ignore_lease: true, lease: 7, ..put_request("a", "v") };
    assert_eq!(error_of(machine.run(Body::Put(both))), Error::LeaseProvided);
    assert_eq!(error_of(machine.run(put("", "v"))), Error::EmptyKey);
    assert_eq!(error_of(machine.run(delete("", ""))), Error::EmptyKey);
    machine.assert_restorable();
}

#[test]
fn a_put_tells_the_version_it_replaced_only_when_asked() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    let request = PutRequest { prev_kv: true, ..put_request("a", "2") };
    let Reply::Put(reply) = machine.run(Body::Put(request)) else { panic!() };
    assert_eq!(reply.prev.unwrap().value(), bytes("1"));
    let Reply::Put(reply) = machine.run(put("a", "3")) else { panic!() };
    assert_eq!(reply.prev, None);
}

#[test]
fn tenants_do_not_see_each_others_keys() {
    let mut machine = Machine::new();
    machine.put("a", "mine");
    let mut command = machine.command(put("a", "theirs"));
    command.tenant = 9;
    machine.apply(command);
    assert_eq!(machine.get("a").unwrap().value(), bytes("mine"));
    assert_eq!(machine.state.range(9, &everything()).unwrap().items[0].value(), bytes("theirs"));
    let mut command = machine.command(delete("\0", "\0"));
    command.tenant = 9;
    machine.apply(command);
    assert!(machine.get("a").is_some());
    machine.assert_restorable();
}

#[test]
fn a_plugins_writes_carry_their_origin_and_too_deep_ones_are_refused() {
    let mut machine = Machine::new();
    let mut command = machine.command(put("a", "1"));
    command.origin = Some(Origin { plugin: "p".into(), depth: 8 });
    machine.apply(command.clone());
    assert_eq!(machine.last.changes[0].row.origin_plugin.as_deref(), Some("p"));
    assert_eq!(machine.last.changes[0].row.origin_depth, 8);
    command.origin = Some(Origin { plugin: "p".into(), depth: 9 });
    assert!(matches!(error_of(machine.apply(command)), Error::Exhausted(_)));
    machine.assert_restorable();
}

#[test]
fn a_command_of_a_later_version_is_told_apart_before_apply() {
    let machine = Machine::new();
    let mut command = machine.command(put("a", "1"));
    assert!(crate::check_version(&command).is_ok());
    command.version = crate::COMMAND_VERSION + 1;
    let error = crate::check_version(&command).unwrap_err();
    assert!(error.to_string().contains("version 2"));
    command.version = 1;
    command.body = None;
    assert!(crate::check_version(&command).is_err());
}

#[test]
fn a_batch_has_one_row_of_scalars() {
    let mut state = crate::State::new();
    let mut effects = crate::Effects::default();
    let machine = Machine::new();
    for index in 1..=5 {
        let entry = crate::EntryId { index, term: 1, leader: LEADER };
        state.apply(entry, &machine.command(put("a", "1")), true, &mut effects);
    }
    let tables = effects.take_tables();
    assert_eq!((effects.changes.len(), tables.len()), (5, 1));
    assert_eq!(tables[0].key, &b"state"[..]);
    assert_eq!(tables[0].value.as_deref(), Some(&state.meta.encode()[..]), "as they are after the last command");
}

#[test]
fn small_values_do_not_pin_the_frame_they_came_in_and_large_ones_are_not_copied() {
    let mut machine = Machine::new();
    let frame = bytes::Bytes::from(vec![1; 100_000]);
    let request = |value| PutRequest { key: bytes("a"), value, ..Default::default() };
    machine.run(Body::Put(request(frame.slice(0..100))));
    assert_ne!(machine.last.changes[0].row.value.as_ptr(), frame.as_ptr());
    machine.run(Body::Put(request(frame.slice(..))));
    assert_eq!(machine.last.changes[0].row.value.as_ptr(), frame.as_ptr());
}

/// A transaction's values share its bytes: one of them that is kept would keep all.
#[test]
fn a_value_that_is_a_small_part_of_its_command_is_copied_and_a_large_part_is_not() {
    let mut machine = Machine::new();
    let frame = bytes::Bytes::from(vec![1; 100_000]);
    let put = |key: &str, value| {
        let put = PutRequest { key: bytes(key), value, ..Default::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    };
    let (small, large) = (frame.slice(..20_000), frame.slice(20_000..));
    machine.txn(txn(vec![], vec![put("a", small.clone()), put("b", large.clone())], vec![])).unwrap();
    let kept: Vec<_> = machine.last.changes.iter().map(|change| change.row.value.as_ptr()).collect();
    assert_ne!(kept[0], small.as_ptr());
    assert_eq!(kept[1], large.as_ptr());
    // A key is copied in any case, so a value beside a large one is, too.
    let key = "k".repeat(50_000);
    machine.run(Body::Put(PutRequest { key: bytes(&key), value: small.clone(), ..Default::default() }));
    assert_ne!(machine.last.changes[0].row.value.as_ptr(), small.as_ptr());
}

#[test]
fn the_cluster_version_rises_and_never_falls_and_a_state_of_one_that_is_not_known_is_refused() {
    use kvasir_api::command::ClusterVersion;
    let mut machine = Machine::new();
    assert_eq!(machine.state.cluster_version(), crate::FIRST_CLUSTER_VERSION);
    for (asked, then) in [(1, 1), (3, 3), (2, 3)] {
        machine.run(Body::ClusterVersion(ClusterVersion { version: asked }));
        assert_eq!(machine.state.cluster_version(), then);
    }
    let row = machine.tables[&(crate::Table::Meta, bytes("version"))].clone();
    // This kvasir does not know version 3, and does not start with it.
    let refused = crate::State::restore().table_row(crate::Table::Meta, b"version", &row).unwrap_err();
    assert!(refused.to_string().contains("version 3 is not known"), "{refused}");
}
