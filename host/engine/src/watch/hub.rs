//! The hub: the ring, the index of synced watchers, and the streams.
//!
//! Apply pushes into the ring and goes on; the hub's task matches what is new and queues responses. Lock order: `inner`, then
//! `ring`, then a stream's queue; none is held across an `await`.
//!
//! **Invariant:** a synced watcher was given every event up to `dispatched`; a watcher is in the index exactly while it is synced.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::etcdserverpb::{ResponseHeader, WatchResponse};
use kvasir_api::limits::{
    WATCH_DISPATCH_BYTES_MAX, WATCH_DISPATCH_EVENTS_MAX, WATCH_HISTORY_READS_MAX, WATCH_MEET_BYTES_MAX, WATCH_MEET_EVENTS_MAX,
    WATCH_QUEUES_BYTES_MAX,
};
use kvasir_consensus::Consensus;
use kvasir_machine::{Change, Rev};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::event::Event;
use super::frame::{Responses, Shape, WatchFrame};
use super::index::{Index, Slot};
use super::queue::{Budget, Queue};
use super::ring::{Ring, Stretch};
use super::watcher::Watcher;
use crate::metrics::Counters;

/// etcd's watch id of what belongs to no watcher.
pub(super) const NO_WATCHER: i64 = -1;

/// Every watcher of this node.
pub(crate) struct Hub {
    ring: Mutex<Ring>,
    inner: Mutex<Inner>,
    /// The ring has something new.
    wake: Notify,
    queue_max: usize,
    budget: Arc<Budget>,
    pub(super) history_reads: Semaphore,
    pub(super) progress_interval: Duration,
    pub(super) counters: Arc<Counters>,
    link: OnceLock<Link>,
}

/// What the hub needs of the running node.
pub(super) struct Link {
    pub(super) consensus: Consensus,
    pub(super) revisions: watch::Receiver<u64>,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) dispatched: u64,
    pub(super) watchers: Vec<Option<Watcher>>,
    free: Vec<Slot>,
    pub(super) index: Index,
    pub(super) streams: HashMap<u64, Stream>,
    next_stream: u64,
    deletes: HashMap<(u64, Bytes), Vec<oneshot::Sender<()>>>,
    pub(super) closed: bool,
}

/// One stream's watchers.
pub(super) struct Stream {
    pub(super) queue: Arc<Queue>,
    /// Some watcher is behind, or the stream ended.
    pub(super) wake: Arc<Notify>,
    pub(super) by_id: HashMap<i64, Slot>,
    pub(super) behind: BTreeSet<Slot>,
    pub(super) next_id: i64,
}

impl Hub {
    pub(crate) fn new(ring_bytes_max: usize, queue_max: usize, progress_interval: Duration, counters: Arc<Counters>) -> Self {
        Self {
            ring: Mutex::new(Ring::new(ring_bytes_max)),
            inner: Mutex::new(Inner::default()),
            wake: Notify::new(),
            queue_max,
            budget: Budget::new(WATCH_QUEUES_BYTES_MAX),
            history_reads: Semaphore::new(WATCH_HISTORY_READS_MAX),
            progress_interval,
            counters,
            link: OnceLock::new(),
        }
    }

    /// Begins to serve: everything up to `revision` is history.
    pub(crate) fn begin(&self, consensus: Consensus, revisions: watch::Receiver<u64>, revision: u64) {
        let mut inner = self.inner.lock();
        let mut ring = self.ring.lock();
        ring.begin(revision);
        inner.dispatched = ring.head();
        drop(ring);
        drop(inner);
        // A second begin would be a second engine on one hub, which nothing makes.
        let _ = self.link.set(Link { consensus, revisions });
    }

    /// Takes what apply changed. On the way of every reply: appends and notifies.
    pub(crate) fn push(&self, changes: Vec<Change>, revision: u64) {
        self.ring.lock().push(changes, revision);
        self.wake.notify_one();
    }

