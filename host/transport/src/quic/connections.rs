//! The connection to each peer: dialled when needed, found when the peer dialled, one kept when both did.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::time::timeout;

use super::{Code, Inner, server};
use crate::identity::NodeName;
use crate::network::{NetworkError, Peer};

/// Both ends dialled at the same time if one connection came up this soon after the other. Later, the other end has lost what
/// this end takes for alive.
const SIMULTANEOUS: Duration = Duration::from_secs(2);

/// The live connections, by peer.
pub(super) struct Connections {
    me: u64,
    live: Mutex<HashMap<u64, Live>>,
    dials: Mutex<HashMap<u64, Arc<tokio::sync::Mutex<Dial>>>>,
}

struct Live {
    connection: quinn::Connection,
    dialler: u64,
    since: Instant,
}

/// The last failed dial, so that a peer that is down is not dialled by everyone who needs it.
#[derive(Default)]
struct Dial {
    failed: Option<(Instant, NetworkError)>,
}

impl Connections {
    pub(super) fn new(me: u64) -> Self {
        Self { me, live: Mutex::new(HashMap::new()), dials: Mutex::new(HashMap::new()) }
    }

    fn get(&self, peer: u64) -> Option<quinn::Connection> {
        let live = self.live.lock();
        live.get(&peer).map(|live| live.connection.clone()).filter(|connection| connection.close_reason().is_none())
    }

    /// Takes a connection that has proved to be `peer`'s, and ends the one of the pair that is not kept.
    pub(super) fn add(&self, peer: u64, dialler: u64, connection: quinn::Connection) {
        let mut all = self.live.lock();
        let fresh = Live { connection, dialler, since: Instant::now() };
        let Some(old) = all.get(&peer).filter(|old| old.connection.close_reason().is_none()) else {
            all.insert(peer, fresh);
            return;
        };
        let both_dialled = old.dialler != fresh.dialler && old.since.elapsed() < SIMULTANEOUS;
        let keep_old = both_dialled && old.dialler == self.me.min(peer);
        let ended = if keep_old { Some(fresh) } else { all.insert(peer, fresh) };
        drop(all);
        if let Some(ended) = ended {
            ended.connection.close(Code::Duplicate.into(), b"the other connection is kept");
        }
    }

    pub(super) fn expel(&self, peer: u64, reason: &str) {
        if let Some(live) = self.live.lock().remove(&peer) {
            live.connection.close(Code::Refused.into(), reason.as_bytes());
        }
    }

    pub(super) fn expel_all(&self, reason: &str) {
        for (_, live) in self.live.lock().drain() {
            live.connection.close(Code::Stopping.into(), reason.as_bytes());
        }
    }

    fn dial(&self, peer: u64) -> Arc<tokio::sync::Mutex<Dial>> {
        Arc::clone(self.dials.lock().entry(peer).or_default())
    }
}

/// The connection to a peer; dials it where there is none. Who comes while a dial is under way waits for that one.
pub(super) async fn connect(inner: &Arc<Inner>, peer: &Peer) -> Result<quinn::Connection, NetworkError> {
    if let Some(connection) = inner.connections.get(peer.id) {
        return Ok(connection);
    }
    let dial = inner.connections.dial(peer.id);
    let mut dial = dial.lock().await;
    // Another dial, or the peer itself, may have been faster.
    if let Some(connection) = inner.connections.get(peer.id) {
        return Ok(connection);
    }
    if let Some((at, error)) = &dial.failed
        && at.elapsed() < inner.options.redial_after
    {
        return Err(error.clone());
    }
    match dial_any(inner, peer).await {
        Ok(connection) => {
            dial.failed = None;
            inner.connections.add(peer.id, inner.me.node, connection.clone());
            tokio::spawn(server::serve_peer(Arc::clone(inner), peer.id, connection.clone()));
            Ok(inner.connections.get(peer.id).unwrap_or(connection))
        }
        Err(error) => {
            dial.failed = Some((Instant::now(), error.clone()));
            // The peer may have dialled us while we failed to dial it.
            inner.connections.get(peer.id).ok_or(error)
        }
    }
}

async fn dial_any(inner: &Inner, peer: &Peer) -> Result<quinn::Connection, NetworkError> {
    let target = NodeName { cluster: inner.me.cluster, node: peer.id };
    let unreachable = |why: String| NetworkError::Unreachable { node: peer.id, addresses: peer.addresses.join(", "), why };
    let mut last = unreachable("it has no address".to_owned());
    for address in &peer.addresses {
        let attempt = async {
            let resolved = tokio::net::lookup_host(address).await.map_err(|error| unreachable(error.to_string()))?;
            let mut last = unreachable("the name has no address".to_owned());
            for address in resolved {
                match dial(inner, target, address).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        match timeout(inner.options.connect_timeout, attempt).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => last = error,
            Err(_) => last = unreachable(format!("no answer from {address}")),
        }
    }
    Err(last)
}

async fn dial(inner: &Inner, target: NodeName, address: SocketAddr) -> Result<quinn::Connection, NetworkError> {
    let unreachable = |why: String| NetworkError::Unreachable { node: target.node, addresses: address.to_string(), why };
    let config = inner.configs.read().client.clone();
    let connecting =
        inner.endpoint.connect_with(config, address, &target.dns()).map_err(|error| unreachable(error.to_string()))?;
    match connecting.await {
        Ok(connection) => Ok(connection),
        Err(error @ quinn::ConnectionError::TransportError(_)) if refusal(&error).is_some() => {
            Err(NetworkError::Refused { node: target.node, why: why(&error) })
        }
        // Whoever answers has not proved who it is: what it says is quoted for a reader, and never taken for the peer's word.
        Err(error) => Err(unreachable(why(&error))),
    }
}

/// What a connection's end says of us or of the other end, when it is about who they are.
pub(super) fn refusal(error: &quinn::ConnectionError) -> Option<String> {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) if close.error_code == Code::Refused.into() => {
            Some(String::from_utf8_lossy(&close.reason).into_owned())
        }
        // 0x100 to 0x1ff: a TLS alert.
        quinn::ConnectionError::TransportError(error) if (0x100..0x200).contains(&u64::from(error.code)) => {
            Some(error.to_string())
        }
        quinn::ConnectionError::ConnectionClosed(close) if (0x100..0x200).contains(&u64::from(close.error_code)) => {
            Some(format!("it does not accept this node's certificate ({close})"))
        }
        _ => None,
    }
}

/// How a connection ended, in words.
pub(super) fn why(error: &quinn::ConnectionError) -> String {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        other => refusal(other).unwrap_or_else(|| other.to_string()),
    }
}
