//! Consensus on simulated disks: openraft's own store suite on our log and state machine, restarts, crashes, purging.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use kvasir_api::command::command::Body;
use kvasir_api::command::{Command, Tick};
use kvasir_api::etcdserverpb::{PutRequest, RangeRequest};
use kvasir_machine::{DEFAULT_TENANT, Reply};
use kvasir_storage::disk::{Disk, Fault, FaultPlan, SimDisk};
use kvasir_storage::log::{Log, LogOptions};
use kvasir_storage::state::{Store, StoreOptions};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, StorageError};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::fatal::Fatal;
use crate::forward::Waiting;
use crate::kinds::{Kinds, LogId, SnapshotMeta, StoredMembership};
use crate::log::LogStore;
use crate::machine::{Machine, Shared, applied_from};
use crate::publish::{Publish, Published};
use crate::snapshot::{Builder, SnapshotData, Snapshots};
use crate::standing::Standing;
use crate::{Consensus, ConsensusOptions};

const DEADLINE: Duration = Duration::from_secs(20);

/// Keeps the revisions it is told.
#[derive(Default)]
struct Told(Mutex<Vec<u64>>);

impl Publish for Told {
    fn publish(&self, batch: Published) {
        let mut told = self.0.lock();
        told.extend(batch.changes.iter().map(|change| change.row.rev.main));
    }
}

/// Every node in a folder of its own on one disk, so that one can install what another exported.
struct OnSimDisk {
    disk: SimDisk,
    nodes: AtomicU64,
}

/// The state machine for openraft's suite, which applies entries with gaps between them; ours refuses that.
struct WithGaps(Machine);

impl RaftStateMachine<Kinds> for WithGaps {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        self.0.applied_state().await
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Kinds>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            self.0.shared.applied.lock().0 = None;
            self.0.apply(stream::iter([entry])).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.0.get_snapshot_builder().await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        self.0.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf>, io::Error> {
        self.0.get_current_snapshot().await
    }
}

type SnapshotOf = Snapshot<openraft::impls::leader_id_adv::LeaderId<u64, u64>, u64, crate::Member, SnapshotData>;

impl StoreBuilder<Kinds, LogStore, WithGaps> for OnSimDisk {
    async fn build(&self) -> Result<((), LogStore, WithGaps), StorageError<Kinds>> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let dir = PathBuf::from(format!("/node-{}", self.nodes.fetch_add(1, Ordering::Relaxed)));
        let shared = shared_on(disk, &dir);
        let log = shared.log.clone();
        let machine = Machine { shared, publish: Arc::new(Told::default()) };
        Ok(((), LogStore::new(log, Fatal::new()), WithGaps(machine)))
    }
}

