//! Snapshots between nodes: a file is offered, sent piece by piece and installed, never whole in memory. What has come of a file
//! when a transfer breaks is kept, and the next one goes on behind it.
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
use crate::kinds::{Kinds, SnapshotMeta, Vote};
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
        sent = transfer(stream, vote, snapshot.meta, snapshot.snapshot) => {
            sent.map(SnapshotResponse::new).map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
        }
    }
}

async fn transfer(mut stream: Stream, vote: Vote, meta: SnapshotMeta, snapshot: SnapshotData) -> io::Result<Vote> {
    let snapshot = Arc::new(snapshot);
    let exporting = Arc::clone(&snapshot);
    let exported = blocking(snapshot.is_driven(), move || exporting.file(&meta)).await;
    let exported = exported.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    let file = exported.ok_or_else(|| invalid("a received snapshot is not sent on"))?;
    let length = file.bytes()?;
    let offer = SnapshotOffer::new(&vote, file.meta.last_log_id, file.number, length);
    stream.sink.send(&mut vec![vec![Bytes::from(offer.encode_to_vec())]]).await.map_err(ended)?;
    let answer = answer(&mut stream, PIECE_TIMEOUT).await?;
    if let Some(vote) = answer.vote {
        return Ok(vote.into());
    }
    let mut offset = answer.have_bytes;
    if offset > length {
        return Err(invalid("the receiver has more of the snapshot than there is"));
    }
    while offset < length {
        let mut pieces = read(&file, offset, length).await?;
        offset += pieces.iter().flatten().map(|piece| piece.len() as u64).sum::<u64>();
        timeout(PIECE_TIMEOUT, stream.sink.send(&mut pieces))
            .await
            .map_err(|_| late("the receiver takes no more"))?
            .map_err(ended)?;
        snapshot.note_sent();
    }
    stream.sink.finish();
    let answer = self::answer(&mut stream, INSTALL_TIMEOUT).await?;
    snapshot.note_sent();
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
        return reply(&mut stream, SnapshotAnswer { vote: Some(WireVote::from(&mine)), have_bytes: 0 }).await;
    }
    let file = collect(shared, from, &mut stream, &offer).await?;
    let store = shared.store.clone();
    let prepared = blocking(store.is_driven(), move || SnapshotData::of_file(&store, file.path()));
    let (meta, snapshot) = prepared.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    if meta.last_log_id != Some(last) {
        return Err(invalid("the snapshot does not cover what it was said to cover"));
    }
    let installed = raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await;
    // Without an answer raft has stopped: the leader finds the stream ended.
    let Ok(response) = installed else { return Ok(()) };
    reply(&mut stream, SnapshotAnswer { vote: Some(WireVote::from(&response.vote)), have_bytes: 0 }).await?;
    stream.sink.finish();
    Ok(())
}

async fn reply(stream: &mut Stream, answer: SnapshotAnswer) -> io::Result<()> {
    stream.sink.send(&mut vec![vec![Bytes::from(answer.encode_to_vec())]]).await.map_err(ended)
}

/// Writes what comes to a file, as much as was offered and not a byte more, behind what is there of it.
async fn collect(shared: &Arc<Shared>, from: u64, stream: &mut Stream, offer: &SnapshotOffer) -> io::Result<Incoming> {
    let snapshots = Arc::clone(&shared.snapshots);
    let (number, length) = (offer.file, offer.file_bytes);
    let begun = blocking(shared.store.is_driven(), move || snapshots.go_on(from, number, length));
    let mut incoming = begun.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    if incoming.written() > 0 {
        tracing::info!("a snapshot of {length} bytes goes on behind {} of them", incoming.written());
    }
    reply(stream, SnapshotAnswer { vote: None, have_bytes: incoming.written() }).await?;
    while incoming.missing() > 0 {
        let piece = match next_piece(stream).await {
            Ok(piece) => piece,
            Err(error) => {
                shared.snapshots.set_aside(from, number, incoming);
                return Err(error);
            }
        };
        let written = blocking(shared.store.is_driven(), move || incoming.write(&piece).map(|()| incoming));
        incoming = written.await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    }
    Ok(incoming)
}

