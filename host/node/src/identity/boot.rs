//! What a node starts with: read, given or made.
//!
//! **Invariant:** a node that has an identity never takes another, and a data folder without one never gets that of a joining node.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kvasir_consensus::{Boot, Member, cluster_id, node_id, was_started};
use kvasir_transport::identity::{Authority, Credentials, Folder, IdentityError, NodeKey, NodeName};
use kvasir_transport::{Network, Peer};

use super::{Source, blocking, joining};
use crate::config::Config;
use crate::config::peers::Origin;

/// How long the others have to say whether they know this node.
const ASK_OTHERS_FOR: Duration = Duration::from_secs(2);

/// What was settled.
pub(crate) struct Booted {
    pub(crate) credentials: Credentials,
    /// Authorities whose keys are here.
    pub(crate) authorities: Vec<Authority>,
    pub(crate) boot: Boot,
    pub(crate) unstored: Unstored,
}

/// What was made just now, to be stored once the data folder is known to be this process's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unstored {
    Nothing,
    /// The credentials, renewed.
    Credentials,
    /// The credentials, and the authority of a new cluster.
    Everything,
}

/// Settles who this node is.
///
/// # Errors
/// One line: what cannot be used, and what to do.
pub(crate) async fn settle(config: &Config, source: &Source, has_data: bool, me: &Member) -> Result<Booted, String> {
    let folder = match source {
        Source::Operator(files) => {
            let files = files.clone();
            let credentials = blocking(move || files.read()).await.map_err(|error| format!("--peer-cert-file: {error}"))?;
            return of_operator(config, credentials, has_data);
        }
        Source::Cluster(folder) => folder,
    };
    if let Some(booted) = stored(folder, config.certificate_life).await? {
        let read = folder.clone();
        if !has_data && blocking(move || read.has_data()).await? {
            // It may have voted, and entries may count as stored because it said so: without its log it must not say anything.
            return Err(format!(
                "--data-dir {} has the identity of node {:016x} and not its data: put the data back; or remove the member with \
                 `kvasir member remove {1:x}`, empty the folder and join again",
                config.data_dir.display(),
                booted.credentials.name().node
            ));
        }
        if let Origin::Join { .. } = config.peers.origin {
            tracing::info!(node = %booted.credentials.name(), "--join is ignored: this node has joined already");
        }
        return Ok(booted);
    }
    let name = bootstrap_name(config);
    match &config.peers.origin {
        Origin::Join { .. } if has_data => Err(format!(
            "--data-dir {} holds data of a node without its identity: give an empty folder to join with, or put the folder \
             `identity` back",
            config.data_dir.display()
        )),
        Origin::Join { token, learner } => {
            let credentials = joining::join(folder, token, *learner, me).await?;
            let boot = boot_of(&credentials);
            Ok(Booted { credentials, authorities: Vec::new(), boot, unstored: Unstored::Nothing })
        }
        Origin::Founder | Origin::Static(_) | Origin::Existing(_) => {
            if has_data {
                tracing::warn!(
                    "the data folder has no identity: a new certificate authority is made; if this node is one of several, stop it \
                     and put its folder `identity` back, or replace the member"
                );
            }
            let (credentials, authority) = blocking({
                let life = config.certificate_life;
                move || found(name, life)
            })
            .await?;
            Ok(Booted { credentials, authorities: vec![authority], boot: Boot::Alone, unstored: Unstored::Everything })
        }
    }
}

/// What the first member of a cluster makes for itself: the cluster's authority, and credentials that it signs.
///
/// # Errors
/// Without randomness.
pub(crate) fn found(name: NodeName, life: Duration) -> Result<(Credentials, Authority), IdentityError> {
    let (now, key) = (SystemTime::now(), NodeKey::generate()?);
    let authority = Authority::create(name.cluster, now)?;
    let certificate = authority.sign(&key.request()?, name, now, life)?;
    Ok((Credentials::new(key, certificate, vec![authority.certificate().clone()])?, authority))
}

/// The name that token and node name make at bootstrap.
fn bootstrap_name(config: &Config) -> NodeName {
    let token = &config.peers.cluster_token;
    NodeName { cluster: cluster_id(token), node: node_id(token, &config.name) }
}

