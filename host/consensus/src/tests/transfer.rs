//! The state machine and the log storage by themselves: snapshots on their way, order, bounds.

use std::collections::BTreeMap;

use kvasir_storage::disk::SlowDisk;
use kvasir_storage::log::LogState;
use openraft::entry::RaftEntry as _;
use openraft::storage::RaftLogStorage as _;
use openraft::{LogIdOptionExt as _, RaftLogReader as _};

use super::*;
use crate::kinds::{Entry, Payload, log_id_from};
use crate::proposed::Proposed;

fn machine_on(disk: &SimDisk, dir: &str) -> Machine {
    Machine { shared: shared_on(Arc::new(disk.clone()), Path::new(dir)), publish: Arc::new(Told::default()) }
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let key = format!("k{}", index % 10).into();
    let put = PutRequest { key, value: vec![index as u8; bytes].into(), ..PutRequest::default() };
    let command = Command { version: kvasir_machine::COMMAND_VERSION, body: Some(Body::Put(put)), ..Command::default() };
    let id = kvasir_storage::log::LogId { term, node: 1, index };
    Entry::new(log_id_from(id), Payload::Normal(Proposed::encode(&command)))
}

async fn apply(machine: &mut Machine, entries: Vec<Entry>) -> io::Result<()> {
    machine.apply(stream::iter(entries.into_iter().map(|entry| Ok((entry, None))))).await
}

