//! The state store as a whole: crashes against the machine itself, reads while rows move, snapshots, faults.

use super::*;
use crate::disk::{Fault, FaultPlan, Random, SimDisk};
use crate::log::{EntryKind, LogEntry, LogOptions};
use crate::snapshot;
use kvasir_api::command::{Command, command};
use kvasir_api::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest};
use kvasir_machine::{CompactProgress, Effects, EntryId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

mod saved;

const PATH: &str = "/d/state.redb";

fn path() -> &'static Path {
    Path::new(PATH)
}

fn new_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all(Path::new("/d/log")).expect("the folders");
    disk.sync_dir(Path::new("/")).expect("a sync");
    disk.sync_dir(Path::new("/d")).expect("a sync");
    disk
}

/// Little commits, checkpoints only on request.
fn quiet() -> StoreOptions {
    StoreOptions {
        cache_bytes: 1 << 20,
        commit_rows_max: 16,
        delete_rows_max: 8,
        commit_linger: Duration::from_millis(1),
        checkpoint_bytes: u64::MAX,
        checkpoint_interval: Duration::from_secs(3600),
        ..StoreOptions::default()
    }
}

fn open(disk: &SimDisk) -> Opened {
    Store::open(Arc::new(disk.clone()), path(), quiet()).expect("the store opens")
}

fn id(index: u64) -> LogId {
    LogId { term: 1, node: 1, index }
}

fn blank() -> Command {
    Command { version: kvasir_machine::COMMAND_VERSION, ..Command::default() }
}

fn put(key: &[u8], value: &[u8]) -> Command {
    let put = PutRequest { key: key.to_vec().into(), value: value.to_vec().into(), ..PutRequest::default() };
    Command { body: Some(command::Body::Put(put)), ..blank() }
}

fn random_command(random: &mut Random, state: &State) -> Command {
    let key = vec![b'k', random.below(20) as u8];
    match random.below(12) {
        0..=7 => put(&key, &vec![random.below(256) as u8; random.below(300) as usize]),
        8 | 9 => {
            let delete = DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() };
            Command { body: Some(command::Body::DeleteRange(delete)), ..blank() }
        }
        10 => {
            let revision = state.compact_revision().max(1) + random.below(10);
            let compact = CompactionRequest { revision: revision as i64, physical: false };
            Command { body: Some(command::Body::Compact(compact)), ..blank() }
        }
        _ => Command {
            body: Some(command::Body::Tick(Default::default())),
            stamp: Some(kvasir_api::command::Stamp { cluster_ms: random.below(1 << 30), wall_ms: 0 }),
            ..blank()
        },
    }
}

/// Applies one command and pushes what it changed.
fn step(store: &Store, state: &mut State, index: u64, command: &Command) -> Vec<Arc<Row>> {
    let mut effects = Effects::default();
    state.apply(EntryId { index, term: 1, leader: 1 }, command, false, &mut effects);
    let rows = effects.changes.iter().map(|change| change.row.clone()).collect();
    let membership = index.is_multiple_of(7).then(|| (Some(id(index)), Bytes::from(index.to_string())));
    store.push(AppliedBatch { log_id: id(index), membership, tables: effects.take_tables(), changes: effects.changes });
    rows
}

fn puts(store: &Store, state: &mut State, count: u64) -> Vec<Arc<Row>> {
    let first = state.applied_index() + 1;
    (first..first + count).flat_map(|index| step(store, state, index, &put(&index.to_be_bytes(), &[index as u8; 40]))).collect()
}

