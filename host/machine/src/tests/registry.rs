//! Plugins and triggers.

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::command::plugin_control::Action;
use kvasir_api::command::{Assign, PluginControl, PluginRemove, PluginSet, command::Body};

use super::harness::*;
use crate::{PluginState, Reply, Rev, TriggerKind, TriggerState};

fn control(machine: &mut Machine, action: Action) -> Reply {
    let request = PluginControl { name: "p".into(), action: action as i32, reason: "because".into(), expect_generation: 0 };
    machine.run(Body::PluginControl(request))
}

fn remove(machine: &mut Machine) -> Reply {
    machine.run(Body::PluginRemove(PluginRemove { name: "p".into() }))
}

fn epoch(machine: &Machine) -> u64 {
    machine.state.trigger("p", "w", 0).unwrap().owner_epoch
}

#[test]
fn a_plugin_is_installed_with_its_triggers_where_they_start() {
    let mut machine = Machine::new();
    machine.put("x", "1");
    machine.install("p", 0);
    assert_eq!(machine.state.revision(), 2, "installing bumps no revision");
    let plugin = machine.state.plugin("p").unwrap();
    assert_eq!(
        (plugin.generation, plugin.state, &plugin.triggers[..]),
        (1, PluginState::Active, &["s".to_owned(), "w".to_owned()][..])
    );
    let watch = machine.state.trigger("p", "w", 0).unwrap();
    assert_eq!((watch.kind, watch.cursor, watch.state), (TriggerKind::Watch, Rev::new(3, 0), TriggerState::Active));
    assert_eq!(machine.state.trigger("p", "s", 0).unwrap().kind, TriggerKind::Schedule);
    assert_eq!(machine.state.triggers().count(), 2);
    assert!(machine.last.registry_changed);
    machine.assert_restorable();
}

#[test]
fn a_trigger_that_starts_below_the_compact_revision_is_lost_from_the_start() {
    let mut machine = Machine::new();
    machine.put("x", "1");
    machine.put("x", "2");
    machine.compact(3).unwrap();
    machine.install("p", 1);
    assert_eq!(machine.state.trigger("p", "w", 0).unwrap().state, TriggerState::Lost);
    machine.install("pp", 3);
    assert_eq!(machine.state.trigger("pp", "w", 0).unwrap().state, TriggerState::Active);
    let digest = machine.upload(9);
    assert_eq!(error_of(machine.run(Body::PluginSet(plugin_set("ppp", digest, 5)))), Error::FutureRevision);
    machine.assert_restorable();
}

#[test]
fn an_upgrade_keeps_cursors_and_takes_new_epochs_and_the_old_component_goes() {
    let mut machine = Machine::new();
    machine.install("p", 0);
    let (cursor, before) = (machine.state.trigger("p", "w", 0).unwrap().cursor, epoch(&machine));
    machine.put("x", "1");
    let digest = machine.upload(50);
    let mut request = plugin_set("p", digest.clone(), 0);
    request.triggers.pop();
    request.triggers[0].range_end = Bytes::from_static(b"/in1");
    machine.run(Body::PluginSet(request));
    let watch = machine.state.trigger("p", "w", 0).unwrap();
    assert_eq!((watch.cursor, &watch.range_end[..]), (cursor, &b"/in1"[..]));
    assert!(watch.owner_epoch > before);
    assert!(machine.state.trigger("p", "s", 0).is_none());
    assert_eq!(machine.state.plugin("p").unwrap().generation, 2);
    assert!(machine.state.blob(&[1; 32]).is_none() && machine.state.blob(&digest).is_some());
    machine.assert_restorable();
}

#[test]
fn what_an_installation_must_have() {
    let mut machine = Machine::new();
    let digest = machine.upload(9);
    let valid = || plugin_set("p", digest.clone(), 0);
    let invalid = |machine: &mut Machine, change: &dyn Fn(&mut PluginSet)| {
        let mut request = valid();
        change(&mut request);
        error_of(machine.run(Body::PluginSet(request)))
    };
    for change in [
        &(|request: &mut PluginSet| request.name = "Not Valid".into()) as &dyn Fn(&mut PluginSet),
        &|request| request.name = String::new(),
        &|request| request.name = "x".repeat(64),
        &|request| request.triggers[0].id = "no/slash".into(),
        &|request| request.triggers[1].id = "w".into(),
        &|request| request.triggers[0].kind = 9,
        &|request| request.triggers[0].key = Bytes::new(),
        &|request| request.manifest = vec![0; 70_000].into(),
        &|request| request.triggers = vec![request.triggers[0].clone(); 17],
        &|request| request.digest = bytes("short"),
    ] {
        assert!(matches!(invalid(&mut machine, change), Error::Invalid(_)));
    }
    assert!(matches!(invalid(&mut machine, &|r| r.digest = vec![77; 32].into()), Error::Precondition(_)));
    assert!(matches!(invalid(&mut machine, &|r| r.expect_generation = 3), Error::Precondition(_)));
    machine.run(Body::PluginSet(valid()));
    assert!(matches!(invalid(&mut machine, &|r| r.exclusive_create = true), Error::Precondition(_)));
    assert_eq!(machine.state.plugin("p").unwrap().generation, 1);
    machine.run(Body::PluginSet(PluginSet { expect_generation: 1, ..valid() }));
    assert_eq!(machine.state.plugin("p").unwrap().generation, 2);
}

