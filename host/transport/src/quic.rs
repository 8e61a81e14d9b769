//! The network over QUIC: one UDP socket, one connection to each peer, a stream per [`Class`] of traffic and use.
//!
//! Whoever needs a peer first dials it; when both did, both keep the connection that the lower id dialled. A connection is used
//! from both ends. On the same socket, under another protocol name, whoever holds a join token may send one request.
//!
//! **Invariants:** a connection serves streams only after its TLS handshake proved a node of this cluster that is admitted; who is
//! dialled must prove the very id that was asked for. Handshakes, streams, frames and waits are bounded.

mod config;
mod connections;
mod handshakes;
mod join;
mod server;
mod stream;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use self::config::Configs;
use self::connections::Connections;
use self::handshakes::Handshakes;
pub use self::join::{JoinFailed, join};
use crate::identity::{Credentials, IdentityError, NodeName};
use crate::network::{Accept, BoxFuture, Class, Network, NetworkError, Peer, Stream};

/// Protocol of nodes among each other.
const PEER_PROTOCOL: &[u8] = b"kvasir-peer/1";
/// Protocol of those who hold a join token.
const JOIN_PROTOCOL: &[u8] = b"kvasir-join/1";

/// What can be set about the network.
#[derive(Debug, Clone)]
pub struct QuicOptions {
    /// How often a silent connection is kept alive.
    pub keep_alive: Duration,
    /// How long a connection may be silent before it counts as dead.
    pub idle_timeout: Duration,
    /// What the round trip is taken for until it has been measured.
    pub initial_rtt: Duration,
    /// How long connecting may take, with the handshake.
    pub connect_timeout: Duration,
    /// How long after a failed dial the next is tried.
    pub redial_after: Duration,
    /// Bytes of a frame.
    pub frame_bytes_max: u32,
    /// Handshakes of others that may be under way at once; the oldest make room.
    pub handshakes_max: usize,
    /// Requests to join that may be under way at once.
    pub joins_max: usize,
    /// Size asked for the socket's buffers.
    pub socket_buffer_bytes: usize,
}

impl Default for QuicOptions {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_millis(500),
            idle_timeout: Duration::from_secs(5),
            initial_rtt: Duration::from_millis(20),
            connect_timeout: Duration::from_secs(3),
            redial_after: Duration::from_millis(200),
            frame_bytes_max: 16 * 1024 * 1024,
            handshakes_max: 64,
            joins_max: 16,
            socket_buffer_bytes: 4 * 1024 * 1024,
        }
    }
}

/// Why the network cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The address cannot be had.
    #[error("cannot listen for peers on {address}: {error}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The credentials do not make a TLS configuration.
    #[error("the node's credentials cannot be used: {0}")]
    Tls(String),
    /// The credentials are not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The network over QUIC. A clone is another handle.
#[derive(Clone)]
pub struct Quic {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeName,
    endpoint: quinn::Endpoint,
    configs: RwLock<Configs>,
    connections: Connections,
    handshakes: Arc<Handshakes>,
    accept: Arc<dyn Accept>,
    options: QuicOptions,
    stop: CancellationToken,
}

impl std::fmt::Debug for Quic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quic").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl Quic {
    /// Binds `address` (port 0: any) and serves. Must be called within a runtime.
    ///
    /// # Errors
    /// When the address cannot be bound, or the credentials are not usable.
    pub fn start(
        address: SocketAddr,
        credentials: &Credentials,
        accept: Arc<dyn Accept>,
        options: QuicOptions,
    ) -> Result<Self, QuicError> {
        Self::start_on(Self::bind(address, &options)?, credentials, accept, options)
    }

    /// Takes `address` (port 0: any) without serving yet.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn bind(address: SocketAddr, options: &QuicOptions) -> Result<UdpSocket, QuicError> {
        bind(address, options.socket_buffer_bytes).map_err(|error| QuicError::Bind { address, error })
    }

    /// Serves on a socket of [`Quic::bind`]. Must be called within a runtime.
    ///
    /// # Errors
    /// When the credentials are not usable.
    pub fn start_on(
        socket: UdpSocket,
        credentials: &Credentials,
        accept: Arc<dyn Accept>,
        options: QuicOptions,
    ) -> Result<Self, QuicError> {
        let configs = Configs::new(credentials, &options)?;
        let address = socket.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(config::endpoint(), Some(configs.server.clone()), socket, runtime)
            .map_err(|error| QuicError::Bind { address, error })?;
        let inner = Arc::new(Inner {
            me: credentials.name(),
            endpoint,
            configs: RwLock::new(configs),
            connections: Connections::new(credentials.name().node),
            handshakes: Handshakes::new(options.handshakes_max),
            accept,
            options,
            stop: CancellationToken::new(),
        });
        tokio::spawn(server::run(Arc::clone(&inner)));
        Ok(Self { inner })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.inner.endpoint.local_addr()
    }

    /// Who this node is.
    pub fn name(&self) -> NodeName {
        self.inner.me
    }

    /// Uses other credentials of the same node for every connection from now on.
    ///
    /// # Errors
    /// When they are another node's, or not usable.
    pub fn renew(&self, credentials: &Credentials) -> Result<(), QuicError> {
        if credentials.name() != self.inner.me {
            return Err(QuicError::Tls(format!("they are those of {}, this is {}", credentials.name(), self.inner.me)));
        }
        let configs = Configs::new(credentials, &self.inner.options)?;
        self.inner.endpoint.set_server_config(Some(configs.server.clone()));
        *self.inner.configs.write() = configs;
        Ok(())
    }

    /// Ends every connection; what is needed is connected again, with the credentials of that moment.
    pub fn reconnect(&self, reason: &str) {
        self.inner.connections.expel_all(reason);
    }

    /// Ends the connection to `node`, because it was removed: `reason` reaches its log.
    pub fn expel(&self, node: u64, reason: &str) {
        self.inner.connections.expel(node, reason);
    }

    /// Ends every connection and waits until the peers were told.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.endpoint.close(Code::Stopping.into(), b"stopping");
        // Peers that do not answer find out by themselves.
        let _ = tokio::time::timeout(self.inner.options.connect_timeout, self.inner.endpoint.wait_idle()).await;
    }
}

impl Network for Quic {
    fn open(&self, peer: &Peer, class: Class) -> BoxFuture<'static, Result<Stream, NetworkError>> {
        let (inner, peer) = (Arc::clone(&self.inner), peer.clone());
        Box::pin(async move {
            let connection = connections::connect(&inner, &peer).await?;
            stream::open(&connection, class, inner.options.frame_bytes_max).await
        })
    }
}

/// Why a connection is closed, on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Code {
    Stopping = 0,
    /// The other connection of the pair is kept.
    Duplicate = 1,
    /// Not a node that may talk to us.
    Refused = 2,
    /// What came is not the protocol.
    Protocol = 3,
    /// The join request was answered.
    Answered = 4,
    /// Too many ask to join at once.
    Busy = 5,
}

impl From<Code> for quinn::VarInt {
    fn from(code: Code) -> Self {
        Self::from_u32(code as u32)
    }
}

fn bind(address: SocketAddr, buffer_bytes: usize) -> std::io::Result<UdpSocket> {
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(buffer_bytes)?;
    socket.set_send_buffer_size(buffer_bytes)?;
    socket.bind(&address.into())?;
    let granted = socket.recv_buffer_size()?;
    if granted < buffer_bytes {
        tracing::info!(
            granted,
            wanted = buffer_bytes,
            "the system limits the UDP receive buffer; raise net.core.rmem_max if peers lose packets"
        );
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
