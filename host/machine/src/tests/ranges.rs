//! Ranges: what etcd's options mean.

use kvasir_api::Error;
use kvasir_api::etcdserverpb::RangeRequest;
use kvasir_api::etcdserverpb::range_request::{SortOrder, SortTarget};

use super::harness::*;
use crate::ValueSlot;

/// a=3 at 2 and 7 (version 2), b=2 at 3, c=1 at 4, d deleted at 6.
fn filled() -> Machine {
    let mut machine = Machine::new();
    for (key, value) in [("a", "0"), ("b", "2"), ("c", "1"), ("d", "9")] {
        machine.put(key, value);
    }
    machine.delete("d", "");
    machine.put("a", "3");
    machine
}

fn sorted(target: SortTarget, order: SortOrder) -> RangeRequest {
    RangeRequest { sort_target: target as i32, sort_order: order as i32, ..everything() }
}

#[test]
fn range_end_empty_is_one_key_zero_is_from_the_key_on() {
    let machine = filled();
    assert_eq!(keys(&machine.range(range("b", "")).unwrap()), ["b"]);
    assert_eq!(keys(&machine.range(range("b", "\0")).unwrap()), ["b", "c"]);
    assert_eq!(keys(&machine.range(range("a", "c")).unwrap()), ["a", "b"]);
    assert_eq!(keys(&machine.range(everything()).unwrap()), ["a", "b", "c"]);
    assert!(machine.range(range("c", "a")).unwrap().items.is_empty());
    assert!(machine.range(range("c", "c")).unwrap().items.is_empty());
    assert_eq!(machine.range(range("", "")), Err(Error::EmptyKey));
}

#[test]
fn count_ignores_limit_and_filters_and_more_says_that_the_limit_cut() {
    let machine = filled();
    let reply = machine.range(RangeRequest { limit: 2, ..everything() }).unwrap();
    assert_eq!((keys(&reply).len(), reply.count, reply.more), (2, 3, true));
    let reply = machine.range(RangeRequest { limit: 3, ..everything() }).unwrap();
    assert_eq!((reply.items.len(), reply.more), (3, false));
    let reply = machine.range(RangeRequest { min_mod_revision: 4, ..everything() }).unwrap();
    assert_eq!((keys(&reply), reply.count, reply.more), (vec!["a".into(), "c".into()], 3, false));
    let reply = machine.range(RangeRequest { max_create_revision: 3, limit: 1, ..everything() }).unwrap();
    assert_eq!((keys(&reply), reply.count, reply.more), (vec!["a".into()], 3, true));
    let reply = machine.range(RangeRequest { max_mod_revision: 3, min_create_revision: 3, ..everything() }).unwrap();
    assert_eq!(keys(&reply), ["b"]);
    let reply = machine.range(RangeRequest { limit: -1, ..everything() }).unwrap();
    assert_eq!(reply.items.len(), 3);
}

#[test]
fn count_only_returns_no_keys() {
    let machine = filled();
    for request in [everything(), range("a", "c"), RangeRequest { revision: 5, ..everything() }] {
        let counted = machine.range(RangeRequest { count_only: true, limit: 1, ..request.clone() }).unwrap();
        assert_eq!((counted.items.len(), counted.more), (0, false));
        assert_eq!(counted.count, machine.range(request).unwrap().items.len() as u64);
    }
}

#[test]
fn keys_only_leaves_values_empty_and_makes_no_holes() {
    let machine = filled();
    let request = RangeRequest { keys_only: true, revision: 5, ..everything() };
    let reply = machine.state.range(0, &request).unwrap();
    assert!(reply.items.iter().all(|item| item.value == ValueSlot::Memory(bytes(""))));
    assert_eq!(reply.items.len(), 4);
}

#[test]
fn a_limit_applies_after_sorting() {
    let machine = filled();
    let reply = machine.range(RangeRequest { limit: 1, ..sorted(SortTarget::Value, SortOrder::Ascend) }).unwrap();
    assert_eq!((keys(&reply), reply.more), (vec!["c".into()], true));
    let reply = machine.range(RangeRequest { limit: 1, ..sorted(SortTarget::Key, SortOrder::Descend) }).unwrap();
    assert_eq!((keys(&reply), reply.more, reply.count), (vec!["c".into()], true, 3));
    let mutex = RangeRequest { limit: 1, max_create_revision: 3, ..sorted(SortTarget::Create, SortOrder::Descend) };
    assert_eq!(keys(&machine.range(mutex).unwrap()), ["b"]);
}