#[test]
fn generations_and_epochs_are_never_given_out_twice() {
    let mut machine = Machine::new();
    machine.install("p", 0);
    let (generation, before) = (machine.state.plugin("p").unwrap().generation, epoch(&machine));
    assert!(matches!(remove(&mut machine), Reply::Plugin { .. }));
    assert!(machine.state.plugin("p").is_none() && machine.state.trigger("p", "w", 0).is_none());
    assert!(machine.state.blob(&[1; 32]).is_none());
    machine.assert_restorable();
    machine.install("p", 0);
    assert!(machine.state.plugin("p").unwrap().generation > generation);
    assert!(epoch(&machine) > before);
    remove(&mut machine);
    assert!(matches!(error_of(remove(&mut machine)), Error::Missing(_)));
    assert_eq!(machine.state.blobs.iter().count(), 0);
}

#[test]
fn pausing_and_resuming_end_the_owners_epoch() {
    let mut machine = Machine::new();
    assert!(matches!(error_of(control(&mut machine, Action::Pause)), Error::Missing(_)));
    machine.install("p", 0);
    let mut last = epoch(&machine);
    for (action, state) in [
        (Action::Pause, PluginState::Paused),
        (Action::Resume, PluginState::Active),
        (Action::Quarantine, PluginState::Quarantined),
    ] {
        control(&mut machine, action);
        assert_eq!(machine.state.plugin("p").unwrap().state, state);
        assert_eq!(machine.state.plugin("p").unwrap().reason, "because");
        assert!(epoch(&machine) > last);
        last = epoch(&machine);
    }
    // New code ends a quarantine, not a pause.
    machine.install("p", 0);
    assert_eq!(machine.state.plugin("p").unwrap().state, PluginState::Active);
    control(&mut machine, Action::Pause);
    machine.install("p", 0);
    assert_eq!(machine.state.plugin("p").unwrap().state, PluginState::Paused);
    machine.assert_restorable();
}

#[test]
fn a_quarantine_hits_only_the_generation_it_is_meant_for_and_not_what_is_paused() {
    let mut machine = Machine::new();
    let old = machine.install("p", 0);
    let new = machine.install("p", 0);
    let quarantine = |machine: &mut Machine, expect_generation| {
        let action = Action::Quarantine as i32;
        let (name, reason) = ("p".into(), "crashes".into());
        machine.run(Body::PluginControl(PluginControl { name, action, reason, expect_generation }))
    };
    let state = |machine: &Machine| machine.state.plugin("p").unwrap().state;
    assert!(matches!(error_of(quarantine(&mut machine, old)), Error::Precondition(_)));
    assert_eq!(state(&machine), PluginState::Active, "the new code did not crash");
    control(&mut machine, Action::Pause);
    let before = epoch(&machine);
    assert!(matches!(quarantine(&mut machine, new), Reply::Plugin { generation, .. } if generation == new));
    let plugin = machine.state.plugin("p").unwrap();
    assert_eq!((plugin.state, plugin.reason.as_str(), epoch(&machine)), (PluginState::Paused, "because", before));
    control(&mut machine, Action::Resume);
    quarantine(&mut machine, new);
    assert_eq!(state(&machine), PluginState::Quarantined);
    for action in [Action::Unspecified as i32, 9] {
        let (name, reason) = ("p".into(), String::new());
        let request = PluginControl { name, action, reason, expect_generation: 0 };
        assert!(matches!(error_of(machine.run(Body::PluginControl(request))), Error::Invalid(_)), "{action}");
    }
    assert_eq!(state(&machine), PluginState::Quarantined, "an action that is not given resumes nothing");
    machine.assert_restorable();
}

#[test]
fn an_assignment_takes_over_from_the_epoch_it_names() {
    let mut machine = Machine::new();
    machine.install("p", 0);
    let assign = |machine: &mut Machine, trigger: &str, expect_epoch| {
        let (plugin, trigger) = ("p".into(), trigger.into());
        machine.run(Body::Assign(Assign { plugin, trigger, partition: 0, node: 42, expect_epoch }))
    };
    let before = epoch(&machine);
    let Reply::Assign { owner_epoch, .. } = assign(&mut machine, "w", before) else { panic!() };
    assert!(owner_epoch > before);
    let watch = machine.state.trigger("p", "w", 0).unwrap();
    assert_eq!((watch.owner_node, watch.owner_epoch), (42, owner_epoch));
    assert!(matches!(error_of(assign(&mut machine, "w", before)), Error::Precondition(_)));
    assert!(matches!(error_of(assign(&mut machine, "nope", 0)), Error::Missing(_)));
    machine.assert_restorable();
}
