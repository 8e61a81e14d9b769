//! The log as a whole: acknowledgement and crashes against a naive model, damage, group commit.

use super::*;
use crate::disk::{Fault, FaultPlan, Random, SimDisk, SlowDisk};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

const DIR: &str = "/log";

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn new_disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all(dir()).expect("the folder");
    disk.sync_dir(Path::new("/")).expect("a sync");
    disk
}

/// Segments of 2 KiB, a cache that holds next to nothing.
fn small() -> LogOptions {
    LogOptions { segment_bytes: 2048, record_bytes_max: 1024, cache_bytes: 300, ..LogOptions::default() }
}

fn open(disk: &SimDisk) -> Log {
    Log::open(Arc::new(disk.clone()), dir(), small()).expect("the log opens")
}

fn id(term: u64, index: u64) -> LogId {
    LogId { term, node: 1, index }
}

fn entry(term: u64, index: u64, bytes: usize) -> LogEntry {
    let payload = Bytes::from(vec![(index as u8) ^ (term as u8) | 1; bytes]);
    LogEntry { id: id(term, index), kind: EntryKind::Command, payload }
}

fn waiter() -> (Done, mpsc::Receiver<io::Result<()>>) {
    let (sender, receiver) = mpsc::channel();
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

fn wait(receiver: &mpsc::Receiver<io::Result<()>>) -> io::Result<()> {
    receiver.recv_timeout(Duration::from_secs(60)).expect("an answer")
}

fn append(log: &Log, entries: Vec<LogEntry>) -> io::Result<()> {
    let (done, answer) = waiter();
    log.append(entries, done);
    wait(&answer)
}

fn vote(log: &Log, term: u64) -> io::Result<()> {
    let (done, answer) = waiter();
    log.save_vote(Vote { term, node: 1, committed: false }, done);
    wait(&answer)
}

fn purge(log: &Log, upto: LogId) -> io::Result<()> {
    let (done, answer) = waiter();
    log.purge(upto, done);
    wait(&answer)
}

fn truncate(log: &Log, after: Option<LogId>) -> io::Result<()> {
    let (done, answer) = waiter();
    log.truncate_after(after, done);
    wait(&answer)
}

fn segments(disk: &SimDisk) -> Vec<String> {
    disk.list(dir()).expect("a listing").into_iter().filter(|name| name.ends_with(".log")).collect()
}

#[test]
fn what_is_appended_is_read_back_from_memory_and_after_reopening_from_disk() {
    let disk = new_disk(1);
    let log = open(&disk);
    let entries: Vec<_> = (0..60).map(|index| entry(1, index, 100)).collect();
    for chunk in entries.chunks(7) {
        append(&log, chunk.to_vec()).expect("an append");
    }
    assert_eq!(log.read(0..60).expect("a read"), entries);
    assert!(log.stats().cache_bytes <= 300, "the cache keeps to its bound");
    log.save_committed(id(1, 30));
    vote(&log, 3).expect("a vote");
    log.close().expect("closed");
    let log = open(&disk);
    assert_eq!(log.read(10..1000).expect("a read"), entries[10..]);
    assert_eq!(log.read_bounded(10..60, 300).expect("a read").len(), 2);
    let state = log.state();
    assert_eq!(state.last, Some(id(1, 59)));
    assert_eq!(state.vote, Some(Vote { term: 3, node: 1, committed: false }));
    assert_eq!(state.committed, Some(id(1, 30)));
    assert_eq!(log.flushed_index(), Some(59));
    assert!(segments(&disk).len() > 3, "it spans several segments");
}

#[test]
fn a_gap_and_an_oversize_entry_are_refused_and_the_log_goes_on() {
    let log = open(&new_disk(1));
    append(&log, vec![entry(1, 0, 10)]).expect("an append");
    assert_eq!(append(&log, vec![entry(1, 2, 10)]).expect_err("a gap").kind(), io::ErrorKind::InvalidInput);
    assert_eq!(append(&log, vec![entry(1, 1, 1025)]).expect_err("too large").kind(), io::ErrorKind::InvalidInput);
    append(&log, vec![entry(1, 1, 1024)]).expect("an append of the largest entry");
}

#[test]
fn truncated_entries_are_gone_at_once_and_others_take_their_place() {
    let disk = new_disk(1);
    let log = open(&disk);
    append(&log, (0..20).map(|index| entry(1, index, 200)).collect()).expect("an append");
    let (done, answer) = waiter();
    log.truncate_after(Some(id(1, 4)), done);
    assert_eq!(log.state().last, Some(id(1, 4)));
    assert!(log.read(5..20).expect("a read").is_empty());
    assert!(log.flushed_index() <= Some(4));
    wait(&answer).expect("truncated");
    append(&log, (5..8).map(|index| entry(2, index, 50)).collect()).expect("an append");
    assert_eq!(log.read(4..9).expect("a read").iter().map(|e| e.id.term).collect::<Vec<_>>(), [1, 2, 2, 2]);
    log.close().expect("closed");
    let log = open(&disk);
    assert_eq!(log.read(4..9).expect("a read").iter().map(|e| e.id.term).collect::<Vec<_>>(), [1, 2, 2, 2]);
    truncate(&log, None).expect("truncated");
    assert_eq!(log.state().last, None);
    append(&log, vec![entry(3, 0, 1)]).expect("an append");
    assert_eq!(log.read(0..9).expect("a read"), [entry(3, 0, 1)]);
}

#[test]
fn a_purge_removes_whole_segments_and_the_vote_survives_it() {
    let disk = new_disk(1);
    let log = open(&disk);
    vote(&log, 7).expect("a vote");
    for index in 0..100 {
        append(&log, vec![entry(7, index, 200)]).expect("an append");
    }
    let before = segments(&disk).len();
    purge(&log, id(7, 90)).expect("purged");
    assert!(log.read(0..91).expect("a read").is_empty());
    log.close().expect("closed");
    let after = segments(&disk).len();
    assert!(after < before / 3, "{before} segments became {after}");
    let log = open(&disk);
    let state = log.state();
    assert_eq!((state.last_purged, state.last), (Some(id(7, 90)), Some(id(7, 99))));
    assert_eq!(state.vote.map(|vote| vote.term), Some(7));
    assert_eq!(log.read(0..100).expect("a read").len(), 9);
    purge(&log, id(9, 500)).expect("purged beyond the end");
    assert_eq!(log.state().last, Some(id(9, 500)));
    append(&log, vec![entry(9, 501, 10)]).expect("an append");
    log.close().expect("closed");
    assert_eq!(open(&disk).read(0..1000).expect("a read"), [entry(9, 501, 10)]);
}

/// What the log must hold: the naive model.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: BTreeMap<u64, LogEntry>,
}

