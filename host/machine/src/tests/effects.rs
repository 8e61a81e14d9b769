//! Effects of plugins: whole or not at all, at most once.

use kvasir_api::command::plugin_control::Action;
use kvasir_api::command::{
    self, Cursor, CursorAdvance, DeadLetter, DeadLetterDrop, EffectTxn, Guard, LockGuard, Origin, PluginControl, PointGuard,
    RangeGuard, command::Body, cursor_advance::Move, guard,
};
use kvasir_api::etcdserverpb::RequestOp;
use kvasir_api::{Error, limits};

use super::harness::*;
use crate::{EffectReply, Rejection, Reply, Rev, Table, TriggerState};

fn at(main: u64, sub: u32) -> Option<Cursor> {
    Some(Cursor { main, sub })
}

/// A machine with plugin `p` watching from revision 2 on, and `/in/a` put at 2.
fn machine() -> Machine {
    let mut machine = Machine::new();
    machine.install("p", 0);
    machine.put("/in/a", "1");
    machine
}

fn effect(machine: &Machine, ops: Vec<RequestOp>) -> EffectTxn {
    EffectTxn {
        plugin: "p".into(),
        trigger: "w".into(),
        partition: 0,
        generation: machine.state.plugin("p").unwrap().generation,
        owner_epoch: machine.state.trigger("p", "w", 0).unwrap().owner_epoch,
        expect_cursor: Some(machine.state.trigger("p", "w", 0).unwrap().cursor.into()),
        new_cursor: at(machine.state.revision() + 1, 0),
        guards: vec![],
        ops,
        dead_letters: vec![],
        sequence: machine.state.trigger("p", "w", 0).unwrap().sequence,
    }
}

fn run(machine: &mut Machine, effect: EffectTxn) -> EffectReply {
    let mut command = machine.command(Body::EffectTxn(effect));
    command.origin = Some(Origin { plugin: "p".into(), depth: 1 });
    let Reply::Effect { reply, .. } = machine.apply(command) else { panic!() };
    reply
}

fn rejected(machine: &mut Machine, effect: EffectTxn) -> Rejection {
    let (revision, cursor) = (machine.state.revision(), machine.state.trigger("p", "w", 0).map(|trigger| trigger.cursor));
    let EffectReply::Rejected { reason } = run(machine, effect) else { panic!("applied") };
    assert_eq!(machine.state.revision(), revision, "a rejected effect changes no key");
    assert!(machine.last.changes.is_empty());
    assert_eq!(machine.state.trigger("p", "w", 0).map(|trigger| trigger.cursor), cursor, "nor the cursor");
    machine.assert_restorable();
    reason
}

fn cursor(machine: &Machine) -> Rev {
    machine.state.trigger("p", "w", 0).unwrap().cursor
}

#[test]
fn writes_and_the_cursor_land_together_in_one_revision() {
    let mut machine = machine();
    let request = effect(&machine, vec![op_put("/out/a", "1"), op_put("/out/b", "2"), op_delete("/out/none", "")]);
    assert_eq!(run(&mut machine, request.clone()), EffectReply::Applied { revision: 3 });
    assert_eq!(cursor(&machine), Rev::new(3, 0));
    assert_eq!(machine.last.changes.len(), 2);
    assert_eq!(machine.last.changes[1].row.rev, Rev::new(3, 1));
    assert_eq!(machine.last.changes[0].row.origin_plugin.as_deref(), Some("p"));
    assert_eq!(machine.last.changes[0].row.origin_depth, 1);
    assert!(!machine.last.registry_changed, "a cursor alone is no change of the registry");
    machine.assert_restorable();
    // The same effect again comes too late, and so does another one of the same batch.
    assert!(matches!(rejected(&mut machine, request.clone()), Rejection::Stale(what) if what.contains("effect")));
    let again = EffectTxn { sequence: 1, ..request };
    assert!(matches!(rejected(&mut machine, again), Rejection::Stale(what) if what.contains("cursor")));
}

#[test]
fn an_effect_without_writes_moves_the_cursor_and_no_revision() {
    let mut machine = machine();
    let request = EffectTxn { new_cursor: at(2, 1), ..effect(&machine, vec![]) };
    assert_eq!(run(&mut machine, request), EffectReply::Applied { revision: 2 });
    assert_eq!(cursor(&machine), Rev::new(2, 1), "part of a revision");
}

