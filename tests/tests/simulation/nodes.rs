//! The nodes of a simulated cluster: started on their disks, crashed in all ways, started again.
//!
//! A node that crashes loses its disk, its network and its clients at one moment. What its tasks do afterwards nobody can see: its
//! disk refuses everything, its streams are broken, and the next incarnation stands on the disk as the crash left it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kvasir_consensus::{Boot, Member, Mutant, PeerDoor, PeerOptions};
use kvasir_engine::{Engine, EngineOptions};
use kvasir_storage::disk::{Disk, FaultPlan, SimDisk};
use kvasir_storage::log::LogOptions;
use kvasir_storage::state::StoreOptions;
use kvasir_tests::Random;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::disks::{Hands, Pace};
use crate::invariants::Invariants;
use crate::life::Mutation;
use crate::network::Links;
use crate::trace::Trace;

const TOKEN: &str = "simulated";
const DATA_DIR: &str = "/data";

/// What a crash leaves on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The power goes: what was not synced is lost, or half of it.
    PowerCut,
    /// The process is killed: what it wrote is there, for the time being.
    Kill,
}

/// One incarnation of a node.
#[derive(Clone)]
pub(crate) struct Incarnation {
    pub(crate) node: u64,
    pub(crate) number: u64,
    pub(crate) engine: Engine,
    /// It is gone.
    pub(crate) gone: CancellationToken,
}

struct Node {
    name: String,
    disk: SimDisk,
    incarnations: u64,
    /// While it runs, ready or not.
    gone: Option<CancellationToken>,
    /// Once it serves.
    serving: Option<Incarnation>,
}

/// The cluster. A clone is the same.
#[derive(Clone)]
pub(crate) struct Cluster {
    inner: Arc<Mutex<Inner>>,
    links: Links,
    invariants: Invariants,
    trace: Trace,
    mutation: Mutation,
}

struct Inner {
    random: Random,
    nodes: BTreeMap<u64, Node>,
    members: BTreeMap<u64, Member>,
    pace: Pace,
    shape: Shape,
}

/// What the nodes of a seed have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    heartbeat_ms: u64,
    election_ms: u64,
    log_keep_entries: u64,
    snapshot_hold_ms: u64,
    segment_kib: u64,
    commit_rows_max: usize,
    checkpoint_bytes: u64,
    checkpoint_ms: u64,
    linger_ms: u64,
}

impl Shape {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let heartbeat_ms = 20 + random.below(80);
        Self {
            heartbeat_ms,
            election_ms: heartbeat_ms * (4 + random.below(6)),
            log_keep_entries: 5 + random.below(300),

            segment_kib: 128 << random.below(3),
            commit_rows_max: 1 + random.below(64) as usize,
            checkpoint_bytes: 1024 << random.below(8),
            checkpoint_ms: 20 + random.below(2_000),
            linger_ms: random.below(20),
            snapshot_hold_ms: random.below(4_000),
        }
    }
}

impl Cluster {
    pub(crate) fn new(
        size: usize,
        mut random: Random,
        links: Links,
        invariants: Invariants,
        pace: Pace,
        trace: Trace,
        mutation: Mutation,
    ) -> Self {
        let names: Vec<String> = ["a", "b", "c", "d", "e"][..size].iter().map(|name| (*name).to_owned()).collect();
        let ids = names.iter().map(|name| (kvasir_consensus::node_id(TOKEN, name), name));
        let members = ids.clone().map(|(id, name)| (id, Member { name: name.clone(), ..Member::default() })).collect();
        let nodes = ids.map(|(id, name)| {
            let disk = SimDisk::new(random.next());
            (id, Node { name: name.clone(), disk, incarnations: 0, gone: None, serving: None })
        });
        let nodes = nodes.collect();
        let shape = Shape::draw(&mut random);
        trace.note(&format!("{shape:?} {pace:?}"));
        let inner = Inner { random, nodes, members, pace, shape };
        Self { inner: Arc::new(Mutex::new(inner)), links, invariants, trace, mutation }
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.inner.lock().nodes.keys().copied().collect()
    }

    /// Those that serve.
    pub(crate) fn serving(&self) -> Vec<Incarnation> {
        self.inner.lock().nodes.values().filter_map(|node| node.serving.clone()).collect()
    }

    /// Those that run, ready or not.
    pub(crate) fn running(&self) -> Vec<u64> {
        self.inner.lock().nodes.iter().filter(|(_, node)| node.gone.is_some()).map(|(id, _)| *id).collect()
    }

    /// Starts a node on its disk; it serves some time later.
    pub(crate) fn start(&self, id: u64) {
        let (options, gone, number, disk) = {
            let mut inner = self.inner.lock();
            let Inner { random, nodes, members, pace, shape } = &mut *inner;
            let node = nodes.get_mut(&id).expect("a node");
            assert!(node.gone.is_none(), "a node runs once");
            node.incarnations += 1;
            node.disk.set_driver(Hands::new(random.fork(), *pace));
            let door = Arc::new(PeerDoor::default());
            let network = self.links.attach(id, Arc::clone(&door));
            let peers = PeerOptions { network, door, boot: Boot::Static(members.clone()) };
            let gone = CancellationToken::new();
            node.gone = Some(gone.clone());
            let disk = self.mutation.disk(&node.disk);
            (options(&node.name, disk, peers, *shape, self.mutation.mutant()), gone, node.incarnations, node.disk.clone())
        };
        self.trace.note(&format!("start {id:x} #{number}"));
        let cluster = self.clone();
        tokio::spawn(async move {
            let started = tokio::select! {
                biased;
                () = gone.cancelled() => return,
                started = Engine::start(options) => started,
            };
            let engine = match started {
                Ok(engine) => engine,
                Err(error) => {
                    assert!(disk.is_off() || disk.has_failed(), "a node starts on what its disk kept: {error}");
                    return cluster.ended(id, number);
                }
            };
            cluster.trace.note(&format!("serve {id:x} #{number}"));
            let incarnation = Incarnation { node: id, number, engine, gone: gone.clone() };
            cluster.invariants.began(&incarnation);
            if let Some(node) = cluster.inner.lock().nodes.get_mut(&id).filter(|node| node.incarnations == number) {
                node.serving = Some(incarnation.clone());
            }
            let fatal = incarnation.engine.fatal();
            tokio::select! {
                biased;
                () = gone.cancelled() => {}
                line = fatal => {
                    assert!(disk.is_off() || disk.has_failed(), "a node gave up on a healthy disk: {line}");
                    assert!(!line.trim().is_empty() && !line.contains('\n'), "it ends with one clear line, not {line:?}");
                    cluster.ended(id, number);
                }
            }
        });
    }

