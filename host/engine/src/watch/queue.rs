//! What waits to be sent on one stream.
//!
//! **Invariant:** a queue that is full takes no more events; small answers (created, canceled, progress) are always taken, since
//! their number is bounded by the client's own requests.

use std::collections::VecDeque;

use kvasir_api::limits::WATCH_STREAM_QUEUE_BYTES_MAX;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::frame::WatchFrame;

/// A stream's responses in order.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    frames_max: usize,
    /// There is something to send, or there never will be.
    readable: Notify,
    /// There is room.
    writable: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<WatchFrame>,
    bytes: usize,
    /// No more will come.
    ended: bool,
}

impl Queue {
    pub(super) fn new(frames_max: usize) -> Self {
        Self {
            waiting: Mutex::new(Waiting::default()),
            frames_max: frames_max.max(1),
            readable: Notify::new(),
            writable: Notify::new(),
        }
    }

    fn is_full(&self, waiting: &Waiting) -> bool {
        waiting.frames.len() >= self.frames_max || waiting.bytes >= WATCH_STREAM_QUEUE_BYTES_MAX
    }

    /// Takes all of these frames, or none when the queue is full.
    pub(super) fn offer(&self, frames: &[WatchFrame]) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.ended || self.is_full(&waiting) {
            return false;
        }
        for frame in frames {
            waiting.bytes += frame.0.len();
            waiting.frames.push_back(frame.clone());
        }
        drop(waiting);
        self.readable.notify_one();
        true
    }

    /// Takes a small answer whatever waits.
    pub(super) fn push(&self, frame: WatchFrame) {
        let mut waiting = self.waiting.lock();
        if waiting.ended {
            return;
        }
        waiting.bytes += frame.0.len();
        waiting.frames.push_back(frame);
        drop(waiting);
        self.readable.notify_one();
    }

    /// The next frame; `None` once the stream has ended and all is sent.
    pub(super) async fn next(&self) -> Option<WatchFrame> {
        loop {
            let readable = self.readable.notified();
            {
                let mut waiting = self.waiting.lock();
                if let Some(frame) = waiting.frames.pop_front() {
                    waiting.bytes -= frame.0.len();
                    let room = !self.is_full(&waiting);
                    drop(waiting);
                    if room {
                        self.writable.notify_waiters();
                    }
                    return Some(frame);
                }
                if waiting.ended {
                    return None;
                }
            }
            readable.await;
        }
    }

    /// Waits for room; `false` when the stream has ended.
    pub(super) async fn room(&self) -> bool {
        loop {
            let writable = self.writable.notified();
            let mut writable = std::pin::pin!(writable);
            // Registered before looking, so that room made in between is noticed.
            writable.as_mut().enable();
            {
                let waiting = self.waiting.lock();
                if waiting.ended {
                    return false;
                }
                if !self.is_full(&waiting) {
                    return true;
                }
            }
            writable.await;
        }
    }

    /// No more will come; what waits may still be sent.
    pub(super) fn end(&self) {
        self.waiting.lock().ended = true;
        self.readable.notify_one();
        self.writable.notify_waiters();
    }
}