impl Model {
    fn of(log: &Log) -> Self {
        let state = log.state();
        assert!(
            state.committed.map(|id| id.index) <= state.last.map(|id| id.index),
            "a committed id beyond the last entry: {state:?}"
        );
        let entries = log.read(0..u64::MAX).expect("a read");
        Self {
            vote: state.vote,
            purged: state.last_purged,
            last: state.last,
            entries: entries.into_iter().map(|entry| (entry.id.index, entry)).collect(),
        }
    }

    fn next(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }
}

/// Runs random calls, cuts the power at a random moment, and expects after reopening the state after some call, not before the
/// last acknowledged one. The states are taken per record: an append of several entries may survive in part.
fn crash_run(seed: u64) {
    let mut random = Random::new(seed);
    let mut disk = new_disk(seed);
    let mut model = Model::default();
    let mut term = 1;
    for round in 0..3 {
        let log = open(&disk);
        assert_eq!(Model::of(&log), model, "seed {seed}, round {round}: reopening changes nothing");
        let mut states = vec![model.clone()];
        let acked = Arc::new(AtomicU64::new(0));
        if random.below(2) == 0 {
            disk.cut_power_after(random.below(60));
        }
        for _ in 0..random.below(40) {
            let call = random.below(12);
            let mut next_states = Vec::new();
            let (done, answer) = waiter();
            let mut request: Box<dyn FnOnce(Done)> = match call {
                0 => {
                    term += 1;
                    model.vote = Some(Vote { term, node: 1, committed: random.below(2) == 0 });
                    next_states.push(model.clone());
                    let (log, vote) = (log.clone(), model.vote.expect("just set"));
                    Box::new(move |done| log.save_vote(vote, done))
                }
                1 => {
                    let first = model.purged.map_or(0, |purged| purged.index + 1);
                    let keep = first + random.below(model.next().saturating_sub(first) + 1);
                    let after =
                        keep.checked_sub(1).and_then(|index| model.entries.get(&index).map(|entry| entry.id).or(model.purged));
                    model.entries.retain(|index, _| after.is_some_and(|after| *index <= after.index));
                    model.last = after.or(model.purged);
                    next_states.push(model.clone());
                    let log = log.clone();
                    Box::new(move |done| log.truncate_after(after, done))
                }
                2 if model.last.is_some() => {
                    let upto = match random.below(5) {
                        0 => id(term, model.next() + random.below(5)),
                        _ => model.entries.values().nth(random.below(8) as usize).map_or(id(term, model.next()), |e| e.id),
                    };
                    model.entries.retain(|index, _| *index > upto.index);
                    model.purged = Some(upto);
                    model.last = model.last.max(Some(upto)).filter(|last| last.index > upto.index).or(Some(upto));
                    next_states.push(model.clone());
                    let log = log.clone();
                    Box::new(move |done| log.purge(upto, done))
                }
                _ => {
                    let mut entries = Vec::new();
                    for _ in 0..=random.below(4) {
                        let entry = entry(term, model.next(), random.below(700) as usize);
                        model.last = Some(entry.id);
                        model.entries.insert(entry.id.index, entry.clone());
                        next_states.push(model.clone());
                        entries.push(entry);
                    }
                    let log = log.clone();
                    Box::new(move |done| log.append(entries, done))
                }
            };
            if random.below(10) == 0 {
                let upto = model.last;
                let (inner, handle) = (request, log.clone());
                request = Box::new(move |done| {
                    if let Some(upto) = upto {
                        handle.save_committed(upto);
                    }
                    inner(done);
                });
            }
            states.extend(next_states);
            let number = states.len() as u64 - 1;
            // Truncation and purge are acknowledged when written, not when durable.
            let counts = call != 1 && call != 2;
            let acked_here = acked.clone();
            request(Box::new(move |result| {
                if result.is_ok() && counts {
                    acked_here.fetch_max(number, Ordering::SeqCst);
                }
                done(result);
            }));
            if random.below(3) == 0 {
                let _ = wait(&answer);
            }
        }
        let after = disk.crash(random.next());
        let _ = log.close();
        drop(log);
        disk = after;
        let found = Model::of(&open(&disk));
        let acked = acked.load(Ordering::SeqCst) as usize;
        let survived = states.iter().skip(acked).any(|state| *state == found);
        assert!(
            survived,
            "seed {seed}, round {round}: acknowledged {acked} of {} records; found {:?}..={:?} vote {:?}, expected at least {:?}..={:?} vote {:?}",
            states.len() - 1,
            found.purged,
            found.last,
            found.vote,
            states[acked].purged,
            states[acked].last,
            states[acked].vote,
        );
        model = found;
    }
}

