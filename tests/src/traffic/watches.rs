//! Watchers: each is told all that happens under its prefix, by one member after another, and goes on where it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::{WatchCreateRequest, WatchProgressRequest};

use super::Shared;
use crate::client::{prefix_end, revision_of};
use crate::history::{Batch, Timeline, Watched};
use crate::{Client, DEADLINE, Random, eventually};

const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// How long it waits for what may not come before it looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long it stays with one member, at most.
const STAY_MAX_MS: u64 = 15_000;

#[derive(Debug, Clone)]
pub(super) struct Watcher {
    nth: usize,
    prefix: &'static str,
    prev_kv: bool,
    shared: Arc<Shared>,
    watching: Arc<AtomicBool>,
    /// The last revision it was told of.
    told: Arc<AtomicI64>,
}

impl Watcher {
    pub(super) fn new(nth: usize, prefix: &'static str, prev_kv: bool, shared: Arc<Shared>, watching: Arc<AtomicBool>) -> Self {
        Self { nth, prefix, prev_kv, shared, watching, told: Arc::new(AtomicI64::new(0)) }
    }

    pub(super) async fn run(self, mut random: Random) -> Watched {
        let (key, range_end) = match self.prefix {
            "" => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            prefix => (Bytes::from_static(prefix.as_bytes()), prefix_end(prefix.as_bytes())),
        };
        let name = format!("watcher {}", self.nth);
        let mut watched = Watched { name, key, range_end, prev_kv: self.prev_kv, streams: Vec::new() };
        while self.goes_on() {
            let slot = random.below(self.shared.addresses.len() as u64) as usize;
            let stay = Duration::from_millis(random.below(STAY_MAX_MS));
            let asks_progress = random.chance(50);
            if let Ok(client) = Client::try_connect(&self.shared.addresses.endpoint(slot), CONNECT_WITHIN).await {
                self.one(&client, &mut watched, stay, asks_progress).await;
            }
            // A member that refuses at once must not be asked a thousand times a second.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        watched
    }

    fn goes_on(&self) -> bool {
        self.watching.load(Ordering::Relaxed)
    }

    /// One stream, until it ends or has lasted long enough.
    async fn one(&self, client: &Client, watched: &mut Watched, stay: Duration, asks_progress: bool) {
        let from = watched.resume_from().unwrap_or(1);
        let create = WatchCreateRequest {
            key: watched.key.clone(),
            range_end: watched.range_end.clone(),
            start_revision: from,
            prev_kv: watched.prev_kv,
            ..WatchCreateRequest::default()
        };
        // A node that stands still takes connections and nothing more.
        let created = tokio::time::timeout(CONNECT_WITHIN, client.watch_stream(RequestUnion::CreateRequest(create))).await;
        let Ok(Ok(mut watching)) = created else { return };
        let end = tokio::time::Instant::now() + stay;
        let mut batches = Vec::new();
        while self.goes_on() && tokio::time::Instant::now() < end {
            let response = match watching.poll_result(LOOK_EVERY).await {
                Some(Ok(response)) => response,
                Some(Err(_)) => break,
                None => {
                    if asks_progress && watching.try_request(RequestUnion::ProgressRequest(WatchProgressRequest {})).is_err() {
                        break;
                    }
                    continue;
                }
            };
            if response.canceled {
                break;
            }
            let revision = response.header.as_ref().map_or(0, |header| header.revision);
            if response.created {
                // It says nothing of what is still to come.
                continue;
            }
            let last = response.events.last().map_or(0, revision_of);
            batches.push(Batch { revision, events: response.events });
            self.told.fetch_max(last, Ordering::Relaxed);
        }
        watched.streams.push((from, batches));
    }

    /// Waits until it has been told of the last event that concerns it.
    pub(super) async fn wait_told(&self, timeline: &Timeline) {
        let concerns =
            |event: &kvasir_api::mvccpb::Event| event.kv.as_ref().is_some_and(|kv| kv.key.starts_with(self.prefix.as_bytes()));
        let last = timeline.revisions().filter(|(_, events)| events.iter().any(concerns)).map(|(at, _)| at).last().unwrap_or(0);
        eventually("a watcher is told everything", DEADLINE, || async {
            let told = self.told.load(Ordering::Relaxed);
            if told >= last { Ok(()) } else { Err(format!("{:?} was told up to {told} of {last}", self.prefix)) }
        })
        .await;
    }
}
