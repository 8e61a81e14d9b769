//! A watch response, encoded: a small head and the events' shared encodings behind it.
//!
//! **Invariant:** events of one revision are in one frame, or in fragments that are queued together.

use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::etcdserverpb::{ResponseHeader, WatchResponse};
use kvasir_api::limits::WATCH_RESPONSE_BYTES;
use prost::Message;

use super::event::Event;

/// An encoded `WatchResponse`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchFrame(pub Bytes);

impl WatchFrame {
    pub(super) fn of(response: &WatchResponse) -> Self {
        Self(Bytes::from(response.encode_to_vec()))
    }

    /// The message.
    ///
    /// # Errors
    /// None for a frame that the engine made.
    pub fn decode(&self) -> Result<WatchResponse, prost::DecodeError> {
        WatchResponse::decode(self.0.clone())
    }
}

/// How a watcher wants its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) watch_id: i64,
    pub(super) prev_kv: bool,
    pub(super) fragment: bool,
}

/// Frames that must be queued together.
#[derive(Debug, Clone)]
pub(super) struct Response {
    /// The first revision in it.
    pub(super) first_main: u64,
    pub(super) events: u64,
    pub(super) frames: Vec<WatchFrame>,
}

/// Events packed, in order, into responses. Each is built when it is asked for, so that nothing is encoded that there is no room
/// for, and kept for the next watcher that wants the same.
pub(super) struct Responses {
    shape: Shape,
    /// `revision` is what the watcher has seen everything up to after the last one.
    header: ResponseHeader,
    events: Vec<Arc<Event>>,
    /// Events that are in `built`.
    packed: usize,
    built: Vec<Response>,
}

impl Responses {
    pub(super) fn new(shape: Shape, header: ResponseHeader, events: Vec<Arc<Event>>) -> Self {
        Self { shape, header, events, packed: 0, built: Vec::new() }
    }

    /// The first revision of a response; `None` past the last one. Asked in order, one behind those that were built.
    pub(super) fn first_main(&self, at: usize) -> Option<u64> {
        match self.built.get(at) {
            Some(response) => Some(response.first_main),
            None => self.events.get(self.packed).map(|event| event.main()),
        }
    }

    /// A response; `None` past the last one.
    pub(super) fn get(&mut self, at: usize) -> Option<&Response> {
        while self.built.len() <= at {
            let next = self.build()?;
            self.built.push(next);
        }
        self.built.get(at)
    }

    fn build(&mut self) -> Option<Response> {
        let rest = self.events.get(self.packed..).filter(|rest| !rest.is_empty())?;
        let mut bytes = 0;
        let mut end = 0;
        // Whole revisions until it is large enough.
        while end < rest.len() && bytes < WATCH_RESPONSE_BYTES {
            let main = rest[end].main();
            while end < rest.len() && rest[end].main() == main {
                bytes += rest[end].field(self.shape.prev_kv).len();
                end += 1;
            }
        }
        let (now, later) = rest.split_at(end);
        let revision = if later.is_empty() {
            self.header.revision
        } else {
            now.last().map_or(self.header.revision, |event| i64::try_from(event.main()).unwrap_or(i64::MAX))
        };
        let header = ResponseHeader { revision, ..self.header };
        let response = Response {
            first_main: now.first().map_or(0, |event| event.main()),
            events: now.len() as u64,
            frames: frames(self.shape, &header, now, bytes),
        };
        self.packed += end;
        Some(response)
    }
}

fn frames(shape: Shape, header: &ResponseHeader, events: &[Arc<Event>], bytes: usize) -> Vec<WatchFrame> {
    if !shape.fragment || bytes <= WATCH_RESPONSE_BYTES {
        return vec![frame(shape, header, events, bytes, false)];
    }
    let mut frames = Vec::new();
    let mut rest = events;
    while !rest.is_empty() {
        let mut bytes = 0;
        let mut end = 0;
        while end < rest.len() {
            let next = rest[end].field(shape.prev_kv).len();
            if end > 0 && bytes + next > WATCH_RESPONSE_BYTES {
                break;
            }
            bytes += next;
            end += 1;
        }
        let (now, later) = rest.split_at(end);
        frames.push(frame(shape, header, now, bytes, !later.is_empty()));
        rest = later;
    }
    frames
}

