//! Three nodes on simulated disks and real QUIC, in one process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kvasir_api::command::Command;
use kvasir_api::command::command::Body;
use kvasir_api::etcdserverpb::{PutRequest, RangeRequest};
use kvasir_machine::{DEFAULT_TENANT, Reply};
use kvasir_storage::disk::SimDisk;
use kvasir_storage::state::StoreOptions;
use kvasir_transport::identity::{Authority, CERTIFICATE_LIFE, Credentials, NodeKey, NodeName};
use kvasir_transport::quic::{Quic, QuicOptions};
use kvasir_transport::{Accept, Class, Network, Peer};

use crate::publish::{Publish, Published};
use crate::{Consensus, ConsensusOptions, Member, PeerDoor, PeerOptions, cluster_id, node_id};

const DEADLINE: Duration = Duration::from_secs(30);
const TOKEN: &str = "three";
const NAMES: [&str; 3] = ["a", "b", "c"];

struct Silent;

impl Publish for Silent {
    fn publish(&self, _batch: Published) {}
}

struct Node {
    consensus: Consensus,
    quic: Quic,
}

struct Cluster {
    authority: Authority,
    members: BTreeMap<u64, Member>,
    disks: Vec<SimDisk>,
    nodes: Vec<Option<Node>>,
}

impl Cluster {
    async fn start() -> Self {
        // Ports that were free a moment ago; whoever takes one meanwhile makes the bind below fail.
        let sockets: Vec<_> = NAMES.iter().map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let members = NAMES
            .iter()
            .zip(&sockets)
            .map(|(name, socket)| {
                let url = format!("https://{}", socket.local_addr().unwrap());
                let member = Member { name: (*name).to_owned(), peer_urls: vec![url], client_urls: Vec::new() };
                (node_id(TOKEN, name), member)
            })
            .collect();
        drop(sockets);
        let authority = Authority::create(cluster_id(TOKEN), SystemTime::now()).unwrap();
        let disks = (0..3).map(SimDisk::new).collect();
        let mut cluster = Self { authority, members, disks, nodes: vec![None, None, None] };
        for nth in 0..3 {
            cluster.launch(nth).await;
        }
        cluster
    }

    async fn launch(&mut self, nth: usize) {
        let name = NodeName { cluster: cluster_id(TOKEN), node: node_id(TOKEN, NAMES[nth]) };
        let key = NodeKey::generate().unwrap();
        let signed = self.authority.sign(&key.request().unwrap(), name, SystemTime::now(), CERTIFICATE_LIFE).unwrap();
        let credentials = Credentials::new(key, signed, vec![self.authority.certificate().clone()]).unwrap();
        let door = Arc::new(PeerDoor::default());
        let member = self.members[&name.node].clone();
        let address = member.peer_addresses()[0].parse().unwrap();
        let accept: Arc<dyn Accept> = Arc::clone(&door) as _;
        let quic = Quic::start(address, &credentials, accept, QuicOptions::default()).unwrap();
        let options = ConsensusOptions {
            member,
            cluster_token: TOKEN.to_owned(),
            heartbeat_ms: 50,
            election_ms: 500,
            log_keep_entries: 1,
            store: StoreOptions { checkpoint_interval: Duration::from_millis(200), ..StoreOptions::default() },
            peers: Some(PeerOptions { network: Arc::new(quic.clone()), door, members: self.members.clone() }),
            ..ConsensusOptions::new("/node", Arc::new(self.disks[nth].clone()))
        };
        let consensus = Consensus::start(options, Arc::new(Silent)).await.unwrap();
        self.nodes[nth] = Some(Node { consensus, quic });
    }

