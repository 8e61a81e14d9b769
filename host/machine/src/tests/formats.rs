//! Stored bytes: what is written reads back, what is not written is refused, and nothing panics.

use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::limits;
use proptest::prelude::*;

use super::harness::*;
use crate::codec::Writer;
use crate::lease::Grant;
use crate::registry::{PluginRecord, TriggerRecord};
use crate::state::{Mark, Meta};
use crate::table::numbered_key;
use crate::{DeadLetterRecord, FormatError, Rev, Row, State, Table};

fn row() -> Row {
    Row {
        rev: Rev::new(7, 1),
        prev: Some(Rev::new(5, 2)),
        tenant: 300,
        key: bytes("key"),
        value: bytes("value"),
        create_revision: 3,
        version: 4,
        lease: -2,
        tombstone: false,
        origin_plugin: Some(Arc::from("p")),
        origin_depth: 2,
    }
}

/// The bytes of version 1, byte by byte: they may never change.
#[test]
fn a_row_of_format_version_1_has_these_bytes() {
    let expected = [
        &[1, 0b1110][..],
        &[0xac, 0x02],
        &[3],
        b"key",
        &[2, 2],
        &[4, 4],
        &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[1],
        b"p",
        &[2],
        b"value",
    ]
    .concat();
    assert_eq!(row().encode(), expected);
    assert_eq!(Row::decode(Rev::new(7, 1), &expected.into()).unwrap(), row());
    let tombstone = [&[1, 0b11, 0, 1][..], b"k", &[1, 0]].concat();
    let decoded = Row::decode(Rev::new(7, 1), &tombstone.clone().into()).unwrap();
    assert!(decoded.tombstone && decoded.value.is_empty());
    assert_eq!((decoded.prev, decoded.encode()), (Some(Rev::new(6, 0)), tombstone));
}

#[test]
fn a_row_of_another_format_version_is_told_apart() {
    let error = Row::decode(Rev::new(2, 0), &Bytes::from_static(&[2, 0])).unwrap_err();
    assert_eq!(error, FormatError::UnknownVersion { what: "history row", found: 2 });
    assert!(error.to_string().contains("format version 2"));
}

