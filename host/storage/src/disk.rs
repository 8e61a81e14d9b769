//! The one seam between kvasir's storage and a disk: what the log, the state file and the data folder ask of it.
//!
//! [`RealDisk`] is the operating system; [`SimDisk`] is a disk in memory that loses power on demand; [`SlowDisk`] makes
//! another disk's syncs slow. All are usable from many threads.
//!
//! **Invariant:** nothing above this file touches `std::fs`. A write is durable once `sync_data` of its file returned, a
//! name once `sync_dir` of its folder did, and neither before.

mod driver;
mod real;
mod sim;
mod slow;

pub use driver::{Driver, Due, Wake, Worker};
pub use real::RealDisk;
#[cfg(test)]
pub(crate) use sim::Random;
pub use sim::{Fault, FaultPlan, SimDisk};
pub use slow::SlowDisk;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
}

/// The folder that a path's name stands in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// The name under which a file is made, beside the one it gets when it is whole.
pub(crate) fn unfinished(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A disk: folders, names and locks.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` if there is none; whatever the system says otherwise.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates an empty file, or empties the one that is there. Its name is durable after `sync_dir`.
    ///
    /// # Errors
    /// Whatever the system says.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// What the path names, `None` if nothing.
    ///
    /// # Errors
    /// Whatever the system says, `NotFound` excepted.
    fn kind(&self, path: &Path) -> io::Result<Option<PathKind>>;

    /// The names in a folder, sorted, without their folder.
    ///
    /// # Errors
    /// Whatever the system says; `InvalidData` for a name that is not UTF-8.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Gives a file another name, replacing the file that has it. Durable after `sync_dir`.
    ///
    /// # Errors
    /// Whatever the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after `sync_dir`.
    ///
    /// # Errors
    /// `NotFound` if there is none; whatever the system says otherwise.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Creates a folder and those above it; does nothing if it is there.
    ///
    /// # Errors
    /// Whatever the system says.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// Whatever the system says. After an error the names' fate is unknown.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the exclusive lock that the file stands for, creating the file if need be, and writes `owner` into it. The lock
    /// ends with the guard, or with the process. The file is not changed when the lock is refused.
    ///
    /// # Errors
    /// `WouldBlock` if another holder lives; whatever the system says otherwise.
    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn DiskLock>>;

    /// Bytes that this process may still write to the file system of `dir`.
    ///
    /// # Errors
    /// Whatever the system says.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Who does the work of those who keep files on it; `None` for threads of their own.
    fn driver(&self) -> Option<Arc<dyn Driver>> {
        None
    }

    /// Whether the path names something.
    ///
    /// # Errors
    /// As [`Disk::kind`].
    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.kind(path)?.is_some())
    }
}

/// An open file, addressed by offset. Usable from many threads.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; whatever the system says otherwise.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset`, extending the file if need be.
    ///
    /// # Errors
    /// Whatever the system says. Any part may have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// Whatever the system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file is empty.
    ///
    /// # Errors
    /// As [`DiskFile::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or extends the file; new bytes are zero.
    ///
    /// # Errors
    /// Whatever the system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes everything written so far durable, with the length needed to read it back (`fdatasync`).
    ///
    /// # Errors
    /// Whatever the system says. After an error the fate of what was written since the last sync is unknown, and a later
    /// success says nothing about it.
    fn sync_data(&self) -> io::Result<()>;
}

/// A held lock; dropping it releases it.
pub trait DiskLock: Debug + Send + Sync + 'static {}
