//! The cluster's certificate authority.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{IdentityError, NodeName};

/// How long a node's certificate is good for. It is renewed after two thirds of that.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long an authority is good for.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates are good from a little before they were made, because clocks differ: a tenth of their life, but at most this.
const BACKDATED_MAX: Duration = Duration::from_secs(3600);

/// SHA-256 of a certificate's DER bytes: what a join token names an authority by.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate.as_ref()).into()
}

/// SHA-256 of the public key in a request for a certificate, which must be signed with that key.
///
/// # Errors
/// `Invalid`.
pub fn key_hash(request: &[u8]) -> Result<[u8; 32], IdentityError> {
    let request = parse(request)?;
    Ok(Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&request.public_key)).into())
}

fn parse(request: &[u8]) -> Result<CertificateSigningRequestParams, IdentityError> {
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
        .map_err(|error| IdentityError::invalid("the request for a certificate", error))
}

/// Signs the certificates of one cluster's nodes.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of every log.
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the authority of a new cluster.
    ///
    /// # Errors
    /// `Crypto`.
    pub fn create(cluster: u64, now: SystemTime) -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(IdentityError::crypto("the authority's key"))?;
        let mut params = params(now, AUTHORITY_LIFE, format!("kvasir cluster {cluster:016x}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(IdentityError::crypto("the authority's certificate"))?;
        Ok(Self { certificate: certificate.into(), issuer: Issuer::new(params, key) })
    }

    /// Takes up an authority from its certificate (DER) and key (PEM).
    ///
    /// # Errors
    /// `Invalid` when either does not parse or they do not belong together.
    pub fn load(certificate: CertificateDer<'static>, key: &str) -> Result<Self, IdentityError> {
        let key = KeyPair::from_pem(key).map_err(|error| IdentityError::invalid("the authority's key", error))?;
        let parsed = webpki::EndEntityCert::try_from(&certificate)
            .map_err(|error| IdentityError::invalid("the authority's certificate", error))?;
        if parsed.subject_public_key_info().as_ref() != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(IdentityError::invalid("the authority's key", "it is not the key of the authority's certificate"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| IdentityError::invalid("the authority's certificate", error))?;
        Ok(Self { certificate, issuer })
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's key as PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a certificate for `name` and the key in `request`. Nothing else in the request counts.
    ///
    /// # Errors
    /// `Invalid` when the request does not parse or is not signed with the key it carries.
    pub fn sign(
        &self,
        request: &[u8],
        name: NodeName,
        now: SystemTime,
        life: Duration,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let request = parse(request)?;
        let mut params = params(now, life, name.uri());
        params.subject_alt_names = [SanType::URI as fn(_) -> _, SanType::DnsName as fn(_) -> _]
            .into_iter()
            .zip([name.uri(), name.dns()])
            .map(|(form, text)| text.try_into().map(form))
            .collect::<Result<_, rcgen::Error>>()
            .map_err(IdentityError::crypto("a node's name"))?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let signed =
            params.signed_by(&request.public_key, &self.issuer).map_err(IdentityError::crypto("a node's certificate"))?;
        Ok(signed.into())
    }
}

fn params(now: SystemTime, life: Duration, common_name: String) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = OffsetDateTime::from(now - BACKDATED_MAX.min(life / 10));
    params.not_after = OffsetDateTime::from(now + life);
    params
}