/// What a node's state machine works on, without raft.
fn shared_on(disk: Arc<dyn Disk>, dir: &Path) -> Arc<Shared> {
    disk.create_dir_all(&dir.join("snapshot")).unwrap();
    disk.create_dir_all(&dir.join("log")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.sync_dir(dir).unwrap();
    let log = Log::open(Arc::clone(&disk), &dir.join("log"), log_options()).unwrap();
    let opened = Store::open(Arc::clone(&disk), &dir.join("state.redb"), StoreOptions::default()).unwrap();
    let snapshots = Snapshots::open(disk, dir.join("snapshot"), opened.store.clone(), 0, Duration::from_secs(1)).unwrap();
    Arc::new(Shared {
        clock: Arc::new(Clock::new(0, None)),
        state: Arc::new(RwLock::new(opened.state)),
        store: opened.store,
        log,
        fatal: Fatal::new(),
        standing: Standing::new(1),
        applied_index: watch::Sender::new(0),
        applied: Mutex::new(applied_from(&opened.applied).unwrap()),
        learner: std::sync::atomic::AtomicBool::new(false),
        snapshot: Mutex::new(None),
        snapshots: Arc::new(snapshots),
        node_id: 1,
        waiting: Waiting::new(std::time::SystemTime::now()),
        tail_bytes_max: usize::MAX,
        command_version: kvasir_machine::COMMAND_VERSION,
        mutant: crate::Mutant::None,
    })
}

fn log_options() -> LogOptions {
    LogOptions { segment_bytes: 256 * 1024, record_bytes_max: 64 * 1024, ..LogOptions::default() }
}

fn options(disk: &SimDisk) -> ConsensusOptions {
    ConsensusOptions {
        heartbeat_ms: 20,
        election_ms: 100,
        log: log_options(),
        ..ConsensusOptions::new("/node", Arc::new(disk.clone()))
    }
}

async fn start(disk: &SimDisk) -> (Consensus, Arc<Told>) {
    start_with(options(disk)).await
}

async fn start_with(options: ConsensusOptions) -> (Consensus, Arc<Told>) {
    let told = Arc::new(Told::default());
    let consensus = Consensus::start(options, Arc::clone(&told) as Arc<dyn Publish>).await.unwrap();
    consensus.ready(DEADLINE).await.unwrap();
    (consensus, told)
}

async fn put(consensus: &Consensus, key: &str, value: &str) -> u64 {
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    let command = Command { body: Some(Body::Put(put)), ..Command::default() };
    match consensus.propose(command).await.unwrap() {
        Reply::Put(reply) => reply.revision,
        reply => panic!("not a put's reply: {reply:?}"),
    }
}

fn get(consensus: &Consensus, key: &str) -> Option<String> {
    let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
    let found = consensus.state().read().range(DEFAULT_TENANT, &request).unwrap();
    found.items.first().map(|item| String::from_utf8(item.value().to_vec()).unwrap())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, waiting).await.is_ok(), "not within {DEADLINE:?}: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_and_the_state_machine_pass_openrafts_store_suite() {
    let nodes = OnSimDisk { disk: SimDisk::new(1), nodes: AtomicU64::new(0) };
    Suite::<Kinds, LogStore, WithGaps, OnSimDisk, ()>::test_store(&nodes).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_applied_published_in_order_and_found_after_a_restart() {
    let disk = SimDisk::new(7);
    let (consensus, told) = start(&disk).await;
    let id = consensus.node_id();
    for n in 0..50 {
        assert_eq!(put(&consensus, &format!("k{n}"), "v").await, n + 2);
    }
    assert_eq!(*told.0.lock(), (2..52).collect::<Vec<u64>>());
    let term = consensus.status().term;
    consensus.shutdown().await;
    let (consensus, _) = start(&disk).await;
    assert_eq!(consensus.node_id(), id);
    assert!(consensus.status().term > term, "a restarted leader is elected anew");
    assert_eq!(get(&consensus, "k49").as_deref(), Some("v"));
    assert_eq!(put(&consensus, "more", "v").await, 52);
    assert_eq!(consensus.members().len(), 1);
    consensus.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_power_cut_while_more_is_written() {
    for seed in 0..8 {
        let disk = SimDisk::new(seed);
        let (consensus, _) = start(&disk).await;
        let answered = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (consensus, answered) = (consensus.clone(), Arc::clone(&answered));
                tokio::spawn(async move {
                    let (mut last, mut revision) = (None, 0);
                    for n in 0u64.. {
                        let put =
                            PutRequest { key: format!("w{writer}").into(), value: n.to_string().into(), ..Default::default() };
                        let command = Command { body: Some(Body::Put(put)), ..Command::default() };
                        let Ok(Reply::Put(reply)) = consensus.propose(command).await else { break };
                        (last, revision) = (Some(n), reply.revision);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    (format!("w{writer}"), last, revision)
                })
            })
            .collect();
        // In the midst of it: some are written, some synced, some answered.
        until("some are answered", || answered.load(Ordering::Relaxed) > 20 + seed * 7).await;
        let after = disk.crash(seed);
        let (again, _) = start(&after).await;
        for writer in writers {
            let (key, last, revision) = writer.await.unwrap();
            assert!(again.state().read().revision() >= revision, "seed {seed}: revisions never go back");
            let found = get(&again, &key).map(|value| value.parse::<u64>().unwrap());
            assert!(found >= last, "seed {seed}: {key} is {found:?}, {last:?} was answered");
        }
        again.shutdown().await;
        consensus.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_proposals_at_once_share_syncs() {
    let disk = SimDisk::new(3);
    let (consensus, _) = start(&disk).await;
    disk.set_sync_delay(Duration::from_millis(2));
    let before = consensus.log().stats();
    let writers: Vec<_> = (0..100)
        .map(|writer| {
            let consensus = consensus.clone();
            tokio::spawn(async move {
                for round in 0..5 {
                    put(&consensus, &format!("w{writer}"), &round.to_string()).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let after = consensus.log().stats();
    let (syncs, entries) = (after.syncs - before.syncs, after.entries - before.entries);
    assert!(entries >= 500 && syncs * 10 <= entries, "{entries} entries took {syncs} syncs");
    consensus.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_purged_below_a_durable_checkpoint_only_and_the_node_restarts_from_it() {
    let disk = SimDisk::new(5);
    let few = ConsensusOptions {
        log_keep_entries: 20,
        store: StoreOptions { checkpoint_bytes: 2_000, ..StoreOptions::default() },
        ..options(&disk)
    };
    let (consensus, _) = start_with(few.clone()).await;
    let mut n = 0u64;
    let mut purged = 0;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while purged == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the log was never purged");
        put(&consensus, &format!("k{}", n % 10), &n.to_string()).await;
        n += 1;
        let status = consensus.status();
        purged = status.purged_index;
        assert!(purged <= status.checkpoint_index);
    }
    consensus.shutdown().await;
    let (consensus, _) = start_with(few).await;
    assert_eq!(get(&consensus, &format!("k{}", (n - 1) % 10)), Some((n - 1).to_string()));
    assert_eq!(consensus.state().read().revision(), n + 1);
    consensus.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_time_goes_on_where_it_was_and_not_while_no_node_ran() {
    let disk = SimDisk::new(9);
    let (consensus, _) = start(&disk).await;
    until("cluster time passes", || consensus.now_cluster_ms() >= 50).await;
    let tick = Command { body: Some(Body::Tick(Tick {})), ..Command::default() };
    consensus.propose(tick).await.unwrap();
    let stamped = consensus.state().read().cluster_ms();
    assert!(stamped >= 50);
    consensus.shutdown().await;
    let (consensus, _) = start(&disk).await;
    let now = consensus.now_cluster_ms();
    assert!(now >= stamped, "time went back from {stamped} to {now}");
    consensus.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_error_in_the_log_is_fatal_and_nothing_is_acknowledged_after_it() {
    let disk = SimDisk::new(11);
    let (consensus, _) = start(&disk).await;
    put(&consensus, "k", "1").await;
    disk.set_faults(FaultPlan { sync_nth: Some((1, Fault::Eio)), ..FaultPlan::default() });
    let put = PutRequest { key: "k".into(), value: "2".into(), ..PutRequest::default() };
    let command = Command { body: Some(Body::Put(put)), ..Command::default() };
    assert!(consensus.propose(command).await.is_err());
    let line = tokio::time::timeout(DEADLINE, consensus.fatal()).await.unwrap();
    assert!(!line.is_empty() && !line.contains('\n'), "{line}");
    consensus.shutdown().await;
}

pub(crate) mod cluster;
mod membership;
mod transfer;