#[test]
fn rows_that_contradict_themselves_are_refused() {
    let rev = Rev::new(7, 1);
    for bytes in [
        &[][..],
        &[1],
        // an unknown flag
        &[1, 0b1_0000, 0, 1, b'k', 0, 1],
        // no key
        &[1, 0, 0, 0, 0, 1],
        // a key longer than there are bytes
        &[1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        // a number that is not in its shortest form
        &[1, 0, 0x80, 0, 1, b'k', 0, 1],
        // a tombstone that replaces nothing
        &[1, 1, 0, 1, b'k'],
        // a tombstone with a value
        &[1, 0b11, 0, 1, b'k', 1, 0, b'v'],
        // a put of version 0
        &[1, 0, 0, 1, b'k', 0, 0],
        // version 2 that replaces nothing
        &[1, 0, 0, 1, b'k', 0, 2],
        // replaces itself
        &[1, 0b10, 0, 1, b'k', 0, 1, 0, 2],
        // replaces what is before the first revision
        &[1, 0b10, 0, 1, b'k', 8, 0, 0, 2],
        // a first version that was created before
        &[1, 0, 0, 1, b'k', 1, 1],
        // created before the first revision
        &[1, 0, 0, 1, b'k', 7, 1],
        // lease 0
        &[1, 0b100, 0, 1, b'k', 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        // a plugin without a name
        &[1, 0b1000, 0, 1, b'k', 0, 1, 0, 0],
        // a name that is not UTF-8
        &[1, 0b1000, 0, 1, b'k', 0, 1, 1, 0xff, 0],
    ] {
        assert!(Row::decode(rev, &Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
    }
}

#[test]
fn a_decoded_row_shares_the_bytes_it_came_from() {
    let bytes = Bytes::from(row().encode());
    let decoded = Row::decode(Rev::new(7, 1), &bytes).unwrap();
    assert!(bytes.as_ptr_range().contains(&decoded.value.as_ptr()));
    assert!(bytes.as_ptr_range().contains(&decoded.key.as_ptr()));
}

#[test]
fn the_scalars_of_an_empty_store_after_a_tick_have_these_bytes() {
    let mut machine = Machine::new();
    machine.cluster_ms = 258;
    machine.run(kvasir_api::command::command::Body::Tick(kvasir_api::command::Tick {}));
    let mut expected = vec![0; 1 + 13 * 8];
    expected[0] = 1;
    expected[1] = 1;
    expected[9] = 1;
    expected[25] = 2;
    expected[26] = 1;
    assert_eq!(machine.tables[&(Table::Meta, Bytes::from_static(b"state"))], expected);
}

#[test]
fn table_numbers_are_fixed() {
    let numbers: Vec<_> = Table::ALL.iter().map(|table| *table as u8).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(Table::from_number(6), Some(Table::DeadLetter));
    assert_eq!(Table::from_number(9), None);
}

/// A machine with a row in every table.
fn full() -> Machine {
    let mut machine = Machine::new();
    machine.grant(5, 10);
    machine.put_leased("leased", 5);
    machine.install("p", 0);
    machine.put("/in/a", &"x".repeat(2 << 20));
    let key = Bytes::from(crate::table::dead_letter_key("p", "w", 0, Rev::new(3, 0)));
    let letter = DeadLetterRecord { key: bytes("/in/a"), error: "no".into(), attempts: 1 };
    machine.tables.insert((Table::DeadLetter, key), letter.encode().into());
    let alarm = kvasir_api::command::Alarm { activate: true, member_id: 1, alarm: 1 };
    machine.run(kvasir_api::command::command::Body::Alarm(alarm));
    let quota = kvasir_api::command::QuotaSet { bytes: 1 << 30, of_tenant: true };
    machine.run(kvasir_api::command::command::Body::QuotaSet(quota));
    super::tokens::create(&mut machine, 1);
    super::tokens::use_it(&mut machine, 1, 7, true);
    super::tokens::set_authorities(&mut machine, 0, &[b"one", b"two"], 1);
    let tables: std::collections::BTreeSet<_> = machine.tables.keys().map(|(table, _)| *table).collect();
    assert_eq!(tables.len(), Table::ALL.len());
    machine
}

#[test]
fn every_table_row_cut_short_or_changed_is_refused_or_reads_as_something() {
    let machine = full();
    for ((table, key), value) in &machine.tables {
        if *table == Table::BlobChunk {
            continue;
        }
        for length in 0..value.len() {
            assert!(State::restore().table_row(*table, key, &value.slice(..length)).is_err(), "{table:?} cut at {length}");
        }
        let longer = Bytes::from([&value[..], &[0]].concat());
        assert!(State::restore().table_row(*table, key, &longer).is_err(), "{table:?} with a byte too many");
        let mut other = value.to_vec();
        other[0] = 9;
        let error = State::restore().table_row(*table, key, &other.into()).unwrap_err();
        assert!(matches!(error, FormatError::UnknownVersion { found: 9, .. }), "{table:?}");
    }
    for table in Table::ALL {
        for key in [&b""[..], b"x", &[0xff; 40]] {
            assert!(State::restore().table_row(table, key, &Bytes::from_static(&[1])).is_err(), "{table:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_row_or_refused(main in 0_u64..10, sub in 0_u32..3, version in prop::option::weighted(0.8, 0_u8..16), tail in prop::collection::vec(any::<u8>(), 0..60)) {
        let bytes: Bytes = version.map_or(tail.clone(), |flags| [&[1, flags][..], &tail].concat()).into();
        let rev = Rev::new(main, sub);
        if let Ok(row) = Row::decode(rev, &bytes) {
            prop_assert_eq!(row.encode(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_a_table_row_or_refused(row in table_row(), place in any::<prop::sample::Index>(), byte in any::<u8>(), changes in 0_u8..3) {
        let (table, key, mut value) = row;
        // As it is made of random numbers, with one byte changed, or cut short.
        match changes {
            0 => {}
            1 => { let at = place.index(value.len()); value[at] = byte; }
            _ => value.truncate(place.index(value.len() + 1)),
        }
        let value = Bytes::from(value);
        if let Some(again) = again(table, &key, &value) {
            prop_assert_eq!(&again[..], &value[..]);
        }
        let mut restore = State::restore();
        let _ = restore.table_row(table, &key, &value);
        let _ = restore.finish();
    }

    #[test]
    fn a_state_file_with_one_byte_changed_is_a_state_or_refused(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let machine = small();
        let mut rows: Vec<StoredRow> = Vec::new();
        rows.extend(machine.tables.iter().map(|(key, value)| (Some(key.clone()), None, value.clone())));
        rows.extend(machine.history.iter().map(|(rev, value)| (None, Some(*rev), value.clone())));
        let total: usize = rows.iter().map(|row| row.2.len()).sum();
        let mut at = place.index(total);
        for row in &mut rows {
            if at < row.2.len() {
                let mut changed = row.2.to_vec();
                changed[at] = byte;
                row.2 = changed.into();
                break;
            }
            at -= row.2.len();
        }
        let restored = (|| {
            let mut restore = State::restore();
            for (table, rev, value) in &rows {
                match (table, rev) {
                    (Some((table, key)), _) => restore.table_row(*table, key, value)?,
                    (_, Some(rev)) => restore.history_row(Row::decode(*rev, value)?)?,
                    _ => unreachable!(),
                }
            }
            restore.finish()
        })();
        if let Ok(state) = restored {
            let _ = state.digest();
        }
    }
}

/// Numbers that are near the bounds of something, and any.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0_u64..4, 1 => Just(256 * 1024_u64), 1 => Just(300_000_u64), 1 => Just(i64::MAX as u64), 1 => any::<u64>()]
}

/// A table with a key that is one of its own, and a value in the table's form with any numbers in it.
fn table_row() -> impl Strategy<Value = (Table, Vec<u8>, Vec<u8>)> {
    let numbers = prop::collection::vec(number(), 13);
    (0_usize..15, numbers, "[a-z]{0,3}", "[a-z]{0,3}", prop::collection::vec(any::<u8>(), 32)).prop_map(
        |(which, n, text, other, digest)| {
            // Leases and triggers, of the version with more fields.
            let wider = matches!(which, 10 | 11);
            let which = match which {
                10 => 3,
                11 => 5,
                which => which,
            };
            let mut out = Writer::new(1 + u8::from(wider), 0);
            let (table, key) = match which {
                0 => {
                    n.iter().for_each(|n| out.fixed64(*n));
                    (Table::Meta, b"state".to_vec())
                }
                1 => {
                    n[..2].iter().for_each(|n| out.varint(*n));
                    (Table::Meta, numbered_key(b"mark/", n[2]))
                }
                2 => {
                    out.fixed64(n[0]);
                    (Table::Meta, numbered_key(b"quota/", n[1]))
                }
                3 => {
                    n[..3].iter().for_each(|n| out.varint(*n));
                    if wider {
                        out.bytes(text.as_bytes());
                    }
                    (Table::Lease, n[3].to_be_bytes().to_vec())
                }
                4 => {
                    out.bytes(&digest);
                    out.bytes(text.as_bytes());
                    out.varint(n[0]);
                    out.byte(n[1] as u8);
                    out.bytes(other.as_bytes());
                    (Table::Plugin, b"p".to_vec())
                }
                5 | 6 => {
                    out.byte(n[0] as u8);
                    out.bytes(text.as_bytes());
                    out.bytes(other.as_bytes());
                    out.byte(n[1] as u8);
                    n[2..6].iter().for_each(|n| out.varint(*n));
                    out.byte(n[6] as u8);
                    out.varint(n[7]);
                    if wider {
                        out.bytes(other.as_bytes());
                        out.varint(n[9]);
                    }
                    (Table::Trigger, crate::table::trigger_key("p", "t", n[8] as u32))
                }
                7 => {
                    n[..5].iter().for_each(|n| out.varint(*n));
                    (Table::Blob, digest)
                }
                8 => {
                    out.bytes(text.as_bytes());
                    out.bytes(other.as_bytes());
                    out.varint(n[0]);
                    (Table::DeadLetter, crate::table::dead_letter_key("p", "t", 0, Rev::new(n[1], n[2] as u32)))
                }
                9 => {
                    out.bytes(&digest);
                    out.varint(n[0]);
                    out.byte(n[1] as u8);
                    if n[1] != 0 {
                        out.bytes(&digest);
                        out.varint(n[2]);
                    }
                    (Table::Token, n[3].to_be_bytes().to_vec())
                }
                12 => {
                    n[..3].iter().for_each(|n| out.varint(*n));
                    out.bytes(text.as_bytes());
                    out.bytes(other.as_bytes());
                    (Table::Meta, b"authorities".to_vec())
                }
                13 => {
                    out.varint(n[0]);
                    (Table::Meta, b"version".to_vec())
                }
                _ => (Table::Alarm, crate::table::alarm_key(n[0], n[1] as i32)),
            };
            (table, key, out.finish())
        },
    )
}

/// The row as it would be written, if it is accepted.
fn again(table: Table, key: &[u8], value: &Bytes) -> Option<Vec<u8>> {
    State::restore().table_row(table, key, value).ok()?;
    Some(match table {
        Table::Meta if key == b"state" => Meta::decode(value).ok()?.encode(),
        Table::Meta if key.starts_with(b"mark/") => Mark::decode(value).ok()?.encode(),
        Table::Meta if key == b"version" => crate::version::encode(crate::version::decode(value).ok()?),
        Table::Meta if key == b"authorities" => crate::authority::Authorities::decode(value).ok()?.encode(),
        Table::Token => crate::TokenRecord::decode(key, value).ok()?.encode(),
        Table::Meta => crate::table::encode_quota(crate::table::decode_quota(value).ok()?),
        Table::Lease => Grant::decode(value).ok()?.encode(),
        Table::Plugin => PluginRecord::decode(key, value).ok()?.encode(),
        Table::Trigger => TriggerRecord::decode(crate::table::read_trigger_key(key).ok()?, value).ok()?.encode(),
        Table::Blob => crate::BlobRecord::decode(value).ok()?.encode(),
        Table::DeadLetter => DeadLetterRecord::decode(value).ok()?.encode(),
        Table::Alarm => crate::table::encode_alarm().to_vec(),
        Table::BlobChunk => value.to_vec(),
    })
}

#[test]
fn table_rows_that_are_never_written_are_refused() {
    let machine = full();
    let value = |table: Table| machine.tables.iter().find(|((found, _), _)| *found == table).unwrap();
    let refused = |table: Table, key: &[u8], value: Vec<u8>| State::restore().table_row(table, key, &value.into()).is_err();
    // No quota has no row.
    assert!(refused(Table::Meta, &numbered_key(b"quota/", 3), crate::table::encode_quota(0)));
    // A lease's id is not 0, and its TTL is one that is granted.
    let ((_, key), lease) = value(Table::Lease);
    let grant = Grant::decode(lease).unwrap();
    assert!(refused(Table::Lease, &[0; 8], lease.to_vec()));
    for ttl_s in [0, 1, limits::LEASE_TTL_MAX_S + 1] {
        assert!(refused(Table::Lease, key, Grant { ttl_s, ..grant.clone() }.encode()), "{ttl_s}");
    }
    // Alarms are of known kinds.
    for alarm in [0, 3, -1] {
        assert!(refused(Table::Alarm, &crate::table::alarm_key(1, alarm), vec![1]), "{alarm}");
    }
    assert!(!refused(Table::Alarm, &crate::table::alarm_key(1, 2), vec![1]));
    // A component has bytes, and those received are whole pieces of them.
    let chunk = limits::BLOB_CHUNK_BYTES as u64;
    let blob = |total_bytes, chunks, received, received_bytes| {
        let complete = received == chunks;
        crate::BlobRecord { total_bytes, chunks, received, received_bytes, complete, began_at: 1 }.encode()
    };
    assert!(!refused(Table::Blob, &[7; 32], blob(2 * chunk + 5, 3, 2, 2 * chunk)));
    for wrong in [
        blob(0, 0, 0, 0),
        blob(2 * chunk + 5, 3, 0, 0),
        blob(2 * chunk + 5, 3, 2, chunk),
        blob(2 * chunk + 5, 3, 2, 2 * chunk + 1),
        blob(2 * chunk + 5, 3, 3, 2 * chunk),
        blob(2 * chunk + 5, 2, 2, 2 * chunk),
    ] {
        assert!(refused(Table::Blob, &[7; 32], wrong));
    }
    // A schedule has no cursor, and a watch has a key and one.
    let trigger = |id: &str, change: &dyn Fn(&mut TriggerRecord)| {
        let mut record = machine.state.trigger("p", id, 0).unwrap().clone();
        change(&mut record);
        refused(Table::Trigger, &crate::table::trigger_key("p", id, 0), record.encode())
    };
    assert!(!trigger("s", &|_| {}) && !trigger("w", &|_| {}));
    assert!(trigger("s", &|record| record.cursor = Rev::new(1, 0)));
    assert!(trigger("s", &|record| record.state = crate::TriggerState::HaltedLost));
    // What a trigger or a lease of the version with more fields is without them is written in version 1.
    for (table, at) in [(Table::Trigger, 0), (Table::Lease, 0)] {
        let ((_, key), row) = value(table);
        let mut wider = [&row[..], &[0, 0]].concat();
        wider[at] = 2;
        assert!(refused(table, key, wider), "{table:?}");
    }
    assert!(trigger("w", &|record| record.cursor = Rev::default()));
    assert!(trigger("w", &|record| record.key = Bytes::new()));
}

/// A row of a small table, or of history.
type StoredRow = (Option<(Table, Bytes)>, Option<Rev>, Bytes);

fn small() -> Machine {
    let mut machine = Machine::new();
    machine.grant(5, 10);
    machine.put_leased("leased", 5);
    machine.put("a", "1");
    machine.put("a", "2");
    machine.delete("a", "");
    machine.put("a", "3");
    machine.install("p", 0);
    machine
}
