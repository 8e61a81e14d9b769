//! The network between simulated nodes: streams whose frames take a while, and that break.
//!
//! Frames of one stream arrive in order; streams overtake each other. What is sent over a link that is cut waits, as packets that
//! are sent again do, and the stream breaks at both ends when that takes too long. A link is cut in one direction at a time.
//!
//! **Invariant:** a frame arrives once or never, whole, and never at an incarnation of a node that it was not sent to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvasir_consensus::PeerDoor;
use kvasir_tests::Random;
use kvasir_transport::{Accept as _, BoxFuture, Class, FrameSink, FrameSource, Network, NetworkError, Peer, Stream};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::trace::{Trace, digest};

/// Batches of frames that are on their way in one direction of a stream.
const IN_FLIGHT_MAX: usize = 32;

/// How well the network does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Milliseconds that a frame usually takes, at most.
    pub(crate) usual_ms: u64,
    /// Now and then one takes up to so many.
    pub(crate) slow_ms: u64,
    /// So many of a hundred do.
    pub(crate) slow_percent: u64,
    /// So many of ten thousand sends break their stream.
    pub(crate) break_per_10_000: u64,
    /// A stream that waits for a cut link for so long breaks, at most.
    pub(crate) idle_ms: u64,
}

/// All links and all streams of a world. A clone is the same.
#[derive(Clone)]
pub(crate) struct Links {
    inner: Arc<Mutex<Inner>>,
    /// A cut was made or mended.
    changed: Arc<Notify>,
    trace: Trace,
}

struct Inner {
    random: Random,
    weather: Weather,
    doors: BTreeMap<u64, Door>,
    /// From, to.
    cuts: BTreeSet<(u64, u64)>,
    streams: u64,
}

/// A node that runs.
struct Door {
    door: Arc<PeerDoor>,
    /// Ends every stream of this incarnation.
    gone: CancellationToken,
}

impl Links {
    pub(crate) fn new(random: Random, weather: Weather, trace: Trace) -> Self {
        let inner = Inner { random, weather, doors: BTreeMap::new(), cuts: BTreeSet::new(), streams: 0 };
        Self { inner: Arc::new(Mutex::new(inner)), changed: Arc::default(), trace }
    }

    /// A node is there from now on, and this is its way to the others.
    pub(crate) fn attach(&self, node: u64, door: Arc<PeerDoor>) -> Arc<dyn Network> {
        let gone = CancellationToken::new();
        self.inner.lock().doors.insert(node, Door { door, gone: gone.clone() });
        Arc::new(Port { links: self.clone(), node, gone })
    }

    /// A node is gone, and every stream of it breaks.
    pub(crate) fn detach(&self, node: u64) {
        if let Some(door) = self.inner.lock().doors.remove(&node) {
            door.gone.cancel();
        }
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.inner.lock().weather = weather;
    }

    /// Cuts the link of one direction.
    pub(crate) fn cut(&self, from: u64, to: u64) {
        self.inner.lock().cuts.insert((from, to));
        self.changed.notify_waiters();
    }

    /// Mends every link.
    pub(crate) fn mend(&self) {
        self.inner.lock().cuts.clear();
        self.changed.notify_waiters();
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.inner.lock().cuts.contains(&(from, to))
    }

    /// Waits until a link is whole; `false` if the patience of those who wait ends before.
    async fn whole(&self, from: u64, to: u64) -> bool {
        let patience = {
            let mut inner = self.inner.lock();
            let idle_ms = inner.weather.idle_ms;
            Duration::from_millis(1 + idle_ms / 2 + inner.random.below(1 + idle_ms / 2))
        };
        let mended = async {
            loop {
                let changed = self.changed.notified();
                if !self.is_cut(from, to) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, mended).await.is_ok()
    }

    fn delay(&self) -> Duration {
        let mut inner = self.inner.lock();
        let weather = inner.weather;
        let slow = inner.random.chance(weather.slow_percent);
        Duration::from_millis(inner.random.below(1 + if slow { weather.slow_ms } else { weather.usual_ms }))
    }

    /// A new stream's two ends.
    fn stream(&self, from: u64, to: u64, class: Class, ends: [CancellationToken; 2]) -> (Stream, Stream) {
        let number = {
            let mut inner = self.inner.lock();
            inner.streams += 1;
            inner.streams
        };
        let state = Arc::new(State { number, class, broken: CancellationToken::new(), ends });
        let (there, arrived) = mpsc::channel(IN_FLIGHT_MAX);
        let (back, returned) = mpsc::channel(IN_FLIGHT_MAX);
        let sink = |frames, from, to| -> Box<dyn FrameSink> {
            let state = Arc::clone(&state);
            Box::new(Sink { links: self.clone(), state, from, to, frames: Some(frames), last: Instant::now() })
        };
        let source = |frames, from, to| -> Box<dyn FrameSource> {
            let state = Arc::clone(&state);
            Box::new(Source { links: self.clone(), state, from, to, frames, next: None })
        };
        let near = Stream { sink: sink(there, from, to), source: source(returned, to, from) };
        let far = Stream { sink: sink(back, to, from), source: source(arrived, from, to) };
        (near, far)
    }
}

/// A node's way to the others.
struct Port {
    links: Links,
    node: u64,
    gone: CancellationToken,
}

impl Network for Port {
    fn open(&self, peer: &Peer, class: Class) -> BoxFuture<'static, Result<Stream, NetworkError>> {
        let (links, from, to, gone) = (self.links.clone(), self.node, peer.id, self.gone.clone());
        Box::pin(async move {
            let failed = |why: &str| NetworkError::Unreachable { node: to, addresses: String::new(), why: why.to_owned() };
            let delay = links.delay();
            tokio::time::sleep(delay).await;
            // A handshake goes there and back.
            if !links.whole(from, to).await || !links.whole(to, from).await {
                return Err(failed("no answer"));
            }
            let (door, there) = {
                let inner = links.inner.lock();
                let Some(found) = inner.doors.get(&to) else { return Err(failed("nobody is there")) };
                (Arc::clone(&found.door), found.gone.clone())
            };
            if gone.is_cancelled() {
                return Err(failed("this node is gone"));
            }
            door.admits(from).map_err(|why| NetworkError::Refused { node: to, why })?;
            let (near, far) = links.stream(from, to, class, [gone, there]);
            door.accept(from, class, far);
            Ok(near)
        })
    }
}