#[test]
fn acknowledged_calls_survive_every_power_cut_and_others_survive_as_a_prefix() {
    for seed in 0..crate::fixture::seeds(400) {
        crash_run(seed);
    }
}

#[test]
fn any_changed_byte_is_reported_or_harmless() {
    let disk = new_disk(1);
    let log = open(&disk);
    for index in 0..9 {
        append(&log, vec![entry(1, index, 400)]).expect("an append");
        vote(&log, index).expect("a vote");
    }
    log.close().expect("closed");
    drop(log);
    let whole = Model::of(&open(&disk));
    let (mut reported, mut harmless) = (0, 0);
    for name in segments(&disk) {
        let path = dir().join(&name);
        let bytes = disk.read_file(&path).expect("the segment");
        for at in 0..bytes.len() {
            let image = disk.image(at as u64);
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            image.write_file(&path, &changed);
            match Log::open(Arc::new(image.clone()), dir(), small()) {
                Ok(log) => {
                    assert_eq!(Model::of(&log), whole, "{name}, byte {at}");
                    harmless += 1;
                }
                Err(StorageError::Corrupt { path: named, .. }) => {
                    assert_eq!(image.read_file(&path).expect("the segment"), changed, "the damage is left as it was");
                    assert!(named.starts_with(dir()));
                    reported += 1;
                }
                Err(other) => panic!("{name}, byte {at}: {other}"),
            }
        }
        for len in (0..bytes.len()).step_by(13) {
            let image = disk.image(len as u64);
            image.write_file(&path, &bytes[..len]);
            let error = Log::open(Arc::new(image), dir(), small()).err();
            assert!(matches!(error, Some(StorageError::Corrupt { .. })), "{name} cut to {len} bytes: {error:?}");
        }
    }
    assert!(reported > 4000 && harmless > 100, "{reported} reported, {harmless} harmless");
}