fn frame(shape: Shape, header: &ResponseHeader, events: &[Arc<Event>], bytes: usize, more: bool) -> WatchFrame {
    let head = WatchResponse { header: Some(*header), watch_id: shape.watch_id, fragment: more, ..WatchResponse::default() };
    let mut out = Vec::with_capacity(head.encoded_len() + bytes);
    // `events` has the highest field number: appending it gives what encoding the whole would.
    head.encode_raw(&mut out);
    for event in events {
        out.extend_from_slice(event.field(shape.prev_kv));
    }
    WatchFrame(Bytes::from(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasir_machine::{Change, Rev, Row};

    fn event(main: u64, sub: u32, value: usize) -> Arc<Event> {
        Event::new(Change {
            row: Arc::new(Row {
                rev: Rev { main, sub },
                prev: None,
                tenant: 0,
                key: Bytes::from_static(b"k"),
                value: Bytes::from(vec![7; value]),
                create_revision: main,
                version: 1,
                lease: 0,
                tombstone: false,
                origin_plugin: None,
                origin_depth: 0,
            }),
            prev: None,
        })
    }

    fn pack(shape: Shape, header: ResponseHeader, events: &[Arc<Event>]) -> Vec<Response> {
        let mut responses = Responses::new(shape, header, events.to_vec());
        let all = (0..).map_while(|at| responses.get(at).cloned()).collect();
        assert!(responses.get(events.len()).is_none());
        all
    }

    fn revisions(frame: &WatchFrame) -> Vec<i64> {
        let response = frame.decode().expect("decodes");
        response.events.iter().map(|event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision)).collect()
    }

    #[test]
    fn a_revision_is_never_split_over_two_responses() {
        let shape = Shape { watch_id: 5, prev_kv: false, fragment: false };
        let header = ResponseHeader { revision: 9, ..ResponseHeader::default() };
        let half = WATCH_RESPONSE_BYTES / 2;
        let events = [event(2, 0, half), event(3, 0, half), event(3, 1, half), event(3, 2, half), event(4, 0, 1)];
        let responses = pack(shape, header, &events);
        let seen: Vec<_> = responses.iter().map(|response| revisions(&response.frames[0])).collect();
        assert_eq!(seen, vec![vec![2, 3, 3, 3], vec![4]]);
        let heads: Vec<_> =
            responses.iter().filter_map(|response| response.frames[0].decode().ok()?.header).map(|h| h.revision).collect();
        assert_eq!(heads, vec![3, 9]);
    }

    #[test]
    fn nothing_is_encoded_before_it_is_asked_for() {
        let shape = Shape { watch_id: 5, prev_kv: false, fragment: false };
        let events: Vec<_> = (2..10).map(|main| event(main, 0, WATCH_RESPONSE_BYTES)).collect();
        let mut responses = Responses::new(shape, ResponseHeader::default(), events.clone());
        assert_eq!(responses.first_main(0), Some(2));
        let encoded = || events.iter().filter(|event| event.is_encoded()).count();
        assert_eq!(encoded(), 0);
        assert_eq!(responses.get(0).map(|response| response.first_main), Some(2));
        assert_eq!((encoded(), responses.first_main(1)), (1, Some(3)));
        assert_eq!(responses.get(1).map(|response| response.first_main), Some(3));
        assert_eq!(encoded(), 2);
    }

    #[test]
    fn a_large_revision_is_fragmented_when_asked_for() {
        let shape = Shape { watch_id: 5, prev_kv: false, fragment: true };
        let header = ResponseHeader { revision: 2, ..ResponseHeader::default() };
        let events: Vec<_> = (0..5).map(|sub| event(2, sub, WATCH_RESPONSE_BYTES / 2)).collect();
        let responses = pack(shape, header, &events);
        assert_eq!(responses.len(), 1);
        let fragments: Vec<bool> =
            responses[0].frames.iter().filter_map(|frame| frame.decode().ok()).map(|r| r.fragment).collect();
        assert_eq!(fragments.iter().filter(|more| !**more).count(), 1);
        assert_eq!(fragments.last(), Some(&false));
        assert!(fragments.len() > 1);
        assert_eq!(responses[0].frames.iter().flat_map(revisions).count(), 5);
    }
}
