//! TLS and transport configurations.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{IdleTimeout, TransportConfig, VarInt};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, version::TLS13};

use super::{JOIN_PROTOCOL, PEER_PROTOCOL, QuicError, QuicOptions};
use crate::identity::Credentials;

/// Streams that one peer may have open at once.
const STREAMS_MAX: u32 = 256;
/// Bytes in flight on one stream, and on a connection: 50 ms of a gigabit.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;

/// The configurations of one set of credentials.
pub(super) struct Configs {
    pub(super) server: quinn::ServerConfig,
    pub(super) client: quinn::ClientConfig,
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    // Named here, so that no other crate's choice of a default decides.
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(super) fn roots(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, QuicError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store.add(certificate.clone()).map_err(|error| QuicError::Tls(format!("an authority's certificate: {error}")))?;
    }
    Ok(store)
}

impl Configs {
    pub(super) fn new(credentials: &Credentials, options: &QuicOptions) -> Result<Self, QuicError> {
        let tls = |error: &dyn std::fmt::Display| QuicError::Tls(error.to_string());
        let roots = Arc::new(roots(credentials.roots())?);
        let (chain, key) = (credentials.chain(), credentials.private_key());
        let transport = Arc::new(transport(options));

        // Who has no certificate may shake hands, and then do nothing but ask to join.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| tls(&error))?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| tls(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| tls(&error))?;
        server.alpn_protocols = vec![PEER_PROTOCOL.to_vec(), JOIN_PROTOCOL.to_vec()];
        // What can be replayed is not accepted, and a resumed session would skip the look at who is removed.
        server.max_early_data_size = 0;
        server.send_tls13_tickets = 0;
        let mut server =
            quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).map_err(|error| tls(&error))?));
        server.transport_config(Arc::clone(&transport));
        server.migration(false);
        server.max_incoming(options.handshakes_max);

        let mut client = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| tls(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| tls(&error))?;
        client.alpn_protocols = vec![PEER_PROTOCOL.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).map_err(|error| tls(&error))?));
        client.transport_config(transport);
        Ok(Self { server, client })
    }
}

pub(super) fn endpoint() -> quinn::EndpointConfig {
    quinn::EndpointConfig::default()
}

pub(super) fn transport(options: &QuicOptions) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(options.keep_alive))
        .max_idle_timeout(IdleTimeout::try_from(options.idle_timeout).ok())
        .initial_rtt(options.initial_rtt)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .send_fairness(false);
    transport
}
