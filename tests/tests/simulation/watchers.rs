//! Watchers of the simulated cluster: each watches a range, and goes on at another member when its stream ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use kvasir_api::mvccpb::Event;
use kvasir_engine::{Caller, Engine};
use kvasir_tests::Random;
use kvasir_tests::history::{Batch, Watched};
use parking_lot::Mutex;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::nodes::Cluster;
use crate::trace::Trace;

/// A watch, and what it was told so far. A clone is the same.
#[derive(Clone)]
pub(crate) struct Watcher {
    watched: Arc<Mutex<Watched>>,
    progress: bool,
}

impl Watcher {
    pub(crate) fn new(nth: u32, keys: u64, random: &mut Random) -> Self {
        let key = |random: &mut Random| Bytes::from(format!("/k/{:02}", random.below(keys)));
        let (key, range_end) = match random.below(3) {
            0 => (key(random), Bytes::new()),
            1 => (key(random), Bytes::from_static(b"/k0")),
            _ => (Bytes::from_static(&[0]), Bytes::from_static(&[0])),
        };
        let watched = Watched {
            name: format!("watcher {nth}"),
            key,
            range_end,
            prev_kv: random.chance(60),
            streams: vec![(2, Vec::new())],
        };
        Self { watched: Arc::new(Mutex::new(watched)), progress: random.chance(50) }
    }

    pub(crate) fn told(&self) -> Watched {
        self.watched.lock().clone()
    }

    /// Watches until it is told to stop.
    pub(crate) async fn run(self, cluster: Cluster, mut random: Random, trace: Trace, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let serving = cluster.serving();
            if serving.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            let member = random.pick(&serving).clone();
            let patience = Duration::from_millis(1_000 + random.below(15_000));
            let from = self.begin();
            trace.note(&format!("{} from {from} at {:x}", self.watched.lock().name, member.node));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = member.gone.cancelled() => {}
                // Now and then it changes its mind.
                () = tokio::time::sleep(patience) => {}
                () = self.follow(&member.engine, from) => {}
            }
        }
    }

    /// Begins a stream where the one before has ended.
    fn begin(&self) -> i64 {
        let mut watched = self.watched.lock();
        let from = watched.resume_from().unwrap_or(2);
        match watched.streams.last_mut() {
            // Nothing was told on the last one.
            Some((start, batches)) if batches.is_empty() && *start == from => {}
            _ => watched.streams.push((from, Vec::new())),
        }
        from
    }

    async fn follow(&self, engine: &Engine, from: i64) {
        let create = {
            let watched = self.watched.lock();
            WatchCreateRequest {
                key: watched.key.clone(),
                range_end: watched.range_end.clone(),
                start_revision: from,
                prev_kv: watched.prev_kv,
                progress_notify: self.progress,
                ..WatchCreateRequest::default()
            }
        };
        let mut stream = engine.watch_stream(Caller::client());
        if stream.request(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }).await.is_err() {
            return;
        }
        while let Some(frame) = stream.next().await {
            let response = WatchResponse::decode(frame.0).expect("a watch response");
            assert!(!response.canceled || response.created, "a watch is not ended by its member: {response:?}");
            if response.created {
                continue;
            }
            let revision = response.header.as_ref().map_or(0, |header| header.revision);
            let batch = Batch { revision, events: response.events };
            self.watched.lock().streams.last_mut().expect("it has begun").1.push(batch);
        }
    }
}

/// Every event of a store from its first write to a revision, as one member tells it.
pub(crate) async fn history(engine: &Engine, to: i64) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    if to < 2 {
        return events;
    }
    let every = Bytes::from_static(b"\0");
    let create = WatchCreateRequest { key: every.clone(), range_end: every, start_revision: 2, ..Default::default() };
    let mut stream = engine.watch_stream(Caller::client());
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    stream.request(create).await.expect("a watch stream takes requests");
    while events.last().and_then(|event| event.kv.as_ref()).is_none_or(|kv| kv.mod_revision < to) {
        let frame = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
        let frame = frame.expect("the history goes on").expect("and does not end");
        let response = WatchResponse::decode(frame.0).expect("a watch response");
        assert!(!response.canceled, "the history can be watched: {}", response.cancel_reason);
        events.extend(response.events);
    }
    events
}
