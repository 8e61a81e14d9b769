//! Compaction: at once for clients, later for memory and storage.

use kvasir_api::Error;
use kvasir_api::command::Command;
use kvasir_api::etcdserverpb::RangeRequest;

use super::harness::*;
use crate::mvcc::index::Span;
use crate::{CompactProgress, Rev, TriggerState};

#[test]
fn compacting_refuses_the_past_and_the_future_and_takes_the_present() {
    let mut machine = Machine::new();
    assert_eq!(machine.compact(-1), Err(Error::Compacted));
    assert_eq!(machine.compact(0), Ok(()), "etcd's compact revision is -1 at first");
    assert_eq!(machine.compact(0), Err(Error::Compacted));
    machine.put("a", "1");
    machine.put("a", "2");
    assert_eq!(machine.compact(4), Err(Error::FutureRevision));
    assert_eq!(machine.compact(3), Ok(()));
    assert_eq!(machine.last.compacted, Some(3));
    assert_eq!(machine.compact(3), Err(Error::Compacted));
    assert_eq!(machine.compact(2), Err(Error::Compacted));
    assert_eq!((machine.state.compact_revision(), machine.state.revision()), (3, 3));
    machine.assert_restorable();
}

#[test]
fn clients_cannot_read_below_the_compact_revision_at_once_but_at_it_they_can() {
    let mut machine = Machine::new();
    for value in ["1", "2", "3"] {
        machine.put("a", value);
    }
    machine.compact(3).unwrap();
    let at = |revision| RangeRequest { revision, ..range("a", "") };
    assert_eq!(machine.range(at(2)), Err(Error::Compacted));
    assert_eq!(machine.range(at(3)).unwrap().items[0].value(), bytes("2"));
    assert_eq!(machine.state.range_slice(0, b"a", b"", 2, None, 9), Err(Error::Compacted));
    machine.trim();
    assert_eq!(machine.range(at(3)).unwrap().items[0].value(), bytes("2"));
    assert_eq!(machine.history.len(), 2);
}

#[test]
fn the_tombstone_at_the_compacted_revision_is_kept_and_goes_with_the_next() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    machine.delete("a", "");
    machine.put("b", "1");
    machine.compact(3).unwrap();
    machine.trim();
    assert_eq!(machine.history.keys().copied().collect::<Vec<_>>(), [Rev::new(3, 0), Rev::new(4, 0)]);
    machine.assert_restorable();
    machine.compact(4).unwrap();
    machine.trim();
    assert_eq!(machine.history.keys().copied().collect::<Vec<_>>(), [Rev::new(4, 0)]);
    machine.assert_restorable();
}

#[test]
fn trimming_goes_in_slices_and_frees_oldest_versions_first() {
    let mut machine = Machine::new();
    for _ in 0..5 {
        machine.put("a", "v");
        machine.put("b", "v");
    }
    machine.delete("a", "");
    machine.put("c", "v");
    machine.compact(13).unwrap();
    let mut progress = CompactProgress::default();
    let first = machine.state.compact_slice(&mut progress, 1, usize::MAX);
    assert!(!progress.done);
    assert!(first.is_sorted(), "oldest first: {first:?}");
    let mut all = first;
    while !progress.done {
        all.extend(machine.state.compact_slice(&mut progress, 1, usize::MAX));
    }
    assert_eq!(all.len(), 5 + 4 + 1, "a whole with its tombstone, and all of b but the last");
    assert_eq!(progress.floor, 13);
}

#[test]
fn a_slice_is_bounded_in_versions_and_the_rest_of_a_key_comes_with_the_next() {
    let mut machine = Machine::new();
    for _ in 0..100 {
        machine.put("a", "v");
    }
    machine.delete("a", "");
    machine.put("b", "v");
    machine.compact(machine.state.revision() as i64).unwrap();
    let mut progress = CompactProgress::default();
    let (mut all, mut slices) = (Vec::new(), 0);
    while !progress.done {
        assert!(machine.state.has_garbage());
        let slice = machine.state.compact_slice(&mut progress, 1_000, 7);
        assert!(slice.len() <= 7);
        all.extend(slice);
        slices += 1;
        assert!(slices < 1_000);
    }
    assert_eq!(all.len(), 101, "all of a, with its tombstone");
    assert!(all.is_sorted() && slices >= 15);
    assert!(!machine.state.has_garbage() && machine.state.spaces[&0].dead.is_empty());
}

#[test]
fn trimming_gives_memory_back() {
    let mut machine = Machine::new();
    for _ in 0..10_000 {
        machine.put("a", "v");
    }
    let capacity = |machine: &Machine| {
        let older = &machine.state.spaces[&0].live[&bytes("a")].older;
        (older.capacity(), machine.state.trim.capacity())
    };
    let (older, notes) = capacity(&machine);
    assert!(older >= 9_999 && notes >= 9_999);
    machine.compact(machine.state.revision() as i64).unwrap();
    let mut progress = CompactProgress::default();
    while !progress.done {
        machine.state.compact_slice(&mut progress, 1_000, 1_000);
    }
    let (older, notes) = capacity(&machine);
    assert!(older < 10 && notes < 3_000, "{older}, {notes}");
}

