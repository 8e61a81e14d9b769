//! Who may run a trigger, and whether: the leader's assignments, halting one trigger, and when a task last ran.

use kvasir_api::Error;
use kvasir_api::command::plugin_control::Action as PluginAction;
use kvasir_api::command::trigger_control::Action;
use kvasir_api::command::{Assign, Command, PluginControl, TaskDone, TriggerControl, command::Body};

use super::harness::*;
use crate::{Reply, TriggerRecord, TriggerState};

fn trigger<'a>(machine: &'a Machine, id: &str) -> &'a TriggerRecord {
    machine.state.trigger("p", id, 0).unwrap()
}

fn control(machine: &mut Machine, id: &str, action: Action, expect_epoch: u64) -> Reply {
    machine.run(Body::TriggerControl(TriggerControl {
        plugin: "p".into(),
        trigger: id.into(),
        partition: 0,
        action: action.into(),
        reason: "an event that cannot be handled".into(),
        expect_epoch,
    }))
}

#[test]
fn an_assignment_by_a_leader_of_another_term_is_refused() {
    let mut machine = Machine::new();
    machine.install("p", 0);
    machine.term = 7;
    let assign = |machine: &mut Machine, term| {
        let expect_epoch = trigger(machine, "w").owner_epoch;
        let assign = Assign { plugin: "p".into(), trigger: "w".into(), partition: 0, node: 42, expect_epoch };
        machine.apply(Command { term, ..machine.command(Body::Assign(assign)) })
    };
    for other in [6, 8] {
        assert_eq!(error_of(assign(&mut machine, other)), Error::NotLeader);
        assert_eq!(trigger(&machine, "w").owner_node, 0);
    }
    assert!(matches!(assign(&mut machine, 7), Reply::Assign { .. }));
    assert_eq!(trigger(&machine, "w").owner_node, 42);
    machine.assert_restorable();
}

#[test]
fn one_trigger_is_halted_and_let_go_on_under_a_fresh_epoch_each_time() {
    let mut machine = Machine::new();
    machine.install("p", 0);
    let before = trigger(&machine, "w").owner_epoch;
    assert!(matches!(error_of(control(&mut machine, "w", Action::Halt, before + 99)), Error::Precondition(_)));
    let Reply::TriggerControl { owner_epoch, .. } = control(&mut machine, "w", Action::Halt, before) else { panic!() };
    assert!(owner_epoch > before && machine.last.registry_changed);
    let halted = trigger(&machine, "w");
    assert_eq!((halted.state, halted.reason.as_str()), (TriggerState::Halted, "an event that cannot be handled"));
    assert_eq!(trigger(&machine, "s").state, TriggerState::Active, "the other trigger goes on");
    machine.assert_restorable();
    assert!(matches!(control(&mut machine, "w", Action::Resume, 0), Reply::TriggerControl { .. }));
    assert_eq!((trigger(&machine, "w").state, trigger(&machine, "w").reason.as_str()), (TriggerState::Active, ""));
    // A schedule is halted as well, and resuming the plugin resumes all of it.
    control(&mut machine, "s", Action::Halt, 0);
    assert_eq!(trigger(&machine, "s").state, TriggerState::Halted);
    machine.assert_restorable();
    let resume = PluginControl { name: "p".into(), action: PluginAction::Resume.into(), ..PluginControl::default() };
    machine.run(Body::PluginControl(resume));
    assert_eq!(trigger(&machine, "s").state, TriggerState::Active);
    assert!(matches!(error_of(control(&mut machine, "w", Action::Unspecified, 0)), Error::Invalid(_)));
    assert!(matches!(error_of(control(&mut machine, "nope", Action::Halt, 0)), Error::Missing(_)));
}

#[test]
fn a_halted_trigger_that_is_lost_to_a_compaction_stays_halted_and_resyncs_once_it_is_let_go_on() {
    let mut machine = Machine::new();
    machine.hold(|hold| hold.revisions_max = 2);
    machine.install("p", 0);
    control(&mut machine, "w", Action::Halt, 0);
    for _ in 0..6 {
        machine.put("x", "v");
    }
    machine.compact(6).unwrap();
    assert_eq!(trigger(&machine, "w").state, TriggerState::HaltedLost);
    assert_eq!(machine.state.retention_floor(), 6, "it holds nothing back any more");
    machine.trim();
    machine.assert_restorable();
    control(&mut machine, "w", Action::Resume, 0);
    assert_eq!(trigger(&machine, "w").state, TriggerState::Lost);
    machine.assert_restorable();
}

#[test]
fn a_tasks_last_run_is_kept_and_an_owner_of_another_epoch_cannot_note_one() {
    let mut machine = Machine::new();
    machine.install("p", 0);
    let done = |machine: &mut Machine, id: &str, owner_epoch, started_wall_ms| {
        let (plugin, trigger) = ("p".into(), id.into());
        machine.run(Body::TaskDone(TaskDone { plugin, trigger, partition: 0, owner_epoch, started_wall_ms }));
    };
    let epoch = trigger(&machine, "s").owner_epoch;
    done(&mut machine, "s", epoch, 1_234);
    done(&mut machine, "s", epoch + 1, 5_678);
    assert_eq!(trigger(&machine, "s").last_run_wall_ms, 1_234);
    assert!(!machine.last.registry_changed);
    let watch = trigger(&machine, "w").owner_epoch;
    done(&mut machine, "w", watch, 1);
    assert_eq!(trigger(&machine, "w").last_run_wall_ms, 0, "only a schedule has one");
    machine.assert_restorable();
    // An upgrade keeps it.
    machine.install("p", 0);
    assert_eq!(trigger(&machine, "s").last_run_wall_ms, 1_234);
}
