//! A disk that says it has synced the log before it has: the mutant "ack before sync".

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvasir_storage::disk::{Disk, DiskFile, DiskLock, Driver, PathKind, SimDisk};

/// So much later it does what it has said.
const LATE: Duration = Duration::from_millis(30);

/// The simulated disk, but for `sync_data` of the raft log's files.
#[derive(Debug)]
pub(crate) struct HastyDisk(pub(crate) SimDisk);

#[derive(Debug)]
struct HastyFile(Arc<dyn DiskFile>);

fn hasty(path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
    if path.components().any(|part| part.as_os_str() == "log") { Arc::new(HastyFile(file)) } else { file }
}

impl Disk for HastyDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.0.open(path).map(|file| hasty(path, file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.0.create(path).map(|file| hasty(path, file))
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

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        self.0.driver()
    }
}

impl DiskFile for HastyFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let file = Arc::clone(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(LATE).await;
            // The power may be gone by then.
            let _ = file.sync_data();
        });
        Ok(())
    }
}
