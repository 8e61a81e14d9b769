//! What a node shows: its key, the certificate for it, and whom it trusts.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use super::{IdentityError, NodeName};

/// A node's private key. It is made where it is used and never sent.
pub struct NodeKey {
    pair: KeyPair,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

impl NodeKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// `Crypto`.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate().map(|pair| Self { pair }).map_err(IdentityError::crypto("a key"))
    }

    /// Reads a key from PEM.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        KeyPair::from_pem(pem).map(|pair| Self { pair }).map_err(|error| IdentityError::invalid("the node's key", error))
    }

    /// The key as PEM.
    pub fn pem(&self) -> String {
        self.pair.serialize_pem()
    }

    /// A request for a certificate for this key (DER): the key and the proof of having it, no name.
    ///
    /// # Errors
    /// `Crypto`.
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.pair).map_err(IdentityError::crypto("a request for a certificate"))?;
        Ok(request.der().to_vec())
    }

    fn fits(&self, certificate: &CertificateDer<'_>) -> Result<bool, IdentityError> {
        let parsed =
            webpki::EndEntityCert::try_from(certificate).map_err(|error| IdentityError::invalid("a certificate", error))?;
        Ok(parsed.subject_public_key_info().as_ref() == rcgen::PublicKeyData::subject_public_key_info(&self.pair))
    }

    fn der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.pair.serialize_der()))
    }
}

/// A node's key, its certificate and the authorities it trusts: all that a connection needs.
#[derive(Debug)]
pub struct Credentials {
    name: NodeName,
    key: NodeKey,
    certificate: CertificateDer<'static>,
    /// Between the certificate and an authority, where the operator's own have some.
    intermediates: Vec<CertificateDer<'static>>,
    /// Which of the roots signed the certificate, or what lies between.
    issuer: usize,
    /// More than one while the authority is being replaced.
    roots: Vec<CertificateDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Credentials {
    /// Puts credentials together.
    ///
    /// # Errors
    /// `Invalid` when the certificate names no node, is not for the key, or is of none of the authorities.
    pub fn new(
        key: NodeKey,
        certificate: CertificateDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        Self::with_chain(key, vec![certificate], roots)
    }

    /// As [`Credentials::new`], with the certificates that lie between the node's, which is the first, and an authority's.
    ///
    /// # Errors
    /// As [`Credentials::new`].
    pub fn with_chain(
        key: NodeKey,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let mut chain = chain.into_iter();
        let certificate = chain.next().ok_or_else(|| IdentityError::invalid("the node's certificate", "there is none"))?;
        let intermediates: Vec<_> = chain.collect();
        let name = NodeName::of(&certificate)?;
        if !key.fits(&certificate)? {
            return Err(IdentityError::invalid("the node's certificate", "it is not for the node's key"));
        }
        if roots.is_empty() {
            return Err(IdentityError::invalid("the cluster's authorities", "there is none"));
        }
        let (not_before, not_after) = validity(&certificate)?;
        let mut issuer = Err(IdentityError::invalid("the node's certificate", "there is no authority"));
        for (place, root) in roots.iter().enumerate() {
            issuer = signed_by(&certificate, &intermediates, root, not_before).map(|()| place);
            if issuer.is_ok() {
                break;
            }
        }
        Ok(Self { name, key, certificate, intermediates, issuer: issuer?, roots, not_before, not_after })
    }

    /// The same key and certificate, trusting other authorities.
    ///
    /// # Errors
    /// `Invalid` when the certificate is of none of them.
    pub fn trusting(&self, roots: Vec<CertificateDer<'static>>) -> Result<Self, IdentityError> {
        self.certified(self.certificate.clone(), roots)
    }

    /// The same key with another certificate.
    ///
    /// # Errors
    /// As [`Credentials::new`].
    pub fn certified(
        &self,
        certificate: CertificateDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        Self::new(NodeKey::from_pem(&self.key.pem())?, certificate, roots)
    }

    /// Whose they are.
    pub fn name(&self) -> NodeName {
        self.name
    }

    /// The node's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The node's key.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// The authorities whose certificates are trusted.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The authority that vouches for the certificate.
    pub fn issuer(&self) -> &CertificateDer<'static> {
        &self.roots[self.issuer]
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether it is time for a new certificate: two thirds of its life are over.
    pub fn is_due(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or(Duration::ZERO);
        now >= self.not_before + life * 2 / 3
    }

    /// The certificate and, for those who know the authority only by its fingerprint, the authorities behind it.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.certificate).chain(&self.intermediates).chain(&self.roots).cloned().collect()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        self.key.der()
    }
}

/// Whether a chain leads from the certificate to the root. Time is left to each connection: credentials may be over, and say so.
fn signed_by(
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    at: SystemTime,
) -> Result<(), IdentityError> {
    let wrong = |error: &dyn std::fmt::Display| {
        IdentityError::invalid("the node's certificate", format!("it is of none of the authorities ({error})"))
    };
    let anchor = webpki::anchor_from_trusted_cert(root).map_err(|error| wrong(&error))?;
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| wrong(&error))?;
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let usage = webpki::KeyUsage::server_auth();
    parsed
        .verify_for_usage(algorithms, &[anchor], intermediates, UnixTime::since_unix_epoch(since), usage, None, None)
        .map(|_| ())
        .map_err(|error| wrong(&error))
}

fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), IdentityError> {
    use x509_parser::prelude::FromDer;
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)
        .map_err(|error| IdentityError::invalid("a certificate", error))?;
    let at = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let validity = parsed.validity();
    Ok((at(validity.not_before.timestamp()), at(validity.not_after.timestamp())))
}