/// What both ends of a stream share.
struct State {
    number: u64,
    class: Class,
    broken: CancellationToken,
    /// The incarnations at both ends.
    ends: [CancellationToken; 2],
}

impl State {
    fn is_broken(&self) -> bool {
        self.broken.is_cancelled() || self.ends.iter().any(CancellationToken::is_cancelled)
    }

    async fn broken(&self) {
        tokio::select! {
            biased;
            () = self.broken.cancelled() => {}
            () = self.ends[0].cancelled() => {}
            () = self.ends[1].cancelled() => {}
        }
    }
}

fn ended() -> NetworkError {
    NetworkError::Ended("the stream broke".to_owned())
}

struct Sink {
    links: Links,
    state: Arc<State>,
    from: u64,
    to: u64,
    frames: Option<mpsc::Sender<(Instant, Bytes)>>,
    /// When what was sent last arrives.
    last: Instant,
}

impl FrameSink for Sink {
    fn send<'a>(&'a mut self, frames: &'a mut Vec<Vec<Bytes>>) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move {
            let delay = self.links.delay();
            self.last = self.last.max(Instant::now() + delay);
            let breaks = {
                let mut inner = self.links.inner.lock();
                let percent = inner.weather.break_per_10_000;
                inner.random.below(10_000) < percent
            };
            for parts in frames.drain(..) {
                if self.state.is_broken() {
                    return Err(ended());
                }
                let Some(sink) = &self.frames else { return Err(ended()) };
                let (State { number, class, .. }, sum) = (&*self.state, digest(&parts));
                self.links.trace.note(&format!("send {:x}->{:x} {class:?} #{number} {sum:x}", self.from, self.to));
                tokio::select! {
                    biased;
                    () = self.state.broken() => return Err(ended()),
                    sent = sink.send((self.last, parts.concat().into())) => sent.map_err(|_| ended())?,
                }
            }
            if breaks {
                // What is on its way may still arrive, as far as it came.
                let state = Arc::clone(&self.state);
                let delay = self.links.delay();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    state.broken.cancel();
                });
            }
            Ok(())
        })
    }

    fn finish(&mut self) {
        self.frames = None;
    }
}

struct Source {
    links: Links,
    state: Arc<State>,
    from: u64,
    to: u64,
    frames: mpsc::Receiver<(Instant, Bytes)>,
    /// Taken out, and not there yet.
    next: Option<(Instant, Bytes)>,
}

impl Source {
    /// The next frame, once it is there. Nothing is lost when the caller gives up in between.
    async fn arrives(&mut self) -> Result<Option<Bytes>, NetworkError> {
        if self.next.is_none() {
            self.next = self.frames.recv().await;
        }
        let Some((at, _)) = &self.next else { return Ok(None) };
        tokio::time::sleep_until(*at).await;
        if self.links.is_cut(self.from, self.to) && !self.links.whole(self.from, self.to).await {
            self.state.broken.cancel();
            return Err(ended());
        }
        Ok(self.next.take().map(|(_, frame)| frame))
    }
}

impl FrameSource for Source {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, NetworkError>> {
        Box::pin(async move {
            let state = Arc::clone(&self.state);
            let trace = self.links.trace.clone();
            let (from, to) = (self.from, self.to);
            tokio::select! {
                biased;
                () = state.broken() => Err(ended()),
                frame = self.arrives() => {
                    if matches!(frame, Ok(Some(_))) {
                        trace.note(&format!("took {from:x}->{to:x} {:?} #{}", state.class, state.number));
                    }
                    frame
                }
            }
        })
    }
}