#[test]
fn an_effect_of_another_generation_epoch_or_owner_is_stale() {
    let mut machine = machine();
    let fresh = effect(&machine, vec![op_put("/out", "1")]);
    let stale = |machine: &mut Machine, request| matches!(rejected(machine, request), Rejection::Stale(_));
    assert!(stale(&mut machine, EffectTxn { generation: fresh.generation + 1, ..fresh.clone() }));
    assert!(stale(&mut machine, EffectTxn { owner_epoch: fresh.owner_epoch + 1, ..fresh.clone() }));
    assert!(stale(&mut machine, EffectTxn { trigger: "none".into(), ..fresh.clone() }));
    assert!(stale(&mut machine, EffectTxn { partition: 1, ..fresh.clone() }));
    let control = |action: Action| {
        Body::PluginControl(PluginControl {
            name: "p".into(),
            action: action as i32,
            reason: String::new(),
            expect_generation: 0,
        })
    };
    machine.run(control(Action::Pause));
    let while_paused = effect(&machine, vec![]);
    assert!(stale(&mut machine, while_paused), "as fresh as can be, but paused");
    machine.run(control(Action::Resume));
    assert!(stale(&mut machine, fresh), "what began before the pause cannot land after it");
}

#[test]
fn the_cursor_goes_neither_back_nor_past_what_there_is() {
    let mut machine = machine();
    let invalid = |machine: &mut Machine, new_cursor| {
        let request = EffectTxn { new_cursor, ..effect(machine, vec![]) };
        matches!(rejected(machine, request), Rejection::Invalid(_))
    };
    assert!(invalid(&mut machine, at(1, 0)));
    assert!(invalid(&mut machine, at(3, 1)));
    assert!(invalid(&mut machine, at(4, 0)));
    assert!(invalid(&mut machine, None));
    assert!(invalid(&mut machine, at(2, 0)), "what was handled is behind the cursor of a trigger that is not lost");
    let request = effect(&machine, vec![]);
    assert_eq!(run(&mut machine, request), EffectReply::Applied { revision: 2 });
}

#[test]
fn a_point_guard_breaks_on_any_change_of_the_key() {
    let mut machine = machine();
    let guarded = |machine: &Machine, key: &str, mod_revision| EffectTxn {
        guards: vec![Guard { guard: Some(guard::Guard::Point(PointGuard { key: bytes(key), mod_revision })) }],
        ..effect(machine, vec![op_put("/out", "1")])
    };
    for (key, mod_revision) in [("/in/a", 0), ("/in/a", 1), ("none", 2)] {
        let request = guarded(&machine, key, mod_revision);
        assert!(matches!(rejected(&mut machine, request), Rejection::GuardBroken { guard: 0, .. }));
    }
    let mut request = guarded(&machine, "/in/a", 2);
    request.guards.extend(guarded(&machine, "none", 0).guards);
    machine.put("/in/a", "2");
    assert!(matches!(rejected(&mut machine, request.clone()), Rejection::GuardBroken { .. }));
    request.guards.remove(0);
    assert!(matches!(run(&mut machine, request), EffectReply::Applied { .. }));
}

#[test]
fn a_range_guard_breaks_on_a_change_an_addition_and_a_deletion() {
    let mut machine = machine();
    machine.put("/in/b", "1");
    let guarded = |machine: &Machine, count, max_mod_revision| EffectTxn {
        guards: vec![Guard {
            guard: Some(guard::Guard::Range(RangeGuard {
                key: bytes("/in/"),
                range_end: bytes("/in0"),
                count,
                max_mod_revision,
            })),
        }],
        ..effect(machine, vec![])
    };
    for (count, max_mod_revision) in [(1, 3), (3, 3), (2, 2), (2, 4), (0, 0)] {
        let request = guarded(&machine, count, max_mod_revision);
        assert!(matches!(rejected(&mut machine, request), Rejection::GuardBroken { .. }));
    }
    let request = guarded(&machine, 1_000_000, 3);
    assert!(matches!(rejected(&mut machine, request), Rejection::Invalid(_)), "guards are bounded");
    machine.put("outside", "1");
    let request = guarded(&machine, 2, 3);
    assert!(matches!(run(&mut machine, request), EffectReply::Applied { .. }));
    machine.delete("/in/b", "");
    let request = guarded(&machine, 2, 3);
    assert!(matches!(rejected(&mut machine, request), Rejection::GuardBroken { .. }));
    let request = guarded(&machine, 1, 2);
    assert!(matches!(run(&mut machine, request), EffectReply::Applied { .. }));
}

