//! A disk in memory that loses power on demand, deterministic from its seed.
//!
//! Every file has the bytes a reader sees and the bytes that are durable; every folder has names of both kinds. A power cut
//! keeps a random subset of the writes since the file's last sync, the kept ones torn at 512-byte sectors, and a random
//! subset of the name changes since the folder's last sync. Faults (`EIO`, `ENOSPC`) strike the nth operation of a kind; a
//! sync that failed leaves it open which of its writes arrived, and a later sync does not bring them back ("fsyncgate").
//!
//! **Invariant:** what a successful `sync_data` or `sync_dir` covered survives every power cut.

mod image;
mod random;

pub(crate) use random::Random;

use super::{Disk, DiskFile, DiskLock, Driver, PathKind};
use image::{Image, Pending};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What an injected fault looks like to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The device failed.
    Eio,
    /// The file system is full.
    Enospc,
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::Eio => io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()),
            Self::Enospc => io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()),
        }
    }
}

/// Which operations fail from now on. The counters start when the plan is set.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    /// Only files whose path contains this text count and fail; empty for all.
    pub only: String,
    /// The nth write (1 is the next) and all later ones fail so.
    pub write_nth: Option<(u64, Fault)>,
    /// The nth file sync (1 is the next) and all later ones fail so.
    pub sync_nth: Option<(u64, Fault)>,
    /// The nth change of a name or a length (a file or folder created, renamed, removed, cut; a folder synced) and all later ones
    /// fail so, and do nothing.
    pub name_nth: Option<(u64, Fault)>,
}

/// A disk in memory. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<SimState>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Folder,
    File(u64),
}

#[derive(Debug, Clone)]
enum NameChange {
    Link(PathBuf, Node),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

#[derive(Debug, Default)]
struct SimContent {
    live: Image,
    durable: Image,
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct SimState {
    live: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    changes: Vec<(PathBuf, NameChange)>,
    files: BTreeMap<u64, SimContent>,
    next_file: u64,
    random: Random,
    plan: FaultPlan,
    /// A fault of any plan has struck.
    struck: bool,
    plan_writes: u64,
    plan_syncs: u64,
    plan_names: u64,
    sync_delay: Duration,
    locks: BTreeSet<PathBuf>,
    free_bytes: u64,
    driver: Option<Arc<dyn Driver>>,
    /// Operations until the power goes; `None` while it stays.
    power_left: Option<u64>,
}

impl SimDisk {
    /// An empty disk whose chances are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::with_files(seed, BTreeMap::new(), BTreeMap::new(), 0)
    }

