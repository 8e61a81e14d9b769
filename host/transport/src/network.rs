//! What consensus sees of a network: framed streams between nodes that have proved who they are.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

/// A future that a [`Network`] hands out.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A node to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id, which its certificate must carry.
    pub id: u64,
    /// Where it may be reached, `host:port`, tried in order.
    pub addresses: Vec<String>,
}

/// What a stream is for. Streams of one class are ordered by themselves and wait for no other class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// Log entries, many requests in flight, answered in order.
    Append = 1,
    /// The leader's heartbeats: never behind entries or a snapshot.
    Heartbeat = 2,
    /// One vote, pre-vote or transfer of leadership.
    Vote = 3,
    /// Proposals that a follower passes on, many in flight.
    Forward = 4,
    /// Requests for a read index.
    Read = 5,
    /// One snapshot file.
    Snapshot = 6,
    /// Membership, tokens and certificates.
    Control = 7,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 7] =
        [Self::Append, Self::Heartbeat, Self::Vote, Self::Forward, Self::Read, Self::Snapshot, Self::Control];

    /// The class that the byte on the wire stands for.
    pub fn from_wire(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| *class as u8 == byte)
    }
}

/// Why a peer was not reached, or a stream ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetworkError {
    /// None of the peer's addresses led to it.
    #[error("node {node:016x} cannot be reached at {addresses}: {why}")]
    Unreachable {
        /// Whom.
        node: u64,
        /// What was tried.
        addresses: String,
        /// The last failure.
        why: String,
    },
    /// Whoever answered is not the node that was asked for.
    #[error("node {node:016x} is refused: {why}")]
    Refused {
        /// Whom.
        node: u64,
        /// What is wrong with its certificate.
        why: String,
    },
    /// The stream or the connection under it ended: in words of the peer's, who has proved who it is.
    #[error("the stream has ended: {0}")]
    Ended(String),
    /// The other end sent what is no frame.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
}

/// The sending half of a stream.
pub trait FrameSink: Send + Sync {
    /// Sends whole frames, each as its parts in order, all in as few packets as they fit in. Returns once they are with the
    /// network; waits while the peer takes no more.
    fn send<'a>(&'a mut self, frames: &'a mut Vec<Vec<Bytes>>) -> BoxFuture<'a, Result<(), NetworkError>>;

    /// Says that nothing more will come.
    fn finish(&mut self);
}

/// The receiving half of a stream.
pub trait FrameSource: Send + Sync {
    /// The next frame; `None` after the last.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, NetworkError>>;
}

/// A stream of frames in both directions.
pub struct Stream {
    /// To the peer.
    pub sink: Box<dyn FrameSink>,
    /// From the peer.
    pub source: Box<dyn FrameSource>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stream")
    }
}

/// The way to other nodes.
pub trait Network: Send + Sync + 'static {
    /// Opens a stream to `peer`, connecting first where there is no connection.
    fn open(&self, peer: &Peer, class: Class) -> BoxFuture<'static, Result<Stream, NetworkError>>;
}

/// Who takes the streams that other nodes open.
pub trait Accept: Send + Sync + 'static {
    /// Whether `node` may talk to us at all: a removed node may not.
    ///
    /// # Errors
    /// Why not, in words for that node's log.
    fn admits(&self, node: u64) -> Result<(), String>;

    /// Takes a stream that `from` opened. Called on the runtime; does not block.
    fn accept(&self, from: u64, class: Class, stream: Stream);

    /// Answers somebody who has no certificate yet and asks to join: bytes in, bytes out, both bounded.
    fn join(&self, request: Bytes) -> BoxFuture<'static, Bytes>;
}
