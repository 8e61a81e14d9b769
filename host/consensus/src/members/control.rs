//! Questions between members that are not raft's: changes of membership, and what the layers above ask each other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use kvasir_api::Error;
use kvasir_transport::{Class, Network, NetworkError, Peer, Stream};
use prost::Message;
use tokio::time::Instant;

use super::{Change, Changed, Members};
use crate::machine::Shared;
use crate::membership::{decode_member, encode_member};
use crate::peer::{Attendant, invalid, message};

/// A change that a member asks for may take so long.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, Message)]
struct ControlAsk {
    #[prost(oneof = "ControlKind", tags = "1, 2, 3, 4, 5, 6, 7")]
    kind: Option<ControlKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum ControlKind {
    /// A member record; id 0: one of its own.
    #[prost(bytes = "vec", tag = "1")]
    Add(Vec<u8>),
    #[prost(uint64, tag = "2")]
    Promote(u64),
    #[prost(uint64, tag = "3")]
    Remove(u64),
    /// A member record.
    #[prost(bytes = "vec", tag = "4")]
    Update(Vec<u8>),
    #[prost(uint64, tag = "5")]
    Transfer(u64),
    /// For the attendant.
    #[prost(bytes = "bytes", tag = "6")]
    Other(Bytes),
    /// Whether the asker is a member.
    #[prost(bool, tag = "7")]
    Ping(bool),
}

#[derive(Clone, PartialEq, Message)]
struct ControlAnswer {
    /// gRPC's code; 0 when it was done.
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    text: String,
    #[prost(uint64, tag = "3")]
    id: u64,
    #[prost(uint64, tag = "4")]
    index: u64,
    #[prost(bytes = "bytes", tag = "5")]
    other: Bytes,
    /// Answers a ping: the asker is a member that has started before.
    #[prost(bool, tag = "6")]
    is_started: bool,
}

impl From<&Change> for ControlKind {
    fn from(change: &Change) -> Self {
        match change {
            Change::Add(id, member) => Self::Add(encode_member(id.unwrap_or(0), member)),
            Change::Promote(id) => Self::Promote(*id),
            Change::Remove(id) => Self::Remove(*id),
            Change::Update(id, member) => Self::Update(encode_member(*id, member)),
            Change::Transfer(to) => Self::Transfer(*to),
        }
    }
}

impl ControlKind {
    /// The change that is asked for; `None` when it is none.
    fn change(&self) -> io::Result<Option<Change>> {
        Ok(Some(match self {
            Self::Add(record) => {
                let (id, member) = decode_member(record)?;
                Change::Add((id != 0).then_some(id), member)
            }
            Self::Promote(id) => Change::Promote(*id),
            Self::Remove(id) => Change::Remove(*id),
            Self::Update(record) => {
                let (id, member) = decode_member(record)?;
                Change::Update(id, member)
            }
            Self::Transfer(to) => Change::Transfer(*to),
            Self::Other(_) | Self::Ping(_) => return Ok(None),
        }))
    }
}

/// Asks the leader for a change.
pub(super) async fn ask_change(
    network: &Arc<dyn Network>,
    shared: &Shared,
    leader: u64,
    change: &Change,
    deadline: Instant,
) -> Result<Changed, Error> {
    let answer = ask(network, shared, leader, ControlKind::from(change), deadline).await?;
    Ok(Changed { id: answer.id, index: answer.index })
}

impl Members {
    /// Asks a member's attendant.
    pub(crate) async fn ask(&self, node: u64, request: Bytes, deadline: Instant) -> Result<Bytes, Error> {
        let Some(network) = &self.network else { return Err(Error::MemberNotFound) };
        Ok(ask(network, &self.shared, node, ControlKind::Other(request), deadline).await?.other)
    }