fn task(machine: &Machine, create_revision: u64) -> EffectTxn {
    let lock = LockGuard { key: bytes("lock/1"), create_revision };
    EffectTxn {
        trigger: "s".into(),
        owner_epoch: machine.state.trigger("p", "s", 0).unwrap().owner_epoch,
        sequence: machine.state.trigger("p", "s", 0).unwrap().sequence,
        expect_cursor: None,
        new_cursor: None,
        guards: vec![Guard { guard: Some(guard::Guard::Lock(lock)) }],
        ..effect(machine, vec![op_put("/out", "1")])
    }
}

#[test]
fn a_task_writes_only_while_its_lock_is_held_by_it() {
    let mut machine = machine();
    machine.grant(1, 10);
    machine.put_leased("lock/1", 1);
    let request = task(&machine, 3);
    assert!(matches!(run(&mut machine, request.clone()), EffectReply::Applied { revision: 4 }));
    assert!(matches!(rejected(&mut machine, request), Rejection::Stale(_)), "the same commit again");
    let other = task(&machine, 2);
    assert!(matches!(rejected(&mut machine, other), Rejection::GuardBroken { .. }));
    let unguarded = EffectTxn { guards: vec![], ..task(&machine, 3) };
    assert!(matches!(rejected(&mut machine, unguarded), Rejection::Invalid(_)));
    let with_cursor = EffectTxn { new_cursor: at(2, 0), ..task(&machine, 3) };
    assert!(matches!(rejected(&mut machine, with_cursor), Rejection::Invalid(_)));
    // The lock is lost and taken again: the paused old holder writes nothing.
    machine.revoke(&[1], 0);
    let late = task(&machine, 3);
    assert!(matches!(rejected(&mut machine, late), Rejection::GuardBroken { .. }));
    machine.grant(2, 10);
    machine.put_leased("lock/1", 2);
    let late = task(&machine, 3);
    assert!(matches!(rejected(&mut machine, late), Rejection::GuardBroken { .. }));
    let created = machine.get("lock/1").unwrap().create_revision;
    let request = task(&machine, created);
    assert!(matches!(run(&mut machine, request), EffectReply::Applied { .. }));
    // A lock key without a lease is no lock.
    machine.put("lock/1", "no lease");
    let request = task(&machine, created);
    assert!(matches!(rejected(&mut machine, request), Rejection::GuardBroken { .. }));
}

#[test]
fn locks_do_not_count_among_the_guards_of_reads_and_are_bounded_by_themselves() {
    let mut machine = machine();
    machine.grant(1, 10);
    machine.put_leased("lock/1", 1);
    let read = Guard { guard: Some(guard::Guard::Point(PointGuard { key: bytes("none"), mod_revision: 0 })) };
    let with = |machine: &Machine, reads: usize, locks: usize| {
        let request = task(machine, 3);
        EffectTxn { guards: [vec![read.clone(); reads], vec![request.guards[0].clone(); locks]].concat(), ..request }
    };
    let (reads, locks) = (limits::EFFECT_GUARDS_MAX, limits::EFFECT_LOCK_GUARDS_MAX);
    let request = with(&machine, reads, locks);
    assert!(matches!(run(&mut machine, request), EffectReply::Applied { .. }));
    for (reads, locks) in [(reads + 1, 1), (0, locks + 1)] {
        let request = with(&machine, reads, locks);
        assert!(matches!(rejected(&mut machine, request), Rejection::Invalid(_)));
    }
}

#[test]
fn malformed_effects_are_refused() {
    let mut machine = machine();
    let refused = |machine: &mut Machine, ops| match rejected(machine, effect(machine, ops)) {
        Rejection::Refused(error) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&mut machine, vec![op_put("a", ""), op_put("a", "")]), Error::DuplicateKey);
    assert_eq!(refused(&mut machine, vec![op_put("a", ""), op_delete("a", "b")]), Error::DuplicateKey);
    assert_eq!(refused(&mut machine, vec![op_put("", "")]), Error::EmptyKey);
    let mut leased = op_put("a", "");
    if let Some(kvasir_api::etcdserverpb::request_op::Request::RequestPut(put)) = &mut leased.request {
        put.lease = 9;
    }
    assert_eq!(refused(&mut machine, vec![leased]), Error::LeaseNotFound);
    for op in [op_range("a", ""), op_txn(txn(vec![], vec![], vec![])), RequestOp { request: None }] {
        let request = effect(&machine, vec![op]);
        assert!(matches!(rejected(&mut machine, request), Rejection::Invalid(_)));
    }
    let request = EffectTxn { guards: vec![Guard { guard: None }], ..effect(&machine, vec![]) };
    assert!(matches!(rejected(&mut machine, request), Rejection::Invalid(_)));
}