#[test]
fn after_a_power_cut_the_file_is_the_machine_at_an_index_not_before_the_last_checkpoint() {
    for seed in 0..crate::fixture::seeds(60) {
        let mut random = Random::new(seed);
        let mut disk = new_disk(seed);
        let mut digests = BTreeMap::from([(0, State::new().digest())]);
        for round in 0..3 {
            let Opened { store, mut state, applied } = open(&disk);
            let start = applied.log_id.map_or(0, |id| id.index);
            assert_eq!(Some(&state.digest()), digests.get(&start), "seed {seed}, round {round}, index {start}");
            assert_eq!(applied.membership.map(|m| m.0), (start >= 7).then(|| Some(id(start / 7 * 7))));
            if random.below(3) == 0 {
                disk.cut_power_after(random.below(80));
            }
            let mut progress = CompactProgress::default();
            for index in start + 1..=start + 1 + random.below(80) {
                let command = random_command(&mut random, &state);
                step(&store, &mut state, index, &command);
                digests.insert(index, state.digest());
                match random.below(20) {
                    0 => drop(store.checkpoint()),
                    1 | 2 => store.delete_history(state.compact_slice(&mut progress, 10, 20)),
                    _ => {}
                }
            }
            let after = disk.crash(random.next());
            let _ = store.close();
            let known = store.durable().map_or(0, |id| id.index);
            disk = after;
            let found = open(&disk);
            let index = found.applied.log_id.map_or(0, |id| id.index);
            assert!(index >= known, "seed {seed}, round {round}: checkpoint at {known}, found {index}");
            assert_eq!(Some(&found.state.digest()), digests.get(&index), "seed {seed}, round {round}, index {index}");
            found.store.close().expect("closed");
        }
    }
}

#[test]
fn readers_find_every_row_once_while_rows_move_to_the_file() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    let applied = AtomicU64::new(1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (store, applied, stop) = (&store, &applied, &stop);
            scope.spawn(move || {
                let mut random = Random::new(reader);
                while !stop.load(Ordering::SeqCst) {
                    let to = applied.load(Ordering::SeqCst);
                    let from = 2 + random.below(to);
                    let rows = store.rows(Rev::start_of(from), to, usize::MAX, usize::MAX).expect("a read");
                    let found: Vec<u64> = rows.iter().map(|row| row.rev.main).collect();
                    assert_eq!(found, (from..=to).collect::<Vec<_>>());
                    let one = 2 + random.below(to - 1);
                    if one <= to {
                        let row = store.row(Rev::start_of(one)).expect("a read").expect("the row");
                        assert_eq!(row.rev.main, one);
                    }
                    let page = store.table_scan(Table::Meta, b"state", None, 10).expect("a scan");
                    assert!(to == 1 || page.rows.len() == 1, "the scalars are always there");
                }
            });
        }
        let pushed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..1500 {
                puts(&store, &mut state, 1);
                applied.store(state.revision(), Ordering::SeqCst);
            }
            store.checkpoint().expect("a checkpoint");
        }));
        stop.store(true, Ordering::SeqCst);
        pushed.expect("the writer's half");
    });
    assert_eq!(store.tail_bytes(), 0);
    let some = store.rows(Rev::start_of(100), 1000, 7, usize::MAX).expect("a read");
    assert_eq!(some.iter().map(|row| row.rev.main).collect::<Vec<_>>(), (100..107).collect::<Vec<_>>());
    assert_eq!(store.rows(Rev::start_of(100), 1000, 7, 1).expect("a read").len(), 1);
}

