//! The name in a node's certificate.

use rustls::pki_types::CertificateDer;

use super::IdentityError;

/// Which node of which cluster.
///
/// It stands in a certificate twice: as a URI for whoever accepts (`kvasir://<cluster>/node/<node>`, ids as 16 hexadecimal
/// digits), and as a DNS name for whoever dials, so that the dialled id is checked as every TLS client checks a host's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeName {
    /// The cluster's id.
    pub cluster: u64,
    /// The node's id.
    pub node: u64,
}

const SCHEME: &str = "kvasir://";
const NODE: &str = "/node/";

impl NodeName {
    /// The URI form.
    pub fn uri(self) -> String {
        format!("{SCHEME}{:016x}{NODE}{:016x}", self.cluster, self.node)
    }

    /// The DNS form. It is looked up nowhere.
    pub fn dns(self) -> String {
        format!("n{:016x}.c{:016x}.kvasir", self.node, self.cluster)
    }

    /// Reads the URI form.
    ///
    /// # Errors
    /// `Invalid` when it is not exactly what [`NodeName::uri`] writes.
    pub fn parse(uri: &str) -> Result<Self, IdentityError> {
        let read = || {
            let (cluster, node) = uri.strip_prefix(SCHEME)?.split_once(NODE)?;
            let id = |digits: &str| {
                let lower = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
                (digits.len() == 16 && lower).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
            };
            Some(Self { cluster: id(cluster)?, node: id(node)? })
        };
        read().ok_or_else(|| IdentityError::invalid("the node's name in a certificate", format!("it is {uri:?}")))
    }

    /// The name in a certificate whose chain has been checked already.
    ///
    /// # Errors
    /// `Invalid` when it does not parse, or names no node, or more than one.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let parsed =
            webpki::EndEntityCert::try_from(certificate).map_err(|error| IdentityError::invalid("a certificate", error))?;
        let mut names = parsed.valid_uri_names().filter(|uri| uri.starts_with(SCHEME));
        match (names.next(), names.next()) {
            (Some(uri), None) => Self::parse(uri),
            (None, _) => Err(IdentityError::invalid("a certificate", "it names no kvasir node")),
            (Some(_), Some(_)) => Err(IdentityError::invalid("a certificate", "it names more than one kvasir node")),
        }
    }
}

impl std::fmt::Display for NodeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.uri())
    }
}