    async fn stop(&mut self, nth: usize) {
        let node = self.nodes[nth].take().unwrap();
        node.quic.close().await;
        node.consensus.shutdown().await;
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(nth, node)| node.as_ref().map(|node| (nth, node)))
    }

    /// Puts through whoever leads; returns who that was.
    async fn put(&self, key: &str, value: &str) -> usize {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            for (nth, node) in self.running() {
                let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
                let command = Command { body: Some(Body::Put(put)), ..Command::default() };
                match node.consensus.propose(command).await {
                    Ok(Reply::Put(_)) => return nth,
                    Ok(other) => panic!("not a put's reply: {other:?}"),
                    Err(_) => {}
                }
            }
            assert!(tokio::time::Instant::now() < deadline, "no node takes a put");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_all_have(&self, key: &str, value: &str) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        for (nth, node) in self.running() {
            loop {
                let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
                let found = node.consensus.state().read().range(DEFAULT_TENANT, &request).unwrap();
                if found.items.first().is_some_and(|item| item.value().as_ref() == value.as_bytes()) {
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "node {nth} does not get {key}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_certificate_that_is_no_member_is_refused() {
    let mut cluster = Cluster::start().await;
    cluster.put("one", "1").await;
    cluster.until_all_have("one", "1").await;
    let name = NodeName { cluster: cluster_id(TOKEN), node: 4 };
    let key = NodeKey::generate().unwrap();
    let signed = cluster.authority.sign(&key.request().unwrap(), name, SystemTime::now(), CERTIFICATE_LIFE).unwrap();
    let credentials = Credentials::new(key, signed, vec![cluster.authority.certificate().clone()]).unwrap();
    let accept: Arc<dyn Accept> = Arc::new(PeerDoor::default());
    let stranger = Quic::start(([127, 0, 0, 1], 0).into(), &credentials, accept, QuicOptions::default()).unwrap();
    let (id, member) = cluster.members.first_key_value().unwrap();
    let peer = Peer { id: *id, addresses: member.peer_addresses() };
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        // TLS lets it in: the refusal follows, and ends what it opened.
        let said = match stranger.open(&peer, Class::Vote).await {
            Err(error) => error.to_string(),
            Ok(mut stream) => stream.source.next().await.expect_err("a stranger is answered").to_string(),
        };
        if said.contains("node 0000000000000004 is not a member of this cluster") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "it is never told: {said}");
    }
    stranger.close().await;
    for nth in 0..3 {
        cluster.stop(nth).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_everything_its_leader_still_has_is_sent_a_snapshot() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.put("first", "1").await;
    let behind = (leader + 1) % 3;
    cluster.until_all_have("first", "1").await;
    cluster.stop(behind).await;
    let seen = cluster.nodes[leader].as_ref().unwrap().consensus.status().applied_index;
    for nth in 0..400 {
        cluster.put(&format!("key-{nth:03}"), &"v".repeat(2_000)).await;
    }
    for (nth, node) in cluster.running() {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while node.consensus.status().purged_index <= seen {
            assert!(tokio::time::Instant::now() < deadline, "node {nth} keeps its log");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    cluster.launch(behind).await;
    cluster.until_all_have("key-399", &"v".repeat(2_000)).await;
    cluster.until_all_have("first", "1").await;
    cluster.put("after", "2").await;
    cluster.until_all_have("after", "2").await;
    let digests: Vec<_> = cluster.running().map(|(_, node)| node.consensus.state().read().digest()).collect();
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "the nodes differ: {digests:?}");
    for nth in 0..3 {
        cluster.stop(nth).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_replicate_and_go_on_without_their_leader() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.put("one", "1").await;
    cluster.until_all_have("one", "1").await;
    cluster.stop(leader).await;
    let next = cluster.put("two", "2").await;
    assert_ne!(next, leader);
    cluster.until_all_have("two", "2").await;
    cluster.launch(leader).await;
    cluster.put("three", "3").await;
    for (key, value) in [("one", "1"), ("two", "2"), ("three", "3")] {
        cluster.until_all_have(key, value).await;
    }
    for nth in 0..3 {
        cluster.stop(nth).await;
    }
}