#[test]
fn a_table_scan_merges_tail_and_file() {
    let disk = new_disk(1);
    let Opened { store, .. } = open(&disk);
    let push = |index, ops: &[(u8, Option<&'static str>)]| {
        let op = |(key, value): &(u8, Option<&'static str>)| TableOp {
            table: Table::DeadLetter,
            key: Bytes::from(vec![b'p', *key]),
            value: value.map(Bytes::from),
        };
        let tables = ops.iter().map(op).collect();
        store.push(AppliedBatch { log_id: id(index), membership: None, changes: Vec::new(), tables });
    };
    push(1, &[(1, Some("a")), (2, Some("b")), (4, Some("d")), (6, Some("f"))]);
    store.checkpoint().expect("a checkpoint");
    push(2, &[(0, Some("-")), (2, None), (4, Some("D")), (5, Some("e"))]);
    let scan = |after: Option<&[u8]>, limit| {
        let page = store.table_scan(Table::DeadLetter, b"p", after, limit).expect("a scan");
        let rows = page.rows.iter().map(|(key, value)| (key[1], String::from_utf8_lossy(value).into_owned()));
        (rows.map(|(key, value)| format!("{key}{value}")).collect::<Vec<_>>().join(" "), page.more)
    };
    for _ in 0..2 {
        assert_eq!(scan(None, 10), ("0- 1a 4D 5e 6f".into(), false));
        assert_eq!(scan(Some(b"p\x01"), 2), ("4D 5e".into(), true));
        assert_eq!(scan(Some(b"p\x05"), 1), ("6f".into(), false));
        assert_eq!(store.table_get(Table::DeadLetter, b"p\x02").expect("a read"), None);
        assert_eq!(store.table_get(Table::DeadLetter, b"p\x06").expect("a read"), Some(Bytes::from("f")));
        store.checkpoint().expect("a checkpoint");
    }
    assert!(store.table_scan(Table::Alarm, b"", None, 10).expect("a scan").rows.is_empty());
}

#[test]
fn deleted_history_is_gone_and_the_rest_stays() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    let rows = puts(&store, &mut state, 50);
    store.delete_history(rows[..30].iter().map(|row| row.rev).collect());
    store.checkpoint().expect("a checkpoint");
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while store.pending_deletes() > 0 {
        assert!(std::time::Instant::now() < deadline, "the deleter comes to an end");
        std::thread::yield_now();
    }
    let left = store.rows(Rev::default(), u64::MAX, usize::MAX, usize::MAX).expect("a read");
    assert_eq!(left.iter().map(|row| row.rev).collect::<Vec<_>>(), rows[30..].iter().map(|r| r.rev).collect::<Vec<_>>());
    assert!(store.row(rows[0].rev).expect("a read").is_none());
}

#[test]
fn a_checkpoint_waits_until_the_log_is_durable_up_to_it() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    let log = Log::open(Arc::new(disk.clone()), Path::new("/d/log"), LogOptions::default()).expect("the log");
    store.follow_log(&log);
    puts(&store, &mut state, 5);
    let (answer, result) = std::sync::mpsc::channel();
    let asker = store.clone();
    let thread = std::thread::spawn(move || answer.send(asker.checkpoint().map(|applied| applied.log_id)));
    assert!(result.recv_timeout(Duration::from_millis(50)).is_err(), "the log does not have entry 5");
    assert_eq!(store.durable(), None);
    let entries = (0..=5).map(|index| LogEntry { id: id(index), kind: EntryKind::Blank, payload: Bytes::new() });
    log.append(entries.collect(), Box::new(|result| result.expect("an append")));
    let durable = result.recv_timeout(Duration::from_secs(30)).expect("an answer").expect("a checkpoint");
    assert_eq!(durable, Some(id(5)));
    thread.join().expect("joined").expect("sent");
}

#[test]
fn a_store_whose_log_failed_never_makes_its_state_durable() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    puts(&store, &mut state, 5);
    store.checkpoint().expect("a checkpoint");
    store.set_flushed(Arc::new(|_| Err(io::Error::other("the log is gone"))));
    puts(&store, &mut state, 5);
    store.close().expect_err("the last checkpoint fails");
    drop(store);
    assert_eq!(open(&disk).applied.log_id, Some(id(5)));
}

