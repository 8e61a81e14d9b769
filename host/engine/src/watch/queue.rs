//! What waits to be sent on one stream.
//!
//! **Invariant:** a queue that is full takes no more events; small answers (created, canceled) are always taken, since their
//! number is bounded by the client's own requests. All queues share a budget of bytes: past it a queue takes a response only
//! when it is empty, so that no stream stands still for ever because of others.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvasir_api::limits::WATCH_STREAM_QUEUE_BYTES_MAX;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::frame::WatchFrame;

/// Bytes that wait on all streams.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicUsize::new(0), bytes_max })
    }

    fn is_spent(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.bytes_max
    }
}

/// A stream's responses in order.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    frames_max: usize,
    budget: Arc<Budget>,
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
    pub(super) fn new(frames_max: usize, budget: Arc<Budget>) -> Self {
        Self {
            waiting: Mutex::new(Waiting::default()),
            frames_max: frames_max.max(1),
            budget,
            readable: Notify::new(),
            writable: Notify::new(),
        }
    }

    fn is_full(&self, waiting: &Waiting) -> bool {
        waiting.frames.len() >= self.frames_max
            || waiting.bytes >= WATCH_STREAM_QUEUE_BYTES_MAX
            || (self.budget.is_spent() && !waiting.frames.is_empty())
    }

    /// Whether an offer made now would be taken.
    pub(super) fn has_room(&self) -> bool {
        let waiting = self.waiting.lock();
        !waiting.ended && !self.is_full(&waiting)
    }

    fn append(&self, waiting: &mut Waiting, frame: WatchFrame) {
        let bytes = frame.0.len();
        waiting.bytes += bytes;
        self.budget.bytes.fetch_add(bytes, Ordering::Relaxed);
        waiting.frames.push_back(frame);
    }

    /// Takes all of these frames, or none when the queue is full.
    pub(super) fn offer(&self, frames: &[WatchFrame]) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.ended || self.is_full(&waiting) {
            return false;
        }
        for frame in frames {
            self.append(&mut waiting, frame.clone());
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
        self.append(&mut waiting, frame);
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
                    self.budget.bytes.fetch_sub(frame.0.len(), Ordering::Relaxed);
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

impl Drop for Queue {
    fn drop(&mut self) {
        self.budget.bytes.fetch_sub(self.waiting.get_mut().bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn frame(bytes: usize) -> WatchFrame {
        WatchFrame(Bytes::from(vec![0; bytes]))
    }

    #[tokio::test]
    async fn past_the_common_budget_a_queue_takes_one_response_at_a_time() {
        let budget = Budget::new(100);
        let (a, b) = (Queue::new(10, Arc::clone(&budget)), Queue::new(10, Arc::clone(&budget)));
        assert!(a.offer(&[frame(60)]) && a.offer(&[frame(60)]));
        assert!(!a.has_room() && !a.offer(&[frame(1)]));
        // Another stream goes on, one response at a time.
        assert!(b.has_room() && b.offer(&[frame(60)]));
        assert!(!b.has_room());
        assert!(b.next().await.is_some());
        assert!(b.offer(&[frame(60)]));
        // What a stream leaves behind is given back.
        drop(a);
        assert!(b.offer(&[frame(60)]));
        assert!(b.next().await.is_some() && b.next().await.is_some());
        assert_eq!(budget.bytes.load(Ordering::Relaxed), 0);
    }
}
