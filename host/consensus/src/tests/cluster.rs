//! Three nodes on simulated disks and real QUIC, in one process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use kvasir_api::command::Command;
use kvasir_api::command::command::Body;
use kvasir_api::etcdserverpb::{PutRequest, RangeRequest};
use kvasir_machine::{DEFAULT_TENANT, Reply};
use kvasir_storage::disk::SimDisk;
use kvasir_storage::state::StoreOptions;
use kvasir_transport::identity::{Authority, CERTIFICATE_LIFE, Credentials, NodeKey, NodeName};
use kvasir_transport::quic::{Quic, QuicOptions};
use kvasir_transport::{Accept, BoxFuture, Class, Network, Peer};

use crate::publish::{Publish, Published};
use crate::{Attendant, Boot, Consensus, ConsensusOptions, Member, PeerDoor, PeerOptions, cluster_id, node_id};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const TOKEN: &str = "three";
const NAMES: [&str; 3] = ["a", "b", "c"];

pub(crate) fn put(key: &str, value: &str) -> Command {
    let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    Command { body: Some(Body::Put(put)), ..Command::default() }
}

pub(crate) fn get(consensus: &Consensus, key: &str) -> Option<String> {
    let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
    let found = consensus.state().read().range(DEFAULT_TENANT, &request).unwrap();
    found.items.first().map(|item| String::from_utf8(item.value().to_vec()).unwrap())
}

struct Silent;

impl Publish for Silent {
    fn publish(&self, _batch: Published) {}
}

/// Prepares voters unless it is told not to.
pub(super) struct Preparing(pub(super) AtomicBool);

impl Attendant for Preparing {
    fn join(&self, _: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { Bytes::new() })
    }

    fn ask(&self, _: u64, _: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { Bytes::new() })
    }

    fn prepare_voter(&self, _: u64) -> BoxFuture<'static, Result<(), String>> {
        let ready = self.0.load(Ordering::SeqCst);
        Box::pin(async move { if ready { Ok(()) } else { Err("it is told not to".to_owned()) } })
    }
}

pub(crate) struct Node {
    pub(crate) consensus: Consensus,
    pub(super) quic: Quic,
    pub(super) attendant: Arc<Preparing>,
    pub(crate) door: Arc<PeerDoor>,
}

impl Node {
    pub(crate) async fn stop(self) {
        self.consensus.shutdown().await;
        self.quic.close().await;
    }
}

/// Starts a node on its disk, with a certificate of its own; port 0 is any.
pub(crate) async fn launch(authority: &Authority, id: u64, member: Member, boot: Boot, disk: &SimDisk) -> Node {
    launch_with(authority, id, member, boot, disk, |_| {}).await
}