    /// The hub's task.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
            }
            loop {
                // One batch under each hold of the lock, so that watchers can be made in between.
                let more = { self.dispatch(&mut self.inner.lock()) };
                if !more {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// Ends every stream.
    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        for stream in inner.streams.values() {
            stream.queue.end();
            stream.wake.notify_one();
        }
        inner.deletes.clear();
    }

    pub(super) fn lock(&self) -> parking_lot::MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    pub(super) fn link(&self) -> Option<&Link> {
        self.link.get()
    }

    pub(super) fn ring_after(&self, after: u64, events_max: usize, bytes_max: usize) -> Stretch {
        self.ring.lock().after(after, events_max, bytes_max)
    }

    /// Recent changes from `from` on, at most `events_max`, and the place after them; `None` when only the store has them.
    pub(crate) fn recent(&self, from: Rev, events_max: usize) -> Option<(Vec<Arc<Event>>, Rev)> {
        self.ring.lock().since(from, events_max)
    }

    /// Fires when the key may have been deleted. Ask the state after registering, and again after it fired.
    pub(crate) fn deleted(&self, tenant: u64, key: Bytes) -> oneshot::Receiver<()> {
        let (fire, fired) = oneshot::channel();
        let mut inner = self.inner.lock();
        if !inner.closed {
            let waiting = inner.deletes.entry((tenant, key)).or_default();
            waiting.retain(|other| !other.is_closed());
            waiting.push(fire);
        }
        fired
    }

    /// Forgets those who no longer wait for the key's deletion.
    pub(crate) fn forget_deleted(&self, tenant: u64, key: &Bytes) {
        let mut inner = self.inner.lock();
        let slot = (tenant, key.clone());
        if let Some(waiting) = inner.deletes.get_mut(&slot) {
            waiting.retain(|other| !other.is_closed());
            if waiting.is_empty() {
                inner.deletes.remove(&slot);
            }
        }
    }

    pub(super) fn header(&self, revision: u64) -> ResponseHeader {
        let (cluster_id, member_id, raft_term) = self
            .link()
            .map_or((0, 0, 0), |link| (link.consensus.cluster_id(), link.consensus.node_id(), link.consensus.term()));
        ResponseHeader { cluster_id, member_id, revision: i64::try_from(revision).unwrap_or(i64::MAX), raft_term }
    }

    /// Matches one batch of what is new; `true` when there may be more.
    pub(super) fn dispatch(&self, inner: &mut Inner) -> bool {
        let (events, upto) = match self.ring_after(inner.dispatched, WATCH_DISPATCH_EVENTS_MAX, WATCH_DISPATCH_BYTES_MAX) {
            Stretch::Here(events, upto) => (events, upto),
            Stretch::Gone => {
                let head = self.ring.lock().head();
                self.fall_behind(inner, head);
                return true;
            }
        };
        if upto <= inner.dispatched {
            return false;
        }
        let touched = inner.collect(&events);
        let header = self.header(upto);
        let mut last: Option<(Shape, Vec<u32>, Responses)> = None;
        for slot in touched {
            let Some(Some(watcher)) = inner.watchers.get_mut(slot) else { continue };
            let pending = std::mem::take(&mut watcher.pending);
            // Streams that watch the same key mostly get the very same frame.
            let same = last.as_ref().is_some_and(|(shape, other, _)| *shape == watcher.shape && *other == pending);
            if !same {
                let chosen: Vec<Arc<Event>> = pending.iter().filter_map(|at| events.get(*at as usize)).cloned().collect();
                last = Some((watcher.shape, pending, Responses::new(watcher.shape, header, chosen)));
            }
            let Some((_, _, responses)) = &mut last else { continue };
            let (stream, unsent) = (watcher.stream, self.deliver(&inner.streams, watcher, responses));
            match unsent {
                None => watcher.next = upto + 1,
                Some(main) => {
                    watcher.next = main;
                    watcher.synced = false;
                    inner.index.remove(watcher.tenant, &watcher.range, slot);
                    if let Some(stream) = inner.streams.get_mut(&stream) {
                        stream.behind.insert(slot);
                        stream.wake.notify_one();
                        self.counters.watchers_behind.add(1);
                    }
                }
            }
        }
        inner.dispatched = upto;
        true
    }

    /// Queues responses, each built once there is room for it; returns the first revision there was no room for.
    fn deliver(&self, streams: &HashMap<u64, Stream>, watcher: &mut Watcher, responses: &mut Responses) -> Option<u64> {
        let stream = streams.get(&watcher.stream)?;
        let mut at = 0;
        while let Some(main) = responses.first_main(at) {
            if !self.offer(&stream.queue, watcher, responses, at) {
                return Some(main);
            }
            at += 1;
        }
        None
    }

    /// Queues one response if there is room for it.
    pub(super) fn offer(&self, queue: &Queue, watcher: &mut Watcher, responses: &mut Responses, at: usize) -> bool {
        // Asked first, so that nothing is built for a stream that does not read.
        if !queue.has_room() {
            return false;
        }
        let Some(response) = responses.get(at) else { return false };
        if !queue.offer(&response.frames) {
            return false;
        }
        watcher.sent = true;
        self.counters.watch_events.add(response.events);
        self.counters.watch_responses.add(response.frames.len() as u64);
        true
    }

    /// The ring went on without the hub: everyone reads history from where they are.
    fn fall_behind(&self, inner: &mut Inner, head: u64) {
        let dispatched = inner.dispatched;
        let Inner { watchers, index, streams, .. } = inner;
        for (slot, watcher) in watchers.iter_mut().enumerate() {
            let Some(watcher) = watcher else { continue };
            if !watcher.synced || watcher.next > head {
                continue;
            }
            watcher.next = watcher.next.max(dispatched + 1);
            watcher.synced = false;
            index.remove(watcher.tenant, &watcher.range, slot);
            if let Some(stream) = streams.get_mut(&watcher.stream) {
                stream.behind.insert(slot);
                stream.wake.notify_one();
                self.counters.watchers_behind.add(1);
            }
        }
        inner.dispatched = head;
        for (_, waiting) in inner.deletes.drain() {
            for fire in waiting {
                let _ = fire.send(());
            }
        }
    }

    /// Makes a watcher that is behind synced if it has come far enough, the last steps under the lock so that the head cannot
    /// run away from it.
    pub(super) fn meet(&self, inner: &mut Inner, slot: Slot) {
        let dispatched = inner.dispatched;
        let Some(Some(watcher)) = inner.watchers.get_mut(slot) else { return };
        if watcher.next <= dispatched {
            let Stretch::Here(events, upto) = self.ring_after(watcher.next - 1, WATCH_MEET_EVENTS_MAX, WATCH_MEET_BYTES_MAX)
            else {
                return;
            };
            if upto < dispatched {
                return;
            }
            let mut responses = Responses::new(watcher.shape, self.header(upto), watcher.select(&events));
            match self.deliver(&inner.streams, watcher, &mut responses) {
                None => watcher.next = upto + 1,
                Some(main) => {
                    watcher.next = main;
                    return;
                }
            }
        }
        watcher.synced = true;
        inner.index.insert(watcher.tenant, &watcher.range, slot);
        if let Some(stream) = inner.streams.get_mut(&watcher.stream)
            && stream.behind.remove(&slot)
        {
            self.counters.watchers_behind.sub(1);
        }
    }

    pub(super) fn open_stream(&self) -> (u64, Arc<Queue>, Arc<Notify>) {
        let queue = Arc::new(Queue::new(self.queue_max, Arc::clone(&self.budget)));
        let wake = Arc::new(Notify::new());
        let mut inner = self.inner.lock();
        let id = inner.next_stream;
        inner.next_stream += 1;
        if inner.closed {
            queue.end();
        }
        let stream = Stream {
            queue: Arc::clone(&queue),
            wake: Arc::clone(&wake),
            by_id: HashMap::new(),
            behind: BTreeSet::new(),
            next_id: 0,
        };
        inner.streams.insert(id, stream);
        self.counters.watch_streams.add(1);
        (id, queue, wake)
    }

    pub(super) fn close_stream(&self, id: u64) {
        let mut inner = self.inner.lock();
        let Some(stream) = inner.streams.remove(&id) else { return };
        stream.queue.end();
        stream.wake.notify_one();
        self.counters.watch_streams.sub(1);
        for slot in stream.by_id.into_values() {
            inner.remove_watcher(slot);
            self.counters.watchers.sub(1);
        }
        self.counters.watchers_behind.sub(stream.behind.len() as u64);
    }
}