#[test]
fn the_first_io_error_is_reported_once_and_ends_all_writing() {
    for (sync, fault) in [(true, Fault::Eio), (false, Fault::Enospc)] {
        let disk = new_disk(1);
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = told.clone();
        let options = StoreOptions { on_fatal: Some(Arc::new(move |error| seen.lock().push(error.to_string()))), ..quiet() };
        let Opened { store, mut state, .. } = Store::open(Arc::new(disk.clone()), path(), options).expect("opens");
        puts(&store, &mut state, 5);
        store.checkpoint().expect("a checkpoint");
        puts(&store, &mut state, 5);
        let nth = Some((1, fault));
        disk.set_faults(match sync {
            true => FaultPlan { sync_nth: nth, ..FaultPlan::default() },
            false => FaultPlan { write_nth: nth, ..FaultPlan::default() },
        });
        store.checkpoint().expect_err("the fault");
        disk.set_faults(FaultPlan::default());
        store.checkpoint().expect_err("stopped");
        puts(&store, &mut state, 5);
        store.close().expect_err("stopped");
        assert_eq!(told.lock().len(), 1);
        assert!(told.lock()[0].starts_with(PATH), "{:?}", told.lock());
        let index = open(&disk).applied.log_id.expect("an applied id").index;
        assert!(index == 5 || index == 10, "a whole checkpoint: {index}");
    }
}

#[test]
fn a_snapshot_carries_everything_but_the_nodes_own_rows() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    let mut random = Random::new(5);
    for index in 1..=300 {
        let command = random_command(&mut random, &state);
        step(&store, &mut state, index, &command);
    }
    store.local_put("node", Bytes::from("one")).expect("a local row");
    let snap = Path::new("/d/snap");
    let info = store.export(snap, 7).expect("an export");
    assert_eq!(info.applied.log_id, Some(id(300)));
    assert_eq!(snapshot::verify(&disk, snap).expect("it verifies"), info);
    assert_eq!(snapshot::read_applied(&disk, snap).expect("its head"), info.applied);
    let other = new_disk(2);
    other.write_file(snap, &disk.read_file(snap).expect("the snapshot"));
    let Opened { store, state: mut behind, .. } = open(&other);
    store.local_put("node", Bytes::from("two")).expect("a local row");
    puts(&store, &mut behind, 20);
    let (restored, applied) = store.import(snap).expect("an import");
    assert_eq!(restored.digest(), state.digest());
    assert_eq!(applied, info.applied);
    assert_eq!(store.durable(), Some(id(300)));
    assert_eq!(store.local_get("node").expect("a read"), Some(Bytes::from("two")));
    let mut restored = restored;
    puts(&store, &mut restored, 3);
    store.close().expect("closed");
    let again = open(&other);
    assert_eq!(again.state.digest(), restored.digest());
    assert_eq!(again.store.local_get("node").expect("a read"), Some(Bytes::from("two")));
}

#[test]
fn an_import_cut_short_leaves_the_old_state_or_the_new() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    puts(&store, &mut state, 40);
    let snap = Path::new("/d/snap");
    store.export(snap, 7).expect("an export");
    let bytes = disk.read_file(snap).expect("the snapshot");
    let (mut old, mut new) = (0, 0);
    for seed in 0..60 {
        let disk = new_disk(seed);
        disk.write_file(snap, &bytes);
        let Opened { store, mut state, .. } = open(&disk);
        puts(&store, &mut state, 3);
        store.checkpoint().expect("a checkpoint");
        disk.cut_power_after(seed);
        let _ = store.import(snap);
        let after = disk.crash(seed);
        let _ = store.close();
        match open(&after).applied.log_id.map(|id| id.index) {
            Some(3) => old += 1,
            Some(40) => new += 1,
            other => panic!("seed {seed}: neither: {other:?}"),
        }
    }
    assert!(old > 0 && new > 0, "{old} old, {new} new");
}

