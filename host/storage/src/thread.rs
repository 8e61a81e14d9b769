//! A thread that belongs to a value and ends with it; or, on a disk that is driven, the same work step by step.

use crate::disk::{Driver, Due, Wake, Worker};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// What a thread does.
pub(crate) trait Work: Send + 'static {
    /// All of it, on a thread of its own.
    fn run(self);

    /// What is due now; without waiting.
    fn step(&mut self) -> Due;
}

pub(crate) enum OwnThread {
    Thread(Mutex<Option<JoinHandle<()>>>),
    Driven { worker: Arc<dyn Worker>, wake: Wake },
}

impl OwnThread {
    pub(crate) fn start(driver: Option<Arc<dyn Driver>>, name: &'static str, work: impl Work) -> io::Result<Self> {
        if let Some(driver) = driver {
            let worker: Arc<dyn Worker> = Arc::new(Driven { name, work: Mutex::new(Some(work)) });
            let wake = driver.take_on(Arc::clone(&worker));
            return Ok(Self::Driven { worker, wake });
        }
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || work.run())?;
        Ok(Self::Thread(Mutex::new(Some(thread))))
    }

    /// There is something to do. A thread is told by its owner's condition variable.
    pub(crate) fn wake(&self) {
        if let Self::Driven { wake, .. } = self {
            wake();
        }
    }

    pub(crate) fn is_driven(&self) -> bool {
        matches!(self, Self::Driven { .. })
    }

    /// Does one step for somebody who would wait for it. A thread needs no help.
    pub(crate) fn help(&self) {
        if let Self::Driven { worker, .. } = self {
            worker.step();
        }
    }

    /// Waits for its end, which its owner has asked for; does nothing on the thread itself.
    pub(crate) fn join(&self) {
        match self {
            Self::Driven { worker, wake } => {
                while worker.step() != Due::Never {}
                wake();
            }
            Self::Thread(thread) => {
                let thread = thread.lock().take();
                if let Some(thread) = thread
                    && thread.thread().id() != std::thread::current().id()
                {
                    // A panic has been reported by its hook.
                    let _ = thread.join();
                }
            }
        }
    }
}

struct Driven<W> {
    name: &'static str,
    /// `None` once it has ended.
    work: Mutex<Option<W>>,
}

impl<W: Work> Worker for Driven<W> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn step(&self) -> Due {
        let mut held = self.work.lock();
        let due = held.as_mut().map_or(Due::Never, Work::step);
        if due == Due::Never {
            *held = None;
        }
        due
    }
}
