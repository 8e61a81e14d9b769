//! The life of one store on one simulated disk: opened, judged, loaded, cut off; again and again.

use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvasir_api::etcdserverpb::{CompactionRequest, RangeRequest};
use kvasir_engine::{Engine, EngineOptions};
use kvasir_storage::disk::{Disk, Fault, FaultPlan, SimDisk};
use kvasir_storage::log::LogOptions;
use kvasir_storage::state::StoreOptions;
use kvasir_tests::Random;
use kvasir_tests::oracle::{Door as _, Floor, Oracle, Refusal, Step, Writer};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::door::EngineDoor;

const DATA_DIR: &str = "/data";
/// An engine that neither answers nor says why within this span has hung.
const PATIENCE: Duration = Duration::from_secs(60);
/// An incarnation that its disk does not end before ends after so many requests.
const ANSWERS_MAX: u64 = 2_000;

/// What happened in some lives.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    /// Power cuts under load.
    pub(crate) power_cuts: u64,
    /// Power cuts while the engine started or was judged.
    pub(crate) cuts_while_starting: u64,
    /// Disks that failed.
    pub(crate) faults: u64,
    /// Kills that the system's memory survived.
    pub(crate) kills: u64,
    /// Orderly shutdowns.
    pub(crate) shutdowns: u64,
    /// Ends before which a checkpoint was made.
    pub(crate) checkpointed: u64,
    /// Ends before which the log was purged.
    pub(crate) purged: u64,
    /// Requests that were answered.
    pub(crate) answered: u64,
    /// Revisions that were judged.
    pub(crate) revisions: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.power_cuts += other.power_cuts;
        self.cuts_while_starting += other.cuts_while_starting;
        self.faults += other.faults;
        self.kills += other.kills;
        self.shutdowns += other.shutdowns;
        self.checkpointed += other.checkpointed;
        self.purged += other.purged;
        self.answered += other.answered;
        self.revisions += other.revisions;
    }
}

/// How an incarnation of the engine ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The power goes after so many disk operations, counted from before the start.
    CutWhileStarting(u64),
    /// The power goes after so many disk operations under load.
    CutAfter(u64),
    /// The power goes between two disk operations, once so many requests were answered.
    CutAt(u64),
    /// The disk fails from the nth operation of a kind on.
    Fails(u64, Fault, Operation),
    /// It is killed once so many requests were answered: the system's memory keeps what was not synced, for the time being.
    Kill(u64),
    /// It is asked to stop once so many requests were answered.
    Shutdown(u64),
}

/// What a disk fails at.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Write,
    Sync,
    /// Creating, renaming, removing and cutting files, syncing folders.
    Name,
}

struct Life {
    random: Random,
    oracle: Oracle,
    writers: Vec<Writer>,
    floor: Arc<Floor>,
    tally: Tally,
    above: fn(&SimDisk) -> Arc<dyn Disk>,
}

/// Runs the life that belongs to a seed.
///
/// # Panics
/// When the store breaks its word.
pub(crate) fn live(seed: u64) -> Tally {
    live_on(seed, |disk| Arc::new(disk.clone()))
}

/// As [`live`], on a disk that misbehaves: `above` puts it over the simulated one.
///
/// # Panics
/// When the store breaks its word.
pub(crate) fn live_on(seed: u64, above: fn(&SimDisk) -> Arc<dyn Disk>) -> Tally {
    let mut random = Random::new(seed);
    let mut disk = SimDisk::new(random.next());
    let count = 1 + random.below(8) as u32;
    let keys = 2 + random.below(12);
    let writers = (0..count).map(|id| Writer::new(id, "/w/", keys, random.fork())).collect();
    let ends = 3 + random.below(4);
    let mut life = Life { random, oracle: Oracle::new(), writers, floor: Arc::default(), tally: Tally::default(), above };
    for _ in 0..ends {
        let end = life.choose_end();
        life.incarnation(&disk, Some(end));
        let seed = life.random.next();
        disk = match end {
            End::Kill(_) => disk.kill(seed),
            // A process that ends for its disk's sake is started again without a power cut, or with one.
            End::Fails(..) if life.random.chance(50) => disk.kill(seed),
            _ => disk.crash(seed),
        };
    }
    life.incarnation(&disk, None);
    life.tally.revisions = life.oracle.verified() as u64;
    life.tally
}