#[test]
fn what_an_effect_deletes_is_bounded_as_a_transaction_is() {
    let mut machine = machine();
    for n in 0..64 {
        machine.put(&format!("k{n:02}"), "");
    }
    let all = vec![op_delete("k", "l"); limits::EFFECT_OPS_MAX];
    let request = effect(&machine, all[..limits::EFFECT_OPS_MAX - 1].to_vec());
    let request = EffectTxn { ops: [request.ops, vec![op_delete("/in/a", "")]].concat(), ..request };
    machine.put("k64", "");
    assert!(matches!(rejected(&mut machine, request), Rejection::Refused(Error::Exhausted(_))));
    machine.delete("k64", "");
    machine.delete("k63", "");
    let request = effect(&machine, all);
    assert!(matches!(run(&mut machine, request), EffectReply::Applied { .. }));
}

#[test]
fn the_writer_must_be_the_plugin_and_not_too_deep() {
    let mut machine = machine();
    for (plugin, depth, deep) in [("other", 1, false), ("", 0, false), ("p", 9, true)] {
        let mut command = machine.command(Body::EffectTxn(effect(&machine, vec![op_put("a", "")])));
        command.origin = Some(Origin { plugin: plugin.into(), depth });
        let Reply::Effect { reply: EffectReply::Rejected { reason }, .. } = machine.apply(command) else { panic!() };
        assert_eq!(matches!(reason, Rejection::TooDeep), deep);
        assert_eq!(matches!(reason, Rejection::Invalid(_)), !deep);
    }
}

#[test]
fn an_effect_that_does_not_fit_raises_the_alarm_and_keeps_the_cursor() {
    let mut machine = machine();
    let quota = machine.state.logical_bytes() + 10;
    machine.run(Body::QuotaSet(command::QuotaSet { bytes: quota, of_tenant: false }));
    let request = effect(&machine, vec![op_put("/out", "1")]);
    assert!(matches!(rejected(&mut machine, request), Rejection::Refused(Error::NoSpace)));
    assert_eq!(machine.state.alarms().count(), 1);
    let request = effect(&machine, vec![op_delete("/in/a", "")]);
    assert!(matches!(run(&mut machine, request), EffectReply::Applied { .. }), "deletes go on");
}

fn letter(main: u64, sub: u32) -> DeadLetter {
    DeadLetter { at: at(main, sub), key: bytes("/in/a"), error: "no".into(), attempts: 6 }
}

#[test]
fn a_parked_event_is_a_system_row_without_revision_or_event() {
    let mut machine = machine();
    let request = EffectTxn { dead_letters: vec![letter(2, 0)], ..effect(&machine, vec![]) };
    assert_eq!(run(&mut machine, request), EffectReply::Applied { revision: 2 });
    assert!(machine.last.changes.is_empty());
    let key = (Table::DeadLetter, crate::table::dead_letter_key("p", "w", 0, Rev::new(2, 0)).into());
    let record = crate::DeadLetterRecord::decode(&machine.tables[&key]).unwrap();
    assert_eq!((record.error.as_str(), record.attempts), ("no", 6));
    assert_eq!(machine.state.trigger("p", "w", 0).unwrap().dead_letters, 1);
    machine.assert_restorable();
    let drop = |at| Body::DeadLetterDrop(DeadLetterDrop { plugin: "p".into(), trigger: "w".into(), partition: 0, at });
    assert!(matches!(machine.run(drop(vec![Cursor { main: 9, sub: 9 }])), Reply::DeadLetterDrop { dropped: 0, .. }));
    assert!(matches!(machine.run(drop(vec![])), Reply::DeadLetterDrop { dropped: 1, .. }));
    assert!(!machine.tables.contains_key(&key));
    machine.assert_restorable();
}

#[test]
fn events_outside_of_the_batch_or_twice_are_not_parked() {
    let mut machine = machine();
    for letters in [vec![letter(1, 0)], vec![letter(3, 0)], vec![letter(2, 0), letter(2, 0)], vec![letter(2, 1), letter(2, 0)]]
    {
        let request = EffectTxn { dead_letters: letters, ..effect(&machine, vec![]) };
        assert!(matches!(rejected(&mut machine, request), Rejection::Invalid(_)));
    }
}