    fn with_files(seed: u64, names: BTreeMap<PathBuf, Node>, files: BTreeMap<u64, SimContent>, next_file: u64) -> Self {
        let state = SimState {
            live: names.clone(),
            durable: names,
            changes: Vec::new(),
            files,
            next_file,
            random: Random::new(seed),
            plan: FaultPlan::default(),
            struck: false,
            plan_writes: 0,
            plan_syncs: 0,
            plan_names: 0,
            sync_delay: Duration::ZERO,
            locks: BTreeSet::new(),
            free_bytes: 1 << 40,
            driver: None,
            power_left: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Cuts the power: this disk fails every operation from now on; the disk as it is found after the restart is returned.
    pub fn crash(&self, seed: u64) -> SimDisk {
        self.state.lock().power_left = Some(0);
        self.image(seed)
    }

    /// Kills the process that uses the disk: every operation on this one fails from now on. The disk that the next process finds has
    /// all that was written, synced or not, and what was not synced can still be lost.
    pub fn kill(&self, seed: u64) -> SimDisk {
        let after = Self::new(seed);
        let (mut killed, mut found) = (self.state.lock(), after.state.lock());
        killed.power_left = Some(0);
        found.live = std::mem::take(&mut killed.live);
        found.durable = std::mem::take(&mut killed.durable);
        found.changes = std::mem::take(&mut killed.changes);
        found.files = std::mem::take(&mut killed.files);
        found.next_file = killed.next_file;
        found.free_bytes = killed.free_bytes;
        drop(found);
        after
    }

    /// The disk as it would be found if the power went now. This one goes on.
    pub fn image(&self, seed: u64) -> SimDisk {
        let state = self.state.lock();
        let mut random = Random::new(seed ^ 0x9e37_79b9_7f4a_7c15);
        let names = state.surviving_names(&mut random);
        let mut files = BTreeMap::new();
        for node in names.values() {
            if let Node::File(id) = node
                && let Some(content) = state.files.get(id)
            {
                let image = content.after_power_cut(&mut random);
                files.insert(*id, SimContent { live: image.clone(), durable: image, pending: Vec::new() });
            }
        }
        Self::with_files(seed, names, files, state.next_file)
    }

    /// Lets `operations` more writes, syncs and name changes through; the power goes with the next.
    pub fn cut_power_after(&self, operations: u64) {
        self.state.lock().power_left = Some(operations);
    }

    /// Keeps the power on, if it is on still.
    pub fn keep_power(&self) {
        let mut state = self.state.lock();
        state.power_left = state.power_left.filter(|left| *left == 0);
    }

    /// Sets which operations fail from now on.
    pub fn set_faults(&self, plan: FaultPlan) {
        let mut state = self.state.lock();
        state.plan = plan;
        state.plan_writes = 0;
        state.plan_syncs = 0;
        state.plan_names = 0;
    }

    /// Makes each file sync take so long.
    pub fn set_sync_delay(&self, delay: Duration) {
        self.state.lock().sync_delay = delay;
    }

    /// What [`Disk::free_bytes`] answers.
    pub fn set_free_bytes(&self, bytes: u64) {
        self.state.lock().free_bytes = bytes;
    }

    /// Those who keep files on it from now on have no threads: `driver` does their work.
    pub fn set_driver(&self, driver: Arc<dyn Driver>) {
        self.state.lock().driver = Some(driver);
    }

    /// Whether it has lost power.
    pub fn is_off(&self) -> bool {
        self.state.lock().power_left == Some(0)
    }

    /// Whether an operation has failed because a plan said so.
    pub fn has_failed(&self) -> bool {
        self.state.lock().struck
    }

    /// A file's bytes as a reader sees them.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        let content = state.content(path)?;
        let mut bytes = vec![0; content.live.len() as usize];
        content.live.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Puts a file there, durable at once, its folders too.
    pub fn write_file(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state.lock();
        for dir in path.ancestors().skip(1) {
            state.live.insert(dir.to_path_buf(), Node::Folder);
            state.durable.insert(dir.to_path_buf(), Node::Folder);
        }
        let id = state.next_file;
        state.next_file += 1;
        let mut image = Image::default();
        image.write(0, bytes);
        state.files.insert(id, SimContent { live: image.clone(), durable: image, pending: Vec::new() });
        state.live.insert(path.to_path_buf(), Node::File(id));
        state.durable.insert(path.to_path_buf(), Node::File(id));
    }
}

impl SimContent {
    fn after_power_cut(&self, random: &mut Random) -> Image {
        let mut image = self.durable.clone();
        // Four tempers of a disk: everything arrived, nothing did, a prefix did, each write on its own.
        let temper = random.below(4);
        let cut = random.below(self.pending.len() as u64 + 1) as usize;
        for (at, pending) in self.pending.iter().enumerate() {
            match temper {
                0 => pending.apply(&mut image),
                1 => {}
                2 if at < cut => pending.apply(&mut image),
                2 if at == cut => pending.apply_torn(&mut image, random),
                2 => {}
                _ => match random.below(3) {
                    0 => pending.apply(&mut image),
                    1 => pending.apply_torn(&mut image, random),
                    _ => {}
                },
            }
        }
        image
    }
}

impl SimState {
    fn content(&self, path: &Path) -> io::Result<&SimContent> {
        match self.live.get(path) {
            Some(Node::File(id)) => self.files.get(id).ok_or_else(|| io::ErrorKind::NotFound.into()),
            Some(Node::Folder) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Whether the power is still on; counts one operation if `counted`.
    fn power(&mut self, counted: bool) -> io::Result<()> {
        match &mut self.power_left {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the simulated disk has lost power")),
            Some(left) => {
                *left -= u64::from(counted);
                Ok(())
            }
        }
    }

    fn parent(&self, path: &Path) -> io::Result<PathBuf> {
        let dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        match self.live.get(&dir) {
            Some(Node::Folder) => Ok(dir),
            None if dir.as_os_str().is_empty() || dir == Path::new("/") => Ok(dir),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn change(&mut self, dir: PathBuf, change: NameChange) {
        apply_change(&mut self.live, &change);
        self.changes.push((dir, change));
    }

    fn surviving_names(&self, random: &mut Random) -> BTreeMap<PathBuf, Node> {
        let mut names = self.durable.clone();
        for (_, change) in &self.changes {
            if random.below(2) == 0 {
                apply_change(&mut names, change);
            }
        }
        // A name whose folder did not survive is gone with it.
        let mut kept: BTreeMap<PathBuf, Node> = BTreeMap::new();
        for (path, node) in names {
            let rooted = match path.parent() {
                None => true,
                Some(dir) if dir.as_os_str().is_empty() || dir == Path::new("/") => true,
                Some(dir) => kept.get(dir) == Some(&Node::Folder),
            };
            if rooted {
                kept.insert(path, node);
            }
        }
        kept
    }

    fn write_fault(&mut self, path: &Path) -> Option<Fault> {
        let fault = strike(path, &self.plan.only, &mut self.plan_writes, self.plan.write_nth);
        self.struck |= fault.is_some();
        fault
    }

    fn sync_fault(&mut self, path: &Path) -> Option<Fault> {
        let fault = strike(path, &self.plan.only, &mut self.plan_syncs, self.plan.sync_nth);
        self.struck |= fault.is_some();
        fault
    }

    /// Whether a change of a name or a length may go on.
    fn name_change(&mut self, path: &Path) -> io::Result<()> {
        self.power(true)?;
        match strike(path, &self.plan.only, &mut self.plan_names, self.plan.name_nth) {
            Some(fault) => {
                self.struck = true;
                Err(fault.error())
            }
            None => Ok(()),
        }
    }
}

fn strike(path: &Path, only: &str, count: &mut u64, nth: Option<(u64, Fault)>) -> Option<Fault> {
    if !path.to_string_lossy().contains(only) {
        return None;
    }
    *count += 1;
    nth.filter(|(nth, _)| *count >= *nth).map(|(_, fault)| fault)
}

fn apply_change(names: &mut BTreeMap<PathBuf, Node>, change: &NameChange) {
    match change {
        NameChange::Link(path, node) => {
            names.insert(path.clone(), *node);
        }
        NameChange::Unlink(path) => {
            names.remove(path);
        }
        NameChange::Rename(from, to) => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.power(false)?;
        state.content(path)?;
        match state.live.get(path) {
            Some(Node::File(id)) => Ok(self.handle(*id, path)),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.name_change(path)?;
        let dir = state.parent(path)?;
        match state.live.get(path).copied() {
            Some(Node::Folder) => Err(io::ErrorKind::IsADirectory.into()),
            Some(Node::File(id)) => {
                if let Some(content) = state.files.get_mut(&id) {
                    content.live.set_len(0);
                    content.pending.push(Pending::SetLen(0));
                }
                Ok(self.handle(id, path))
            }
            None => {
                let id = state.next_file;
                state.next_file += 1;
                state.files.insert(id, SimContent::default());
                state.change(dir, NameChange::Link(path.to_path_buf(), Node::File(id)));
                Ok(self.handle(id, path))
            }
        }
    }

    fn kind(&self, path: &Path) -> io::Result<Option<PathKind>> {
        let mut state = self.state.lock();
        state.power(false)?;
        Ok(state.live.get(path).map(|node| match node {
            Node::Folder => PathKind::Folder,
            Node::File(_) => PathKind::File,
        }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state.lock();
        state.power(false)?;
        if state.live.get(dir) != Some(&Node::Folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = state.live.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.name_change(to)?;
        state.content(from)?;
        let dir = state.parent(to)?;
        state.change(dir, NameChange::Rename(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.name_change(path)?;
        state.content(path)?;
        let dir = state.parent(path)?;
        state.change(dir, NameChange::Unlink(path.to_path_buf()));
        Ok(())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.name_change(dir)?;
        let mut missing = Vec::new();
        for path in dir.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            match state.live.get(path) {
                Some(Node::Folder) => break,
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => missing.push(path.to_path_buf()),
            }
        }
        for path in missing.into_iter().rev() {
            let parent = path.parent().map(Path::to_path_buf).unwrap_or_default();
            state.change(parent, NameChange::Link(path, Node::Folder));
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.name_change(dir)?;
        let changes = std::mem::take(&mut state.changes);
        for (changed, change) in changes {
            if changed == dir {
                apply_change(&mut state.durable, &change);
            } else {
                state.changes.push((changed, change));
            }
        }
        Ok(())
    }

    fn lock(&self, path: &Path, owner: &str) -> io::Result<Box<dyn DiskLock>> {
        if self.state.lock().locks.contains(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.create(path)?.write_at(0, owner.as_bytes())?;
        if !self.state.lock().locks.insert(path.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { state: self.state.clone(), path: path.to_path_buf() }))
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.state.lock().free_bytes)
    }

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        self.state.lock().driver.clone()
    }
}

impl SimDisk {
    fn handle(&self, id: u64, path: &Path) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { state: self.state.clone(), id, path: path.to_path_buf() })
    }
}

#[derive(Debug)]
struct SimFile {
    state: Arc<Mutex<SimState>>,
    id: u64,
    path: PathBuf,
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        state.power(false)?;
        match state.files.get(&self.id) {
            Some(content) => content.live.read(offset, out),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        state.power(true)?;
        let fault = state.write_fault(&self.path);
        let arrived = match fault {
            None => data.len(),
            Some(_) => {
                // The kernel copies whole pages of the file; half a sector never arrives.
                let end = offset + state.random.below(data.len() as u64 + 1);
                (end / image::SECTOR * image::SECTOR).saturating_sub(offset) as usize
            }
        };
        if let Some(content) = state.files.get_mut(&self.id) {
            content.live.write(offset, &data[..arrived]);
            content.pending.push(Pending::write(offset, &data[..arrived]));
        }
        fault.map_or(Ok(()), |fault| Err(fault.error()))
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.state.lock();
        state.power(false)?;
        state.files.get(&self.id).map(|content| content.live.len()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.name_change(&self.path)?;
        if let Some(content) = state.files.get_mut(&self.id) {
            content.live.set_len(len);
            content.pending.push(Pending::SetLen(len));
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let delay = self.state.lock().sync_delay;
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        let mut state = self.state.lock();
        state.power(true)?;
        let fault = state.sync_fault(&self.path);
        let SimState { files, random, .. } = &mut *state;
        let Some(content) = files.get_mut(&self.id) else { return Err(io::ErrorKind::NotFound.into()) };
        match fault {
            None => {
                for pending in content.pending.drain(..) {
                    pending.apply(&mut content.durable);
                }
                Ok(())
            }
            Some(fault) => {
                // The kernel forgets that the pages were dirty: what arrived by now is all that ever will.
                content.durable = content.after_power_cut(random);
                content.pending.clear();
                Err(fault.error())
            }
        }
    }
}

#[derive(Debug)]
struct SimLock {
    state: Arc<Mutex<SimState>>,
    path: PathBuf,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.state.lock().locks.remove(&self.path);
    }
}

#[cfg(test)]
mod tests;
