//! From a free socket to a node among its peers: identity, network, engine, in that order.
//!
//! **Invariant:** the data folder is looked at before anything is written, and what a founder makes for itself is stored only once
//! the folder is this process's.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use kvasir_consensus::{Member, PeerDoor, PeerOptions};
use kvasir_engine::{Engine, EngineOptions};
use kvasir_storage::disk::RealDisk;
use kvasir_storage::folder::DataFolder;
use kvasir_transport::identity::Folder;
use kvasir_transport::quic::{Quic, QuicError, QuicOptions};

use crate::config::Config;
use crate::identity::boot::{self, Booted, Unstored};
use crate::identity::{Identity, Source};
use crate::{memory, serve, wall};

/// A node that can answer.
pub(crate) struct Started {
    pub(crate) engine: Engine,
    pub(crate) identity: Identity,
    pub(crate) quic: Quic,
}

/// Takes the first address that the host and port stand for.
///
/// # Errors
/// One line: which address, why, and what to do.
pub(crate) async fn bind(host_port: &str) -> Result<(UdpSocket, SocketAddr), String> {
    let refusal = |reason: String, remedy: &str| format!("cannot listen for peers on {host_port}: {reason}; {remedy}");
    let other = "give an address of this machine with --listen-peer-urls";
    let mut resolved = tokio::net::lookup_host(host_port).await.map_err(|error| refusal(error.to_string(), other))?;
    let address = resolved.next().ok_or_else(|| refusal("the name has no address".to_owned(), other))?;
    let bound = Quic::bind(address, &QuicOptions::default()).and_then(|socket| match socket.local_addr() {
        Ok(address) => Ok((socket, address)),
        Err(error) => Err(QuicError::Bind { address, error }),
    });
    bound.map_err(|error| match error {
        QuicError::Bind { error, .. } => match error.kind() {
            io::ErrorKind::AddrInUse => refusal(
                "the address is in use".to_owned(),
                "stop the process that listens there, or give another --listen-peer-urls, such as https://127.0.0.1:0 for a free port",
            ),
            io::ErrorKind::PermissionDenied => refusal(error.to_string(), "give a port above 1023 with --listen-peer-urls"),
            _ => refusal(error.to_string(), other),
        },
        error => error.to_string(),
    })
}

/// What other members are told to connect to.
pub(crate) fn advertised(given: &[String], bound: SocketAddr) -> Vec<String> {
    if given.is_empty() { vec![format!("https://{bound}")] } else { given.to_vec() }
}

/// Starts the node on its socket for peers.
///
/// # Errors
/// One line: what cannot be used, and what to do.
pub(crate) async fn start(config: &Config, me: &Member, socket: UdpSocket) -> Result<Started, String> {
    let dir = config.data_dir.clone();
    let has_data = tokio::task::spawn_blocking(move || DataFolder::look(&RealDisk, &dir))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let source = match &config.peers.files {
        Some(files) => Source::Operator(files.clone()),
        None => Source::Cluster(Folder::new(DataFolder::identity_dir(&config.data_dir))),
    };
    let booted = boot::settle(config, &source, has_data, me).await?;

    let door = Arc::new(PeerDoor::default());
    let quic = Quic::start_on(socket, &booted.credentials, Arc::clone(&door) as _, QuicOptions::default())
        .map_err(|error| error.to_string())?;
    let address = quic.address().map_err(|error| error.to_string())?;
    serve::say(&format!("listening for peers on {address}"));

    if !has_data && let Err(reason) = boot::check_new(config, &source, Arc::new(quic.clone()), booted.credentials.name()).await
    {
        quic.close().await;
        return Err(reason);
    }

    let mut options = EngineOptions::new(config.data_dir.clone(), Arc::new(RealDisk));
    options.name.clone_from(&me.name);
    options.cluster_token.clone_from(&config.peers.cluster_token);
    options.peer_urls.clone_from(&me.peer_urls);
    options.client_urls.clone_from(&me.client_urls);
    options.quota_bytes = Some(config.quota_bytes.unwrap_or_else(memory::quota_default));
    options.corrupt_check_interval = config.corrupt_check_interval;
    options.heartbeat_ms = config.heartbeat_ms;
    options.election_ms = config.election_ms;
    options.wall_clock = wall::clock();
    options.force_new_cluster = config.force_new_cluster;
    let peers = PeerOptions { network: Arc::new(quic.clone()), door: Arc::clone(&door), boot: booted.boot.clone() };
    options.peers = Some(peers);
    let engine = Engine::start(options).await.map_err(|error| error.to_string())?;

    if let Err(reason) = keep(&source, &booted, &engine).await {
        engine.shutdown().await;
        quic.close().await;
        return Err(reason);
    }
    let identity = Identity::new(source, booted, engine.clone(), quic.clone(), config.certificate_life);
    door.attend(Arc::new(identity.clone()));
    Ok(Started { engine, identity, quic })
}

/// Stores what a founder has made, now that the folder is this process's, and that there is data that must not be lost.
async fn keep(source: &Source, booted: &Booted, engine: &Engine) -> Result<(), String> {
    let name = booted.credentials.name();
    if (name.cluster, name.node) != (engine.cluster_id(), engine.node_id()) {
        return Err(format!(
            "the data folder is of node {:016x} of cluster {:016x}, and the certificate is for {name}: give the --name and \
             --initial-cluster-token that the node was first started with, or its own certificate",
            engine.node_id(),
            engine.cluster_id(),
        ));
    }
    let Source::Cluster(folder) = source else { return Ok(()) };
    let stored = match booted.unstored {
        Unstored::Nothing => Ok(()),
        Unstored::Credentials => folder.store(&booted.credentials),
        Unstored::Everything => folder.store_authorities(&booted.authorities).and_then(|()| folder.store(&booted.credentials)),
    };
    stored.and_then(|()| folder.note_data()).map_err(|error| error.to_string())
}
