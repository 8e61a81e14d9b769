//! redb's storage on the disk seam.
//!
//! **Invariant:** once sealed, nothing reaches the file any more: a database that is dropped would otherwise make its last
//! commits durable, and they may be ahead of the log.

use crate::disk::DiskFile;
use redb::StorageBackend;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Clone)]
pub(super) struct Backend {
    file: Arc<dyn DiskFile>,
    sealed: Arc<AtomicBool>,
}

impl Backend {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> Self {
        Self { file, sealed: Arc::default() }
    }

    /// Refuses every write from now on.
    pub(super) fn seal(&self) {
        self.sealed.store(true, Ordering::SeqCst);
    }

    fn open(&self) -> io::Result<&dyn DiskFile> {
        if self.sealed.load(Ordering::SeqCst) {
            return Err(io::Error::other("the state file is sealed after an earlier fault"));
        }
        Ok(&*self.file)
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.open()?.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.open()?.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.open()?.write_at(offset, data)
    }
}
