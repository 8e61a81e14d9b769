//! Three engines on simulated disks and real QUIC, in one process. Also the plugin host's tests use it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses its part; a test may panic")]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kvasir_consensus::{Attendant, Boot, Member, PeerDoor, PeerOptions, cluster_id, node_id};
use kvasir_engine::{Engine, EngineOptions};
use kvasir_storage::disk::SimDisk;
use kvasir_transport::Accept;
use kvasir_transport::identity::{Authority, CERTIFICATE_LIFE, Credentials, NodeKey, NodeName};
use kvasir_transport::quic::{Quic, QuicOptions};
use tokio::task::{JoinHandle, JoinSet};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const NODES: usize = 3;
const TOKEN: &str = "three";
const NAMES: [&str; NODES] = ["a", "b", "c"];

/// A running node.
#[derive(Clone)]
pub struct Node {
    pub engine: Engine,
    pub door: Arc<PeerDoor>,
    quic: Quic,
}

/// Three nodes, some of which may be stopped.
pub struct Cluster {
    authority: Authority,
    members: BTreeMap<u64, Member>,
    disks: Vec<SimDisk>,
    change: fn(usize, &mut EngineOptions),
    nodes: Vec<Option<Node>>,
    /// Nodes that are cut off and stop meanwhile.
    stopping: Vec<Option<JoinHandle<()>>>,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// Nodes whose options are changed, each by its number.
    pub async fn start_with(change: fn(usize, &mut EngineOptions)) -> Self {
        // Ports that were free a moment ago; whoever takes one meanwhile makes the bind below fail.
        let sockets: Vec<_> = NAMES.iter().map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let members = NAMES
            .iter()
            .zip(&sockets)
            .map(|(name, socket)| {
                let url = format!("https://{}", socket.local_addr().unwrap());
                let member = Member { name: (*name).to_owned(), peer_urls: vec![url], ..Member::default() };
                (node_id(TOKEN, name), member)
            })
            .collect();
        drop(sockets);
        let authority = Authority::create(cluster_id(TOKEN), SystemTime::now()).unwrap();
        let disks = (0..NODES as u64).map(SimDisk::new).collect();
        let mut cluster =
            Self { authority, members, disks, change, nodes: vec![None, None, None], stopping: vec![None, None, None] };
        // None of them is ready before two are there.
        let mut starting = JoinSet::new();
        for nth in 0..NODES {
            let (options, door, quic) = cluster.prepared(nth).await;
            starting.spawn(async move {
                let engine = Engine::start(options).await.unwrap();
                (nth, Node { engine, door, quic })
            });
        }
        while let Some(started) = starting.join_next().await {
            let (nth, node) = started.unwrap();
            cluster.nodes[nth] = Some(node);
        }
        cluster
    }

    async fn prepared(&self, nth: usize) -> (EngineOptions, Arc<PeerDoor>, Quic) {
        let name = NodeName { cluster: cluster_id(TOKEN), node: node_id(TOKEN, NAMES[nth]) };
        let key = NodeKey::generate().unwrap();
        let signed = self.authority.sign(&key.request().unwrap(), name, SystemTime::now(), CERTIFICATE_LIFE).unwrap();
        let credentials = Credentials::new(key, signed, vec![self.authority.certificate().clone()]).unwrap();
        let door = Arc::new(PeerDoor::default());
        let member = &self.members[&name.node];
        let address = member.peer_addresses()[0].parse().unwrap();
        let accept: Arc<dyn Accept> = Arc::clone(&door) as _;
        let deadline = Instant::now() + PATIENCE;
        let quic = loop {
            match Quic::start(address, &credentials, Arc::clone(&accept), QuicOptions::default()) {
                Ok(quic) => break quic,
                // Tasks of the node that had the address before are still ending.
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let peers =
            PeerOptions { network: Arc::new(quic.clone()), door: Arc::clone(&door), boot: Boot::Static(self.members.clone()) };
        let mut options = EngineOptions {
            name: member.name.clone(),
            peer_urls: member.peer_urls.clone(),
            cluster_token: TOKEN.to_owned(),
            heartbeat_ms: 50,
            election_ms: 500,
            lease_scan_interval_ms: 50,
            lease_stamp_interval_ms: 100,
            peers: Some(peers),
            ..EngineOptions::new("/node", Arc::new(self.disks[nth].clone()))
        };
        (self.change)(nth, &mut options);
        (options, door, quic)
    }

    /// Starts a stopped node again.
    pub async fn launch(&mut self, nth: usize) -> Node {
        if let Some(stopping) = self.stopping[nth].take() {
            stopping.await.unwrap();
        }
        let (options, door, quic) = self.prepared(nth).await;
        let node = Node { engine: Engine::start(options).await.unwrap(), door, quic };
        self.nodes[nth] = Some(node.clone());
        node
    }

    /// Cuts a node off, as if it had died: the others find that it is gone. What is left of it stops meanwhile.
    pub async fn stop(&mut self, nth: usize) {
        let node = self.nodes[nth].take().unwrap();
        node.quic.close().await;
        self.stopping[nth] = Some(tokio::spawn(async move { node.engine.shutdown().await }));
    }

    pub async fn stop_all(mut self) {
        for nth in 0..NODES {
            if self.nodes[nth].is_some() {
                self.stop(nth).await;
            }
        }
        for stopping in self.stopping.into_iter().flatten() {
            stopping.await.unwrap();
        }
    }

    pub fn node(&self, nth: usize) -> &Node {
        self.nodes[nth].as_ref().unwrap()
    }

    pub fn id(nth: usize) -> u64 {
        node_id(TOKEN, NAMES[nth])
    }

    pub fn name(nth: usize) -> &'static str {
        NAMES[nth]
    }

    pub fn running(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(nth, node)| node.as_ref().map(|node| (nth, node)))
    }

    /// Who leads, once one does and says so itself.
    pub async fn leader(&self) -> usize {
        let leads = async || self.running().find(|(_, node)| node.engine.is_leader()).map(|(nth, _)| nth);
        eventually("a leader", leads).await
    }

    /// A node that does not lead.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        self.running().map(|(nth, _)| nth).find(|nth| *nth != leader).unwrap()
    }

    pub fn attend(&self, nth: usize, attendant: Arc<dyn Attendant>) {
        self.node(nth).door.attend(attendant);
    }
}

/// Waits until there is something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(found) => found,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}
