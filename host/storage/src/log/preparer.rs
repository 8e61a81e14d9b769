//! The thread beside the writer: makes the next segment ready before it is needed, and removes purged ones.
//!
//! **Invariant:** segments are removed oldest first, each removal durable before the next, so that what is left has no gap.

use super::segment::Segment;
use crate::StorageError;
use crate::disk::Disk;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

enum Task {
    Prepare { number: u64, capacity: u64 },
    Remove(PathBuf),
}

/// The writer's end of the thread.
pub(super) struct Preparer {
    tasks: Option<Sender<Task>>,
    ready: Receiver<Result<Segment, StorageError>>,
    thread: Option<JoinHandle<()>>,
    /// A segment is ready or being made.
    expected: bool,
}

impl Preparer {
    pub(super) fn start(disk: Arc<dyn Disk>, dir: PathBuf, ready: Option<Segment>) -> Result<Self, StorageError> {
        let (tasks, todo) = channel();
        let (made, results) = channel();
        let expected = ready.is_some();
        if let Some(segment) = ready {
            // The receiver is in hand, so this cannot fail.
            let _ = made.send(Ok(segment));
        }
        let at = dir.clone();
        let thread = std::thread::Builder::new()
            .name("kvasir-log-prep".into())
            .spawn(move || run(&*disk, &dir, &todo, &made))
            .map_err(|source| StorageError::io(&at, "start the log's second thread", source))?;
        Ok(Self { tasks: Some(tasks), ready: results, thread: Some(thread), expected })
    }

    /// Asks for a segment, unless one is ready or on its way.
    pub(super) fn prepare(&mut self, number: u64, capacity: u64) {
        if !self.expected {
            self.expected = true;
            self.send(Task::Prepare { number, capacity });
        }
    }

    /// The segment that was asked for; waits for it. If it could not be made, one of the least size is tried: what failed then may
    /// have been long ago, and a full disk may still have that much room.
    pub(super) fn take(&mut self, number: u64, least: u64) -> Result<Segment, StorageError> {
        self.expected = false;
        match self.ready.recv().unwrap_or(Err(StorageError::Closed)) {
            Ok(segment) => Ok(segment),
            Err(error) => {
                tracing::warn!(%error, "the next log segment could not be made ready; trying again with a small one");
                self.send(Task::Prepare { number, capacity: least });
                self.ready.recv().unwrap_or(Err(StorageError::Closed))
            }
        }
    }

    pub(super) fn remove(&self, path: PathBuf) {
        self.send(Task::Remove(path));
    }

    fn send(&self, task: Task) {
        if let Some(tasks) = &self.tasks {
            // Fails only if the thread is gone, and then `take` reports it.
            let _ = tasks.send(task);
        }
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(disk: &dyn Disk, dir: &std::path::Path, todo: &Receiver<Task>, made: &Sender<Result<Segment, StorageError>>) {
    let mut removing = true;
    while let Ok(task) = todo.recv() {
        match task {
            Task::Prepare { number, capacity } => {
                let _ = made.send(Segment::create(disk, dir, number, capacity));
            }
            Task::Remove(path) if removing => {
                if let Err(error) = disk.remove(&path).and_then(|()| disk.sync_dir(dir)) {
                    // A gap would be damage; files left over are not.
                    removing = false;
                    tracing::warn!(path = %path.display(), %error, "cannot remove a purged log segment; it is kept until the next start");
                }
            }
            Task::Remove(_) => {}
        }
    }
}
