//! The leader's side: commands of followers are stamped and proposed in the term that their stream is for.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use kvasir_api::command::command::Body;
use kvasir_api::command::{Command, Stamp};
use kvasir_machine::check_version;
use kvasir_transport::{FrameSink, Stream};
use openraft::errors::ClientWriteError;
use prost::Message;
use tokio::sync::oneshot;

use crate::gauge::Gauge;
use crate::kinds::{Kinds, Waiter};
use crate::machine::{Machine, Shared};
use crate::peer::invalid;
use crate::proposed::{Proposed, check_length};

type Raft = openraft::Raft<Kinds, Machine>;

pub(super) const TOO_MANY: u8 = 1;
pub(super) const NOT_LEADER: u8 = 2;
/// Commands of one stream that may be unanswered.
const IN_FLIGHT_MAX: usize = 4_096;

/// Serves a follower's stream until it ends, or until this node leads no more in the stream's term.
///
/// # Errors
/// What the peer sent that is no command of its own.
pub(crate) async fn serve(raft: &Raft, shared: &Shared, gauge: &Arc<Gauge>, from: u64, stream: Stream) -> io::Result<()> {
    let Stream { mut sink, mut source } = stream;
    let Ok(Some(mut hello)) = source.next().await else { return Ok(()) };
    let term = hello.try_get_u64_le().map_err(invalid)?;
    let leader = openraft::impls::leader_id_adv::LeaderId { term, node_id: *raft.node_id() };
    let mut in_flight = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some((number, refusal)) = in_flight.next(), if !in_flight.is_empty() => {
                if let Some(code) = refusal && !refuse(&mut *sink, number, code).await {
                    return Ok(());
                }
            }
            frame = source.next(), if in_flight.len() < IN_FLIGHT_MAX => {
                let Ok(Some(frame)) = frame else { return Ok(()) };
                let (number, proposed) = command(shared, from, frame)?;
                let Some(proposed) = proposed else {
                    if !refuse(&mut *sink, number, NOT_LEADER).await {
                        return Ok(());
                    }
                    continue;
                };
                let Some(ticket) = gauge.enter(proposed.bytes().len()) else {
                    if !refuse(&mut *sink, number, TOO_MANY).await {
                        return Ok(());
                    }
                    continue;
                };
                let (reply, answer) = oneshot::channel();
                let waiter = Waiter { reply, _ticket: ticket };
                // Raft has stopped otherwise: the follower finds the stream ended.
                if raft.write(proposed).with_leader(leader).responder(waiter).await.is_err() {
                    return Ok(());
                }
                in_flight.push(async move {
                    let refusal = match answer.await {
                        Ok(Err(ClientWriteError::ForwardToLeader(_))) => Some(NOT_LEADER),
                        // Applied, or of a fate that only the log will tell.
                        _ => None,
                    };
                    (number, refusal)
                });
            }
        }
    }
}

/// Reads a command of a follower, and stamps it: the stamp's field is put behind its bytes, which stay as they are. `None`: it is one
/// that only the leader decides on.
fn command(shared: &Shared, from: u64, mut frame: Bytes) -> io::Result<(u64, Option<Proposed>)> {
    let number = frame.try_get_u64_le().map_err(invalid)?;
    check_length(frame.len()).map_err(invalid)?;
    let command = Command::decode(frame.clone()).map_err(|error| invalid(format!("not a command: {error}")))?;
    check_version(&command).map_err(invalid)?;
    let forwarded = command.forwarded.ok_or_else(|| invalid("a forwarded command that does not say so"))?;
    if (forwarded.node, forwarded.number) != (from, number) || command.stamp.is_some() {
        return Err(invalid("a forwarded command in another node's name, or stamped"));
    }
    if command.term != 0 || matches!(command.body, Some(Body::ClusterVersion(_))) {
        return Ok((number, None));
    }
    let stamp = Stamp { cluster_ms: shared.clock.now_ms(), wall_ms: shared.clock.wall_ms() };
    let tail = Command { stamp: Some(stamp), ..Command::default() };
    let mut bytes = BytesMut::with_capacity(frame.len() + tail.encoded_len());
    bytes.put(frame);
    tail.encode(&mut bytes).map_err(io::Error::other)?;
    Ok((number, Some(Proposed::from_bytes(bytes.freeze()))))
}

async fn refuse(sink: &mut dyn FrameSink, number: u64, code: u8) -> bool {
    let mut frame = BytesMut::with_capacity(9);
    frame.put_u64_le(number);
    frame.put_u8(code);
    sink.send(&mut vec![vec![frame.freeze()]]).await.is_ok()
}