impl Inner {
    pub(super) fn add_watcher(&mut self, watcher: Watcher) -> Slot {
        if let Some(slot) = self.free.pop() {
            self.watchers[slot] = Some(watcher);
            return slot;
        }
        self.watchers.push(Some(watcher));
        self.watchers.len() - 1
    }

    pub(super) fn remove_watcher(&mut self, slot: Slot) {
        let Some(watcher) = self.watchers.get_mut(slot).and_then(Option::take) else { return };
        if watcher.synced {
            self.index.remove(watcher.tenant, &watcher.range, slot);
        }
        self.free.push(slot);
    }

    /// Notes each event with the synced watchers that want it; returns those, in the order they were met.
    fn collect(&mut self, events: &[Arc<Event>]) -> Vec<Slot> {
        let Self { watchers, index, deletes, .. } = self;
        let mut touched = Vec::new();
        for (at, event) in events.iter().enumerate() {
            let row = event.row();
            if row.tombstone
                && !deletes.is_empty()
                && let Some(waiting) = deletes.remove(&(row.tenant, row.key.clone()))
            {
                for fire in waiting {
                    // Whoever waited may have given up.
                    let _ = fire.send(());
                }
            }
            // A batch has at most a few thousand events and one revision's own, far below 2^32.
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            index.matching(row.tenant, &row.key, |slot| {
                let Some(Some(watcher)) = watchers.get_mut(slot) else { return };
                if event.main() < watcher.next || (if row.tombstone { watcher.no_deletes } else { watcher.no_puts }) {
                    return;
                }
                if watcher.pending.is_empty() {
                    touched.push(slot);
                }
                watcher.pending.push(at);
            });
        }
        touched
    }
}

/// A frame without events.
pub(super) fn answer(header: ResponseHeader, watch_id: i64) -> WatchResponse {
    WatchResponse { header: Some(header), watch_id, ..WatchResponse::default() }
}

/// Queues a frame without events.
pub(super) fn push(queue: &Queue, response: &WatchResponse) {
    queue.push(WatchFrame::of(response));
}
