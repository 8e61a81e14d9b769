//! openraft's way to the other members, over a [`Network`].

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::FutureExt;
use futures_util::{Stream as FutureStream, StreamExt};
use kvasir_transport::{Class, Network, NetworkError, Peer as Target, Stream};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use prost::Message;
use tokio::time::{Instant, timeout};

use super::wire::{Ask, AskAnswer, AskKind, AskTransfer, AskVote, decode_appended, encode_append, message};
use crate::kinds::{Kinds, LogId, Vote};
use crate::machine::Shared;
use crate::membership::Member;
use crate::snapshot::SnapshotData;

/// Requests to append that may be unanswered on one stream.
const IN_FLIGHT_MAX: usize = 64;
/// Bytes of requests that are put into one write.
const WRITE_BYTES: usize = 1024 * 1024;
/// How long a peer may take to answer the oldest request in flight: its disk may be slow; the network reports its own end.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// Makes the clients of peers.
#[derive(Clone)]
pub(crate) struct Peers {
    network: Arc<dyn Network>,
    shared: Arc<Shared>,
}

impl Peers {
    pub(crate) fn new(network: Arc<dyn Network>, shared: Arc<Shared>) -> Self {
        Self { network, shared }
    }

    fn client(&self, id: u64, member: &Member, class: Class) -> Peer {
        let target = Target { id, addresses: member.peer_addresses() };
        Peer { network: Arc::clone(&self.network), shared: Arc::clone(&self.shared), target, class, idle: None }
    }
}

impl RaftNetworkFactory<Kinds> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, member: &Member) -> Peer {
        self.client(target, member, Class::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, member: &Member) -> Peer {
        self.client(target, member, Class::Heartbeat)
    }
}

/// The network of a node that has none.
#[derive(Debug)]
pub(crate) struct Alone;

impl Network for Alone {
    fn open(&self, peer: &Target, _class: Class) -> kvasir_transport::BoxFuture<'static, Result<Stream, NetworkError>> {
        let why = "this node was started alone, without a way to peers".to_owned();
        let error = NetworkError::Unreachable { node: peer.id, addresses: peer.addresses.join(", "), why };
        Box::pin(async move { Err(error) })
    }
}

/// The client of one peer.
pub(crate) struct Peer {
    network: Arc<dyn Network>,
    shared: Arc<Shared>,
    /// Where it was when it was met first; its record may say otherwise by now.
    target: Target,
    /// What appends go over.
    class: Class,
    /// A stream on which everything is answered: the next appends go on there.
    idle: Option<Stream>,
}

type Rpc<T> = Result<T, RPCError<Kinds>>;

fn unreachable(error: &NetworkError) -> RPCError<Kinds> {
    RPCError::Unreachable(Unreachable::new(error))
}

fn broken(error: &io::Error) -> RPCError<Kinds> {
    unreachable(&NetworkError::Protocol(error.to_string()))
}

/// Appends under way: requests go out as they come, answers are handed out as they come.
struct Exchange<'s, S> {
    home: &'s mut Option<Stream>,
    stream: Stream,
    requests: Option<S>,
    /// When each unanswered request was sent.
    in_flight: VecDeque<Instant>,
    frames: Vec<Vec<Bytes>>,
}

