//! Who this node is to the others: its certificate, the authority behind it, how it gets both, and how they are kept fresh.
//!
//! `boot` settles it before the node reaches for anybody: read from the data folder, given by the cluster that a token names
//! (`joining`), made for a new cluster, or the operator's own files. Once the node runs, an [`Identity`] answers those who ask to
//! join and members that ask for certificates (`registrar`), and looks after its own (`keeper`, `rotation`).
//!
//! **Invariant:** the key of an authority goes to voters alone, as the membership applied here has them, and to a learner that the
//! leader is about to make a voter, so that no voter is without it; a certificate is signed for
//! the node that asks over a connection which proved who it is, or that used a join token.

pub(crate) mod boot;
mod joining;
mod keeper;
mod registrar;
mod rotation;

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use kvasir_engine::Engine;
use kvasir_plugins::PluginHost;
use kvasir_transport::identity::{Authority, CertificateDer, Credentials, Folder, IdentityError, OperatorFiles, fingerprint};
use kvasir_transport::quic::Quic;
use tokio::sync::Mutex;

/// Where the certificates come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// The cluster makes its own; they are kept here.
    Cluster(Folder),
    /// The operator's files.
    Operator(OperatorFiles),
}

/// A running node's identity. A clone is another handle.
#[derive(Clone)]
pub(crate) struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    source: Source,
    engine: Engine,
    quic: Quic,
    certificate_life: Duration,
    held: RwLock<Held>,
    /// One node joins at a time; one change of what is held.
    joins: Mutex<()>,
    changes: Mutex<()>,
    /// Whom a change of authorities waits for, as the leader last saw it.
    waiting_for: RwLock<String>,
    /// Answers what members ask of plugins.
    plugins: OnceLock<PluginHost>,
}

/// What the node has in hand.
#[derive(Clone)]
struct Held {
    credentials: Arc<Credentials>,
    /// Those whose key is here.
    authorities: Vec<Arc<Authority>>,
}

impl Identity {
    /// The identity of a node that runs with what `boot` has settled.
    pub(crate) fn new(source: Source, booted: boot::Booted, engine: Engine, quic: Quic, certificate_life: Duration) -> Self {
        let authorities = booted.authorities.into_iter().map(Arc::new).collect();
        let held = RwLock::new(Held { credentials: Arc::new(booted.credentials), authorities });
        let (joins, changes, waiting_for) = (Mutex::default(), Mutex::default(), RwLock::default());
        let plugins = OnceLock::new();
        let inner = Inner { source, engine, quic, certificate_life, held, joins, changes, waiting_for, plugins };
        Self { inner: Arc::new(inner) }
    }

    /// Has members' questions about plugins answered from now on.
    pub(crate) fn attend_plugins(&self, plugins: PluginHost) {
        // A node has one host.
        let _ = self.inner.plugins.set(plugins);
    }

    fn held(&self) -> Held {
        self.inner.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes up new credentials: for every connection from now on.
    fn hold(&self, credentials: Credentials) -> Result<(), String> {
        self.inner.quic.renew(&credentials).map_err(|error| error.to_string())?;
        let mut held = self.inner.held.write().unwrap_or_else(PoisonError::into_inner);
        held.credentials = Arc::new(credentials);
        Ok(())
    }

    fn hold_authorities(&self, authorities: Vec<Arc<Authority>>) {
        self.inner.held.write().unwrap_or_else(PoisonError::into_inner).authorities = authorities;
    }

    /// When this node's certificate ends, in ms since 1970.
    pub(crate) fn certificate_not_after_ms(&self) -> u64 {
        let since = self.held().credentials.not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether most of the time in which the certificate should have been renewed is over.
    pub(crate) fn is_overdue(&self) -> bool {
        let credentials = self.held().credentials;
        let left = credentials.not_after().duration_since(SystemTime::now()).unwrap_or_default();
        credentials.is_due(SystemTime::now()) && left < self.inner.certificate_life / 6
    }

    /// Fingerprints of the authorities that this node trusts, the one that signs first.
    pub(crate) fn trusted(&self) -> Vec<[u8; 32]> {
        self.held().credentials.roots().iter().map(fingerprint).collect()
    }

    /// The authority that signs at present, if the cluster has its own: the first that is trusted, until the members agreed on
    /// another.
    fn signing_root(&self) -> Option<CertificateDer<'static>> {
        match &self.inner.source {
            Source::Operator(_) => None,
            Source::Cluster(_) => {
                self.agreed_roots().or_else(|| Some(self.held().credentials.roots().to_vec()))?.into_iter().next()
            }
        }
    }

    /// The authorities that the members have agreed on, the one that signs first.
    fn agreed_roots(&self) -> Option<Vec<CertificateDer<'static>>> {
        let agreed = self.inner.engine.authorities()?;
        let mut roots: Vec<_> = agreed.roots.iter().map(|root| CertificateDer::from(root.to_vec())).collect();
        roots[..=agreed.signing].rotate_right(1);
        Some(roots)
    }

