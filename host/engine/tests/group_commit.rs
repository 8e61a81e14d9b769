//! Group commit: one sync serves all who wait, nobody waits for a timer, and the state file is on nobody's way.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvasir_engine::{Engine, EngineOptions};
use kvasir_storage::disk::{Disk, DiskFile, DiskLock, PathKind, SimDisk};
use kvasir_storage::state::StoreOptions;
use parking_lot::{Condvar, Mutex};
use support::{get, options, put, within};

/// A disk that can be told to hold up what is done to the state file, and that measures the log's syncs.
#[derive(Debug)]
struct GateDisk {
    inner: SimDisk,
    shared: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    /// Operations on the state file that waited for the gate.
    held_up: AtomicU64,
    /// How long the last sync of the log took, in microseconds.
    log_sync_us: AtomicU64,
}

impl Gate {
    fn pass(&self) {
        let mut closed = self.closed.lock();
        if *closed {
            self.held_up.fetch_add(1, Ordering::SeqCst);
        }
        while *closed {
            self.opened.wait(&mut closed);
        }
    }

    fn close(&self) {
        *self.closed.lock() = true;
    }

    fn open(&self) {
        *self.closed.lock() = false;
        self.opened.notify_all();
    }
}

struct OpenOnDrop(Arc<Gate>);

impl Drop for OpenOnDrop {
    fn drop(&mut self) {
        self.0.open();
    }
}

#[derive(Debug)]
struct GateFile {
    inner: Arc<dyn DiskFile>,
    shared: Arc<Gate>,
    is_state: bool,
}

impl GateDisk {
    fn wrap(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let is_state = path.to_string_lossy().contains("state.redb");
        Arc::new(GateFile { inner: file, shared: Arc::clone(&self.shared), is_state })
    }
}

impl Disk for GateDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, self.inner.open(path)?))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, self.inner.create(path)?))
    }
    fn kind(&self, path: &Path) -> io::Result<Option<PathKind>> {
        self.inner.kind(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }
    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn DiskLock>> {
        self.inner.lock(path, owner)
    }
    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.inner.free_bytes(dir)
    }
}

impl DiskFile for GateFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, out)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.is_state {
            self.shared.pass();
        }
        self.inner.write_at(offset, data)
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.is_state {
            self.shared.pass();
            return self.inner.sync_data();
        }
        let began = Instant::now();
        let synced = self.inner.sync_data();
        self.shared.log_sync_us.store(began.elapsed().as_micros() as u64, Ordering::SeqCst);
        synced
    }
}

async fn start(sync_delay: Duration) -> (Engine, SimDisk, Arc<Gate>) {
    let disk = SimDisk::new(1);
    let gate = Arc::new(Gate::default());
    let gated = GateDisk { inner: disk.clone(), shared: Arc::clone(&gate) };
    let options = EngineOptions {
        // The state file is made durable whenever anything was moved into it, so that there is always something to be in the way.
        store: StoreOptions { checkpoint_bytes: 1, ..StoreOptions::default() },
        ..options(Path::new("/node"), Arc::new(gated))
    };
    let engine = Engine::start(options).await.unwrap();
    disk.set_sync_delay(sync_delay);
    (engine, disk, gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_concurrent_writers_make_at_least_ten_entries_per_sync() {
    let (engine, _disk, _gate) = start(Duration::from_millis(2)).await;
    let before = engine.metrics();
    let writers: Vec<_> = (0..100)
        .map(|writer| {
            let engine = engine.clone();
            tokio::spawn(async move {
                for round in 0..10 {
                    put(&engine, &format!("w{writer}"), &round.to_string()).await;
                }
            })
        })
        .collect();
    for writer in writers {
        within("the writer is done", writer).await.unwrap();
    }
    let after = engine.metrics();
    let (entries, syncs) = (after.log_entries - before.log_entries, after.log_syncs - before.log_syncs);
    assert!(entries >= 1_000, "{entries} entries");
    assert!(entries >= 10 * syncs, "{entries} entries took {syncs} syncs");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_writer_waits_for_one_sync_and_no_timer() {
    let delay = Duration::from_millis(20);
    let (engine, _disk, gate) = start(delay).await;
    // What the boot left to be written goes first.
    put(&engine, "k", "first").await;
    let before = engine.metrics().log_syncs;
    let mut least = Duration::MAX;
    for n in 0..20 {
        let began = Instant::now();
        put(&engine, "k", &n.to_string()).await;
        let sync = Duration::from_micros(gate.log_sync_us.load(Ordering::SeqCst));
        least = least.min(began.elapsed().saturating_sub(sync));
    }
    let syncs = engine.metrics().log_syncs - before;
    assert_eq!(syncs, 20, "each write waits for one sync");
    // The quickest write spent hardly anything beside its sync: no linger, no tick. Compared with the sync, so that a slow
    // machine does not matter.
    assert!(least < delay / 2, "the quickest of 20 writes took {least:?} beside a sync of {delay:?}");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_do_not_wait_for_the_state_file() {
    let (engine, _disk, gate) = start(Duration::ZERO).await;
    put(&engine, "k", "first").await;
    gate.close();
    // A test that fails must not leave the state file's thread standing.
    let _open = OpenOnDrop(Arc::clone(&gate));
    put(&engine, "k", "moved").await;
    within("the state file's writer is held up", async {
        while gate.held_up.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    for n in 0..300 {
        within("a write is answered while the state file stands still", put(&engine, "k", &n.to_string())).await;
        assert_eq!(within("so is a read", get(&engine, "k")).await, Some(n.to_string()));
    }
    assert!(engine.metrics().tail_bytes > 0);
    gate.open();
    engine.shutdown().await;
}
