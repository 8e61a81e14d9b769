//! A disk whose syncs take a set time: what group commit is measured on.

use super::{Disk, DiskFile, DiskLock, Driver, PathKind};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Another disk with a delay before each file sync.
#[derive(Debug, Clone)]
pub struct SlowDisk<D> {
    inner: D,
    sync_delay: Duration,
}

impl<D: Disk> SlowDisk<D> {
    /// Makes each `sync_data` of `inner` take `sync_delay` longer.
    pub fn new(inner: D, sync_delay: Duration) -> Self {
        Self { inner, sync_delay }
    }

    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(SlowFile { inner: file, sync_delay: self.sync_delay })
    }
}

impl<D: Disk> Disk for SlowDisk<D> {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(self.inner.open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(self.inner.create(path)?))
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

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        self.inner.driver()
    }
}

#[derive(Debug)]
struct SlowFile {
    inner: Arc<dyn DiskFile>,
    sync_delay: Duration,
}

impl DiskFile for SlowFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, out)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, data)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        std::thread::sleep(self.sync_delay);
        self.inner.sync_data()
    }
}
