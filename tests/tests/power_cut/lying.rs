//! A disk that now and then says it has synced and has not: what the oracle must notice, or its silence would prove nothing.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvasir_storage::disk::{Disk, DiskFile, DiskLock, PathKind, SimDisk};

/// One sync in so many does nothing.
const LIE_EVERY: u64 = 8;

/// The simulated disk, but for `sync_data` of the raft log's files, which now and then does nothing.
#[derive(Debug)]
pub(crate) struct LyingDisk(pub(crate) SimDisk);

#[derive(Debug)]
struct LyingFile {
    file: Arc<dyn DiskFile>,
    syncs: AtomicU64,
}

fn lying(path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
    if path.components().any(|part| part.as_os_str() == "log") {
        Arc::new(LyingFile { file, syncs: AtomicU64::new(0) })
    } else {
        file
    }
}

impl Disk for LyingDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open(path).map(|file| lying(path, file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.0.create(path).map(|file| lying(path, file))
    }

    fn kind(&self, path: &Path) -> io::Result<Option<PathKind>> {
        self.0.kind(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }

    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn DiskLock>> {
        self.0.lock(path, owner)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.0.free_bytes(dir)
    }
}

impl DiskFile for LyingFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, out)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, data)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.syncs.fetch_add(1, Ordering::Relaxed) % LIE_EVERY == LIE_EVERY - 1 {
            return Ok(());
        }
        self.file.sync_data()
    }
}