async fn exported(machine: &Machine) -> crate::snapshot::SnapshotFile {
    let snapshots = Arc::clone(&machine.shared.snapshots);
    tokio::task::spawn_blocking(move || snapshots.export()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_sent_while_writes_go_on_is_the_state_at_just_the_entry_it_names() {
    let disk = SimDisk::new(1);
    let mut leader = machine_on(&disk, "/leader");
    apply(&mut leader, vec![entry(1, 1, 50)]).await.unwrap();
    let sender = Machine { shared: Arc::clone(&leader.shared), publish: Arc::new(Told::default()) };
    let digests = Arc::new(Mutex::new(BTreeMap::new()));
    let (stop, stopped) = watch::channel(false);
    let writes = tokio::spawn({
        let digests = Arc::clone(&digests);
        async move {
            for index in 2.. {
                if *stopped.borrow() {
                    return;
                }
                apply(&mut leader, vec![entry(1, index, 50)]).await.unwrap();
                digests.lock().insert(index, leader.shared.state.read().digest());
                tokio::task::yield_now().await;
            }
        }
    });
    for round in 0..5 {
        let announced = sender.shared.checkpoint().await.unwrap();
        // Two more: the state file may not have the last yet.
        let seen = announced.last_log_id.index().unwrap();
        until("writes go on", || sender.shared.applied.lock().0.index().unwrap() > seen + 1).await;
        let (first, second) = tokio::join!(exported(&sender), exported(&sender));
        assert_ne!(first.path, second.path, "two transfers do not share a file that either may remove");
        let mut follower = machine_on(&disk, &format!("/follower-{round}"));
        assert!(first.meta.last_log_id > announced.last_log_id);

        let store = follower.shared.store.clone();
        let (meta, data) = SnapshotData::of_file(&store, &first.path).unwrap();
        let wrong = follower.install_snapshot(&announced, data).await;
        assert!(wrong.is_err() && follower.shared.applied.lock().0.is_none(), "said to cover what it does not");
        assert_eq!(follower.shared.state.read().revision(), 1, "nothing was changed");

        let (again, data) = SnapshotData::of_file(&store, &first.path).unwrap();
        assert!(meta == again && meta == first.meta, "what it covers stands in the file");
        follower.install_snapshot(&meta, data).await.unwrap();
        let index = meta.last_log_id.index().unwrap();
        until("the digest is known", || digests.lock().contains_key(&index)).await;
        assert_eq!(Some(&follower.shared.state.read().digest()), digests.lock().get(&index), "round {round}, entry {index}");
        let path = first.path.clone();
        drop((first, second));
        assert!(!disk.exists(&path).unwrap(), "a file that was sent is removed");
    }
    stop.send_replace(true);
    writes.await.unwrap();
    let known = sender.shared.checkpoint().await.unwrap();
    sender.shared.note_snapshot(&known);
    sender.shared.note_snapshot(&crate::snapshot::meta(None, Default::default()));
    assert_eq!(sender.shared.snapshot.lock().as_ref(), Some(&known), "what is known of snapshots only rises");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_damaged_or_of_another_version_is_the_senders_fault() {
    let disk = SimDisk::new(1);
    let mut sender = machine_on(&disk, "/sender");
    apply(&mut sender, (1..20).map(|index| entry(1, index, 50)).collect()).await.unwrap();
    let file = exported(&sender).await;
    let bytes = disk.read_file(&file.path).unwrap();
    let mut receiver = machine_on(&disk, "/receiver");
    let received = Path::new("/receiver/snapshot/received");
    for at in [8, 40, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        disk.write_file(received, &damaged);
        assert!(SnapshotData::of_file(&receiver.shared.store, received).is_err(), "byte {at}");
    }
    assert!(!receiver.shared.fatal.is_raised());
    apply(&mut receiver, vec![entry(1, 1, 50)]).await.unwrap();
    receiver.shared.store.checkpoint().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncation_before_a_snapshot_is_durable_when_the_snapshot_is() {
    let from = SimDisk::new(1);
    let mut sender = machine_on(&from, "/sender");
    apply(&mut sender, (1..20).map(|index| entry(2, index, 50)).collect()).await.unwrap();
    let bytes = from.read_file(&exported(&sender).await.path).unwrap();
    for seed in 0..16 {
        let disk = SimDisk::new(seed);
        let mut receiver = machine_on(&disk, "/node");
        let mut log = LogStore::new(receiver.shared.log.clone(), Fatal::new());
        let (done, written) = tokio::sync::oneshot::channel();
        // Entries of a leader that lost: they contradict the snapshot.
        let entries = (1..40).map(|index| kvasir_storage::log::LogEntry {
            id: kvasir_storage::log::LogId { term: 1, node: 2, index },
            kind: kvasir_storage::log::EntryKind::Blank,
            payload: bytes::Bytes::new(),
        });
        receiver.shared.log.append(entries.collect(), Box::new(|result| drop(done.send(result))));
        written.await.unwrap().unwrap();
        log.truncate_after(None).await.unwrap();
        let received = Path::new("/node/snapshot/received");
        disk.write_file(received, &bytes);
        let (meta, data) = SnapshotData::of_file(&receiver.shared.store, received).unwrap();
        receiver.install_snapshot(&meta, data).await.unwrap();
        let after = disk.crash(seed);
        let found = shared_on(Arc::new(after), Path::new("/node"));
        assert_eq!(found.applied.lock().0, meta.last_log_id, "seed {seed}");
        assert_eq!(found.log.state().last, None, "seed {seed}: voided entries are back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_out_of_order_are_never_applied() {
    let mut machine = machine_on(&SimDisk::new(1), "/node");
    apply(&mut machine, (1..5).map(|index| entry(1, index, 50)).collect()).await.unwrap();
    let revision = machine.shared.state.read().revision();
    for wrong in [vec![entry(1, 6, 50)], vec![entry(1, 4, 50)], vec![entry(1, 5, 50), entry(1, 7, 50)]] {
        assert!(apply(&mut machine, wrong).await.is_err());
        assert!(machine.shared.fatal.is_raised());
        assert_eq!(machine.shared.state.read().revision(), revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_waits_for_a_state_file_that_is_far_behind() {
    let disk = SimDisk::new(1);
    let shared = shared_on(Arc::new(disk), Path::new("/node"));
    let mut shared = Arc::into_inner(shared).unwrap();
    shared.tail_bytes_max = 10_000;
    let mut machine = Machine { shared: Arc::new(shared), publish: Arc::new(Told::default()) };
    let mut most = 0;
    for index in 1..200 {
        apply(&mut machine, vec![entry(1, index, 1_000)]).await.unwrap();
        most = most.max(machine.shared.store.tail_bytes());
    }
    assert!((5_000..13_000).contains(&most), "{most} bytes were applied and not in the state file");
}

#[tokio::test]
async fn a_full_log_queue_does_not_hold_up_the_runtime() {
    let sim = SimDisk::new(1);
    sim.create_dir_all(Path::new("/log")).unwrap();
    let disk = SlowDisk::new(sim, Duration::from_millis(5));
    let options = LogOptions { queue_max: 1, ..log_options() };
    let log = Log::open(Arc::new(disk), Path::new("/log"), options).unwrap();
    let mut store = LogStore::new(log, Fatal::new());
    let ticks = Arc::new(AtomicU64::new(0));
    let ticking = tokio::spawn({
        let ticks = Arc::clone(&ticks);
        async move {
            loop {
                ticks.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    for index in 1..20 {
        store.append([entry(1, index, 10)], openraft::storage::IOFlushed::noop()).await.unwrap();
    }
    // On a runtime of one thread nothing else runs while a call waits on that thread.
    assert!(ticks.load(Ordering::Relaxed) >= 10, "{ticks:?} ticks in 20 appends of 5 ms each");
    ticking.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_bounded_by_bytes_whole_and_without_gaps() {
    let disk = SimDisk::new(1);
    disk.create_dir_all(Path::new("/log")).unwrap();
    let options = LogOptions { segment_bytes: 8 << 20, record_bytes_max: 2 << 20, cache_bytes: 0, ..LogOptions::default() };
    let log = Log::open(Arc::new(disk), Path::new("/log"), options).unwrap();
    let mut writer = LogStore::new(log.clone(), Fatal::new());
    for index in 1..=12 {
        let (done, flushed) = (openraft::storage::IOFlushed::noop(), index);
        writer.append([entry(1, flushed, 1 << 20)], done).await.unwrap();
    }
    log.sync().unwrap();
    // From memory, and, by a store that has seen no append, from the disk.
    for mut store in [writer, LogStore::new(log.clone(), Fatal::new())] {
        let some = store.limited_get_log_entries(2, 13).await.unwrap();
        assert!((3..=5).contains(&some.len()) && some[0].index() == 2, "{} entries of 1 MiB", some.len());
        let all: Vec<u64> = store.entries_stream(1..13).await.map(|entry| entry.unwrap().index()).collect().await;
        assert_eq!(all, (1..13).collect::<Vec<_>>());
        assert_eq!(store.try_get_log_entries(3..9).await.unwrap().len(), 6);
    }
    let mut store = LogStore::new(log.clone(), Fatal::new());
    store.purge(entry(1, 4, 0).log_id()).await.unwrap();
    assert!(store.limited_get_log_entries(3, 9).await.unwrap().is_empty(), "what follows is not what was asked for");
    assert_eq!(store.limited_get_log_entries(5, 9).await.unwrap()[0].index(), 5);
    assert_ne!(log.state(), LogState::default());
    // Who applies up to an entry that the log did not take any more is told so.
    log.close().unwrap();
    let beyond: Vec<Result<u64, _>> =
        store.entries_stream(11..14).await.map(|entry| entry.map(|entry| entry.index())).collect().await;
    assert!(matches!(beyond.as_slice(), [Ok(11), Ok(12), Err(_)]), "{beyond:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_a_single_voter_is_kept_short_and_light() {
    // Enough for the bound in entries, and for the one in bytes only.
    let alone = kvasir_api::limits::LOG_KEEP_ENTRIES_ALONE;
    for (count, bytes) in [(alone * 5 / 2, u64::MAX / 4), (alone / 2, 20_000)] {
        let disk = SimDisk::new(5);
        let interval = Duration::from_millis(50);
        let keep = ConsensusOptions {
            log_keep_entries: u64::MAX / 4,
            log_keep_bytes: bytes,
            store: StoreOptions { checkpoint_interval: interval, ..StoreOptions::default() },
            ..options(&disk)
        };
        let (consensus, _) = start_with(keep).await;
        for first in (0..count).step_by(50) {
            let puts = (0..50).map(|n| {
                let consensus = &consensus;
                async move { put(consensus, &format!("k{}", first + n), &"v".repeat(200)).await }
            });
            futures_util::future::join_all(puts).await;
        }
        until("the log is purged", || consensus.status().purged_index > 0).await;
        consensus.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftover_snapshots_are_removed_at_the_start() {
    let disk = SimDisk::new(3);
    let (consensus, _) = start(&disk).await;
    consensus.shutdown().await;
    let leftover = Path::new("/node/snapshot/7.snap.part");
    disk.write_file(leftover, b"half");
    let (consensus, _) = start(&disk).await;
    assert!(!disk.exists(leftover).unwrap());
    consensus.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_held_while_a_snapshot_is_written_and_for_as_long_as_it_is_sent() {
    let sim = SimDisk::new(1);
    let shared = shared_on(Arc::new(SlowDisk::new(sim, Duration::from_millis(200))), Path::new("/leader"));
    let mut leader = Machine { shared: Arc::clone(&shared), publish: Arc::new(Told::default()) };
    apply(&mut leader, (1..=20).map(|index| entry(1, index, 50)).collect()).await.unwrap();
    let told = shared.checkpoint().await.unwrap();
    let durable = told.last_log_id.index().unwrap();
    assert_eq!(shared.snapshots.held(0), None);
    let writing = tokio::task::spawn_blocking({
        let (snapshots, told) = (Arc::clone(&shared.snapshots), told.clone());
        move || snapshots.to_send(&told).unwrap()
    });
    let mut was_held = false;
    while !writing.is_finished() {
        let held = shared.snapshots.held(0);
        was_held |= held == Some(durable) && !writing.is_finished();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(was_held, "the log could be purged while the file was written");
    let file = writing.await.unwrap();
    let covered = file.meta.last_log_id.index();
    assert!(covered >= Some(durable) && shared.snapshots.held(0) == covered);
    // It is held for a second after it was used last; and for longer while somebody is at it.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(shared.snapshots.held(0), covered);
    // Once the log is purged above it, it is of no use.
    assert_eq!(shared.snapshots.sending(covered).unwrap().last_log_id.index(), covered);
    assert!(shared.snapshots.sending(covered.map(|index| index + 1)).is_none());
    drop(file);
    assert_eq!(shared.snapshots.held(0), None);
}
