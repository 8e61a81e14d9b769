//! The life of one simulated cluster: it is founded, used, troubled, healed, and judged.

use std::sync::Arc;
use std::time::Duration;

use kvasir_api::etcdserverpb::RangeRequest;
use kvasir_consensus::Mutant;
use kvasir_engine::Caller;
use kvasir_storage::disk::{Disk, SimDisk};
use kvasir_tests::Random;
use kvasir_tests::history::{Keys, Timeline, check};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::clients::{Crowd, Record};
use crate::faults::{self, FAIR, QUICK};
use crate::hasty::HastyDisk;
use crate::invariants::Invariants;
use crate::network::Links;
use crate::nodes::{Cluster, Incarnation};
use crate::trace::Trace;
use crate::watchers::{Watcher, history};
use crate::world;

/// How often the watchman looks.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// A healed cluster that does not do what it should within this span never will.
const PATIENCE: Duration = Duration::from_secs(120);
/// A whole life, at most, in simulated time.
const LIFE_MAX: Duration = Duration::from_secs(1_200);

/// What happened in a life.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    pub(crate) power_cuts: u64,
    pub(crate) kills: u64,
    pub(crate) disk_faults: u64,
    pub(crate) restarts: u64,
    pub(crate) cuts: u64,
    pub(crate) answered: u64,
    pub(crate) unknown: u64,
    pub(crate) revisions: u64,
    pub(crate) leases_ended: u64,
    pub(crate) terms: u64,
    pub(crate) purged: u64,
    pub(crate) simulated_ms: u64,
    pub(crate) trace: u64,
    pub(crate) trace_lines: u64,
}

/// A known bug that is put back in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    None,
    /// What is written is acknowledged before it is synced.
    AckBeforeSync,
    /// One that the product itself can be told to have.
    Of(Mutant),
}

impl Mutation {
    /// Every one, by the name it is asked for with.
    pub(crate) const ALL: [(&'static str, Self); 5] = [
        ("ack-before-sync", Self::AckBeforeSync),
        ("vote-not-persisted", Self::Of(Mutant::VoteNotPersisted)),
        ("lease-read", Self::Of(Mutant::LeaseRead)),
        ("revoke-by-deposed", Self::Of(Mutant::RevokeByDeposed)),
        ("checkpoint-ahead-of-log", Self::Of(Mutant::CheckpointAheadOfLog)),
    ];

    /// The one of this name.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn named(name: &str) -> Self {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("no mutant is called {name}")).1
    }

    /// The disk that a node gets.
    pub(crate) fn disk(self, disk: &SimDisk) -> Arc<dyn Disk> {
        match self {
            Self::AckBeforeSync => Arc::new(HastyDisk(disk.clone())),
            _ => Arc::new(disk.clone()),
        }
    }

    /// The mutant that a node is told to be.
    pub(crate) fn mutant(self) -> Mutant {
        match self {
            Self::Of(mutant) => mutant,
            _ => Mutant::None,
        }
    }
}

/// Lives the life that belongs to a seed.
///
/// # Panics
/// When something that must hold does not.
pub(crate) fn live(seed: u64, mutation: Mutation, loud: bool) -> std::thread::Result<Tally> {
    world::enter(seed, LIFE_MAX, move || run(seed, mutation, loud))
}

