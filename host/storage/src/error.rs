//! What can be wrong with a disk, a folder or a file: one clear line each, with the path, what is wrong and what to do.
//!
//! **Invariant:** whoever returns one of these has left the data as it was.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A storage fault. The text is one line for the operator.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The disk or the operating system refused an operation.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted, as a verb phrase.
        doing: &'static str,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// Bytes that were written whole, once, and no longer are what was written.
    #[error(
        "{}: damaged at byte {offset}: {what}; nothing was changed: restore this node's data folder from a backup or let the node join again empty",
        path.display()
    )]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where in the file, in bytes; 0 if the place is not known.
        offset: u64,
        /// What does not fit.
        what: String,
    },
    /// A file or folder that a used data folder must have is gone, or holds less than others say it must.
    #[error(
        "{}: {what}; nothing was changed: restore this node's data folder from a backup or let the node join again empty",
        path.display()
    )]
    Missing {
        /// The file or folder.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// A file or folder of a format this program does not know.
    #[error(
        "{}: format version {found} is not supported (this program reads version {supported}); use the kvasir release that wrote it, or another data folder",
        path.display()
    )]
    OtherVersion {
        /// The file or folder.
        path: PathBuf,
        /// The version found, as written.
        found: String,
        /// The version this program reads and writes.
        supported: u32,
    },
    /// Another live process holds the data folder.
    #[error(
        "{}: the data folder is in use by another kvasir process (pid {pid}); stop that process or choose another --data-dir",
        path.display()
    )]
    InUse {
        /// The data folder.
        path: PathBuf,
        /// The holder as it wrote itself down, or `unknown`.
        pid: String,
    },
    /// The data folder's path names something else.
    #[error("{}: is a file, and the data folder must be a folder; choose another --data-dir", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// The data folder holds files that kvasir did not write.
    #[error(
        "{}: is not empty and not a kvasir data folder (found {found:?}); choose an empty or new folder as --data-dir",
        path.display()
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// One of the files in the way.
        found: String,
    },
    /// The folder that a new data folder is to be made in has something in it.
    #[error("{}: is not empty (found {found:?}), and nothing is replaced; give a new or an empty folder", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// One of the files in the way.
        found: String,
    },
    /// The data folder cannot be written.
    #[error("{}: the data folder is not writable ({source}); fix its owner or mode, or choose another --data-dir", path.display())]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// A snapshot file that ends early, does not verify or is not a snapshot.
    #[error("{}: not a usable snapshot: {what} (at byte {offset}); fetch or take the snapshot again", path.display())]
    BadSnapshot {
        /// The snapshot file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// What does not fit.
        what: String,
    },
    /// An earlier fault made this log or store unusable; the process must end.
    #[error("storage is stopped after an earlier fault: {0}")]
    Poisoned(String),
    /// The log or store was closed.
    #[error("storage is closed")]
    Closed,
}

impl StorageError {
    /// An operating system's error with the path and the attempt added.
    pub fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), doing, source: Arc::new(source) }
    }

    /// Something is not there that must be.
    pub fn missing(path: &Path, what: impl Into<String>) -> Self {
        Self::Missing { path: path.to_path_buf(), what: what.into() }
    }

    /// Damage at a place in a file.
    pub fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_path_buf(), offset, what: what.into() }
    }
}

impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        let kind = match &error {
            StorageError::Io { source, .. } | StorageError::NotWritable { source, .. } => source.kind(),
            StorageError::Corrupt { .. }
            | StorageError::Missing { .. }
            | StorageError::OtherVersion { .. }
            | StorageError::BadSnapshot { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