pub(super) async fn launch_with(
    authority: &Authority,
    id: u64,
    mut member: Member,
    boot: Boot,
    disk: &SimDisk,
    change: impl FnOnce(&mut ConsensusOptions),
) -> Node {
    let name = NodeName { cluster: cluster_id(TOKEN), node: id };
    let key = NodeKey::generate().unwrap();
    let signed = authority.sign(&key.request().unwrap(), name, SystemTime::now(), CERTIFICATE_LIFE).unwrap();
    let credentials = Credentials::new(key, signed, vec![authority.certificate().clone()]).unwrap();
    let (door, attendant) = (Arc::new(PeerDoor::default()), Arc::new(Preparing(AtomicBool::new(true))));
    door.attend(Arc::clone(&attendant) as _);
    let address = member.peer_addresses()[0].parse().unwrap();
    let accept: Arc<dyn Accept> = Arc::clone(&door) as _;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let quic = loop {
        match Quic::start(address, &credentials, Arc::clone(&accept), QuicOptions::default()) {
            Ok(quic) => break quic,
            // Tasks of the node that had it before are still ending.
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    member.peer_urls = vec![format!("https://{}", quic.address().unwrap())];
    let mut options = ConsensusOptions {
        member,
        cluster_token: TOKEN.to_owned(),
        heartbeat_ms: 50,
        election_ms: 500,
        log_keep_entries: 1,
        store: StoreOptions { checkpoint_interval: Duration::from_millis(200), ..StoreOptions::default() },
        peers: Some(PeerOptions { network: Arc::new(quic.clone()), door: Arc::clone(&door), boot }),
        ..ConsensusOptions::new("/node", Arc::new(disk.clone()))
    };
    change(&mut options);
    Node { consensus: Consensus::start(options, Arc::new(Silent)).await.unwrap(), quic, attendant, door }
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
                let member = Member { name: (*name).to_owned(), peer_urls: vec![url], ..Member::default() };
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
        let id = node_id(TOKEN, NAMES[nth]);
        let boot = Boot::Static(self.members.clone());
        self.nodes[nth] = Some(launch(&self.authority, id, self.members[&id].clone(), boot, &self.disks[nth]).await);
    }

    async fn stop(&mut self, nth: usize) {
        self.nodes[nth].take().unwrap().stop().await;
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(nth, node)| node.as_ref().map(|node| (nth, node)))
    }

    /// Puts through whoever leads; returns who that was.
    async fn put(&self, key: &str, value: &str) -> usize {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            for (nth, node) in self.running() {
                if !node.consensus.is_leader() {
                    continue;
                }
                match node.consensus.propose(put(key, value)).await {
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
                if get(&node.consensus, key).as_deref() == Some(value) {
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "node {nth} does not get {key}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_takes_writes_and_linearizable_reads_and_each_write_lands_once() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.put("one", "1").await;
    cluster.until_all_have("one", "1").await;
    for (nth, node) in cluster.running() {
        let reply = node.consensus.propose(put("by", &nth.to_string())).await.unwrap();
        assert!(matches!(reply, Reply::Put(_)), "{reply:?}");
        // What was written through a member is read there at once, and by a linearizable read everywhere.
        assert_eq!(get(&node.consensus, "by").as_deref(), Some(nth.to_string().as_str()));
        for (_, other) in cluster.running() {
            other.consensus.read_index().await.unwrap();
            assert_eq!(get(&other.consensus, "by").as_deref(), Some(nth.to_string().as_str()));
        }
    }
    // While writers write through every member, the leader goes: each write that was answered is there, none twice.
    let mut writers = Vec::new();
    for (nth, node) in cluster.running().filter(|(nth, _)| *nth != leader) {
        let consensus = node.consensus.clone();
        writers.push(tokio::spawn(async move {
            let (mut done, mut unknown) = (Vec::new(), 0);
            for round in 0..300 {
                let key = format!("w/{nth}/{round}");
                match consensus.propose(put(&key, "x")).await {
                    Ok(Reply::Put(reply)) => done.push((key, reply.revision)),
                    Ok(other) => panic!("not a put's reply: {other:?}"),
                    Err(_) => unknown += 1,
                }
            }
            (done, unknown)
        }));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.stop(leader).await;
    let (_, survivor) = cluster.running().next().unwrap();
    let mut revisions = std::collections::BTreeSet::new();
    for writer in writers {
        let (done, unknown) = writer.await.unwrap();
        assert!(done.len() >= 250, "{} writes were answered, {unknown} not", done.len());
        survivor.consensus.read_index().await.unwrap();
        for (key, revision) in done {
            assert_eq!(get(&survivor.consensus, &key).as_deref(), Some("x"), "{key} was acknowledged");
            assert!(revisions.insert(revision), "revision {revision} was given twice");
        }
    }
    for nth in 0..3 {
        if cluster.nodes[nth].is_some() {
            cluster.stop(nth).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_certificate_that_is_no_member_is_refused() {
    let mut cluster = Cluster::start().await;
    cluster.put("one", "1").await;
    cluster.until_all_have("one", "1").await;
    let name = NodeName { cluster: cluster_id(TOKEN), node: node_id(TOKEN, "nobody") };
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
        if said.contains(&format!("node {:016x} is not a member of this cluster", name.node)) {
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
async fn a_member_whose_cluster_is_lost_goes_on_alone_with_all_it_has() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.put("one", "1").await;
    cluster.until_all_have("one", "1").await;
    for nth in 0..3 {
        cluster.stop(nth).await;
    }
    let id = node_id(TOKEN, NAMES[leader]);
    let boot = Boot::Static(cluster.members.clone());
    for forced in [true, true, false] {
        // A second time changes nothing, and without the flag it stays so.
        let node = launch_with(
            &cluster.authority,
            id,
            cluster.members[&id].clone(),
            boot.clone(),
            &cluster.disks[leader],
            |options| options.force_new_cluster = forced,
        )
        .await;
        node.consensus.ready(DEADLINE).await.unwrap();
        assert_eq!(node.consensus.members().into_iter().map(|known| known.id).collect::<Vec<_>>(), [id]);
        assert_eq!(get(&node.consensus, "one").as_deref(), Some("1"));
        assert!(matches!(node.consensus.propose(put("alone", "2")).await.unwrap(), Reply::Put(_)));
        node.stop().await;
    }
    let empty = ConsensusOptions { force_new_cluster: true, ..ConsensusOptions::new("/node", Arc::new(SimDisk::new(9))) };
    let refused = Consensus::start(empty, Arc::new(Silent)).await.unwrap_err().to_string();
    assert!(refused.contains("--force-new-cluster"), "{refused}");
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