#[test]
fn a_damaged_or_cut_snapshot_is_refused_and_the_store_goes_on() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    puts(&store, &mut state, 10);
    let snap = Path::new("/d/snap");
    store.export(snap, 7).expect("an export");
    let bytes = disk.read_file(snap).expect("the snapshot");
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        disk.write_file(snap, &changed);
        snapshot::verify(&disk, snap).expect_err("a changed byte");
        disk.write_file(snap, &bytes[..at]);
        snapshot::verify(&disk, snap).expect_err("cut short");
    }
    let error = store.import(snap).err().expect("refused");
    assert!(matches!(error, StorageError::BadSnapshot { .. }), "{error}");
    let rows = puts(&store, &mut state, 3);
    store.checkpoint().expect("the store goes on");
    assert_eq!(store.row(rows[2].rev).expect("a read").as_ref(), Some(&rows[2]));
}

/// A snapshot of format version 1 as it was first written: rows, small tables and membership of format version 1 are in it.
const FIXTURE: &str = include_str!("../../tests/fixtures/snapshot-v1.hex");

#[test]
fn a_snapshot_of_version_1_is_imported() {
    let disk = new_disk(1);
    let snap = Path::new("/d/snap");
    disk.write_file(snap, &crate::fixture::bytes(FIXTURE));
    let Opened { store, .. } = open(&disk);
    let (state, applied) = store.import(snap).expect("an import");
    assert_eq!(applied, Applied { log_id: Some(id(9)), membership: Some((Some(id(7)), Bytes::from("7"))) });
    assert_eq!(state.digest(), fixture_state(None).digest());
    assert_eq!(state.revision(), 9);
}

fn fixture_state(store: Option<&Store>) -> State {
    let mut state = State::new();
    let scratch = new_disk(1);
    let opened = open(&scratch);
    let store = store.unwrap_or(&opened.store);
    for index in 1..=8 {
        step(store, &mut state, index, &put(&[b'k', index as u8 % 3], &[index as u8; 5]));
    }
    let stamp = Some(kvasir_api::command::Stamp { cluster_ms: 77, wall_ms: 88 });
    let tick = Command { stamp, body: Some(command::Body::Tick(Default::default())), ..blank() };
    step(store, &mut state, 9, &tick);
    state
}

/// Rewrites the fixture; run by hand, and only together with a new format version.
#[test]
#[ignore = "writes the fixture"]
fn write_the_snapshot_fixture() {
    let disk = new_disk(1);
    let Opened { store, .. } = open(&disk);
    fixture_state(Some(&store));
    let snap = Path::new("/d/snap");
    store.export(snap, 0).expect("an export");
    crate::fixture::write("snapshot-v1.hex", &disk.read_file(snap).expect("the snapshot"));
}

#[test]
fn a_state_file_whose_name_was_never_made_durable_is_not_trusted_after_a_restart() {
    for operations in 0..24 {
        for seed in 0..8 {
            let disk = new_disk(seed);
            disk.cut_power_after(operations);
            let first = Store::open(Arc::new(disk.clone()), path(), quiet());
            let restarted = disk.kill(seed);
            drop(first);
            let Opened { store, mut state, .. } = open(&restarted);
            puts(&store, &mut state, 1);
            store.checkpoint().expect("a checkpoint");
            let after = restarted.crash(seed);
            assert_eq!(open(&after).applied.log_id, Some(id(1)), "{operations} operations, seed {seed}");
        }
    }
}

#[test]
fn a_state_file_that_is_refused_is_left_as_it_was() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    puts(&store, &mut state, 20);
    store.checkpoint().expect("a checkpoint");
    let unclean = disk.image(1);
    store.close().expect("closed");
    for disk in [disk, unclean] {
        let before = disk.read_file(path()).expect("the file");
        let refuse = |found: &Found| {
            assert_eq!(found.applied.log_id, Some(id(20)));
            Err(StorageError::missing(path(), "refused"))
        };
        let refused = Store::open_if(Arc::new(disk.clone()), path(), quiet(), refuse);
        assert!(matches!(refused.err(), Some(StorageError::Missing { .. })));
        assert!(disk.read_file(path()).expect("the file") == before, "not a byte was changed");
        open(&disk).store.close().expect("closed");
    }
}

