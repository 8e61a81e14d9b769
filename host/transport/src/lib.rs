//! How nodes reach each other: identities, join tokens, and framed streams between nodes over QUIC.
//!
//! [`Network`] is what consensus sees: a stream of frames to a node it names, and an [`Accept`] for the streams that others
//! open. [`quic::Quic`] is the real one; a simulated one implements the same trait. [`identity`] makes, keeps and checks what a
//! node proves itself with; [`token`] is what a person carries to a new node.
//!
//! **Invariants:** this crate alone imports quinn; a stream is handed out only after both ends have proved, by certificates of
//! the cluster's authority, to be the nodes that they say; nothing that has not is read beyond a TLS handshake and one bounded
//! join request.

pub mod frame;
pub mod identity;
mod network;
pub mod quic;
pub mod token;

pub use network::{Accept, BoxFuture, Class, FrameSink, FrameSource, Network, NetworkError, Peer, Stream};
