//! A thread that belongs to a value and ends with it.

use parking_lot::Mutex;
use std::io;
use std::thread::JoinHandle;

pub(crate) struct OwnThread(Mutex<Option<JoinHandle<()>>>);

impl OwnThread {
    pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self(Mutex::new(Some(thread))))
    }

    /// Waits for its end, which its owner has asked for; does nothing on the thread itself.
    pub(crate) fn join(&self) {
        let thread = self.0.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic has been reported by its hook.
            let _ = thread.join();
        }
    }
}