#[test]
fn a_tenant_that_has_only_garbage_left_looks_the_same_trimmed_or_not() {
    let mut machine = Machine::new();
    for tenant in [0, 7] {
        machine.apply(Command { tenant, ..machine.command(put("a", "1")) });
        machine.apply(Command { tenant, ..machine.command(delete("a", "")) });
        machine.apply(Command { tenant, ..machine.command(put("b", "1")) });
        machine.apply(Command { tenant, ..machine.command(delete("b", "")) });
    }
    machine.put("b", "1");
    machine.compact(10).unwrap();
    // Each slice asserts that the digest stays.
    machine.trim();
    assert!(machine.state.spaces.values().all(|space| space.dead.is_empty()));
    machine.assert_restorable();
}

/// How many deleted keys are still there differs between replicas: nothing that looks at the present may depend on it.
#[test]
fn the_present_is_read_without_looking_at_deleted_keys() {
    let mut machine = Machine::new();
    for n in 0..100 {
        machine.put(&format!("k{n:02}"), "1");
    }
    assert_eq!(machine.delete("k00", "k99"), 99);
    let space = &machine.state.spaces[&0];
    assert_eq!((space.live.len(), space.dead.len()), (1, 99));
    assert_eq!(space.scan_live(Span::From(b"k"), false).count(), 1);
    let all: Vec<_> = space.scan_all(Span::Between(b"k98", b"l"), false).map(|(key, _)| key.clone()).collect();
    assert_eq!(all, [bytes("k98"), bytes("k99")]);
    let back: Vec<_> = space.scan_all(Span::From(b"k97"), true).map(|(key, _)| key.clone()).collect();
    assert_eq!(back, [bytes("k99"), bytes("k98"), bytes("k97")]);
    // A key that comes back is one key again.
    machine.put("k05", "2");
    let space = &machine.state.spaces[&0];
    assert_eq!((space.live.len(), space.dead.len()), (2, 98));
    assert_eq!(space.live[&bytes("k05")].older.len(), 2);
    machine.assert_restorable();
}

#[test]
fn old_versions_count_in_logical_bytes_until_they_are_compacted() {
    let mut machine = Machine::new();
    machine.put("a", "1");
    let one = machine.state.logical_bytes();
    machine.put("a", "2");
    assert!(machine.state.logical_bytes() > one);
    machine.compact(3).unwrap();
    assert_eq!(machine.state.logical_bytes(), one);
    assert_eq!(machine.state.meta.total, machine.state.meta.at_compaction);
}

#[test]
fn an_active_cursor_holds_trimming_back_but_not_the_clients_view() {
    let mut machine = Machine::new();
    machine.put("/in/a", "1");
    machine.put("/in/a", "2");
    machine.install("p", 3);
    machine.put("/in/a", "3");
    machine.delete("/in/a", "");
    machine.put("x", "1");
    machine.compact(6).unwrap();
    assert_eq!(machine.state.retention_floor(), 3);
    machine.trim();
    assert_eq!(machine.history.keys().map(|rev| rev.main).collect::<Vec<_>>(), [3, 4, 5, 6]);
    let old = RangeRequest { revision: 5, ..everything() };
    assert_eq!(machine.range(old), Err(Error::Compacted));
    machine.assert_restorable();
}

#[test]
fn a_cursor_past_the_budget_in_revisions_is_lost_and_its_epoch_ends() {
    let mut machine = Machine::new();
    machine.hold(|hold| hold.revisions_max = 10);
    machine.install("p", 0);
    let epoch = machine.state.trigger("p", "w", 0).unwrap().owner_epoch;
    for _ in 0..12 {
        machine.put("x", "v");
    }
    machine.compact(12).unwrap();
    assert_eq!(machine.state.trigger("p", "w", 0).unwrap().state, TriggerState::Active);
    assert_eq!(machine.state.retention_floor(), 2);
    machine.compact(13).unwrap();
    let trigger = machine.state.trigger("p", "w", 0).unwrap();
    assert_eq!(trigger.state, TriggerState::Lost);
    assert!(trigger.owner_epoch > epoch);
    assert!(machine.last.registry_changed);
    assert_eq!(machine.state.retention_floor(), 13, "a lost cursor holds nothing");
    assert_eq!(machine.state.trigger("p", "s", 0).unwrap().state, TriggerState::Active, "a schedule has no cursor");
    machine.trim();
    machine.assert_restorable();
}

#[test]
fn a_cursor_past_the_budget_in_bytes_is_lost() {
    let mut machine = Machine::new();
    machine.hold(|hold| hold.bytes_max = 5 << 20);
    machine.install("p", 0);
    let big = "x".repeat(1 << 20);
    for _ in 0..5 {
        machine.put("x", &big);
    }
    machine.compact(machine.state.revision() as i64).unwrap();
    assert_eq!(machine.state.trigger("p", "w", 0).unwrap().state, TriggerState::Active);
    for _ in 0..3 {
        machine.put("x", &big);
    }
    machine.assert_restorable();
    machine.compact(machine.state.revision() as i64).unwrap();
    assert_eq!(machine.state.trigger("p", "w", 0).unwrap().state, TriggerState::Lost);
    machine.trim();
    machine.assert_restorable();
}

#[test]
fn marks_of_history_are_forgotten_with_it() {
    let mut machine = Machine::new();
    let big = "x".repeat(1 << 20);
    for _ in 0..10 {
        machine.put("x", &big);
    }
    assert!(machine.state.marks.len() >= 9);
    machine.compact(machine.state.revision() as i64).unwrap();
    assert_eq!(machine.state.marks.len(), 1);
    machine.assert_restorable();
}
