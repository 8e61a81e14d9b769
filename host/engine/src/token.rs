//! Join tokens and the authorities that members trust: what the node's identity needs of the replicated state.
//!
//! **Invariant:** a secret never comes here, only its hash.

use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::command::{AuthoritySet, Origin, TokenCreate, TokenRemove, TokenUse};
use kvasir_machine::{Authorities, DEFAULT_TENANT, Reply, TokenRecord, TokenUsed};

use crate::authorise;
use crate::caller::Caller;
use crate::engine::Engine;
use crate::write::unexpected;

impl Engine {
    /// Makes a join token that is good for `ttl_ms`, and says until when (ms since 1970).
    ///
    /// # Errors
    /// `PermissionDenied`, what apply refuses it with, and what a proposal can fail with.
    pub async fn token_create(&self, caller: &Caller, id: u64, secret_hash: [u8; 32], ttl_ms: u64) -> Result<u64, Error> {
        let create = TokenCreate { id, secret_hash: secret_hash.to_vec().into(), ttl_ms };
        match self.submit(caller, Body::TokenCreate(create)).await? {
            Reply::TokenCreate { expires_wall_ms, .. } => Ok(expires_wall_ms),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Every join token, in order of id.
    ///
    /// # Errors
    /// `PermissionDenied`, and what a read can fail with.
    pub async fn tokens(&self, caller: &Caller) -> Result<Vec<TokenRecord>, Error> {
        authorise::allow_operator(caller)?;
        self.linearize().await?;
        Ok(self.consensus().state().read().tokens().copied().collect())
    }

    /// Forgets a join token: whoever holds it can no longer join.
    ///
    /// # Errors
    /// `PermissionDenied`, `Missing`, and what a proposal can fail with.
    pub async fn token_remove(&self, caller: &Caller, id: u64) -> Result<(), Error> {
        match self.submit(caller, Body::TokenRemove(TokenRemove { id })).await? {
            Reply::TokenRemove { .. } => Ok(()),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Whether a token would be taken, as far as this node has applied: what keeps guesses out of the log.
    ///
    /// # Errors
    /// Why not.
    pub fn token_check(&self, id: u64, secret_hash: [u8; 32], key_hash: [u8; 32]) -> Result<(), Error> {
        let wall_ms = self.wall_ms();
        self.consensus().state().read().check_token(id, &secret_hash, &key_hash, wall_ms)
    }

    /// The node that a token gave its id to, as far as this node has applied.
    pub fn token_node(&self, id: u64) -> Option<u64> {
        match self.consensus().state().read().token(id)?.used {
            TokenUsed::By { node_id, .. } => Some(node_id),
            TokenUsed::No => None,
        }
    }

    /// Uses a token for the node with this key: the node's id, and whether it had joined before.
    ///
    /// # Errors
    /// Why it is not taken, and what a proposal can fail with.
    pub async fn token_use(
        &self,
        id: u64,
        secret_hash: [u8; 32],
        key_hash: [u8; 32],
        joined: bool,
    ) -> Result<(u64, bool), Error> {
        let (secret_hash, key_hash) = (secret_hash.to_vec().into(), key_hash.to_vec().into());
        let body = Body::TokenUse(TokenUse { id, secret_hash, key_hash, joined });
        match self.propose_as(body, Origin::default(), DEFAULT_TENANT).await? {
            Reply::TokenUse { node_id, joined, .. } => Ok((node_id, joined)),
            reply => Err(unexpected(&reply)),
        }
    }

    /// The authorities, as far as this node has applied; `None` before they were ever changed.
    pub fn authorities(&self) -> Option<Authorities> {
        self.consensus().state().read().authorities().cloned()
    }

    /// Changes the authorities, if those of `expect_epoch` are in force, and says the new epoch.
    ///
    /// # Errors
    /// What apply refuses it with, and what a proposal can fail with.
    pub async fn set_authorities(&self, expect_epoch: u64, roots: Vec<bytes::Bytes>, signing: u32) -> Result<u64, Error> {
        let body = Body::AuthoritySet(AuthoritySet { expect_epoch, roots, signing });
        match self.propose_as(body, Origin::default(), DEFAULT_TENANT).await? {
            Reply::AuthoritySet { epoch, .. } => Ok(epoch),
            reply => Err(unexpected(&reply)),
        }
    }
}
