//! Those who connect to us, and the streams they open.

use std::sync::Arc;

use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Code, Inner, JOIN_PROTOCOL, PEER_PROTOCOL, join, stream};
use crate::identity::NodeName;

/// Accepts until the endpoint is closed.
pub(super) async fn run(inner: Arc<Inner>) {
    // Those who ask to join take no place from members that shake hands.
    let joins = Arc::new(Semaphore::new(inner.options.joins_max));
    loop {
        let incoming = tokio::select! {
            () = inner.stop.cancelled() => return,
            incoming = inner.endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        // An address shows first that it receives what is sent to it: until then it costs one small packet, smaller than its own. A
        // round trip more is nothing to connections that last.
        if !incoming.remote_address_validated() && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        let place = inner.handshakes.enter(incoming.remote_address().ip());
        let (inner, joins) = (Arc::clone(&inner), Arc::clone(&joins));
        tokio::spawn(async move {
            let from = incoming.remote_address();
            let shaken = match incoming.accept() {
                Ok(connecting) => tokio::select! {
                    shaken = timeout(inner.options.connect_timeout, connecting) => shaken,
                    () = place.given_up() => {
                        tracing::debug!(%from, "a handshake was given up for another's");
                        return;
                    }
                },
                Err(error) => Ok(Err(error)),
            };
            drop(place);
            match shaken {
                Ok(Ok(connection)) => match protocol(&connection).as_deref() {
                    Some(PEER_PROTOCOL) => meet(inner, connection).await,
                    Some(JOIN_PROTOCOL) => match joins.try_acquire() {
                        Ok(_place) => join::answer(&inner, &connection).await,
                        Err(_) => connection.close(Code::Busy.into(), b"too many ask to join at once"),
                    },
                    _ => connection.close(Code::Protocol.into(), b"unknown protocol"),
                },
                Ok(Err(error)) => tracing::debug!(%from, %error, "a handshake failed"),
                Err(_) => tracing::debug!(%from, "a handshake was not finished in time"),
            }
        });
    }
}

fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// Learns who connected, and serves it if it may talk to us.
async fn meet(inner: Arc<Inner>, connection: quinn::Connection) {
    let checked = name(&connection).and_then(|name| {
        if name.cluster != inner.me.cluster {
            return Err(format!(
                "this is cluster {:016x}, the certificate is for cluster {:016x}",
                inner.me.cluster, name.cluster
            ));
        }
        if name.node == inner.me.node {
            return Err("the certificate is for this very node".to_owned());
        }
        inner.accept.admits(name.node).map(|()| name.node)
    });
    match checked {
        Ok(node) => {
            inner.connections.add(node, node, connection.clone());
            serve_peer(inner, node, connection).await;
        }
        Err(reason) => {
            tracing::warn!(from = %connection.remote_address(), %reason, "a node is refused");
            connection.close(Code::Refused.into(), reason.as_bytes());
        }
    }
}

/// Whose certificate the other end has shown; TLS has checked that an authority of the cluster signed it.
fn name(connection: &quinn::Connection) -> Result<NodeName, String> {
    let shown = connection.peer_identity().and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
    let certificate = shown.as_ref().and_then(|chain| chain.first()).ok_or("it has shown no certificate")?;
    NodeName::of(certificate).map_err(|error| error.to_string())
}

/// Hands out the streams that a peer opens, until the connection ends.
pub(super) async fn serve_peer(inner: Arc<Inner>, node: u64, connection: quinn::Connection) {
    loop {
        let (send, receive) = match connection.accept_bi().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(node = format_args!("{node:016x}"), %error, "a connection has ended");
                return;
            }
        };
        let (inner, connection) = (Arc::clone(&inner), connection.clone());
        tokio::spawn(async move {
            match stream::welcome(send, receive, inner.options.frame_bytes_max).await {
                Ok((class, stream)) => inner.accept.accept(node, class, stream),
                Err(error @ crate::NetworkError::Protocol(_)) => {
                    let reason = error.to_string();
                    tracing::warn!(node = format_args!("{node:016x}"), %error, "a peer is cut off");
                    connection.close(Code::Protocol.into(), &Bytes::from(reason));
                }
                Err(error) => tracing::debug!(node = format_args!("{node:016x}"), %error, "a stream ended early"),
            }
        });
    }
}
