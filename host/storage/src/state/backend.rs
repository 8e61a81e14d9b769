//! redb's storage on the disk seam.
//!
//! **Invariant:** while held, nothing reaches the file, so that a file which is refused is left as it was; once sealed, nothing
//! does any more: a database that is dropped would otherwise make its last commits durable, and they may be ahead of the log.

use crate::disk::DiskFile;
use parking_lot::RwLock;
use redb::StorageBackend;
use std::io;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub(super) struct Backend {
    file: Arc<dyn DiskFile>,
    gate: Arc<RwLock<Gate>>,
}

#[derive(Debug)]
enum Gate {
    /// What would have been done, in order: opening a database writes to it.
    Held {
        changes: Vec<Change>,
        len: u64,
    },
    Open,
    Sealed,
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

impl Backend {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> Self {
        Self { file, gate: Arc::new(RwLock::new(Gate::Open)) }
    }

    /// A backend that keeps changes in memory until [`Backend::release`].
    pub(super) fn held(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let gate = Gate::Held { changes: Vec::new(), len: file.len()? };
        Ok(Self { file, gate: Arc::new(RwLock::new(gate)) })
    }

    /// Does what was held back, in the same order and with the same syncs, and holds nothing back from now on.
    pub(super) fn release(&self) -> io::Result<()> {
        let mut gate = self.gate.write();
        if let Gate::Held { changes, .. } = &mut *gate {
            for change in changes.drain(..) {
                match change {
                    Change::Write(offset, data) => self.file.write_at(offset, &data)?,
                    Change::SetLen(len) => self.file.set_len(len)?,
                    Change::Sync => self.file.sync_data()?,
                }
            }
            *gate = Gate::Open;
        }
        Ok(())
    }

    /// Refuses every write from now on.
    pub(super) fn seal(&self) {
        *self.gate.write() = Gate::Sealed;
    }

    /// Does a change, or keeps it if the file is held.
    fn change(&self, change: impl FnOnce() -> Change, now: impl FnOnce(&dyn DiskFile) -> io::Result<()>) -> io::Result<()> {
        {
            let gate = self.gate.read();
            match &*gate {
                // Done under the lock: once `seal` has returned, no write is on its way.
                Gate::Open => return now(&*self.file),
                Gate::Sealed => return Err(io::Error::other("the state file is sealed: it was closed, or there was a fault")),
                Gate::Held { .. } => {}
            }
        }
        let mut gate = self.gate.write();
        let Gate::Held { changes, len } = &mut *gate else {
            return Err(io::Error::other("the state file was released or sealed while it was being opened"));
        };
        let change = change();
        match &change {
            Change::Write(offset, data) => *len = (*len).max(offset + data.len() as u64),
            Change::SetLen(new) => *len = *new,
            Change::Sync => {}
        }
        changes.push(change);
        Ok(())
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        match &*self.gate.read() {
            Gate::Held { len, .. } => Ok(*len),
            _ => self.file.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &*self.gate.read() {
            Gate::Held { changes, len } if !changes.is_empty() => read_held(&*self.file, changes, *len, offset, out),
            _ => self.file.read_at(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|| Change::SetLen(len), |file| file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|| Change::Sync, |file| file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(|| Change::Write(offset, data.to_vec()), |file| file.write_at(offset, data))
    }
}

/// Reads the file as it would be with the held changes done.
fn read_held(file: &dyn DiskFile, changes: &[Change], len: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
    let end = offset + out.len() as u64;
    if end > len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let on_disk = file.len()?.clamp(offset, end) - offset;
    file.read_at(offset, &mut out[..on_disk as usize])?;
    out[on_disk as usize..].fill(0);
    for change in changes {
        match change {
            Change::Write(at, data) => {
                let (from, to) = ((*at).max(offset), (at + data.len() as u64).min(end));
                if from < to {
                    out[(from - offset) as usize..(to - offset) as usize]
                        .copy_from_slice(&data[(from - at) as usize..(to - at) as usize]);
                }
            }
            // What is cut off reads as zeros if the file grows again.
            Change::SetLen(cut) if *cut < end => out[(cut.max(&offset) - offset) as usize..].fill(0),
            Change::SetLen(_) | Change::Sync => {}
        }
    }
    Ok(())
}