impl<S> Exchange<'_, S>
where
    S: FutureStream<Item = AppendEntriesRequest<Kinds>> + OptionalSend + Unpin + 'static,
{
    /// The next answer; `None` when every request is answered and no more come.
    async fn next(&mut self) -> Option<Rpc<StreamAppendResult<Kinds>>> {
        loop {
            let stalled = self.in_flight.front().map(|sent| *sent + STALLED_AFTER);
            let room = self.in_flight.len() < IN_FLIGHT_MAX;
            match &mut self.requests {
                None if self.in_flight.is_empty() => return None,
                Some(requests) if room => tokio::select! {
                    biased;
                    answer = self.stream.source.next(), if stalled.is_some() => return Some(self.answered(answer)),
                    () = until(stalled) => return Some(Err(self.stalled())),
                    request = requests.next() => match request {
                        None => self.requests = None,
                        Some(first) => if let Err(error) = self.send(first).await {
                            return Some(Err(unreachable(&error)));
                        },
                    },
                },
                _ => tokio::select! {
                    answer = self.stream.source.next() => return Some(self.answered(answer)),
                    () = until(stalled) => return Some(Err(self.stalled())),
                },
            }
        }
    }

    /// Sends a request, and with it all that are ready.
    async fn send(&mut self, first: AppendEntriesRequest<Kinds>) -> Result<(), NetworkError> {
        let mut next = Some(first);
        let mut bytes = 0;
        while let Some(request) = next {
            let parts = encode_append(&request);
            bytes += parts.iter().map(Bytes::len).sum::<usize>();
            self.frames.push(parts);
            self.in_flight.push_back(Instant::now());
            next = None;
            if bytes < WRITE_BYTES
                && self.in_flight.len() < IN_FLIGHT_MAX
                && let Some(requests) = &mut self.requests
            {
                match requests.next().now_or_never() {
                    Some(Some(request)) => next = Some(request),
                    Some(None) => self.requests = None,
                    None => {}
                }
            }
        }
        self.stream.sink.send(&mut self.frames).await
    }

    fn answered(&mut self, frame: Result<Option<Bytes>, NetworkError>) -> Rpc<StreamAppendResult<Kinds>> {
        match frame {
            Ok(Some(frame)) => {
                self.in_flight.pop_front();
                decode_appended(frame).map_err(|error| broken(&error))
            }
            Ok(None) => Err(unreachable(&NetworkError::Ended("the peer ended the stream with requests unanswered".to_owned()))),
            Err(error) => Err(unreachable(&error)),
        }
    }

    fn stalled(&self) -> RPCError<Kinds> {
        unreachable(&NetworkError::Ended(format!("a request to append is unanswered after {} s", STALLED_AFTER.as_secs())))
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Peer {
    /// Where the peer is, by its record of now.
    fn target(&self) -> Target {
        let addresses = self.shared.applied.lock().1.membership().get_node(&self.target.id).map(Member::peer_addresses);
        Target { id: self.target.id, addresses: addresses.unwrap_or_else(|| self.target.addresses.clone()) }
    }

    async fn stream(&mut self, class: Class, within: Duration) -> Rpc<Stream> {
        match timeout(within.max(CONNECT_MIN), self.network.open(&self.target(), class)).await {
            Ok(opened) => opened.map_err(|error| self.refused(&error)),
            Err(_) => Err(unreachable(&NetworkError::Ended("connecting took too long".to_owned()))),
        }
    }

    fn refused(&self, error: &NetworkError) -> RPCError<Kinds> {
        self.shared.note_end(error);
        unreachable(error)
    }

    /// One question over a stream of its own.
    async fn ask(&mut self, kind: AskKind, option: &RPCOption) -> Rpc<AskAnswer> {
        let exchange = async {
            let mut stream = self.network.open(&self.target(), Class::Vote).await?;
            let ask = Ask { kind: Some(kind) };
            stream.sink.send(&mut vec![vec![Bytes::from(ask.encode_to_vec())]]).await?;
            stream.sink.finish();
            stream.source.next().await?.ok_or_else(|| NetworkError::Ended("no answer".to_owned()))
        };
        let frame = match timeout(option.soft_ttl(), exchange).await {
            Ok(frame) => frame.map_err(|error| self.refused(&error))?,
            Err(_) => return Err(unreachable(&NetworkError::Ended("no answer in time".to_owned()))),
        };
        message(frame).map_err(|error| broken(&error))
    }
}

/// A first connection takes a handshake, whatever a heartbeat may take.
const CONNECT_MIN: Duration = Duration::from_secs(1);

impl RaftNetworkV2<Kinds> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Kinds>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<Kinds>> {
        let mut answers = self.stream_append(futures_util::stream::iter([rpc]), option).await?;
        match answers.next().await {
            Some(answer) => answer.map(AppendEntriesResponse::from),
            None => Err(unreachable(&NetworkError::Ended("no answer".to_owned()))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<Kinds>>>>>
    where
        S: FutureStream<Item = AppendEntriesRequest<Kinds>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let stream = match self.idle.take() {
                Some(stream) => stream,
                None => self.stream(self.class, option.soft_ttl()).await?,
            };
            let exchange = Exchange {
                home: &mut self.idle,
                stream,
                requests: Some(input),
                in_flight: VecDeque::new(),
                frames: Vec::new(),
            };
            let answers = futures_util::stream::unfold(Some(exchange), |exchange| async move {
                let mut exchange = exchange?;
                match exchange.next().await {
                    None => {
                        *exchange.home = Some(exchange.stream);
                        None
                    }
                    Some(Ok(Ok(flushed))) => Some((Ok(Ok(flushed)), Some(exchange))),
                    // After a conflict or an error both ends give the stream up.
                    Some(end) => Some((end, None)),
                }
            });
            let answers: BoxStream<'s, _> = Box::pin(answers);
            Ok(answers)
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<Kinds>, option: RPCOption) -> Rpc<VoteResponse<Kinds>> {
        let answer = self.ask(AskKind::Vote(AskVote::new(&rpc)), &option).await?;
        answer.response().map_err(|error| broken(&error))
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<Kinds>, option: RPCOption) -> Rpc<VoteResponse<Kinds>> {
        let answer = self.ask(AskKind::PreVote(AskVote::new(&rpc)), &option).await?;
        answer.response().map_err(|error| broken(&error))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Kinds>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<Kinds>> {
        let last: Option<LogId> = request.last_log_id().copied();
        let ask = AskTransfer::new(request.from_leader(), *request.to_node_id(), last);
        let answer = self.ask(AskKind::Transfer(ask), &option).await?;
        if answer.refusal.is_empty() {
            return Ok(Ok(()));
        }
        Err(unreachable(&NetworkError::Refused { node: self.target.id, why: answer.refusal }))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<openraft::impls::leader_id_adv::LeaderId<u64, u64>, u64, Member, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Kinds>, StreamingError<Kinds>> {
        let stream = match self.stream(Class::Snapshot, option.soft_ttl()).await {
            Ok(stream) => stream,
            Err(RPCError::Unreachable(error)) => return Err(StreamingError::Unreachable(error)),
            Err(other) => return Err(StreamingError::Unreachable(Unreachable::new(&other))),
        };
        super::snapshot::send(stream, vote, snapshot, cancel).await
    }
}
