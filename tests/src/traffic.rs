//! Clients that do all kinds of things to a cluster at once, and note what they asked and what came back.
//!
//! [`Traffic`] runs writers (`keys`), holders of leases (`leases`), takers of locks (`locks`) and watchers (`watches`), each on
//! a member of its choice, and on another as soon as that one fails it. What they note are the [`history`](crate::history)'s
//! operations and watches, for its checks to judge; [`fenced`] judges who held a lock.
//!
//! Times are nanoseconds since the traffic began, of the machine's monotonic clock: nodes' clocks may do what they want.
//!
//! **Invariants:** a request is sent once, whatever becomes of it. What is not certainly refused is noted as unknown. Values are
//! never written twice, so that a write of unknown fate is recognised when it is seen.

mod fence;
mod keys;
mod leases;
mod locks;
mod recorder;
mod watches;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::history::{Operation, Watched};
use crate::{Addresses, Random};

pub use fence::{Fenced, fenced};
use recorder::Recorder;
use watches::Watcher;

/// Keys that a counting plugin watches.
pub const COUNTED: &str = "/in/";
/// Keys among those that tests write beside the traffic.
pub const PROBES: &str = "/in/probe-";
/// Where the counting plugin writes.
pub const COUNTS: &str = "/count/";
/// Keys of locks; the locks' service writes them.
pub const LOCKS: &str = "/lock/";
/// Keys that are written under a lock.
pub const FENCED: &str = "/fenced/";

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Clients that write and read keys.
    pub writers: u32,
    /// Clients that hold leases.
    pub leasers: u32,
    /// Clients that take locks, on two names.
    pub lockers: u32,
    /// The longest rest of a writer between two requests.
    pub rest_max: Duration,
}

/// Running clients.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    clients: JoinSet<Vec<Operation>>,
    watchers: JoinSet<Watched>,
    watching: Arc<AtomicBool>,
    told: Vec<Watcher>,
}

/// All that was noted.
#[derive(Debug)]
pub struct Recorded {
    /// By all clients, in the order in which they were sent.
    pub operations: Vec<Operation>,
    /// What the watchers were told.
    pub watches: Vec<Watched>,
}

/// What all clients of a run share.
#[derive(Debug)]
struct Shared {
    addresses: Arc<Addresses>,
    began: std::time::Instant,
    stopping: AtomicBool,
    answered: AtomicU64,
    unknown: AtomicU64,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn goes_on(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed)
    }
}

impl Traffic {
    /// Starts the clients.
    pub fn start(addresses: Arc<Addresses>, load: Load, random: &mut Random) -> Self {
        let shared = Arc::new(Shared {
            addresses,
            began: std::time::Instant::now(),
            stopping: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        });
        let mut clients = JoinSet::new();
        let mut id = 0;
        let mut recorder = |random: &mut Random| {
            id += 1;
            Recorder::new(id, Arc::clone(&shared), random.fork())
        };
        for _ in 0..load.writers {
            clients.spawn(keys::run(recorder(random), load.rest_max));
        }
        for _ in 0..load.leasers {
            clients.spawn(leases::run(recorder(random)));
        }
        for _ in 0..load.lockers {
            clients.spawn(locks::run(recorder(random)));
        }
        let watching = Arc::new(AtomicBool::new(true));
        let mut watchers = JoinSet::new();
        let mut told = Vec::new();
        for (nth, (prefix, prev_kv)) in
            [("", true), (COUNTED, true), ("/key/", false), ("/lease/", true)].into_iter().enumerate()
        {
            let watcher = Watcher::new(nth, prefix, prev_kv, Arc::clone(&shared), Arc::clone(&watching));
            watchers.spawn(watcher.clone().run(random.fork()));
            told.push(watcher);
        }
        Self { shared, clients, watchers, watching, told }
    }

    /// Requests that were answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Requests whose fate is unknown so far.
    pub fn unknown(&self) -> u64 {
        self.shared.unknown.load(Ordering::Relaxed)
    }

    /// Lets every client finish what it is at, but for the watchers, and answers with what they noted.
    pub async fn stop(&mut self) -> Vec<Operation> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let mut operations: Vec<Operation> = std::mem::take(&mut self.clients).join_all().await.into_iter().flatten().collect();
        operations.sort_by_key(|operation| operation.called);
        operations
    }

    /// Waits until every watcher has been told of the last of its events up to `revision`, and answers with what they were told.
    pub async fn finish_watches(self, timeline: &crate::history::Timeline) -> Vec<Watched> {
        for watcher in &self.told {
            watcher.wait_told(timeline).await;
        }
        self.watching.store(false, Ordering::Relaxed);
        self.watchers.join_all().await
    }
}
