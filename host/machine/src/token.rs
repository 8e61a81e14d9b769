//! Join tokens: each lets one node join, once, while its time lasts.
//!
//! The secret is never here, only its hash. Time is the stamps' wall time: that of the leaders that proposed.
//!
//! **Invariant:** a token gives out one node id, to one key; no other key ever gets that id, and no key gets it again once its node
//! has joined.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_api::command::{TokenCreate, TokenRemove, TokenUse};
use kvasir_api::{Error, limits};

use crate::codec::{FormatError, Reader, Writer};
use crate::table::{self, FORMAT};
use crate::{Effects, Reply, State, Table};

/// SHA-256 of a secret or of a key.
type Hash = [u8; 32];

/// What became of a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenUsed {
    /// Nothing yet.
    No,
    /// Whoever has the key with this hash was given the id of a node.
    By {
        /// Of the node's public key.
        key_hash: [u8; 32],
        /// The node.
        node_id: u64,
        /// The node became a member.
        joined: bool,
    },
}

/// A join token, as the cluster knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its id.
    pub id: u64,
    /// Of its secret.
    pub secret_hash: [u8; 32],
    /// When its time is over, in ms since 1970.
    pub expires_wall_ms: u64,
    /// What became of it.
    pub used: TokenUsed,
}

impl TokenRecord {
    /// Whether whoever shows this secret for this key may be let in at `wall_ms`.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, secret_hash: &[u8], key_hash: &[u8], wall_ms: u64) -> Result<(), Error> {
        // Of the secret's hash, which tells nothing about the secret: any comparison will do.
        if self.secret_hash != secret_hash {
            return Err(unknown());
        }
        if wall_ms >= self.expires_wall_ms {
            return Err(Error::Precondition("the join token's time is over; make another with `kvasir token create`".into()));
        }
        match self.used {
            TokenUsed::By { key_hash: used_by, .. } if used_by != key_hash => Err(Error::Precondition(
                "the join token was used by another node; make one for each with `kvasir token create`".into(),
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(FORMAT, 90);
        out.bytes(&self.secret_hash);
        out.varint(self.expires_wall_ms);
        match self.used {
            TokenUsed::No => out.byte(0),
            TokenUsed::By { key_hash, node_id, joined } => {
                out.byte(1 + u8::from(joined));
                out.bytes(&key_hash);
                out.varint(node_id);
            }
        }
        out.finish()
    }

    pub(crate) fn decode(key: &[u8], value: &Bytes) -> Result<Self, FormatError> {
        let id = table::numbered("join token", b"", key)?;
        let mut input = Reader::new("join token", FORMAT, value)?;
        let hash = |input: &mut Reader<'_>| {
            let bytes = input.bytes()?;
            Hash::try_from(&bytes[..]).map_err(|_| input.invalid("a hash is not 32 bytes"))
        };
        let secret_hash = hash(&mut input)?;
        let expires_wall_ms = input.varint()?;
        let used = match input.byte()? {
            0 => TokenUsed::No,
            used @ (1 | 2) => {
                let key_hash = hash(&mut input)?;
                TokenUsed::By { key_hash, node_id: input.varint()?, joined: used == 2 }
            }
            _ => return Err(input.invalid("its use is unknown")),
        };
        let given = match used {
            TokenUsed::By { node_id, .. } => node_id != 0,
            TokenUsed::No => true,
        };
        if id == 0 || !given {
            return Err(input.invalid("an id is 0"));
        }
        input.end()?;
        Ok(Self { id, secret_hash, expires_wall_ms, used })
    }
}

/// All join tokens, by id.
pub(crate) type Tokens = BTreeMap<u64, TokenRecord>;

fn unknown() -> Error {
    Error::Missing(
        "the join token is not one of this cluster's, or was removed; make another with `kvasir token create`".into(),
    )
}

fn hash(what: &str, bytes: &[u8]) -> Result<Hash, Error> {
    bytes.try_into().map_err(|_| Error::Invalid(format!("{what} is not a hash of 32 bytes")))
}

impl State {
    /// Join tokens, in order of id.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    /// A join token.
    pub fn token(&self, id: u64) -> Option<&TokenRecord> {
        self.tokens.get(&id)
    }

    /// Whether whoever shows this secret for this key may use the token at `wall_ms`.
    ///
    /// # Errors
    /// Why not.
    pub fn check_token(&self, id: u64, secret_hash: &[u8], key_hash: &[u8], wall_ms: u64) -> Result<(), Error> {
        self.tokens.get(&id).ok_or_else(unknown)?.check(secret_hash, key_hash, wall_ms)
    }

    fn set_token(&mut self, record: TokenRecord, effects: &mut Effects) {
        effects.set(Table::Token, record.id.to_be_bytes().to_vec(), record.encode());
        self.tokens.insert(record.id, record);
    }

    pub(crate) fn apply_token_create(&mut self, request: &TokenCreate, effects: &mut Effects) -> Result<Reply, Error> {
        let secret_hash = hash("the secret", &request.secret_hash)?;
        let ttl_ms_max = limits::JOIN_TOKEN_TTL_S_MAX * 1_000;
        if request.id == 0 || !(1..=ttl_ms_max).contains(&request.ttl_ms) {
            let most = limits::JOIN_TOKEN_TTL_S_MAX / 3_600;
            return Err(Error::Invalid(format!("a join token has an id, and is good for at most {most} hours")));
        }
        if self.tokens.contains_key(&request.id) {
            return Err(Error::Precondition("there is a join token with this id".into()));
        }
        let now = self.wall_ms();
        let over: Vec<u64> = self.tokens.values().filter(|token| token.expires_wall_ms <= now).map(|token| token.id).collect();
        for id in over {
            self.tokens.remove(&id);
            effects.delete(Table::Token, id.to_be_bytes().to_vec());
        }
        if self.tokens.len() >= limits::JOIN_TOKENS_MAX {
            let most = limits::JOIN_TOKENS_MAX;
            return Err(Error::Exhausted(format!("there are {most} join tokens: remove some with `kvasir token rm`")));
        }
        let expires_wall_ms = now.saturating_add(request.ttl_ms);
        self.set_token(TokenRecord { id: request.id, secret_hash, expires_wall_ms, used: TokenUsed::No }, effects);
        Ok(Reply::TokenCreate { revision: self.revision(), expires_wall_ms })
    }

    pub(crate) fn apply_token_use(&mut self, index: u64, request: &TokenUse, effects: &mut Effects) -> Result<Reply, Error> {
        let key_hash = hash("the key", &request.key_hash)?;
        self.check_token(request.id, &request.secret_hash, &key_hash, self.wall_ms())?;
        let record = self.tokens.get(&request.id).copied().ok_or_else(unknown)?;
        let (node_id, joined) = match record.used {
            TokenUsed::No => (index, false),
            TokenUsed::By { node_id, joined, .. } => (node_id, joined),
        };
        let used = TokenUsed::By { key_hash, node_id, joined: joined || request.joined };
        self.set_token(TokenRecord { used, ..record }, effects);
        Ok(Reply::TokenUse { revision: self.revision(), node_id, joined })
    }

    pub(crate) fn apply_token_remove(&mut self, request: &TokenRemove, effects: &mut Effects) -> Result<Reply, Error> {
        if self.tokens.remove(&request.id).is_none() {
            return Err(Error::Missing(format!("there is no join token {:016x}", request.id)));
        }
        effects.delete(Table::Token, request.id.to_be_bytes().to_vec());
        Ok(Reply::TokenRemove { revision: self.revision() })
    }
}
