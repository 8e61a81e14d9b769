//! A small file system of its own, for disks that fill up.
//!
//! **Invariant:** it is unmounted when dropped, whatever still uses it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted tmpfs.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts so many bytes on a new folder; `None`, said out loud, where this process may not mount.
    pub fn new(case: &str, path: PathBuf, bytes: u64) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&path).output();
        match mounted {
            Ok(answer) if answer.status.success() => Some(Self(path)),
            answer => {
                crate::skip(case, &format!("it needs a mounted tmpfs, and mount says {answer:?}"));
                None
            }
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(&self.0).map(|space| space.f_bavail * space.f_frsize).unwrap()
    }

    /// Takes room away so that no more than this is free.
    pub fn fill(&self, leave_bytes: u64) {
        use std::io::Write as _;
        let mut filler = std::fs::OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        let megabyte = vec![1; 1 << 20];
        loop {
            let more = self.free_bytes().saturating_sub(leave_bytes).min(1 << 20);
            // Whoever else writes may be faster.
            if more == 0 || filler.write_all(&megabyte[..more as usize]).is_err() {
                return;
            }
        }
    }

    /// Gives the room back.
    pub fn empty(&self) {
        // It is not there when nothing was filled.
        let _ = std::fs::remove_file(self.filler());
    }

    /// Makes it as large as this.
    pub fn grow(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a process that still dies must not keep it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