    /// Asks a member whether this node is one.
    pub(super) async fn ping(&self, node: u64, deadline: Instant) {
        if let Some(network) = &self.network {
            // A refusal is noted where it is met.
            let _ = ask(network, &self.shared, node, ControlKind::Ping(true), deadline).await;
        }
    }
}

/// Whether one of these nodes knows this one as a member that has started before, which is then not new, whatever its data folder says.
/// Each is asked, for so long at most; who is not up says nothing.
pub async fn was_started(network: &Arc<dyn Network>, others: Vec<Peer>, within: Duration) -> bool {
    let asked = others.into_iter().map(|peer| async move {
        let answer = tokio::time::timeout(within, exchange(network, &peer, ControlKind::Ping(true), &mut false)).await;
        match answer {
            Ok(Ok(Some(frame))) => message::<ControlAnswer>(frame).is_ok_and(|answer| answer.is_started),
            _ => false,
        }
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    while let Some(is_started) = asked.next().await {
        if is_started {
            return true;
        }
    }
    false
}

/// One question, and the answer's bytes; notes when the question may have been sent.
async fn exchange(
    network: &Arc<dyn Network>,
    peer: &Peer,
    kind: ControlKind,
    sent: &mut bool,
) -> Result<Option<Bytes>, NetworkError> {
    let mut stream = network.open(peer, Class::Control).await?;
    let ask = ControlAsk { kind: Some(kind) };
    *sent = true;
    stream.sink.send(&mut vec![vec![Bytes::from(ask.encode_to_vec())]]).await?;
    stream.sink.finish();
    stream.source.next().await
}

async fn ask(
    network: &Arc<dyn Network>,
    shared: &Shared,
    node: u64,
    kind: ControlKind,
    deadline: Instant,
) -> Result<ControlAnswer, Error> {
    let member = shared.applied.lock().1.membership().get_node(&node).cloned().ok_or(Error::MemberNotFound)?;
    let peer = Peer { id: node, addresses: member.peer_addresses() };
    let mut sent = false;
    let frame = match tokio::time::timeout_at(deadline, exchange(network, &peer, kind, &mut sent)).await {
        Ok(Ok(Some(frame))) => frame,
        Ok(Ok(None)) => return Err(Error::Timeout),
        Ok(Err(error)) => {
            shared.note_end(&error);
            tracing::debug!(%error, "node {node:016x} gave no answer");
            return Err(if sent { Error::Timeout } else { Error::NoLeader });
        }
        Err(_) => return Err(Error::Timeout),
    };
    let answer: ControlAnswer = message(frame)
        .map_err(|error| Error::Internal(format!("node {node:016x} gave no answer to what was asked: {error}")))?;
    if answer.code == 0 {
        return Ok(answer);
    }
    shared.note_refusal(&answer.text);
    Err(Error::from_wire(answer.code.into(), &answer.text))
}

/// Answers one question of a node that is no member (any more): with that.
pub(crate) async fn refuse(why: String, mut stream: Stream) {
    if stream.source.next().await.is_ok() {
        reply(&mut stream, Err(Error::Precondition(why))).await;
    }
}

/// Answers one question of a member.
pub(crate) async fn serve(
    members: &Members,
    attendant: Option<Arc<dyn Attendant>>,
    from: u64,
    mut stream: Stream,
) -> io::Result<()> {
    let Ok(Some(frame)) = stream.source.next().await else { return Ok(()) };
    let ask: ControlAsk = message(frame)?;
    let kind = ask.kind.ok_or_else(|| invalid("a question that this kvasir does not know"))?;
    let done = match kind.change()? {
        Some(change) => tokio::time::timeout(CHANGE_TIMEOUT, members.make(&change))
            .await
            .unwrap_or(Err(Error::Timeout))
            .map(|Changed { id, index }| ControlAnswer { id, index, ..ControlAnswer::default() }),
        None => match (kind, attendant) {
            (ControlKind::Other(request), Some(attendant)) => {
                Ok(ControlAnswer { other: attendant.ask(from, request).await, ..ControlAnswer::default() })
            }
            (ControlKind::Other(_), None) => Err(Error::Stopped),
            _ => {
                let is_started = members.list().iter().any(|known| known.id == from && known.member.command_version > 0);
                Ok(ControlAnswer { is_started, ..ControlAnswer::default() })
            }
        },
    };
    reply(&mut stream, done).await;
    Ok(())
}

async fn reply(stream: &mut Stream, done: Result<ControlAnswer, Error>) {
    let answer = done.unwrap_or_else(|error| ControlAnswer {
        code: error.code() as i32,
        text: error.to_string(),
        ..ControlAnswer::default()
    });
    // Whoever asked may be gone.
    if stream.sink.send(&mut vec![vec![Bytes::from(answer.encode_to_vec())]]).await.is_ok() {
        stream.sink.finish();
    }
}
