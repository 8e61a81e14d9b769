//! The data folder: what is where in it, whose it is, and who uses it.
//!
//! ```text
//! VERSION      "kvasir data folder, format 1"
//! LOCK         locked while a process uses the folder; its process id
//! log/         the raft log's segments
//! state.redb   the state file
//! snapshot/    snapshots, taken and received
//! plugins/     compiled plugins: a cache, may be deleted while no process runs
//! identity/    who the node is: its key and certificates; a joining node has it before anything else
//! BALLAST      room kept aside for the day the disk is full
//! ```
//!
//! **Invariant:** a folder that is refused is left exactly as it was.

use crate::StorageError;
use crate::disk::{Disk, DiskLock, PathKind, parent};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder's format version.
pub const FORMAT_VERSION: u32 = 1;
const VERSION: &str = "VERSION";
const VERSION_NEW: &str = "VERSION.new";
const LOCK: &str = "LOCK";
const BALLAST: &str = "BALLAST";
const LOG: &str = "log";
const SNAPSHOT: &str = "snapshot";
const PLUGINS: &str = "plugins";
const IDENTITY: &str = "identity";
const FOLDERS: [&str; 4] = [LOG, SNAPSHOT, PLUGINS, IDENTITY];
const STAMP: &str = "kvasir data folder, format ";
/// Longer than any text we write to `VERSION` or `LOCK`.
const TEXT_BYTES_MAX: u64 = 256;

/// A data folder in use by this process, until dropped.
#[derive(Debug)]
pub struct DataFolder {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    _lock: Box<dyn DiskLock>,
}

/// Room on the data folder's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes this process may still write.
    pub free_bytes: u64,
    /// Bytes that [`DataFolder::drop_ballast`] would add.
    pub ballast_bytes: u64,
}

impl DataFolder {
    /// Whether there is data of a node at `path`. Looks without touching.
    ///
    /// # Errors
    /// As [`DataFolder::open`], but for what only a look cannot tell.
    pub fn look(disk: &dyn Disk, path: &Path) -> Result<bool, StorageError> {
        inspect(disk, path).map(|found| found == Found::Ours)
    }

    /// Where the node's identity is in the data folder at `path`.
    pub fn identity_dir(path: &Path) -> PathBuf {
        path.join(IDENTITY)
    }

    /// Takes the data folder at `path`, making it if there is nothing.
    ///
    /// # Errors
    /// [`StorageError::NotAFolder`], [`StorageError::NotOurs`], [`StorageError::OtherVersion`], [`StorageError::InUse`],
    /// [`StorageError::NotWritable`], [`StorageError::Missing`]; nothing is changed then. [`StorageError::Io`] for what else the disk says.
    pub fn open(disk: Arc<dyn Disk>, path: &Path) -> Result<DataFolder, StorageError> {
        let found = inspect(&*disk, path)?;
        if found == Found::Nothing {
            disk.create_dir_all(path).map_err(refusal(path, "create the data folder"))?;
        }
        let lock = lock(&*disk, path)?;
        // Another process may have been faster before the lock was ours.
        let found = inspect(&*disk, path)?;
        for name in [LOG, SNAPSHOT, PLUGINS] {
            disk.create_dir_all(&path.join(name)).map_err(refusal(path, "create a folder"))?;
        }
        disk.sync_dir(path).map_err(refusal(path, "sync the data folder"))?;
        if found != Found::Ours {
            sync_parents(&*disk, path)?;
            write_version(&*disk, path).map_err(refusal(path, "write VERSION"))?;
        }
        Ok(DataFolder { disk, path: path.to_path_buf(), _lock: lock })
    }

