//! The join token: what a person carries from a cluster to a node that is to join it.
//!
//! One line of text: `kvasir-join-` and base64url of a version, the fingerprint of the cluster's authority, the token's id, its
//! secret, and addresses of members; a checksum at the end tells a mistyped token from a wrong one.
//!
//! **Invariant:** a token proves the cluster to the node (by the fingerprint) and the node to the cluster (by the secret); who
//! reads one may join once while it is good, and nothing else.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

const PREFIX: &str = "kvasir-join-";
const VERSION: u8 = 1;
const CHECK_BYTES: usize = 4;
const TEXT_BYTES_MAX: usize = 4096;
/// Addresses in a token.
const ADDRESSES_MAX: usize = 8;
const ADDRESS_BYTES_MAX: usize = 255;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the certificate of the cluster's authority.
    pub fingerprint: [u8; 32],
    /// Which of the cluster's tokens this is.
    pub id: u64,
    /// What only those have who were given the token; the cluster keeps its hash.
    pub secret: [u8; 32],
    /// Where members may be reached, `host:port`.
    pub addresses: Vec<String>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret stays out of every log.
        f.debug_struct("JoinToken").field("id", &self.id).field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Why a text is no join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin as one.
    #[error("this is not a join token: it does not begin with `{PREFIX}`; make one with `kvasir token create`")]
    NotAToken,
    /// Letters are missing, added or changed.
    #[error("the join token is damaged: copy it again, whole")]
    Damaged,
    /// A later kvasir made it.
    #[error("the join token is of version {0}, this kvasir knows version {VERSION}: use a matching kvasir")]
    Version(u8),
    /// It cannot be made: too many addresses or one that is too long.
    #[error("a join token holds 1 to {ADDRESSES_MAX} addresses of at most {ADDRESS_BYTES_MAX} bytes")]
    Addresses,
}

impl JoinToken {
    /// Makes a token with a secret of its own.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn create(fingerprint: [u8; 32], addresses: Vec<String>) -> Result<Self, getrandom::Error> {
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut secret)?;
        // 0 is no id.
        Ok(Self { fingerprint, id: u64::from_le_bytes(id).max(1), secret, addresses })
    }

    /// What the cluster keeps of the secret.
    pub fn secret_hash(&self) -> [u8; 32] {
        secret_hash(&self.secret)
    }

    /// The token as text.
    ///
    /// # Errors
    /// [`TokenError::Addresses`].
    pub fn encode(&self) -> Result<String, TokenError> {
        if self.addresses.is_empty() || self.addresses.len() > ADDRESSES_MAX {
            return Err(TokenError::Addresses);
        }
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.fingerprint);
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.secret);
        for address in &self.addresses {
            let length = u8::try_from(address.len()).map_err(|_| TokenError::Addresses)?;
            bytes.push(length);
            bytes.extend_from_slice(address.as_bytes());
        }
        let check = check(&bytes);
        bytes.extend_from_slice(&check);
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        if encoded.len() > TEXT_BYTES_MAX {
            return Err(TokenError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenError::Damaged)?;
        let (body, found) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(TokenError::Damaged)?;
        if check(body) != *found {
            return Err(TokenError::Damaged);
        }
        let (version, rest) = body.split_first().ok_or(TokenError::Damaged)?;
        if *version != VERSION {
            return Err(TokenError::Version(*version));
        }
        let (fingerprint, rest) = rest.split_first_chunk::<32>().ok_or(TokenError::Damaged)?;
        let (id, rest) = rest.split_first_chunk::<8>().ok_or(TokenError::Damaged)?;
        let (secret, mut rest) = rest.split_first_chunk::<32>().ok_or(TokenError::Damaged)?;
        let mut addresses = Vec::new();
        while let Some((length, more)) = rest.split_first() {
            let (address, more) = more.split_at_checked(usize::from(*length)).ok_or(TokenError::Damaged)?;
            addresses.push(std::str::from_utf8(address).map_err(|_| TokenError::Damaged)?.to_owned());
            rest = more;
        }
        if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
            return Err(TokenError::Damaged);
        }
        Ok(Self { fingerprint: *fingerprint, id: u64::from_le_bytes(*id), secret: *secret, addresses })
    }
}

/// What the cluster keeps of a secret.
pub fn secret_hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = Sha256::digest(bytes);
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&digest[..CHECK_BYTES]);
    check
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            fingerprint: [7; 32],
            id: 42,
            secret: [9; 32],
            addresses: vec!["10.0.0.1:2380".into(), "[::1]:2380".into()],
        }
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let text = token().encode().unwrap();
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains('9'), "the secret is shown");
    }

    #[test]
    fn what_is_no_token_is_told_from_a_damaged_one_and_a_newer_one() {
        assert_eq!("10.0.0.1:2380".parse::<JoinToken>(), Err(TokenError::NotAToken));
        let text = token().encode().unwrap();
        assert_eq!(text[..text.len() - 1].parse::<JoinToken>(), Err(TokenError::Damaged));
        let mut bytes = URL_SAFE_NO_PAD.decode(&text[PREFIX.len()..]).unwrap();
        bytes.truncate(bytes.len() - CHECK_BYTES);
        bytes[0] = 2;
        let check = check(&bytes);
        bytes.extend_from_slice(&check);
        assert_eq!(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)).parse::<JoinToken>(), Err(TokenError::Version(2)));
    }

    #[test]
    fn a_token_without_addresses_or_with_one_too_long_is_not_made() {
        for addresses in [vec![], vec!["a".repeat(256)], vec![String::from("a"); 9]] {
            assert_eq!(JoinToken { addresses, ..token() }.encode(), Err(TokenError::Addresses));
        }
    }

    proptest! {
        #[test]
        fn a_changed_letter_is_noticed(at in 0usize..100, letter in "[A-Za-z0-9_-]") {
            let text = token().encode().unwrap();
            let at = PREFIX.len() + at % (text.len() - PREFIX.len());
            let mut changed = text.clone();
            changed.replace_range(at..=at, &letter);
            prop_assume!(changed != text);
            prop_assert_eq!(changed.parse::<JoinToken>(), Err(TokenError::Damaged));
        }

        #[test]
        fn any_text_is_a_token_or_refused(text in "kvasir-join-[A-Za-z0-9_-]{0,200}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
