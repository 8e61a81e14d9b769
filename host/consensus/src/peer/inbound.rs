//! Raft's requests from the other members.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::FutureExt;
use kvasir_transport::{Accept, BoxFuture, Class, FrameSource, Stream};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderRequest};
use parking_lot::RwLock;
use prost::Message;

use super::wire::{Ask, AskAnswer, AskKind, decode_append, encode_appended, invalid, message};
use crate::gauge::Gauge;
use crate::kinds::{Kinds, Vote};
use crate::machine::{Machine, Shared};
use crate::members::Members;
use crate::membership::{is_to_come, not_a_member};

type Raft = openraft::Raft<Kinds, Machine>;

/// Answers put into one write.
const ANSWERS_MAX: usize = 64;

/// Who answers what arrives at the door and is not consensus' own.
pub trait Attendant: Send + Sync + 'static {
    /// Somebody without a certificate asks to join.
    fn join(&self, request: Bytes) -> BoxFuture<'static, Bytes>;

    /// A member asks, by [`crate::Consensus::ask`].
    fn ask(&self, from: u64, request: Bytes) -> BoxFuture<'static, Bytes>;

    /// Gives a learner what every voter must have, before this leader makes it one. Most voters survive whatever the cluster
    /// survives: what each had before it voted is not lost by then either, however quickly members are replaced.
    ///
    /// # Errors
    /// Why it is not ready yet.
    fn prepare_voter(&self, node: u64) -> BoxFuture<'static, Result<(), String>>;
}

/// Takes the streams that members open, once raft runs; before, they are dropped, and opened again by the other end.
#[derive(Default)]
pub struct PeerDoor {
    serving: RwLock<Serving>,
}

/// What is behind the door; it leads back to the network, which holds the door: it is let go of when the node stops.
#[derive(Clone, Default)]
struct Serving {
    running: Option<Running>,
    attendant: Option<Arc<dyn Attendant>>,
}

/// What the streams are served by.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) raft: Raft,
    pub(crate) shared: Arc<Shared>,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) members: Members,
}

impl std::fmt::Debug for PeerDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerDoor").finish_non_exhaustive()
    }
}

impl PeerDoor {
    /// Raft runs now.
    pub(crate) fn serve(&self, running: Running) {
        self.serving.write().running = Some(running);
    }

    /// The node stops: what still comes is dropped.
    pub(crate) fn close(&self) {
        *self.serving.write() = Serving::default();
    }

    /// Names who answers joins and questions; until then they go unanswered, and are asked again.
    pub fn attend(&self, attendant: Arc<dyn Attendant>) {
        self.serving.write().attendant = Some(attendant);
    }

    #[cfg(test)]
    pub(crate) fn running(&self) -> Option<Running> {
        self.serving.read().running.clone()
    }

    pub(crate) fn attendant(&self) -> Option<Arc<dyn Attendant>> {
        self.serving.read().attendant.clone()
    }
}

/// What a member's state says of a node.
enum Known {
    Member,
    /// It may have been added since: as a leader to learn of it from, or as a candidate that needs this node's vote.
    ToCome(String),
    /// It is none, or no more.
    No(String),
}

fn known(shared: &Shared, node: u64) -> Known {
    let applied = shared.applied.lock();
    let (membership, as_of) = (applied.1.membership(), applied.1.log_id().map_or(0, |id| id.index));
    // Before the first membership is applied, the cluster's authority alone says who belongs to it.
    if membership.nodes().next().is_none() || membership.get_node(&node).is_some() {
        Known::Member
    } else if is_to_come(node, as_of) {
        Known::ToCome(not_a_member(node, as_of))
    } else {
        Known::No(not_a_member(node, as_of))
    }
}

impl Accept for PeerDoor {
    fn admits(&self, node: u64) -> Result<(), String> {
        match self.serving.read().running.as_ref().map(|running| known(&running.shared, node)) {
            Some(Known::No(why)) => Err(why),
            Some(Known::Member | Known::ToCome(_)) | None => Ok(()),
        }
    }