/// Found by the crash runs: the newest segment's head was torn away, the next start took the segment for synced as a whole and
/// removed those before it, and with them the vote.
#[test]
fn segments_are_not_removed_while_the_newest_one_has_no_head() {
    let disk = new_disk(1);
    let log = open(&disk);
    vote(&log, 5).expect("a vote");
    append(&log, vec![entry(1, 0, 1000)]).expect("an append");
    append(&log, vec![entry(1, 1, 1000)]).expect("an append");
    purge(&log, id(1, 1)).expect("purged");
    log.sync().expect("synced");
    let second = disk.open(&segment::path(dir(), 2)).expect("the second segment");
    append(&log, vec![entry(1, 2, 1000)]).expect("an append");
    log.close().expect("closed");
    let mut sealed = vec![0; 2048];
    second.read_at(0, &mut sealed).expect("a read");
    let mut torn = disk.read_file(&segment::path(dir(), 3)).expect("the third segment");
    torn[64..1024].fill(0);
    let disk = new_disk(2);
    disk.write_file(&segment::path(dir(), 2), &sealed);
    disk.write_file(&segment::path(dir(), 3), &torn);
    for _ in 0..2 {
        let log = open(&disk);
        assert_eq!(log.state().vote.map(|vote| vote.term), Some(5));
        assert_eq!(log.state().last, Some(id(1, 1)));
        log.close().expect("closed");
    }
    append(&open(&disk), vec![entry(1, 2, 10)]).expect("an append");
    assert_eq!(Model::of(&open(&disk)).entries.len(), 1);
}

#[test]
fn a_missing_segment_is_reported() {
    let disk = new_disk(1);
    let log = open(&disk);
    append(&log, (0..30).map(|index| entry(1, index, 400)).collect()).expect("an append");
    log.close().expect("closed");
    let names = segments(&disk);
    for name in &names[..names.len() - 2] {
        let image = disk.image(1);
        image.remove(&dir().join(name)).expect("removed");
        let error = Log::open(Arc::new(image), dir(), small()).err();
        assert!(matches!(error, Some(StorageError::Corrupt { .. })), "without {name}: {error:?}");
    }
}

#[test]
fn another_format_version_is_refused_by_name() {
    let disk = new_disk(1);
    open(&disk).begin().expect("begun");
    let path = segment::path(dir(), 1);
    let mut bytes = disk.read_file(&path).expect("the segment");
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    disk.write_file(&path, &bytes);
    let error = Log::open(Arc::new(disk), dir(), small()).err().expect("refused");
    assert!(matches!(error, StorageError::OtherVersion { .. }));
    assert!(error.to_string().contains("format version 2 is not supported"), "{error}");
}