async fn run(seed: u64, mutation: Mutation, loud: bool) -> Tally {
    let mut random = Random::new(seed);
    let trace = Trace::new(loud);
    let mut tally = Tally::default();
    let size = if random.chance(20) { 5 } else { 3 };
    let links = Links::new(random.fork(), FAIR, trace.clone());
    let invariants = Invariants::new();
    let cluster = Cluster::new(size, random.fork(), links.clone(), invariants.clone(), QUICK, trace.clone(), mutation);
    let ids = cluster.ids();
    for id in &ids {
        cluster.start(*id);
    }
    let watchman = tokio::spawn(watch(cluster.clone(), invariants));
    let keys = 2 + random.below(12);
    let record = Record::default();
    let stop = CancellationToken::new();
    let pause_ms = 10 + random.below(300);
    let crowd = Crowd::new(cluster.clone(), record.clone(), trace.clone(), keys);
    for _ in 0..2 + random.below(5) {
        crowd.join(random.fork(), stop.clone(), pause_ms, Vec::new(), false);
    }
    let watchers: Vec<_> = (0..1 + random.below(4) as u32).map(|nth| Watcher::new(nth, keys, &mut random)).collect();
    let watching = CancellationToken::new();
    for watcher in &watchers {
        tokio::spawn(watcher.clone().run(cluster.clone(), random.fork(), trace.clone(), watching.clone()));
    }
    if random.chance(70) {
        // In most lives it may come up before it is troubled.
        serving(&cluster, ids.len()).await;
    }
    let span = Duration::from_millis(5_000 + random.below(25_000));
    let mut fate = random.fork();
    faults::befall(&cluster, &links, &crowd, &mut fate, span, &mut tally).await;
    trace.note("heal");
    links.mend();
    links.set_weather(FAIR);
    cluster.set_pace(QUICK);
    cluster.repair();
    let answered = record.answered();
    healed(&cluster, &ids, &mut fate, || record.answered() > answered + 20).await;
    stop.cancel();
    crowd.stopped().await;
    // Leases end, and the rest of what is under way.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let operations = record.take();
    let serving = serving(&cluster, ids.len()).await;
    let (timeline, _) = whole(&serving[0]).await;
    for other in &serving[1..] {
        let (same, _) = whole(other).await;
        assert_eq!(same, timeline, "members tell the same history");
    }
    caught_up(&watchers, &timeline).await;
    watching.cancel();
    watchman.abort();
    let watched: Vec<_> = watchers.iter().map(Watcher::told).collect();
    let explained = match check(&operations, &timeline, &watched, Some(timeline.last()), |_| false) {
        Ok(explained) => explained,
        Err(violation) => panic!("{violation}"),
    };
    tally.answered = operations.iter().filter(|it| it.answered_at().is_some()).count() as u64;
    tally.unknown = operations.len() as u64 - tally.answered;
    tally.revisions = timeline.last() as u64;
    tally.leases_ended = explained.ended().len() as u64;
    let status = serving[0].engine.raft_status();
    tally.terms = status.term;
    tally.purged = status.purged_index;
    tally.simulated_ms = world::now() / 1_000_000;
    (tally.trace, tally.trace_lines) = trace.sum();
    tally
}

/// Looks at every node, again and again.
async fn watch(cluster: Cluster, invariants: Invariants) {
    loop {
        cluster.end_powerless();
        for serving in cluster.serving() {
            invariants.look(&serving);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until so many nodes serve.
async fn serving(cluster: &Cluster, count: usize) -> Vec<Incarnation> {
    let waiting = async {
        loop {
            let serving = cluster.serving();
            if serving.len() == count {
                return serving;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("healed nodes come to serve")
}

/// Starts what is down, until everything serves and requests are answered again.
async fn healed(cluster: &Cluster, ids: &[u64], random: &mut Random, answers: impl Fn() -> bool) {
    let waiting = async {
        loop {
            // A disk that was told to fail may still do so; its node ends then, and is started again.
            faults::restart_some(cluster, random, 100);
            if cluster.serving().len() == ids.len() && answers() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("a healed cluster serves and answers");
}

/// The whole history of a member, and the keys it shows.
async fn whole(member: &Incarnation) -> (Timeline, i64) {
    let every = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
    let range = member.engine.range(&Caller::client(), every).await.expect("a healed member serves reads");
    let revision = range.header.as_ref().expect("a header").revision;
    let events = history(&member.engine, revision).await;
    let keys: Keys = range.kvs.into_iter().collect();
    match Timeline::new(events, Some(&keys)) {
        Ok(timeline) => (timeline, revision),
        Err(violation) => panic!("{violation}"),
    }
}

/// Waits until the watchers were told everything.
async fn caught_up(watchers: &[Watcher], timeline: &Timeline) {
    let to = timeline.last();
    let waiting = async {
        for watcher in watchers {
            while kvasir_tests::history::watched(&watcher.told(), timeline, Some(to)).is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    };
    // What is missing after that is reported by the check.
    let _ = tokio::time::timeout(Duration::from_secs(30), waiting).await;
}

/// A tally on one line, for the process that started this one.
impl Tally {
    pub(crate) fn line(&self) -> String {
        json!({
            "power_cuts": self.power_cuts, "kills": self.kills, "disk_faults": self.disk_faults, "restarts": self.restarts,
            "cuts": self.cuts, "answered": self.answered, "unknown": self.unknown, "revisions": self.revisions,
            "leases_ended": self.leases_ended, "terms": self.terms, "purged": self.purged,
            "simulated_ms": self.simulated_ms, "trace": format!("{:016x}", self.trace), "trace_lines": self.trace_lines,
        })
        .to_string()
    }
}