    fn accept(&self, from: u64, class: Class, stream: Stream) {
        let Serving { running: Some(Running { raft, shared, gauge, members }), attendant } = self.serving.read().clone() else {
            return;
        };
        let is_rafts = matches!(class, Class::Append | Class::Heartbeat | Class::Vote | Class::Snapshot);
        match known(&shared, from) {
            Known::Member => {}
            Known::ToCome(_) if is_rafts => {}
            // It may have been removed since it connected.
            Known::ToCome(why) | Known::No(why) => {
                if class == Class::Control {
                    tokio::spawn(crate::members::refuse(why, stream));
                }
                return;
            }
        }
        tokio::spawn(async move {
            let served = match class {
                Class::Append | Class::Heartbeat => appends(raft, &shared, from, stream).await,
                Class::Vote => question(raft, from, stream).await,
                Class::Snapshot => super::snapshot::receive(&raft, &shared, from, stream).await,
                Class::Forward => crate::forward::serve(&raft, &shared, &gauge, from, stream).await,
                Class::Read => crate::read::serve(&raft, &shared, stream).await,
                Class::Control => crate::members::serve(&members, attendant, from, stream).await,
            };
            if let Err(error) = served {
                tracing::warn!(from = format_args!("{from:016x}"), ?class, %error, "a peer's stream is given up");
            }
        });
    }

    fn join(&self, request: Bytes) -> BoxFuture<'static, Bytes> {
        match &self.serving.read().attendant {
            Some(attendant) => attendant.join(request),
            None => Box::pin(async { Bytes::new() }),
        }
    }
}

/// Whoever sends a vote must be whom the vote is for.
pub(super) fn is_for(vote: &Vote, from: u64) -> std::io::Result<()> {
    if vote.leader_id().node_id == from {
        Ok(())
    } else {
        Err(invalid(format!("a vote for node {:016x}", vote.leader_id().node_id)))
    }
}

/// Appends, for as long as the peer sends them.
async fn appends(raft: Raft, shared: &Shared, from: u64, stream: Stream) -> std::io::Result<()> {
    let Stream { mut sink, source } = stream;
    let (broken, mut heard) = tokio::sync::oneshot::channel();
    let requests = futures_util::stream::unfold((source, Some(broken)), move |(mut source, mut broken)| async move {
        match request(&mut *source, from).await {
            Ok(request) => request.map(|request| (request, (source, broken))),
            Err(error) => {
                if let Some(broken) = broken.take() {
                    // Nobody listens any more when the answers have ended first.
                    let _ = broken.send(error);
                }
                None
            }
        }
    });
    // Asked for one answer more when it has ended already.
    let mut answers = std::pin::pin!(raft.stream_append(requests).fuse());
    let mut frames = Vec::new();
    let mut ended = false;
    while !ended && let Some(first) = answers.next().await {
        let mut next = Some(first);
        while let Some(answer) = next.take() {
            // Raft has stopped: there is no more to say.
            let Ok(answer) = answer else { return Ok(()) };
            ended = answer.is_err();
            if !matches!(answer, Err(StreamAppendError::HigherVote(_))) {
                shared.standing.hear();
            }
            frames.push(vec![encode_appended(&answer)]);
            if !ended && frames.len() < ANSWERS_MAX {
                next = answers.next().now_or_never().flatten();
            }
        }
        if sink.send(&mut frames).await.is_err() {
            return Ok(());
        }
    }
    sink.finish();
    heard.try_recv().map_or(Ok(()), Err)
}

async fn request(source: &mut dyn FrameSource, from: u64) -> std::io::Result<Option<AppendEntriesRequest<Kinds>>> {
    // A stream that ends early was given up by the peer, which is its right.
    let Ok(Some(frame)) = source.next().await else { return Ok(None) };
    let request = decode_append(frame)?;
    is_for(&request.vote, from)?;
    Ok(Some(request))
}

