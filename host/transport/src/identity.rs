//! Who a node is, and how it proves it.
//!
//! A cluster has an [`Authority`] of its own, made at bootstrap. It signs a certificate for each node that names the cluster and
//! the node ([`NodeName`]); both ends of a connection check the other's. [`Folder`] keeps them on disk.
//!
//! **Invariants:** a private key leaves the node that made it only as the authority's key does: to another voter; on disk both
//! are readable by their owner alone. A certificate is trusted for the one name it carries.

mod authority;
mod credentials;
mod files;
mod name;

pub use authority::{Authority, CERTIFICATE_LIFE, fingerprint, key_hash};
pub use credentials::{Credentials, NodeKey};
pub use files::{Folder, OperatorFiles};
pub use name::NodeName;
pub use rustls::pki_types::CertificateDer;

/// What is wrong with a certificate, a key or the folder they lie in.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file or a peer's bytes that are not what they should be.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// A path, or what was sent.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A private key that others may read.
    #[error(
        "{path} may be read by others (mode {mode:03o}): run `chmod 600 {path}`, and replace it if others may have read it"
    )]
    Exposed {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// The disk's answer.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Key generation or signing failed.
    #[error("cannot make {what}: {why}")]
    Crypto {
        /// What was to be made.
        what: &'static str,
        /// The library's reason.
        why: String,
    },
}

impl IdentityError {
    pub(crate) fn invalid(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Invalid { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn crypto(what: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |error| Self::Crypto { what, why: error.to_string() }
    }
}

#[cfg(test)]
mod tests;