    /// Makes a data folder at `path`, where there is nothing or an empty folder, with what `fill` puts into it. It is one only once all
    /// of it is there; what an error leaves is removed, and is no data folder where a crash leaves it.
    ///
    /// # Errors
    /// [`StorageError::NotEmpty`], [`StorageError::NotAFolder`], [`StorageError::InUse`], [`StorageError::NotWritable`] with nothing
    /// changed; [`StorageError::Io`]; those of `fill`.
    pub fn make<T, E: From<StorageError>>(
        disk: Arc<dyn Disk>,
        path: &Path,
        fill: impl FnOnce(&DataFolder) -> Result<T, E>,
    ) -> Result<T, E> {
        check_empty(&*disk, path)?;
        disk.create_dir_all(path).map_err(refusal(path, "create the data folder"))?;
        let folder = DataFolder { path: path.to_path_buf(), _lock: lock(&*disk, path)?, disk };
        let disk = &*folder.disk;
        // Another process may have been faster before the lock was ours.
        check_empty(disk, path)?;
        let make = || {
            for name in [LOG, SNAPSHOT, PLUGINS] {
                disk.create_dir_all(&path.join(name)).map_err(refusal(path, "create a folder"))?;
            }
            let filled = fill(&folder)?;
            disk.sync_dir(path).map_err(refusal(path, "sync the data folder"))?;
            sync_parents(disk, path)?;
            write_version(disk, path).map_err(refusal(path, "write VERSION"))?;
            Ok(filled)
        };
        make().inspect_err(|_| sweep(disk, path))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk it is on.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Where the raft log is.
    pub fn log_dir(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// The state file.
    pub fn state_path(&self) -> PathBuf {
        self.path.join("state.redb")
    }

    /// Where snapshots are.
    pub fn snapshot_dir(&self) -> PathBuf {
        self.path.join(SNAPSHOT)
    }

    /// Where compiled plugins are cached.
    pub fn plugins_dir(&self) -> PathBuf {
        self.path.join(PLUGINS)
    }

    /// How much room there is: what the NOSPACE alarm is raised on.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn space(&self) -> Result<Space, StorageError> {
        let fail = |source| StorageError::io(&self.path, "measure the free space", source);
        let free_bytes = self.disk.free_bytes(&self.path).map_err(fail)?;
        let ballast = self.path.join(BALLAST);
        let ballast_bytes = match self.disk.exists(&ballast).map_err(fail)? {
            true => self.disk.open(&ballast).and_then(|file| file.len()).map_err(fail)?,
            false => 0,
        };
        Ok(Space { free_bytes, ballast_bytes })
    }

    /// Sets `bytes` of the disk aside, in written blocks, unless so much is aside already.
    ///
    /// # Errors
    /// Whatever the disk says; `ENOSPC` then leaves no ballast.
    pub fn make_ballast(&self, bytes: u64) -> Result<(), StorageError> {
        if self.space()?.ballast_bytes >= bytes {
            return Ok(());
        }
        let path = self.path.join(BALLAST);
        let write = || -> io::Result<()> {
            let file = self.disk.create(&path)?;
            let zeros = vec![0; 1 << 20];
            let mut at = 0;
            while at < bytes {
                let part = (bytes - at).min(zeros.len() as u64);
                file.write_at(at, &zeros[..part as usize])?;
                at += part;
            }
            file.sync_data()?;
            self.disk.sync_dir(&self.path)
        };
        write().map_err(|source| {
            let _ = self.disk.remove(&path);
            StorageError::io(&path, "set ballast aside", source)
        })
    }

    /// Gives the ballast back to the disk.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn drop_ballast(&self) -> Result<(), StorageError> {
        let path = self.path.join(BALLAST);
        let fail = |source| StorageError::io(&path, "remove the ballast", source);
        if self.disk.exists(&path).map_err(fail)? {
            self.disk.remove(&path).and_then(|()| self.disk.sync_dir(&self.path)).map_err(fail)?;
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// An empty folder, or one whose making was cut short.
    Fresh,
    Ours,
}

/// Refuses anything but nothing, and what [`sweep`] leaves.
fn check_empty(disk: &dyn Disk, path: &Path) -> Result<(), StorageError> {
    let look = refusal(path, "look at the data folder");
    match disk.kind(path).map_err(&look)? {
        None => return Ok(()),
        Some(PathKind::Folder) => {}
        Some(PathKind::File) => return Err(StorageError::NotAFolder { path: path.to_path_buf() }),
    }
    for name in disk.list(path).map_err(&look)? {
        let inside = path.join(&name);
        let empty = match disk.kind(&inside).map_err(&look)? {
            Some(PathKind::Folder) if FOLDERS.contains(&name.as_str()) => disk.list(&inside).map_err(&look)?.is_empty(),
            _ => name == LOCK,
        };
        if !empty {
            return Err(StorageError::NotEmpty { path: path.to_path_buf(), found: name });
        }
    }
    Ok(())
}

/// Removes what a making that failed has left, as far as it can be.
fn sweep(disk: &dyn Disk, path: &Path) {
    let remove = |path: &Path| {
        if let Err(error) = disk.remove(path) {
            tracing::debug!(path = %path.display(), %error, "a file is left of a data folder that was not made");
        }
    };
    for name in disk.list(path).unwrap_or_default().iter().filter(|name| *name != LOCK) {
        let inside = path.join(name);
        if FOLDERS.contains(&name.as_str()) {
            disk.list(&inside).unwrap_or_default().iter().for_each(|name| remove(&inside.join(name)));
        } else {
            remove(&inside);
        }
    }
}

/// Makes the data folder's name durable and those of the folders above it: which of them this making created, or one before it that
/// was cut short, nobody knows.
fn sync_parents(disk: &dyn Disk, path: &Path) -> Result<(), StorageError> {
    let parents: Vec<&Path> = path.ancestors().filter(|folder| !folder.as_os_str().is_empty()).map(parent).collect();
    // From the top, so that a name is never durable in a folder that is not.
    for folder in parents.into_iter().rev() {
        match disk.sync_dir(folder) {
            // In a folder that may not be opened or cannot change nothing was made; one that knows no sync cannot be helped.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::InvalidInput
                ) => {}
            synced => synced.map_err(refusal(folder, "sync the folder"))?,
        }
    }
    Ok(())
}

/// Looks without touching.
fn inspect(disk: &dyn Disk, path: &Path) -> Result<Found, StorageError> {
    match disk.kind(path) {
        Ok(None) => return Ok(Found::Nothing),
        Ok(Some(PathKind::Folder)) => {}
        Ok(Some(PathKind::File)) => return Err(StorageError::NotAFolder { path: path.to_path_buf() }),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(StorageError::NotAFolder { path: path.to_path_buf() });
        }
        Err(error) => return Err(refusal(path, "look at the data folder")(error)),
    }
    let names = disk.list(path).map_err(refusal(path, "list the data folder"))?;
    if !names.iter().any(|name| name == VERSION) {
        let made_by_us = [LOCK, VERSION_NEW, LOG, SNAPSHOT, PLUGINS, IDENTITY];
        let foreign = names.iter().find(|name| !made_by_us.contains(&name.as_str()));
        return match foreign {
            Some(found) => Err(StorageError::NotOurs { path: path.to_path_buf(), found: found.clone() }),
            None => {
                // Folders of a making that was cut short are empty.
                for name in names.iter().filter(|name| [LOG, SNAPSHOT, PLUGINS].contains(&name.as_str())) {
                    let folder = path.join(name);
                    let kind = disk.kind(&folder).map_err(refusal(path, "look at the data folder"))?;
                    let found = match kind {
                        Some(PathKind::File) => Some(name.clone()),
                        _ => {
                            let inside = disk.list(&folder).map_err(refusal(path, "list the data folder"))?;
                            inside.first().map(|found| format!("{name}/{found}"))
                        }
                    };
                    if let Some(found) = found {
                        return Err(StorageError::NotOurs { path: path.to_path_buf(), found });
                    }
                }
                Ok(Found::Fresh)
            }
        };
    }
    let text = read_text(disk, &path.join(VERSION)).map_err(refusal(path, "read VERSION"))?;
    match text.trim_end().strip_prefix(STAMP) {
        Some(version) if version == FORMAT_VERSION.to_string() => {
            // VERSION is written after the folder of the log: a folder that has the one has had the other.
            let log = path.join(LOG);
            match disk.kind(&log).map_err(refusal(path, "look at the data folder"))? {
                Some(PathKind::Folder) => Ok(Found::Ours),
                _ => Err(StorageError::missing(&log, "the folder of the raft log is missing")),
            }
        }
        Some(version) => {
            Err(StorageError::OtherVersion { path: path.to_path_buf(), found: version.to_owned(), supported: FORMAT_VERSION })
        }
        None => Err(StorageError::NotOurs { path: path.to_path_buf(), found: VERSION.to_owned() }),
    }
}

