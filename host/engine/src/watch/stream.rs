//! A watch stream: a client's requests and its responses.
//!
//! **Invariant:** `created` comes before anything else of a watcher and `canceled` after everything else; an id is used again only
//! after that.

use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::etcdserverpb::watch_create_request::FilterType;
use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use kvasir_api::limits::WATCHERS_PER_STREAM_MAX;

use super::catch_up::serve;
use super::frame::{Shape, WatchFrame};
use super::hub::{Hub, NO_WATCHER, answer, push};
use super::index::Slot;
use super::queue::Queue;
use super::watcher::Watcher;
use crate::authorise::{Access, allow};
use crate::caller::{Caller, KeyRange};
use crate::engine::Engine;

const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";

/// A watch stream (etcd `Watch.Watch`).
#[derive(Debug)]
pub struct WatchStream {
    requests: WatchRequests,
    frames: WatchFrames,
}

/// The half that takes requests. Dropping it ends the stream, as a client does that closes its side.
#[derive(Debug)]
pub struct WatchRequests {
    open: Arc<Open>,
}

/// The half that gives responses. Dropping it ends the stream.
#[derive(Debug)]
pub struct WatchFrames {
    open: Arc<Open>,
}

struct Open {
    hub: Arc<Hub>,
    caller: Caller,
    id: u64,
    queue: Arc<Queue>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("stream", &self.id).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens a watch stream.
    pub fn watch_stream(&self, caller: Caller) -> WatchStream {
        let hub = Arc::clone(&self.inner().feed.hub);
        let (id, queue, wake) = hub.open_stream();
        tokio::spawn(serve(Arc::clone(&hub), id, Arc::clone(&queue), wake));
        let open = Arc::new(Open { hub, caller, id, queue });
        WatchStream { requests: WatchRequests { open: Arc::clone(&open) }, frames: WatchFrames { open } }
    }
}

impl WatchStream {
    /// Takes a request. Its answer comes with the frames.
    ///
    /// # Errors
    /// `Stopped` when the stream has ended.
    pub async fn request(&self, request: WatchRequest) -> Result<(), Error> {
        self.requests.request(request).await
    }

    /// The next response; `None` when the stream has ended.
    pub async fn next(&mut self) -> Option<WatchFrame> {
        self.frames.next().await
    }

    /// The two halves.
    pub fn split(self) -> (WatchRequests, WatchFrames) {
        (self.requests, self.frames)
    }
}

impl WatchRequests {
    /// Takes a request, once the stream has room for its answer.
    ///
    /// # Errors
    /// As [`WatchStream::request`].
    pub async fn request(&self, request: WatchRequest) -> Result<(), Error> {
        let open = &*self.open;
        let Some(request) = request.request_union else {
            // etcd goes on as well: a newer client's request of another kind is no reason to end its watches.
            tracing::debug!("a watch request that is neither to create, to cancel nor to ask for progress was ignored");
            return Ok(());
        };
        if !open.queue.room().await {
            return Err(Error::Stopped);
        }
        match request {
            RequestUnion::CreateRequest(request) => open.create(request),
            RequestUnion::CancelRequest(request) => open.cancel(request.watch_id),
            RequestUnion::ProgressRequest(_) => open.progress(),
        }
        Ok(())
    }
}

impl WatchFrames {
    /// The next response; `None` when the stream has ended and everything was given out.
    pub async fn next(&mut self) -> Option<WatchFrame> {
        self.open.queue.next().await
    }
}

impl Drop for WatchRequests {
    fn drop(&mut self) {
        self.open.hub.close_stream(self.open.id);
    }
}

impl Drop for WatchFrames {
    fn drop(&mut self) {
        self.open.hub.close_stream(self.open.id);
    }
}

impl Open {
    fn revision(&self) -> u64 {
        self.hub.link().map_or(0, |link| *link.revisions.borrow())
    }

    fn refuse(&self, reason: &str) {
        let refused = WatchResponse {
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..answer(self.hub.header(self.revision()), NO_WATCHER)
        };
        push(&self.queue, &refused);
    }