#[test]
fn after_a_failed_sync_or_write_nothing_is_acknowledged_any_more() {
    for (sync, fault) in [(true, Fault::Eio), (false, Fault::Eio), (false, Fault::Enospc)] {
        let disk = new_disk(3);
        let fatal = Arc::new(Mutex::new(Vec::new()));
        let told = fatal.clone();
        let on_fatal: FatalHandler = Arc::new(move |error| told.lock().push(error.to_string()));
        let options = LogOptions { on_fatal: Some(on_fatal), ..small() };
        let log = Log::open(Arc::new(disk.clone()), dir(), options).expect("the log opens");
        append(&log, vec![entry(1, 0, 10)]).expect("an append");
        let nth = Some((1, fault));
        disk.set_faults(match sync {
            true => FaultPlan { sync_nth: nth, ..FaultPlan::default() },
            false => FaultPlan { write_nth: nth, ..FaultPlan::default() },
        });
        append(&log, vec![entry(1, 1, 10)]).expect_err("the fault");
        disk.set_faults(FaultPlan::default());
        append(&log, vec![entry(1, 2, 10)]).expect_err("no more appends");
        vote(&log, 9).expect_err("no more votes");
        assert_eq!(log.flushed_index(), Some(0));
        log.wait_flushed(1).expect_err("it never will be");
        log.close().expect_err("closed with the error");
        assert_eq!(fatal.lock().len(), 1, "reported once");
        drop(log);
        let state = open(&disk).state();
        assert!(state.last >= Some(id(1, 0)) && state.vote.is_none());
    }
}

#[test]
fn a_hundred_appenders_share_their_syncs() {
    let disk = SlowDisk::new(new_disk(1), Duration::from_millis(2));
    let log = Log::open(Arc::new(disk), dir(), LogOptions::default()).expect("the log opens");
    let next = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let (done, answer) = waiter();
                    {
                        let mut next = next.lock();
                        log.append(vec![entry(1, *next, 100)], done);
                        *next += 1;
                    }
                    wait(&answer).expect("an append");
                }
            });
        }
    });
    let stats = log.stats();
    assert_eq!(stats.entries, 1000);
    assert!(stats.syncs <= 100, "{} syncs for 1000 entries", stats.syncs);
}

#[test]
fn one_appender_waits_for_exactly_one_sync_each_time() {
    let disk = new_disk(1);
    let log = Log::open(Arc::new(disk), dir(), LogOptions::default()).expect("the log opens");
    for index in 0..20 {
        append(&log, vec![entry(1, index, 100)]).expect("an append");
        assert_eq!(log.stats().syncs, index + 1);
    }
    truncate(&log, Some(id(1, 10))).expect("truncated");
    purge(&log, id(1, 5)).expect("purged");
    log.save_committed(id(1, 10));
    assert_eq!(log.stats().syncs, 20, "truncate, purge and committed wait for no sync");
}

#[test]
fn a_flush_of_voided_entries_does_not_count_for_those_that_took_their_place() {
    let mut memory = Memory::new(view::View::default(), index::Index::default(), 300);
    memory.append(&(0..10).map(|index| entry(1, index, 10)).collect::<Vec<_>>()).expect("an append");
    let first = memory.ticket();
    memory.truncate(Some(id(1, 4)));
    memory.append(&(5..10).map(|index| entry(2, index, 10)).collect::<Vec<_>>()).expect("an append");
    memory.set_flushed(first);
    assert_eq!(memory.flushed(), 5, "entries 5 to 9 of term 2 are not on the disk yet");
    memory.set_flushed(memory.ticket());
    assert_eq!(memory.flushed(), 10);
}

/// A log of format version 1 as it was first written: header, head, vote, three entries, a truncation, a purge.
const FIXTURE: &str = include_str!("../../tests/fixtures/log-v1.hex");