impl Life {
    fn choose_end(&mut self) -> End {
        let (answered, operations) = (1 + self.random.below(300), 1 + self.random.below(400));
        let fault = if self.random.chance(50) { Fault::Eio } else { Fault::Enospc };
        match self.random.below(100) {
            0..20 => End::CutWhileStarting(self.random.below(120)),
            20..50 => End::CutAfter(operations),
            50..65 => End::CutAt(answered),
            65..78 => End::Kill(answered),
            78..90 => {
                let operation = match self.random.below(3) {
                    0 => Operation::Write,
                    1 => Operation::Sync,
                    _ => Operation::Name,
                };
                let nth = 1 + self.random.below(if matches!(operation, Operation::Name) { 12 } else { 60 });
                End::Fails(nth, fault, operation)
            }
            _ => End::Shutdown(answered),
        }
    }

    /// Opens the engine, judges it, loads it until its end. Everything of it is gone afterwards.
    fn incarnation(&mut self, disk: &SimDisk, end: Option<End>) {
        // A runtime of its own: what the engine leaves running ends with it, as with a process.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        self.run(&runtime, disk, end);
        runtime.shutdown_background();
    }

    fn run(&mut self, runtime: &Runtime, disk: &SimDisk, end: Option<End>) {
        let early = match end {
            Some(End::CutWhileStarting(operations)) => {
                disk.cut_power_after(operations);
                true
            }
            _ => false,
        };
        let options = options((self.above)(disk), &mut self.random);
        runtime.block_on(async {
            let started = tokio::time::timeout(PATIENCE, Engine::start(options)).await.expect("a start comes to an end");
            let engine = match started {
                Ok(engine) => engine,
                Err(error) => {
                    let lost_power = early && error.to_string().contains("lost power");
                    assert!(lost_power, "the engine does not start on what the disk kept: {error}");
                    self.tally.cuts_while_starting += 1;
                    return;
                }
            };
            if early {
                // The power may go at any moment from here on, so nothing can be judged; but nothing may be promised and lost.
                self.tally.cuts_while_starting += 1;
                if self.writers.iter().any(Writer::is_waiting) {
                    return;
                }
            } else {
                self.judge(&engine).await;
            }
            match end {
                Some(end) => self.load(&engine, disk, end).await,
                None => engine.shutdown().await,
            }
        });
    }

    async fn judge(&mut self, engine: &Engine) {
        let door = EngineDoor(engine.clone());
        self.oracle.verify(&door, &mut self.writers, &self.floor, |_| false).await;
        let verified = self.oracle.verified();
        for _ in 0..3 {
            let past = 2 + self.random.below(verified as u64) as i64;
            if past <= verified {
                self.oracle.verify_past(&door, past).await;
            }
        }
        self.oracle.verify_history(&door, self.oracle.oldest()).await;
    }

