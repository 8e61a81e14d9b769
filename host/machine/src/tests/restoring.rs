//! Restoring: rows that do not fit together are refused.

use bytes::Bytes;

use super::harness::*;
use crate::{CompactProgress, FormatError, Founding, Row, State, Table};

fn rows(machine: &Machine) -> Vec<Row> {
    machine.history.iter().map(|(rev, bytes)| Row::decode(*rev, bytes).unwrap()).collect()
}

fn history(rows: impl IntoIterator<Item = Row>) -> Result<(), FormatError> {
    let mut restore = State::restore();
    rows.into_iter().try_for_each(|row| restore.history_row(row))
}

fn filled() -> Machine {
    let mut machine = Machine::new();
    machine.put("a", "1");
    machine.put("a", "2");
    machine.delete("a", "");
    machine.put("a", "3");
    machine
}

#[test]
fn nothing_restores_to_the_empty_store() {
    let state = State::restore().finish().unwrap();
    assert_eq!(state.digest(), State::new().digest());
    assert_eq!(state.revision(), 1);
}

#[test]
fn rows_out_of_order_are_refused() {
    let mut rows = rows(&filled());
    rows.swap(0, 1);
    assert!(matches!(history(rows), Err(FormatError::History { .. })));
}

#[test]
fn a_hole_in_a_keys_history_is_refused() {
    for missing in 1..=2 {
        let mut rows = rows(&filled());
        rows.remove(missing);
        assert!(matches!(history(rows), Err(FormatError::History { .. })), "without row {missing}");
    }
}

#[test]
fn history_trimmed_from_the_front_is_accepted() {
    let all = rows(&filled());
    for first in 0..all.len() {
        assert_eq!(history(all[first..].to_vec()), Ok(()), "from row {first} on");
    }
}

#[test]
fn rows_later_than_the_revision_or_without_one_are_refused() {
    let machine = filled();
    let mut restore = State::restore();
    rows(&machine).into_iter().for_each(|row| restore.history_row(row).unwrap());
    assert!(restore.finish().is_err());
}

#[test]
fn a_key_with_a_lease_that_does_not_exist_is_refused() {
    let mut machine = Machine::new();
    machine.grant(1, 10);
    machine.put_leased("a", 1);
    machine.tables.retain(|(table, _), _| *table != Table::Lease);
    let mut restore = State::restore();
    rows(&machine).into_iter().for_each(|row| restore.history_row(row).unwrap());
    for ((table, key), value) in &machine.tables {
        restore.table_row(*table, key, value).unwrap();
    }
    assert!(matches!(restore.finish(), Err(FormatError::History { .. })));
}

#[test]
fn orphans_in_the_registry_are_refused() {
    for orphan in [Table::Plugin, Table::Blob] {
        let mut machine = Machine::new();
        machine.install("p", 0);
        machine.tables.retain(|(table, _), _| *table != orphan);
        let mut restore = State::restore();
        for ((table, key), value) in &machine.tables {
            restore.table_row(*table, key, value).unwrap();
        }
        assert!(restore.finish().is_err(), "without {orphan:?}");
    }
}

#[test]
fn tables_may_come_before_the_history_too() {
    let mut machine = filled();
    machine.grant(1, 10);
    machine.put_leased("b", 1);
    let mut restore = State::restore();
    for ((table, key), value) in &machine.tables {
        restore.table_row(*table, key, value).unwrap();
    }
    for row in rows(&machine) {
        restore.history_row(row).unwrap();
    }
    assert_eq!(restore.finish().unwrap().digest(), machine.state.digest());
}

#[test]
fn a_cluster_founded_on_the_rows_goes_on_where_they_end_or_so_much_higher_with_all_before_compacted() {
    let machine = filled();
    for bump in [None, Some(1_000)] {
        let founding = Founding { bump };
        let mut restore = State::restore();
        for ((table, key), value) in &machine.tables {
            let value = founding.table_row(*table, key, value).unwrap().expect("no row of the old cluster alone");
            restore.table_row(*table, key, &value).unwrap();
        }
        rows(&machine).into_iter().for_each(|row| restore.history_row(row).unwrap());
        let mut state = restore.finish().unwrap();
        assert_eq!(state.revision(), machine.state.revision() + bump.unwrap_or(0));
        let Some(bump) = bump else {
            assert_eq!(state.digest(), machine.state.digest());
            continue;
        };
        assert_eq!(state.compact_revision(), machine.state.revision() + bump);
        let mut progress = CompactProgress::default();
        let trimmed = state.compact_slice(&mut progress, 100, 100);
        assert_eq!((trimmed.len(), progress.done), (3, true), "all but the live version");
    }
    let meta = &machine.tables[&(Table::Meta, Bytes::from_static(b"state"))];
    let beyond = Founding { bump: Some(i64::MAX as u64) };
    assert!(beyond.table_row(Table::Meta, b"state", meta).is_err(), "revisions are signed");
}
