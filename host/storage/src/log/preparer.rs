//! The thread beside the writer: makes the next segment ready before it is needed, and removes purged ones.
//!
//! **Invariant:** segments are removed oldest first, each removal durable before the next, so that what is left has no gap.

use super::segment::Segment;
use crate::StorageError;
use crate::disk::Disk;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

enum Task {
    Prepare { number: u64, capacity: u64 },
    Remove(PathBuf),
}

/// Who does the tasks.
enum Hands {
    Thread {
        tasks: Option<Sender<Task>>,
        thread: Option<JoinHandle<()>>,
    },
    /// Whoever asks: the disk is driven.
    Own(Mutex<Hand>),
}

/// What does tasks, one at a time.
struct Hand {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    made: Sender<Result<Segment, StorageError>>,
    removing: bool,
}

/// The writer's end of the thread.
pub(super) struct Preparer {
    hands: Hands,
    ready: Receiver<Result<Segment, StorageError>>,
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
        let driven = disk.driver().is_some();
        let mut hand = Hand { disk, dir, made, removing: true };
        if driven {
            return Ok(Self { hands: Hands::Own(Mutex::new(hand)), ready: results, expected });
        }
        let thread = std::thread::Builder::new()
            .name("kvasir-log-prep".into())
            .spawn(move || todo.iter().for_each(|task| hand.take(task)))
            .map_err(|source| StorageError::io(&at, "start the log's second thread", source))?;
        Ok(Self { hands: Hands::Thread { tasks: Some(tasks), thread: Some(thread) }, ready: results, expected })
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
        match &self.hands {
            // Fails only if the thread is gone, and then `take` reports it.
            Hands::Thread { tasks: Some(tasks), .. } => drop(tasks.send(task)),
            Hands::Thread { tasks: None, .. } => {}
            Hands::Own(hand) => hand.lock().take(task),
        }
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        if let Hands::Thread { tasks, thread } = &mut self.hands {
            *tasks = None;
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}

impl Hand {
    fn take(&mut self, task: Task) {
        match task {
            Task::Prepare { number, capacity } => {
                // Nobody waits for it once the log is closed.
                let _ = self.made.send(Segment::create(&*self.disk, &self.dir, number, capacity));
            }
            Task::Remove(path) if self.removing => {
                if let Err(error) = self.disk.remove(&path).and_then(|()| self.disk.sync_dir(&self.dir)) {
                    // A gap would be damage; files left over are not.
                    self.removing = false;
                    tracing::warn!(path = %path.display(), %error, "cannot remove a purged log segment; it is kept until the next start");
                }
            }
            Task::Remove(_) => {}
        }
    }
}