    /// A node has given up, and its process ends.
    fn ended(&self, id: u64, number: u64) {
        let ended = {
            let mut inner = self.inner.lock();
            let crash = if inner.random.chance(50) { Crash::Kill } else { Crash::PowerCut };
            let node = inner.nodes.get(&id).expect("a node");
            (node.incarnations == number && node.gone.is_some()).then_some(crash)
        };
        if let Some(crash) = ended {
            self.trace.note(&format!("end {id:x} #{number}"));
            self.crash(id, crash);
        }
    }

    /// Ends a node's process at this moment.
    pub(crate) fn crash(&self, id: u64, crash: Crash) {
        self.trace.note(&format!("{crash:?} {id:x}"));
        let serving = {
            let mut inner = self.inner.lock();
            let seed = inner.random.next();
            let node = inner.nodes.get_mut(&id).expect("a node");
            let Some(gone) = node.gone.take() else { return };
            self.links.detach(id);
            gone.cancel();
            let serving = node.serving.take();
            if let Some(serving) = &serving {
                self.invariants.ends(serving);
            }
            node.disk = match crash {
                Crash::PowerCut => node.disk.crash(seed),
                Crash::Kill => node.disk.kill(seed),
            };
            serving
        };
        if let Some(serving) = serving {
            // Its tasks come to an end some time.
            tokio::spawn(async move { serving.engine.shutdown().await });
        }
    }

    /// Ends the nodes whose disks have lost power: one that has nothing to write would not notice, and its power is gone, too.
    pub(crate) fn end_powerless(&self) {
        let powerless: Vec<u64> = {
            let inner = self.inner.lock();
            let off = inner.nodes.iter().filter(|(_, node)| node.gone.is_some() && node.disk.is_off());
            off.map(|(id, _)| *id).collect()
        };
        for id in powerless {
            self.crash(id, Crash::PowerCut);
        }
    }

    /// Asks a node to stop, waits until it has, and starts it again.
    pub(crate) async fn restart(&self, id: u64) {
        let serving = self.inner.lock().nodes.get_mut(&id).and_then(|node| node.serving.take());
        let Some(serving) = serving else { return };
        self.trace.note(&format!("stop {id:x}"));
        self.invariants.ends(&serving);
        let stopped = tokio::time::timeout(Duration::from_secs(60), serving.engine.shutdown());
        tokio::select! {
            biased;
            () = serving.gone.cancelled() => return,
            stopped = stopped => stopped.expect("a shutdown comes to an end"),
        }
        self.crash(id, Crash::PowerCut);
        self.start(id);
    }

    /// Has a node's disk fail from some operation on, or lose power there.
    pub(crate) fn disk_of(&self, id: u64) -> SimDisk {
        self.inner.lock().nodes[&id].disk.clone()
    }

    /// The disks are all well from now on.
    pub(crate) fn repair(&self) {
        for node in self.inner.lock().nodes.values() {
            node.disk.set_faults(FaultPlan::default());
            node.disk.keep_power();
        }
    }

    pub(crate) fn set_pace(&self, pace: Pace) {
        self.inner.lock().pace = pace;
    }
}

/// Small in every way, so that a short life has segments, commits, checkpoints, purges and snapshots.
fn options(name: &str, disk: Arc<dyn Disk>, peers: PeerOptions, shape: Shape, mutant: Mutant) -> EngineOptions {
    let log = LogOptions {
        segment_bytes: shape.segment_kib * 1024,
        record_bytes_max: 64 * 1024,
        cache_bytes: 16 * 1024,
        ..LogOptions::default()
    };
    let store = StoreOptions {
        cache_bytes: 1024 * 1024,
        commit_rows_max: shape.commit_rows_max,
        delete_rows_max: 64,
        commit_linger: Duration::from_millis(shape.linger_ms),
        checkpoint_bytes: shape.checkpoint_bytes,
        checkpoint_interval: Duration::from_millis(shape.checkpoint_ms),
        ..StoreOptions::default()
    };
    EngineOptions {
        name: name.to_owned(),
        cluster_token: TOKEN.to_owned(),
        heartbeat_ms: shape.heartbeat_ms,
        election_ms: shape.election_ms,
        request_timeout_ms: 3_000,
        watch_ring_bytes_max: 16 * 1024,
        log_keep_entries: shape.log_keep_entries,
        snapshot_hold: Duration::from_millis(shape.snapshot_hold_ms),
        peers: Some(peers),
        mutant,
        log,
        store,
        ..EngineOptions::new(DATA_DIR, disk)
    }
}
