//! Snapshots between nodes: a file is offered, sent piece by piece and installed, never whole in memory.
//!
//! **Invariant:** what is received is verified to its last byte beside the running state; a file that is not whole, or not what it
//! was said to be, changes nothing here and is an error of the sender's.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvasir_transport::{NetworkError, Stream};
use openraft::OptionalSend;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ReplicationClosed, StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;
use openraft::storage::Snapshot;
use prost::Message;
use tokio::time::timeout;

use super::wire::{SnapshotAnswer, SnapshotOffer, WireVote, invalid, message};
use crate::blocking::blocking;
use crate::kinds::{Kinds, Vote};
use crate::machine::{Machine, Shared};
use crate::snapshot::{Incoming, SnapshotData, SnapshotFile};

type Raft = openraft::Raft<Kinds, Machine>;

/// Bytes of a piece.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces read from the disk at once.
const PIECES_READ: usize = 8;
/// How long the other end may say nothing while pieces go.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a received snapshot may take to be verified and installed.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what.to_owned())
}

fn ended(error: NetworkError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}

/// Sends a snapshot over a stream; returns the receiver's vote once it is installed there, or not wanted.
pub(super) async fn send(
    stream: Stream,
    vote: Vote,
    snapshot: Snapshot<openraft::impls::leader_id_adv::LeaderId<u64, u64>, u64, crate::membership::Member, SnapshotData>,
    cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
) -> Result<SnapshotResponse<Kinds>, StreamingError<Kinds>> {
    tokio::select! {
        closed = cancel => Err(StreamingError::Closed(closed)),
        sent = transfer(stream, vote, snapshot.snapshot) => {
            sent.map(SnapshotResponse::new).map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
        }
    }
}

async fn transfer(mut stream: Stream, vote: Vote, snapshot: SnapshotData) -> io::Result<Vote> {
    let exported =
        blocking(snapshot.is_driven(), move || snapshot.file()).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let file = Arc::new(exported?.ok_or_else(|| invalid("a received snapshot is not sent on"))?);
    let length = file.bytes()?;
    let offer = SnapshotOffer::new(&vote, file.meta.last_log_id, length);
    stream.sink.send(&mut vec![vec![Bytes::from(offer.encode_to_vec())]]).await.map_err(ended)?;
    let answer = answer(&mut stream, PIECE_TIMEOUT).await?;
    if let Some(vote) = answer.vote {
        return Ok(vote.into());
    }
    let mut offset = 0;
    while offset < length {
        let mut pieces = read(&file, offset, length).await?;
        offset += pieces.iter().flatten().map(|piece| piece.len() as u64).sum::<u64>();
        timeout(PIECE_TIMEOUT, stream.sink.send(&mut pieces))
            .await
            .map_err(|_| late("the receiver takes no more"))?
            .map_err(ended)?;
    }
    stream.sink.finish();
    let answer = self::answer(&mut stream, INSTALL_TIMEOUT).await?;
    answer.vote.map(Vote::from).ok_or_else(|| invalid("a snapshot was taken without a vote"))
}

async fn answer(stream: &mut Stream, within: Duration) -> io::Result<SnapshotAnswer> {
    let frame =
        timeout(within, stream.source.next()).await.map_err(|_| late("the receiver does not answer"))?.map_err(ended)?;
    message(frame.ok_or_else(|| io::Error::new(io::ErrorKind::ConnectionAborted, "the receiver gave up"))?)
}

async fn read(file: &Arc<SnapshotFile>, offset: u64, length: u64) -> io::Result<Vec<Vec<Bytes>>> {
    let file = Arc::clone(file);
    let read = blocking(file.is_driven(), move || {
        let mut pieces = Vec::with_capacity(PIECES_READ);
        let mut at = offset;
        while at < length && pieces.len() < PIECES_READ {
            let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(length - at).unwrap_or(PIECE_BYTES))];
            file.read_at(at, &mut piece)?;
            at += piece.len() as u64;
            pieces.push(vec![Bytes::from(piece)]);
        }
        Ok(pieces)
    });
    read.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Takes the snapshot that a leader offers, and installs it.
pub(super) async fn receive(raft: &Raft, shared: &Arc<Shared>, from: u64, mut stream: Stream) -> io::Result<()> {
    let Ok(Some(frame)) = stream.source.next().await else { return Ok(()) };
    let offer: SnapshotOffer = message(frame)?;
    let (vote, last) = offer.parts()?;
    super::inbound::is_for(&vote, from)?;
    let mine = raft.metrics().borrow_watched().vote;
    if mine > vote {
        return reply(&mut stream, SnapshotAnswer { vote: Some(WireVote::from(&mine)) }).await;
    }
    reply(&mut stream, SnapshotAnswer { vote: None }).await?;
    let file = collect(shared, &mut stream, offer.file_bytes).await?;
    let store = shared.store.clone();
    let prepared = blocking(store.is_driven(), move || SnapshotData::of_file(&store, file.path()));
    let (meta, snapshot) = prepared.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    if meta.last_log_id != Some(last) {
        return Err(invalid("the snapshot does not cover what it was said to cover"));
    }
    let installed = raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await;
    // Without an answer raft has stopped: the leader finds the stream ended.
    let Ok(response) = installed else { return Ok(()) };
    reply(&mut stream, SnapshotAnswer { vote: Some(WireVote::from(&response.vote)) }).await?;
    stream.sink.finish();
    Ok(())
}

async fn reply(stream: &mut Stream, answer: SnapshotAnswer) -> io::Result<()> {
    stream.sink.send(&mut vec![vec![Bytes::from(answer.encode_to_vec())]]).await.map_err(ended)
}

/// Writes what comes to a file, as much as was offered and not a byte more.
async fn collect(shared: &Arc<Shared>, stream: &mut Stream, length: u64) -> io::Result<Incoming> {
    let snapshots = Arc::clone(&shared.snapshots);
    let begun = blocking(shared.store.is_driven(), move || snapshots.receive(length));
    let mut incoming = begun.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    while incoming.missing() > 0 {
        let next = timeout(PIECE_TIMEOUT, stream.source.next()).await.map_err(|_| late("the leader sends no more"))?;
        let piece = next.map_err(ended)?.ok_or_else(|| invalid("the snapshot ends early"))?;
        let written = blocking(shared.store.is_driven(), move || incoming.write(&piece).map(|()| incoming));
        incoming = written.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    }
    Ok(incoming)
}