    async fn load(&mut self, engine: &Engine, disk: &SimDisk, end: End) {
        let door = EngineDoor(engine.clone());
        let (stop, stopped) = watch::channel(false);
        let answered = Arc::new(AtomicU64::new(0));
        match end {
            End::CutAfter(operations) => disk.cut_power_after(operations),
            End::Fails(nth, fault, operation) => {
                let nth = Some((nth, fault));
                disk.set_faults(match operation {
                    Operation::Write => FaultPlan { write_nth: nth, ..FaultPlan::default() },
                    Operation::Sync => FaultPlan { sync_nth: nth, ..FaultPlan::default() },
                    Operation::Name => FaultPlan { name_nth: nth, ..FaultPlan::default() },
                });
            }
            _ => {}
        }
        let mut running = JoinSet::new();
        for mut writer in self.writers.drain(..) {
            let (door, floor, answered, mut stopped) =
                (door.clone(), Arc::clone(&self.floor), Arc::clone(&answered), stopped.clone());
            running.spawn(async move {
                loop {
                    // A request that is cut off in its midst is one whose fate is unknown.
                    let step = tokio::select! {
                        step = writer.step(&door, &floor) => step,
                        _ = stopped.wait_for(|stop| *stop) => return writer,
                    };
                    if step != Step::Answered {
                        return writer;
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let until = match end {
            End::CutAt(answered) | End::Kill(answered) | End::Shutdown(answered) => answered,
            _ => ANSWERS_MAX,
        };
        let mut random = self.random.fork();
        let load = async {
            tokio::select! {
                () = reaches(&answered, until) => {}
                () = upkeep(&door, &mut self.oracle, &mut random, &answered) => {}
            }
        };
        let fatal = tokio::select! {
            biased;
            line = engine.fatal() => Some(line),
            () = load => None,
            () = tokio::time::sleep(PATIENCE) => panic!("the engine hangs: {end:?}, {} answered", answered.load(Ordering::Relaxed)),
        };
        self.end(engine, disk, end, fatal).await;
        stop.send_replace(true);
        self.writers = running.join_all().await;
        self.writers.sort_by_key(Writer::id);
        self.tally.answered += answered.load(Ordering::Relaxed);
    }

    async fn end(&mut self, engine: &Engine, disk: &SimDisk, end: End, fatal: Option<String>) {
        if let Some(line) = &fatal {
            assert!(
                !line.trim().is_empty() && !line.trim().contains('\n'),
                "the engine ends with one clear line, not {line:?}"
            );
            assert!(
                !matches!(end, End::CutAt(_) | End::Kill(_) | End::Shutdown(_)),
                "the engine gave up on a healthy disk: {line}"
            );
        }
        match (end, fatal) {
            (End::Fails(_, fault, _), Some(line)) => {
                let cause = match fault {
                    Fault::Eio => ["os error 5", "Input/output"],
                    Fault::Enospc => ["os error 28", "No space"],
                };
                assert!(cause.iter().any(|it| line.contains(it)), "{fault:?}, but the line is {line:?}");
                self.tally.faults += 1;
            }
            (End::Shutdown(_), _) => {
                let stopped = tokio::time::timeout(PATIENCE, engine.shutdown()).await;
                stopped.expect("a shutdown comes to an end");
                self.tally.shutdowns += 1;
            }
            (End::CutWhileStarting(_), _) => {}
            (End::Kill(_), _) => self.tally.kills += 1,
            _ => self.tally.power_cuts += 1,
        }
        let status = engine.raft_status();
        self.tally.checkpointed += u64::from(status.checkpoint_index > 0);
        self.tally.purged += u64::from(status.purged_index > 0);
        // From here on nothing of this incarnation reaches the disk.
        disk.cut_power_after(0);
    }
}

/// Waits until so many requests were answered.
async fn reaches(answered: &AtomicU64, until: u64) {
    while answered.load(Ordering::Relaxed) < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Compactions and reads of the past while the writers write.
async fn upkeep(door: &EngineDoor, oracle: &mut Oracle, random: &mut Random, answered: &AtomicU64) {
    let mut next = 0;
    loop {
        next += 5 + random.below(60);
        reaches(answered, next).await;
        let revision = 1 + random.below(oracle.verified() as u64) as i64;
        match random.below(2) {
            0 => {
                oracle.compacting(revision);
                match door.compact(CompactionRequest { revision, physical: random.chance(30) }).await {
                    Ok(_) => oracle.compacted(revision),
                    // Compacted further already, or cut off.
                    Err(Refusal::Definite(why)) => assert!(why.contains("compacted"), "compaction of {revision}: {why}"),
                    Err(Refusal::Unknown(_)) => std::future::pending().await,
                }
            }
            _ => {
                let request = RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..RangeRequest::default() };
                if let Ok(range) = door.range(request).await {
                    oracle.judge_past(&range, revision);
                }
            }
        }
    }
}

/// Small in every way, so that a short life has segments, commits, checkpoints and purges between its ends.
fn options(disk: Arc<dyn Disk>, random: &mut Random) -> EngineOptions {
    let log = LogOptions {
        segment_bytes: (128 * 1024) << random.below(3),
        record_bytes_max: 64 * 1024,
        cache_bytes: 16 * 1024,
        ..LogOptions::default()
    };
    let store = StoreOptions {
        cache_bytes: 1024 * 1024,
        commit_rows_max: 1 + random.below(64) as usize,
        delete_rows_max: 1 + random.below(64) as usize,
        commit_linger: Duration::from_millis(random.below(4)),
        checkpoint_bytes: 1024 << random.below(8),
        checkpoint_interval: Duration::from_millis(1 + random.below(60)),
        ..StoreOptions::default()
    };
    EngineOptions {
        heartbeat_ms: 5,
        election_ms: 15,
        log_keep_entries: 1 + random.below(64),
        log,
        store,
        ..EngineOptions::new(DATA_DIR, disk)
    }
}