#[test]
fn a_log_of_version_1_opens() {
    let disk = new_disk(1);
    let path = segment::path(dir(), 1);
    let mut bytes = crate::fixture::bytes(FIXTURE);
    bytes.resize(2048, 0);
    disk.write_file(&path, &bytes);
    let log = open(&disk);
    let state = log.state();
    assert_eq!(state.vote, Some(Vote { term: 2, node: 1, committed: true }));
    assert_eq!(state.last_purged, Some(id(1, 0)));
    assert_eq!(state.committed, Some(id(1, 0)));
    assert_eq!(log.read(0..9).expect("a read"), [entry(1, 1, 5), entry(2, 2, 3)]);
}

/// Rewrites the fixture; run by hand, and only together with a new format version.
#[test]
#[ignore = "writes the fixture"]
fn write_the_log_fixture() {
    let disk = new_disk(1);
    let log = open(&disk);
    vote(&log, 1).expect("a vote");
    append(&log, (0..3).map(|index| entry(1, index, 5)).collect()).expect("an append");
    truncate(&log, Some(id(1, 1))).expect("truncated");
    let (done, answer) = waiter();
    log.save_vote(Vote { term: 2, node: 1, committed: true }, done);
    wait(&answer).expect("a vote");
    log.save_committed(id(1, 0));
    append(&log, vec![entry(2, 2, 3)]).expect("an append");
    purge(&log, id(1, 0)).expect("purged");
    log.close().expect("closed");
    let bytes = disk.read_file(&segment::path(dir(), 1)).expect("the segment");
    // The zeros after the last record are left out.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    crate::fixture::write("log-v1.hex", &bytes[..end]);
}

#[test]
fn opening_an_empty_log_makes_nothing_and_one_that_was_begun_is_known_as_such() {
    let disk = new_disk(1);
    let log = open(&disk);
    assert!(!log.is_begun());
    log.close().expect("closed");
    assert!(disk.list(dir()).expect("a listing").is_empty(), "nothing is made before the log is begun");
    let log = open(&disk);
    log.begin().expect("begun");
    assert!(log.is_begun());
    for seed in 0..20 {
        let log = open(&disk.image(seed));
        assert!(log.is_begun() && log.state() == LogState::default(), "seed {seed}");
        log.begin().expect("begun already");
    }
    append(&log, vec![entry(1, 0, 10)]).expect("an append");
    log.close().expect("closed");
    assert!(open(&disk).is_begun());
    let log = open(&new_disk(2));
    append(&log, vec![entry(1, 0, 10)]).expect("an append");
    assert!(log.is_begun(), "an append begins it too");
}

/// A process that dies between the rename of a segment and the folder's sync leaves a name that the next power cut may take.
#[test]
fn a_segment_whose_name_was_never_made_durable_is_not_trusted_after_a_restart() {
    for operations in 0..24 {
        for seed in 0..8 {
            let disk = new_disk(seed);
            disk.cut_power_after(operations);
            let first = Log::open(Arc::new(disk.clone()), dir(), small()).map(|log| log.begin());
            let restarted = disk.kill(seed);
            drop(first);
            let log = open(&restarted);
            append(&log, vec![entry(1, 0, 10)]).expect("an append");
            let after = restarted.crash(seed);
            assert_eq!(open(&after).state().last, Some(id(1, 0)), "{operations} operations, seed {seed}");
        }
    }
}

#[test]
fn a_segment_that_could_not_be_made_is_tried_again_when_it_is_needed_and_small() {
    let disk = new_disk(1);
    let bytes = 1 << 16;
    disk.write_file(&dir().join("done"), b"");
    let mut preparer = Preparer::start(Arc::new(disk.clone()), dir().to_path_buf(), None).expect("started");
    disk.set_faults(FaultPlan { only: "next.tmp".into(), write_nth: Some((1, Fault::Enospc)), ..FaultPlan::default() });
    preparer.prepare(1, bytes);
    // Done in order: once the file is gone, the segment has failed.
    preparer.remove(dir().join("done"));
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while disk.exists(&dir().join("done")).expect("a look") {
        assert!(std::time::Instant::now() < deadline, "the preparer hangs");
        std::thread::yield_now();
    }
    assert!(disk.list(dir()).expect("a listing").is_empty(), "what was begun does not hold the last room");
    preparer.take(1, 2048).expect_err("the disk is still full");
    preparer.prepare(1, bytes);
    preparer.remove(dir().join("nothing"));
    disk.set_faults(FaultPlan::default());
    let segment = preparer.take(1, 2048).expect("there is room again");
    assert!([2048, bytes].contains(&segment.capacity), "{}", segment.capacity);
}