/// One vote, pre-vote or transfer.
async fn question(raft: Raft, from: u64, mut stream: Stream) -> std::io::Result<()> {
    let Ok(Some(frame)) = stream.source.next().await else { return Ok(()) };
    let ask: Ask = message(frame)?;
    let answer = match ask.kind.ok_or_else(|| invalid("a question that this kvasir does not know"))? {
        AskKind::Vote(ask) => {
            let request = ask.request()?;
            is_for(&request.vote, from)?;
            raft.vote(request).await.map(|response| AskAnswer::voted(&response)).ok()
        }
        AskKind::PreVote(ask) => {
            let request = ask.request()?;
            is_for(&request.vote, from)?;
            raft.pre_vote(request).await.map(|response| AskAnswer::voted(&response)).ok()
        }
        AskKind::Transfer(ask) => {
            let (vote, to, last) = ask.parts()?;
            is_for(&vote, from)?;
            let taken = raft.handle_transfer_leader(TransferLeaderRequest::new(vote, to, last)).await;
            taken.ok().map(|taken| AskAnswer::transferred(taken.err().map(|error| error.to_string())))
        }
    };
    // Without an answer raft has stopped: the peer finds the stream ended.
    if let Some(answer) = answer
        && stream.sink.send(&mut vec![vec![Bytes::from(answer.encode_to_vec())]]).await.is_ok()
    {
        stream.sink.finish();
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::SystemTime;

    use kvasir_api::command::Command;
    use kvasir_api::command::command::Body;
    use kvasir_storage::disk::SimDisk;
    use kvasir_transport::identity::Authority;
    use kvasir_transport::{FrameSink, NetworkError};

    use super::super::wire::{AskTransfer, AskVote, decode_appended, encode_append};
    use super::*;
    use crate::tests::cluster::{DEADLINE, Node, TOKEN, launch};
    use crate::{Boot, Member, cluster_id, node_id};

    /// A peer that sends these frames and then ends its half.
    struct Sends(Vec<Bytes>);

    impl FrameSource for Sends {
        fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, NetworkError>> {
            Box::pin(async { Ok(self.0.pop()) })
        }
    }

    /// Keeps what the peer is sent.
    struct Kept(Arc<parking_lot::Mutex<Vec<Bytes>>>);

    impl FrameSink for Kept {
        fn send<'a>(&'a mut self, frames: &'a mut Vec<Vec<Bytes>>) -> BoxFuture<'a, Result<(), NetworkError>> {
            self.0.lock().extend(frames.drain(..).map(|parts| Bytes::from(parts.concat())));
            Box::pin(async { Ok(()) })
        }

        fn finish(&mut self) {}
    }

    async fn alone() -> Node {
        let authority = Authority::create(cluster_id(TOKEN), SystemTime::now()).unwrap();
        let member = Member { name: "a".to_owned(), peer_urls: vec!["https://127.0.0.1:0".to_owned()], ..Member::default() };
        let node = launch(&authority, node_id(TOKEN, "a"), member, Boot::Alone, &SimDisk::new(1)).await;
        node.consensus.ready(DEADLINE).await.unwrap();
        node
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stream_that_ends_right_after_its_request_is_answered() {
        let node = alone().await;
        let Running { raft, shared, .. } = node.door.running().unwrap();
        let from = 9;
        for round in 1..=100 {
            // Of a term that the node, which may elect itself meanwhile, has not come to.
            let heartbeat = AppendEntriesRequest {
                vote: openraft::Vote::new_committed(1_000 * round, from),
                prev_log_id: None,
                entries: Vec::new(),
                leader_commit: None,
            };
            let frame = Bytes::from(encode_append(&heartbeat).concat());
            let said = Arc::default();
            let source = Box::new(Sends(vec![frame]));
            appends(raft.clone(), &shared, from, Stream { sink: Box::new(Kept(Arc::clone(&said))), source }).await.unwrap();
            let said = std::mem::take(&mut *said.lock());
            assert_eq!(said.len(), 1);
            assert!(said.into_iter().all(|answer| decode_appended(answer).unwrap().is_ok()));
        }
        drop((raft, shared));
        node.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_member_that_speaks_in_anothers_name_changes_nothing() {
        let node = alone().await;
        let (term, keys) = (node.consensus.term(), node.consensus.state().read().revision());
        let Running { raft, shared, gauge, .. } = node.door.running().unwrap();
        let (from, other) = (9, 8);
        let stream = |frames: Vec<Bytes>| Stream { sink: Box::new(Kept(Arc::default())), source: Box::new(Sends(frames)) };
        let said = |served: std::io::Result<()>| served.expect_err("it was served").to_string();

        let vote = openraft::Vote::new_committed(1_000, other);
        let heartbeat = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
        let frame = Bytes::from(encode_append(&heartbeat).concat());
        let error = said(appends(raft.clone(), &shared, from, stream(vec![frame])).await);
        assert!(error.contains("a vote for node 0000000000000008"), "{error}");

        let wanted = openraft::Vote::new(1_000, other);
        let last =
            Some(crate::kinds::LogId::new(openraft::impls::leader_id_adv::LeaderId { term: 999, node_id: other }, 1_000));
        let request = openraft::raft::VoteRequest::new(wanted, last);
        let asks = [
            AskKind::Vote(AskVote::new(&request)),
            AskKind::PreVote(AskVote::new(&request)),
            AskKind::Transfer(AskTransfer::new(&vote, *raft.node_id(), last)),
        ];
        for kind in asks {
            let ask = Ask { kind: Some(kind) };
            let error = said(question(raft.clone(), from, stream(vec![Bytes::from(ask.encode_to_vec())])).await);
            assert!(error.contains("a vote for node 0000000000000008"), "{error}");
        }

        let offer = crate::peer::wire::SnapshotOffer::new(&vote, last, 1, 10);
        let error =
            said(super::super::snapshot::receive(&raft, &shared, from, stream(vec![Bytes::from(offer.encode_to_vec())])).await);
        assert!(error.contains("a vote for node 0000000000000008"), "{error}");

        let forwarded = |node| {
            let mut command = crate::tests::cluster::put("in another's name", "1");
            command.version = kvasir_machine::FIRST_CLUSTER_VERSION;
            command.forwarded = Some(kvasir_api::command::Forwarded { node, number: 5 });
            Bytes::from([&5u64.to_le_bytes()[..], &command.encode_to_vec()].concat())
        };
        let hello = Bytes::copy_from_slice(&term.to_le_bytes());
        // Taken from the back.
        let error = said(crate::forward::serve(&raft, &shared, &gauge, from, stream(vec![forwarded(other), hello])).await);
        assert!(error.contains("another node's name"), "{error}");

        // Nor does the leader take from another what leaders decide, or what does not fit in its log.
        let mut decided = crate::tests::cluster::put("decided elsewhere", "1");
        decided.term = term;
        let raised = kvasir_api::command::ClusterVersion { version: u32::MAX };
        let raised = Command { body: Some(Body::ClusterVersion(raised)), ..Command::default() };
        for mut command in [decided, raised] {
            command.version = kvasir_machine::FIRST_CLUSTER_VERSION;
            command.forwarded = Some(kvasir_api::command::Forwarded { node: from, number: 5 });
            let frame = Bytes::from([&5u64.to_le_bytes()[..], &command.encode_to_vec()].concat());
            let hello = Bytes::copy_from_slice(&term.to_le_bytes());
            let answers = Arc::default();
            let stream = Stream { sink: Box::new(Kept(Arc::clone(&answers))), source: Box::new(Sends(vec![frame, hello])) };
            crate::forward::serve(&raft, &shared, &gauge, from, stream).await.unwrap();
            assert_eq!(answers.lock().as_slice(), [Bytes::from_static(&[5, 0, 0, 0, 0, 0, 0, 0, 2])]);
        }
        let large = Bytes::from(vec![0; kvasir_api::limits::COMMAND_BYTES_MAX + 9]);
        let hello = Bytes::copy_from_slice(&term.to_le_bytes());
        let error = said(crate::forward::serve(&raft, &shared, &gauge, from, stream(vec![large, hello])).await);
        assert!(error.contains("too large"), "{error}");

        node.consensus.read_index().await.unwrap();
        assert_eq!((node.consensus.term(), node.consensus.state().read().revision()), (term, keys));
        drop((raft, shared, gauge));
        node.stop().await;
    }
}