    /// The authority that signs at present, if its key is here.
    fn signing_authority(&self) -> Option<Arc<Authority>> {
        self.authority_of(&self.signing_root()?)
    }

    fn authority_of(&self, root: &CertificateDer<'_>) -> Option<Arc<Authority>> {
        self.held().authorities.into_iter().find(|authority| authority.certificate() == root)
    }

    /// Where a node that is to join may find members: peer addresses, this node's first.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let me = self.inner.engine.node_id();
        let mut members = self.inner.engine.members();
        members.sort_by_key(|info| (info.id != me, info.learner, info.id));
        // Of itself it knows better than its record, which is a moment behind after a start elsewhere.
        if let Some(mine) = members.first_mut().filter(|info| info.id == me) {
            mine.member.peer_urls = self.inner.engine.advertised_peer_urls().to_vec();
        }
        let mut addresses: Vec<String> = members.iter().flat_map(|info| info.member.peer_addresses()).collect();
        addresses.dedup();
        addresses.truncate(kvasir_api::limits::JOIN_TOKEN_ADDRESSES_MAX);
        addresses
    }

    /// What a join token pins: the fingerprint of the authority that signs.
    ///
    /// # Errors
    /// When the cluster's certificates are the operator's own.
    pub(crate) fn pin(&self) -> Result<[u8; 32], kvasir_api::Error> {
        self.signing_root().map(|root| fingerprint(&root)).ok_or_else(not_ours)
    }

    /// Other voters, who have the authorities' keys.
    fn other_voters(&self) -> BTreeSet<u64> {
        let me = self.inner.engine.node_id();
        let members = self.inner.engine.members();
        members.into_iter().filter(|info| !info.learner && info.id != me).map(|info| info.id).collect()
    }

    fn is_voter(&self, node: u64) -> bool {
        self.inner.engine.members().into_iter().any(|info| info.id == node && !info.learner)
    }

    /// Asks a member, for a bounded time.
    async fn ask<M: prost::Message + Default>(&self, node: u64, request: impl prost::Message) -> Result<M, String> {
        let asking = self.inner.engine.ask(node, Bytes::from(request.encode_to_vec()));
        let answer =
            tokio::time::timeout(ASK_TIMEOUT, asking).await.map_err(|_| format!("node {node:016x} does not answer"))?;
        M::decode(answer.map_err(|error| error.to_string())?)
            .map_err(|error| format!("node {node:016x} answers nonsense: {error}"))
    }
}

/// How long one member is waited for.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

fn not_ours() -> kvasir_api::Error {
    kvasir_api::Error::Precondition(
        "this cluster's certificates are your own (--peer-cert-file), so it gives none: sign one for the new member, add it with \
         `kvasir member add`, and start it with --initial-cluster-state existing"
            .to_owned(),
    )
}

/// Work on files, off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, IdentityError> + Send + 'static) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