#[test]
fn every_target_sorts_and_without_an_order_it_ascends() {
    let machine = filled();
    for (target, ascending) in [
        (SortTarget::Key, ["a", "b", "c"]),
        (SortTarget::Version, ["b", "c", "a"]),
        (SortTarget::Create, ["a", "b", "c"]),
        (SortTarget::Mod, ["b", "c", "a"]),
        (SortTarget::Value, ["c", "b", "a"]),
    ] {
        assert_eq!(keys(&machine.range(sorted(target, SortOrder::Ascend)).unwrap()), ascending, "{target:?}");
        assert_eq!(keys(&machine.range(sorted(target, SortOrder::None)).unwrap()), ascending, "{target:?}");
    }
    let down = keys(&machine.range(sorted(SortTarget::Mod, SortOrder::Descend)).unwrap());
    assert_eq!(down, ["a", "c", "b"]);
    let unknown = RangeRequest { sort_order: 3, ..everything() };
    assert_eq!(machine.range(unknown), Err(Error::InvalidSortOption));
    let unknown = RangeRequest { sort_target: 5, ..everything() };
    assert_eq!(machine.range(unknown), Err(Error::InvalidSortOption));
}

#[test]
fn an_old_revision_is_seen_as_it_was_with_holes_for_old_values() {
    let machine = filled();
    let request = RangeRequest { revision: 5, ..everything() };
    let raw = machine.state.range(0, &request).unwrap();
    assert!(raw.has_holes());
    assert!(matches!(raw.items[0].value, ValueSlot::Row(rev) if rev.main == 2));
    assert!(matches!(raw.items[1].value, ValueSlot::Memory(_)), "what is still current is in memory");
    let reply = machine.range(request).unwrap();
    assert_eq!(keys(&reply), ["a", "b", "c", "d"]);
    assert_eq!((reply.items[0].value(), reply.items[3].value()), (bytes("0"), bytes("9")));
    assert_eq!(reply.revision, 7, "the header tells the current revision");
    assert!(machine.range(RangeRequest { revision: 1, ..everything() }).unwrap().items.is_empty());
}

#[test]
fn sorting_old_values_waits_for_them() {
    let machine = filled();
    let request = RangeRequest { revision: 5, limit: 2, ..sorted(SortTarget::Value, SortOrder::Descend) };
    let reply = machine.range(request.clone()).unwrap();
    assert_eq!((keys(&reply), reply.more, reply.count), (vec!["d".into(), "b".into()], true, 4));
    let reply = machine.range(RangeRequest { keys_only: true, ..request }).unwrap();
    assert_eq!(keys(&reply), ["d", "b"]);
    assert!(reply.items.iter().all(|item| item.value().is_empty()));
}

#[test]
fn a_future_revision_is_refused() {
    let machine = filled();
    assert_eq!(machine.range(RangeRequest { revision: 8, ..everything() }), Err(Error::FutureRevision));
    assert!(machine.range(RangeRequest { revision: 7, ..everything() }).is_ok());
}

#[test]
fn slices_add_up_to_the_range_and_look_at_a_bounded_number_of_keys() {
    let machine = filled();
    for (key, end) in [("\0", "\0"), ("a", "c"), ("b", ""), ("a", "\0"), ("c", "a")] {
        for revision in [5, 7] {
            let (mut found, mut after, mut slices) = (Vec::new(), None, 0);
            loop {
                let after_key: Option<bytes::Bytes> = after;
                let slice =
                    machine.state.range_slice(0, key.as_bytes(), end.as_bytes(), revision, after_key.as_deref(), 1).unwrap();
                slices += 1;
                found.extend(slice.items.into_iter().map(|item| item.key));
                after = slice.more;
                if after.is_none() {
                    break;
                }
            }
            let whole = machine.range(RangeRequest { revision: revision as i64, ..range(key, end) }).unwrap();
            assert_eq!(found, whole.items.into_iter().map(|item| item.key).collect::<Vec<_>>());
            assert!(slices <= 4);
        }
    }
}