async fn next_piece(stream: &mut Stream) -> io::Result<Bytes> {
    let next = timeout(PIECE_TIMEOUT, stream.source.next()).await.map_err(|_| late("the leader sends no more"))?;
    next.map_err(ended)?.ok_or_else(|| io::Error::new(io::ErrorKind::ConnectionAborted, "the snapshot ends early"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::SystemTime;

    use kvasir_storage::disk::SimDisk;
    use kvasir_transport::identity::Authority;
    use kvasir_transport::{BoxFuture, FrameSink, FrameSource};
    use tokio::sync::mpsc;

    use super::*;
    use crate::peer::Running;
    use crate::tests::cluster::{DEADLINE, Node, TOKEN, get, launch, put};
    use crate::{Boot, Member, cluster_id, node_id};

    /// A stream's end that is cut after so many bytes.
    struct Cut {
        to: Option<mpsc::UnboundedSender<Bytes>>,
        left: usize,
        sent: Arc<AtomicUsize>,
    }

    impl FrameSink for Cut {
        fn send<'a>(&'a mut self, frames: &'a mut Vec<Vec<Bytes>>) -> BoxFuture<'a, Result<(), NetworkError>> {
            Box::pin(async {
                for frame in frames.drain(..) {
                    let frame = Bytes::from(frame.concat());
                    if self.left < frame.len() {
                        self.to = None;
                    }
                    self.left = self.left.saturating_sub(frame.len());
                    self.sent.fetch_add(frame.len(), Ordering::SeqCst);
                    let sent = self.to.as_ref().is_some_and(|to| to.send(frame).is_ok());
                    if !sent {
                        return Err(NetworkError::Ended("cut".to_owned()));
                    }
                }
                Ok(())
            })
        }

        fn finish(&mut self) {}
    }

    struct From(mpsc::UnboundedReceiver<Bytes>);

    impl FrameSource for From {
        fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, NetworkError>> {
            Box::pin(async { Ok(self.0.recv().await) })
        }
    }

    /// Both ends; the first is cut after so many bytes. Counts what it sends.
    fn streams(left: usize) -> (Stream, Stream, Arc<AtomicUsize>) {
        let (there, here) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let sent = Arc::new(AtomicUsize::new(0));
        let end =
            |to, left, sent, from| Stream { sink: Box::new(Cut { to: Some(to), left, sent }), source: Box::new(From(from)) };
        let one = end(there.0, left, Arc::clone(&sent), here.1);
        (one, end(here.0, usize::MAX, Arc::default(), there.1), sent)
    }

    fn running(node: &Node) -> Running {
        node.door.running().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_transfer_that_broke_goes_on_where_it_was_and_the_log_is_kept_for_it() {
        let authority = Authority::create(cluster_id(TOKEN), SystemTime::now()).unwrap();
        let member = |name: &str| Member {
            name: name.to_owned(),
            peer_urls: vec!["https://127.0.0.1:0".to_owned()],
            ..Member::default()
        };
        let disks = [SimDisk::new(1), SimDisk::new(2)];
        let leader = launch(&authority, node_id(TOKEN, "a"), member("a"), Boot::Alone, &disks[0]).await;
        leader.consensus.ready(DEADLINE).await.unwrap();
        for nth in 0..30_u64 {
            // Nothing that a compression would make small of.
            let value: String =
                (0..4_000_u64).map(|at| format!("{:016x}", (nth * 4_000 + at).wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
            leader.consensus.propose(put(&format!("key-{nth}"), &value)).await.unwrap();
        }
        let boot = Boot::Join { node_id: 77, cluster_id: leader.consensus.cluster_id() };
        let other = launch(&authority, 77, member("b"), boot, &disks[1]).await;
        let (from, to) = (running(&leader), running(&other));
        let vote = openraft::Vote::new_committed(leader.consensus.status().term, leader.consensus.node_id());
        from.raft.trigger().snapshot().await.unwrap();
        let meta = from.shared.checkpoint().await.unwrap();
        let send = |left: usize| {
            let (here, there, sent) = streams(left);
            let snapshot = SnapshotData::of_store(Arc::clone(&from.shared.snapshots));
            let (raft, shared, id) = (to.raft.clone(), Arc::clone(&to.shared), leader.consensus.node_id());
            let receiving = tokio::spawn(async move { receive(&raft, &shared, id, there).await });
            let sending = transfer(here, vote, meta.clone(), snapshot);
            async move { (sending.await, receiving.await.unwrap(), sent.load(Ordering::SeqCst)) }
        };
        let (broken, _, first) = send(1_000_000).await;
        broken.unwrap_err();
        // The leader goes on, and would tell raft of a later snapshot and purge the log up to it: both wait for this one.
        let held = from.shared.snapshots.held(0).unwrap();
        for nth in 0..500 {
            leader.consensus.propose(put("after", &nth.to_string())).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert!(leader.consensus.status().purged_index <= held);
        assert_eq!(from.shared.snapshots.sending(None).unwrap().last_log_id.unwrap().index, held);
        let (done, received, second) = send(usize::MAX).await;
        assert_eq!(done.unwrap(), vote);
        received.unwrap();
        let whole = from.shared.snapshots.to_send(&meta).unwrap().bytes().unwrap() as usize;
        assert!(first > 500_000 && second < whole - 500_000, "{first} bytes and then {second} of {whole}");
        assert_eq!(get(&other.consensus, "key-29").map(|value| value.len()), Some(64_000));
        // Too heavy a log is not kept, and nor is the file.
        assert_eq!(from.shared.snapshots.held(u64::MAX), None);
        drop((from, to));
        other.stop().await;
        leader.stop().await;
    }
}