#[test]
fn nothing_reaches_the_file_after_a_close_even_with_a_reader_in_it() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    puts(&store, &mut state, 20);
    let reader = store.file().expect("the file");
    store.close().expect("closed");
    let before = disk.read_file(path()).expect("the file");
    drop(reader);
    assert!(disk.read_file(path()).expect("the file") == before, "the reader was the last to let go, and wrote");
    assert_eq!(open(&disk).applied.log_id, Some(id(20)));
}

#[test]
fn a_checkpoint_is_made_while_there_is_always_more_to_move() {
    let options = StoreOptions { commit_rows_max: 1, checkpoint_bytes: 1_000, ..quiet() };
    let Opened { store, mut state, .. } = Store::open(Arc::new(new_disk(1)), path(), options).expect("opens");
    puts(&store, &mut state, 2_000);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while store.durable().is_none() {
        assert!(store.tail_bytes() > 0 && std::time::Instant::now() < deadline, "no checkpoint before the tail was empty");
        std::thread::yield_now();
    }
    assert!(store.tail_bytes() > 0, "it was made in between");
}

#[test]
fn an_export_covers_just_what_is_durable() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    puts(&store, &mut state, 20);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                puts(&store, &mut state, 1);
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        for round in 0..40 {
            let info = store.export(&Path::new("/d").join(round.to_string()), 0).expect("an export");
            // Checkpoints are made on request only, so this is the one of the export.
            assert_eq!(info.applied.log_id, store.durable(), "round {round}");
        }
        stop.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_prepared_snapshot_changes_nothing_until_it_is_installed_and_leaves_nothing_when_dropped() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    puts(&store, &mut state, 10);
    let snap = Path::new("/d/snap");
    store.export(snap, 7).expect("an export");
    puts(&store, &mut state, 10);
    let prepared = store.prepare(snap).expect("prepared");
    assert_eq!(prepared.applied().log_id, Some(id(10)));
    assert!(store.prepare(snap).is_err(), "one at a time");
    puts(&store, &mut state, 10);
    assert_eq!(store.checkpoint().expect("a checkpoint").log_id, Some(id(30)), "the store goes on");
    drop(prepared);
    assert!(!disk.exists(&file::unfinished(path())).expect("a look"));
    let (restored, _) = store.import(snap).expect("again");
    assert_eq!(restored.applied_index(), 10);
}

#[test]
fn a_flipped_byte_of_a_row_is_reported_and_changes_nothing() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    for index in 1..=5 {
        step(&store, &mut state, index, &put(b"key", &[0xc0 + index as u8; 300]));
    }
    store.local_put("node", Bytes::from(vec![0xee; 300])).expect("a local row");
    store.close().expect("closed");
    let whole = disk.read_file(path()).expect("the file");
    let mut reported = [0; 2];
    for at in (0..whole.len()).filter(|at| (0xc1..=0xc5).contains(&whole[*at]) || whole[*at] == 0xee) {
        let in_run = at + 100 < whole.len() && whole[at..at + 100].iter().all(|byte| *byte == whole[at]);
        if !in_run || at % 37 != 0 {
            continue;
        }
        let image = disk.image(1);
        let mut changed = whole.clone();
        changed[at] ^= 1;
        image.write_file(path(), &changed);
        match Store::open(Arc::new(image.clone()), path(), quiet()) {
            // A page that is no longer in use.
            Ok(opened) => assert_eq!(opened.state.digest(), state.digest(), "byte {at}"),
            Err(StorageError::Corrupt { .. }) => {
                assert!(image.read_file(path()).expect("the file") == changed, "byte {at}: the file was changed");
                reported[usize::from(whole[at] == 0xee)] += 1;
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(reported.iter().all(|count| *count > 3), "history, local rows: {reported:?}");
}