#[test]
fn a_log_goes_on_once_a_full_disk_has_room_again() {
    let disk = new_disk(1);
    let log = open(&disk);
    log.begin().expect("begun");
    disk.set_faults(FaultPlan { only: "next.tmp".into(), write_nth: Some((2, Fault::Enospc)), ..FaultPlan::default() });
    let mut index = 0;
    // Until the next segment cannot be made: at most what is ready takes more.
    while index < 12 && append(&log, vec![entry(1, index, 900)]).is_ok() {
        index += 1;
    }
    assert!(index < 12, "nothing was refused on a full disk");
    let _ = log.close();
    disk.set_faults(FaultPlan::default());
    let log = open(&disk);
    assert_eq!(log.state().last, index.checked_sub(1).map(|index| id(1, index)));
    append(&log, vec![entry(1, index, 900)]).expect("an append");
}

#[test]
fn a_failed_change_of_a_name_ends_in_a_whole_log() {
    for nth in 1..12 {
        for fault in [Fault::Eio, Fault::Enospc] {
            let disk = new_disk(nth);
            disk.set_faults(FaultPlan { name_nth: Some((nth, fault)), ..FaultPlan::default() });
            let mut acknowledged = None;
            if let Ok(log) = Log::open(Arc::new(disk.clone()), dir(), small()) {
                for index in 0..20 {
                    if append(&log, vec![entry(1, index, 400)]).is_err() {
                        break;
                    }
                    acknowledged = Some(index);
                }
                let _ = log.close();
            }
            let after = disk.crash(nth);
            let found = Model::of(&open(&after));
            assert!(found.last.map(|id| id.index) >= acknowledged, "fault {nth}: {acknowledged:?}, found {:?}", found.last);
        }
    }
}

#[test]
fn what_the_log_takes_on_the_disk_is_known() {
    let log = open(&new_disk(1));
    append(&log, (0..10).map(|index| entry(1, index, 100)).collect()).expect("an append");
    let one = log.live_bytes() / 10;
    assert!(one > 100);
    assert_eq!((log.newest_within(u64::MAX), log.newest_within(3 * one), log.newest_within(0)), (0, 7, 10));
    truncate(&log, Some(id(1, 7))).expect("truncated");
    purge(&log, id(1, 1)).expect("purged");
    log.sync().expect("synced");
    assert_eq!((log.live_bytes(), log.newest_within(3 * one)), (6 * one, 5));
}

/// What the torn-tail rule cannot tell: zeros in a whole sector at the very end are a write that never arrived, even if it had.
#[test]
fn a_lost_sector_is_damage_within_the_log_and_a_torn_tail_at_its_end() {
    let disk = new_disk(1);
    let options = || LogOptions { segment_bytes: 1 << 16, ..small() };
    let log = Log::open(Arc::new(disk.clone()), dir(), options()).expect("the log opens");
    for index in 0..8 {
        append(&log, vec![entry(1, index, 1000)]).expect("an append");
    }
    log.close().expect("closed");
    let path = segment::path(dir(), 1);
    let bytes = disk.read_file(&path).expect("the segment");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("records") / 512 * 512;
    let open_without = |sector: usize| {
        let image = disk.image(1);
        let mut lost = bytes.clone();
        lost[sector..sector + 512].fill(0);
        image.write_file(&path, &lost);
        Log::open(Arc::new(image), dir(), options())
    };
    for sector in (512..end - 1024).step_by(512) {
        assert!(matches!(open_without(sector).err(), Some(StorageError::Corrupt { .. })), "sector at {sector}");
    }
    let shorter = open_without(end - 512).expect("taken for a torn tail");
    assert_eq!(shorter.state().last, Some(id(1, 6)));
}