/// A node that has its identity waits for what is replicated to it, should its data be gone: it never founds a second cluster.
fn boot_of(credentials: &Credentials) -> Boot {
    let NodeName { cluster, node } = credentials.name();
    Boot::Join { node_id: node, cluster_id: cluster }
}

async fn stored(folder: &Folder, life: Duration) -> Result<Option<Booted>, String> {
    let place = folder.path().display().to_string();
    let read = folder.clone();
    let unusable = |error: String| {
        format!("the node's identity in {place} cannot be used: {error}; put it back from a backup, or replace the member")
    };
    let found = blocking(move || Ok((read.credentials()?, read.authorities()?))).await.map_err(unusable)?;
    let (Some(mut credentials), authorities) = found else { return Ok(None) };
    let (now, mut unstored) = (SystemTime::now(), Unstored::Nothing);
    if credentials.is_due(now)
        && let Some(authority) = authorities.iter().find(|authority| *authority.certificate() == credentials.roots()[0])
    {
        let sign = || {
            let certificate = authority.sign(&credentials.key().request()?, credentials.name(), now, life)?;
            credentials.certified(certificate, credentials.roots().to_vec())
        };
        credentials = sign().map_err(|error| unusable(error.to_string()))?;
        unstored = Unstored::Credentials;
    }
    if credentials.not_after() <= now {
        return Err(format!(
            "the certificate of this node in {place} has ended while it was down, and it has no authority's key to renew it: remove \
             the member with `kvasir member remove {:x}` and join again with an empty folder, or set the clock if it is wrong",
            credentials.name().node
        ));
    }
    let boot = boot_of(&credentials);
    Ok(Some(Booted { credentials, authorities, boot, unstored }))
}

fn of_operator(config: &Config, credentials: Credentials, has_data: bool) -> Result<Booted, String> {
    let token = &config.peers.cluster_token;
    let expected = bootstrap_name(config);
    let name = credentials.name();
    let boot = match &config.peers.origin {
        Origin::Existing(_) => boot_of(&credentials),
        _ if !has_data && name != expected => {
            return Err(format!(
                "--peer-cert-file is for {name}, and this node is {expected}: it needs a certificate with the URI {expected} and the DNS \
                 name {} among its alternative names (`kvasir cert name` prints them)",
                expected.dns()
            ));
        }
        Origin::Static(members) => {
            let member = |(name, urls): (&String, &Vec<String>)| {
                let member = Member { name: name.clone(), peer_urls: urls.clone(), ..Member::default() };
                (node_id(token, name), member)
            };
            Boot::Static(members.iter().map(member).collect())
        }
        _ => Boot::Alone,
    };
    Ok(Booted { credentials, authorities: Vec::new(), boot, unstored: Unstored::Nothing })
}

/// Refuses to start as new what the cluster knows to have started before: with certificates of the operator's own nothing but the data
/// tells this node that it may have voted, and that entries may count as stored because it said so.
///
/// # Errors
/// One line: what to do.
pub(crate) async fn check_new(config: &Config, source: &Source, network: Arc<dyn Network>, me: NodeName) -> Result<(), String> {
    let (Source::Operator(_), Origin::Static(members) | Origin::Existing(members)) = (source, &config.peers.origin) else {
        return Ok(());
    };
    let peer = |(name, urls): (&String, &Vec<String>)| {
        let member = Member { peer_urls: urls.clone(), ..Member::default() };
        Peer { id: node_id(&config.peers.cluster_token, name), addresses: member.peer_addresses() }
    };
    let others = members.iter().map(peer).filter(|peer| peer.id != me.node).collect();
    if !was_started(&network, others, ASK_OTHERS_FOR).await {
        return Ok(());
    }
    Err(format!(
        "--data-dir {} has no data, and member {:016x} of this cluster has been started before: put the data back; or remove the member \
         with `kvasir member remove {1:x}`, add it again with `kvasir member add`, and start it with a certificate for its new id",
        config.data_dir.display(),
        me.node
    ))
}