    fn create(&self, request: WatchCreateRequest) {
        // An empty key watches from the first key on (etcd `api/v3rpc/watch.go`).
        let key = if request.key.is_empty() { Bytes::from_static(b"\0") } else { request.key };
        let range = KeyRange::new(key, request.range_end);
        // What is wrong with a request is looked for in etcd's order.
        let Ok(start) = u64::try_from(request.start_revision) else { return self.refuse(&Error::Compacted.to_string()) };
        if allow(&self.caller, Access::Read, &range).is_err() {
            return self.refuse("rpc error: code = PermissionDenied desc = etcdserver: permission denied");
        }
        if range.is_empty() {
            return self.refuse(EMPTY_RANGE);
        }
        let mut inner = self.hub.lock();
        let inner = &mut *inner;
        let revision = self.revision();
        let Some(stream) = inner.streams.get_mut(&self.id) else { return };
        if stream.by_id.len() >= WATCHERS_PER_STREAM_MAX {
            return self.refuse(&format!("a stream has at most {WATCHERS_PER_STREAM_MAX} watchers; open another one"));
        }
        let watch_id = match request.watch_id {
            0 => {
                while stream.by_id.contains_key(&stream.next_id) {
                    stream.next_id += 1;
                }
                stream.next_id += 1;
                stream.next_id - 1
            }
            id if stream.by_id.contains_key(&id) => return self.refuse(DUPLICATE_ID),
            id => id,
        };
        let filtered = |filter: FilterType| request.filters.contains(&(filter as i32));
        let next = if start == 0 { revision + 1 } else { start };
        let synced = next > inner.dispatched;
        let watcher = Watcher {
            stream: self.id,
            tenant: self.caller.tenant,
            range: range.clone(),
            shape: Shape { watch_id, prev_kv: request.prev_kv, fragment: request.fragment },
            no_puts: filtered(FilterType::Noput),
            no_deletes: filtered(FilterType::Nodelete),
            progress_notify: request.progress_notify,
            next,
            synced,
            sent: false,
            pending: Vec::new(),
        };
        let slot = inner.add_watcher(watcher);
        if synced {
            inner.index.insert(self.caller.tenant, &range, slot);
        }
        let Some(stream) = inner.streams.get_mut(&self.id) else { return };
        stream.by_id.insert(watch_id, slot);
        self.hub.counters.watchers.add(1);
        push(&self.queue, &WatchResponse { created: true, ..answer(self.hub.header(revision), watch_id) });
        if !synced {
            stream.behind.insert(slot);
            self.hub.counters.watchers_behind.add(1);
        }
        if !synced || request.progress_notify {
            stream.wake.notify_one();
        }
    }

    fn cancel(&self, watch_id: i64) {
        let header = self.hub.header(self.revision());
        if cancel(&self.hub, self.id, watch_id) {
            push(&self.queue, &WatchResponse { canceled: true, ..answer(header, watch_id) });
        }
    }

    /// Answers only if every watcher of the stream has had everything, and says so behind what is queued (etcd issue 15220).
    fn progress(&self) {
        let mut inner = self.hub.lock();
        let revision = self.revision();
        while inner.dispatched < revision && self.hub.dispatch(&mut inner) {}
        let dispatched = inner.dispatched;
        let Some(stream) = inner.streams.get(&self.id) else { return };
        if stream.by_id.is_empty() || !stream.behind.is_empty() {
            return;
        }
        // Nothing is said below a watcher's start (etcd issue 20221).
        let begun = |slot: &Slot| {
            inner.watchers.get(*slot).and_then(Option::as_ref).is_some_and(|watcher| watcher.next <= dispatched + 1)
        };
        if stream.by_id.values().all(begun) {
            push(&self.queue, &answer(self.hub.header(dispatched), NO_WATCHER));
        }
    }
}

/// Removes a watcher; whether there was one.
pub(super) fn cancel(hub: &Hub, stream: u64, watch_id: i64) -> bool {
    let mut inner = hub.lock();
    let Some(entry) = inner.streams.get_mut(&stream) else { return false };
    let Some(slot) = entry.by_id.remove(&watch_id) else { return false };
    if entry.behind.remove(&slot) {
        hub.counters.watchers_behind.sub(1);
    }
    inner.remove_watcher(slot);
    hub.counters.watchers.sub(1);
    true
}
