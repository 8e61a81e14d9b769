//! The one request of somebody who has a join token and no certificate yet.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::TLS13;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::time::timeout;

use super::connections::why;
use super::{Code, Inner, JOIN_PROTOCOL, QuicOptions, config};
use crate::identity::fingerprint;

/// Bytes of a request to join.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Bytes of its answer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Why a cluster could not be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JoinFailed {
    /// No address led to a member.
    #[error("no member of the cluster can be reached at {addresses}: {why}")]
    Unreachable {
        /// What was tried.
        addresses: String,
        /// The last failure.
        why: String,
    },
    /// Whoever answered is not of the cluster that the token is for.
    #[error("{address} is not a member of the cluster that the join token is for: {why}")]
    OtherCluster {
        /// Who answered.
        address: String,
        /// What TLS said.
        why: String,
    },
}

/// Sends one request to the first address that answers as a member of the cluster whose authority has this fingerprint.
///
/// # Errors
/// When none does.
pub async fn join(
    addresses: &[String],
    authority: [u8; 32],
    request: Bytes,
    options: &QuicOptions,
) -> Result<Bytes, JoinFailed> {
    let unreachable = |why: String| JoinFailed::Unreachable { addresses: addresses.join(", "), why };
    let config = client(authority, options).map_err(|error| unreachable(error.to_string()))?;
    let mut last = unreachable("the token has no address".to_owned());
    for address in addresses {
        let resolved = match tokio::net::lookup_host(address).await {
            Ok(resolved) => resolved,
            Err(error) => {
                last = unreachable(error.to_string());
                continue;
            }
        };
        for resolved in resolved {
            match ask(resolved, config.clone(), request.clone(), options).await {
                Ok(answer) => return Ok(answer),
                Err((true, why)) => last = JoinFailed::OtherCluster { address: address.clone(), why },
                Err((false, why)) => last = unreachable(why),
            }
        }
    }
    Err(last)
}

/// One attempt; `true` with an error that is about who answered.
async fn ask(
    address: SocketAddr,
    config: quinn::ClientConfig,
    request: Bytes,
    options: &QuicOptions,
) -> Result<Bytes, (bool, String)> {
    let failed = |error: &dyn std::fmt::Display| (false, error.to_string());
    let any: SocketAddr = if address.is_ipv6() {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    };
    let endpoint = quinn::Endpoint::client(any).map_err(|error| failed(&error))?;
    let connecting = endpoint.connect_with(config, address, "join.kvasir").map_err(|error| failed(&error))?;
    let connection = match timeout(options.connect_timeout, connecting).await {
        Err(_) => return Err((false, format!("no answer from {address}"))),
        Ok(Err(error)) => {
            let about_us = super::connections::refusal(&error).is_some();
            return Err((about_us, why(&error)));
        }
        Ok(Ok(connection)) => connection,
    };
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| failed(&error))?;
        send.write_all(&request).await.map_err(|error| failed(&error))?;
        send.finish().map_err(|error| failed(&error))?;
        receive.read_to_end(ANSWER_BYTES_MAX).await.map(Bytes::from).map_err(|error| failed(&error))
    };
    // The cluster may have to elect and to sync before it answers.
    let answered = timeout(options.connect_timeout * 10, exchange).await;
    connection.close(Code::Answered.into(), b"");
    let _ = timeout(options.connect_timeout, endpoint.wait_idle()).await;
    answered.unwrap_or_else(|_| Err((false, format!("{address} did not answer in time"))))
}

/// Answers somebody who asks to join.
pub(super) async fn answer(inner: &Inner, connection: &quinn::Connection) {
    let exchange = async {
        let read = async {
            let (send, mut receive) = connection.accept_bi().await.ok()?;
            Some((send, receive.read_to_end(REQUEST_BYTES_MAX).await.ok()?))
        };
        // Whoever has connected to ask asks.
        let (mut send, request) = timeout(inner.options.connect_timeout, read).await.ok()??;
        let answer = inner.accept.join(Bytes::from(request)).await;
        send.write_all(&answer).await.ok()?;
        send.finish().ok()?;
        // The asker closes when it has everything.
        let _ = timeout(inner.options.connect_timeout, connection.closed()).await;
        Some(())
    };
    if timeout(inner.options.connect_timeout * 10, exchange).await.ok().flatten().is_none() {
        tracing::debug!(from = %connection.remote_address(), "a request to join was not finished");
    }
    connection.close(Code::Answered.into(), b"");
}

pub(super) fn client(
    authority: [u8; 32],
    options: &QuicOptions,
) -> Result<quinn::ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
    let provider = config::provider();
    let pinned = Arc::new(Pinned { authority, provider: Arc::clone(&provider) });
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(pinned)
        .with_no_client_auth();
    tls.alpn_protocols = vec![JOIN_PROTOCOL.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    client.transport_config(Arc::new(config::transport(options)));
    Ok(client)
}

/// Trusts whoever shows the authority with the pinned fingerprint and a certificate that it signed, whatever node that names: the
/// token says which cluster, not which member.
#[derive(Debug)]
struct Pinned {
    authority: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| fingerprint(certificate) == self.authority)
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&ParsedCertificate::try_from(end_entity)?, &roots, &[], now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