fn lock(disk: &dyn Disk, path: &Path) -> Result<Box<dyn DiskLock>, StorageError> {
    let file = path.join(LOCK);
    let owner = format!("{}\n", std::process::id());
    disk.lock(&file, &owner).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            let pid = read_text(disk, &file).unwrap_or_default().trim().to_owned();
            let pid = if pid.is_empty() { "unknown".to_owned() } else { pid };
            StorageError::InUse { path: path.to_path_buf(), pid }
        }
        _ => refusal(path, "lock the data folder")(error),
    })
}

fn write_version(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let new = path.join(VERSION_NEW);
    let file = disk.create(&new)?;
    file.write_at(0, format!("{STAMP}{FORMAT_VERSION}\n").as_bytes())?;
    file.sync_data()?;
    disk.rename(&new, &path.join(VERSION))?;
    disk.sync_dir(path)
}

fn read_text(disk: &dyn Disk, path: &Path) -> io::Result<String> {
    let file = disk.open(path)?;
    let mut bytes = vec![0; file.len()?.min(TEXT_BYTES_MAX) as usize];
    file.read_at(0, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn refusal<'a>(path: &'a Path, doing: &'static str) -> impl Fn(io::Error) -> StorageError + 'a {
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StorageError::NotWritable { path: path.to_path_buf(), source: Arc::new(source) }
        }
        _ => StorageError::io(path, doing, source),
    }
}

#[cfg(test)]
mod tests;