#[test]
fn full_dead_letters_halt_the_trigger_until_it_is_resumed() {
    let mut machine = machine();
    let full = (0..1_000).map(|sub| letter(2, sub)).collect();
    let request = EffectTxn { new_cursor: at(2, 1_000), dead_letters: full, ..effect(&machine, vec![]) };
    assert!(matches!(run(&mut machine, request), EffectReply::Applied { .. }));
    let one_more = |machine: &Machine| EffectTxn { dead_letters: vec![letter(2, 1_000)], ..effect(machine, vec![]) };
    let request = one_more(&machine);
    assert_eq!(rejected(&mut machine, request.clone()), Rejection::Halted);
    assert!(machine.last.registry_changed);
    assert_eq!(machine.state.trigger("p", "w", 0).unwrap().state, TriggerState::Halted);
    let request = effect(&machine, vec![]);
    assert!(matches!(rejected(&mut machine, request), Rejection::Stale(_)));
    let drop = DeadLetterDrop { plugin: "p".into(), trigger: "w".into(), partition: 0, at: vec![] };
    machine.run(Body::DeadLetterDrop(drop));
    let resume = PluginControl { name: "p".into(), action: Action::Resume as i32, reason: String::new(), expect_generation: 0 };
    machine.run(Body::PluginControl(resume));
    let request = one_more(&machine);
    assert!(matches!(run(&mut machine, request), EffectReply::Applied { .. }));
    machine.assert_restorable();
}

#[test]
fn removing_a_plugin_takes_its_dead_letters_with_it() {
    let mut machine = machine();
    let request = EffectTxn { dead_letters: vec![letter(2, 0)], ..effect(&machine, vec![]) };
    run(&mut machine, request);
    machine.run(Body::PluginRemove(command::PluginRemove { name: "p".into() }));
    assert!(machine.tables.keys().all(|(table, _)| *table != Table::DeadLetter));
    assert_eq!(machine.state.registry.dead_letter_bytes, 0);
    machine.assert_restorable();
}

#[test]
fn a_lost_trigger_is_active_again_once_its_cursor_is_past_the_compaction() {
    let mut machine = machine();
    machine.hold(|hold| hold.revisions_max = 1);
    for _ in 0..5 {
        machine.put("x", "v");
    }
    let before = effect(&machine, vec![]);
    machine.compact(7).unwrap();
    assert!(matches!(rejected(&mut machine, before), Rejection::Stale(_)), "it may have read what is gone");
    let part = EffectTxn { new_cursor: at(2, 0), ..effect(&machine, vec![op_put("/out/page1", "")]) };
    assert!(matches!(run(&mut machine, part.clone()), EffectReply::Applied { .. }), "a page of the resync");
    // The cursor is where it was, and still the same page does not land twice.
    assert!(matches!(rejected(&mut machine, part), Rejection::Stale(what) if what.contains("effect")));
    assert_eq!(machine.state.trigger("p", "w", 0).unwrap().state, TriggerState::Lost);
    let parks = EffectTxn { new_cursor: at(7, 0), dead_letters: vec![letter(2, 0)], ..effect(&machine, vec![]) };
    assert!(matches!(rejected(&mut machine, parks), Rejection::Invalid(_)));
    let last = EffectTxn { new_cursor: at(7, 0), ..effect(&machine, vec![op_put("/out/page2", "")]) };
    assert!(matches!(run(&mut machine, last), EffectReply::Applied { .. }));
    assert_eq!(machine.state.trigger("p", "w", 0).unwrap().state, TriggerState::Active);
    assert!(machine.last.registry_changed);
    machine.trim();
    machine.assert_restorable();
}

#[test]
fn idle_cursors_advance_together_and_stale_ones_are_left_alone() {
    let mut machine = machine();
    machine.install("pp", 0);
    let step = |machine: &Machine, plugin: &str, expect, to| Move {
        plugin: plugin.into(),
        trigger: "w".into(),
        partition: 0,
        owner_epoch: machine.state.trigger(plugin, "w", 0).map_or(0, |trigger| trigger.owner_epoch),
        expect,
        to,
    };
    let moves = vec![
        step(&machine, "p", at(2, 0), at(3, 0)),
        step(&machine, "pp", at(2, 0), at(3, 0)),
        step(&machine, "pp", at(3, 0), at(4, 0)),
        step(&machine, "none", at(3, 0), at(4, 0)),
        Move { owner_epoch: 0, ..step(&machine, "p", at(3, 0), at(3, 0)) },
        step(&machine, "p", None, at(3, 0)),
    ];
    let reply = machine.run(Body::CursorAdvance(CursorAdvance { moves }));
    assert!(matches!(reply, Reply::CursorAdvance { moved: 1, .. }));
    assert_eq!(cursor(&machine), Rev::new(3, 0));
    assert!(!machine.last.registry_changed);
    machine.assert_restorable();
}
