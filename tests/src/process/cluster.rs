//! A cluster of real processes, behind a relay that does to their packets what a test wants.
//!
//! The first node founds the cluster, the others join by tokens that `kvasir token create` gives. Every node listens for peers on a
//! free port and advertises the relay's front for it, so that packets between peers go through the relay whatever ports the nodes
//! have. A slot is a place in the cluster, from 0: the node in it may be killed, started again, or replaced by another member.
//!
//! **Invariant:** the harness does what an operator can do, by the verbs and flags an operator has. Nothing outlives the cluster.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvasir_api::etcdserverpb::{
    HashKvRequest, HashKvResponse, Member, MemberListRequest, MemberRemoveRequest, StatusRequest, StatusResponse,
};
use tempfile::TempDir;

use super::{Node, NodeBuilder};
use crate::{Client, Relay, eventually};

/// How long a probe of one node may take: one that stands still does not answer.
const PROBE: Duration = Duration::from_secs(2);
/// How long the cluster may take to be whole again.
const WHOLE_WITHIN: Duration = Duration::from_secs(90);
/// Names the file that a node's wall clock is off by.
const CLOCK_VARIABLE: &str = "KVASIR_WALL_CLOCK_OFFSET_FILE";

/// How to start a cluster.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    members: usize,
    heartbeat_ms: u64,
    election_ms: u64,
    relay: bool,
    same_ports: bool,
    arguments: Vec<String>,
    data_dirs: Vec<(usize, PathBuf)>,
}

/// Running (and stopped) nodes, and what is between them.
#[derive(Debug)]
pub struct Cluster {
    builder: ClusterBuilder,
    slots: Vec<Slot>,
    relay: Option<Relay>,
    addresses: Arc<Addresses>,
    /// Held for its `Drop`, after the nodes'.
    scratch: TempDir,
}

#[derive(Debug)]
struct Slot {
    node: Node,
    name: String,
    frozen: bool,
    /// Where it listened for peers when it was last started.
    peers: Arc<Mutex<Option<SocketAddr>>>,
    /// Nodes that were here before this one.
    predecessors: usize,
}

/// Where clients find the nodes now, by slot; shared with clients that reconnect by themselves.
#[derive(Debug, Default)]
pub struct Addresses(Mutex<Vec<String>>);

impl Addresses {
    /// `http://127.0.0.1:45123` of the node that is or was in the slot.
    pub fn endpoint(&self, slot: usize) -> String {
        format!("http://{}", self.0.lock().unwrap()[slot])
    }

    /// How many slots there are.
    #[allow(clippy::len_without_is_empty)] // a cluster has members
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// `127.0.0.1:1,127.0.0.1:2,127.0.0.1:3`, as etcd's clients take it.
    pub fn joined(&self) -> String {
        self.0.lock().unwrap().join(",")
    }

    fn set(&self, slot: usize, address: &str) {
        let mut addresses = self.0.lock().unwrap();
        if addresses.len() <= slot {
            addresses.resize(slot + 1, String::new());
        }
        address.clone_into(&mut addresses[slot]);
    }
}

impl ClusterBuilder {
    /// Milliseconds between heartbeats, and without one before an election.
    #[must_use]
    pub fn timing(mut self, heartbeat_ms: u64, election_ms: u64) -> Self {
        (self.heartbeat_ms, self.election_ms) = (heartbeat_ms, election_ms);
        self
    }

    /// Peers send to each other without the relay.
    #[must_use]
    pub fn without_relay(mut self) -> Self {
        self.relay = false;
        self
    }

    /// Nodes listen for clients on the same port after a restart, for clients that cannot be told of another.
    #[must_use]
    pub fn same_client_ports(mut self) -> Self {
        self.same_ports = true;
        self
    }

    /// Adds a flag to every node.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Where the node of a slot keeps its data, instead of a scratch folder.
    #[must_use]
    pub fn data_dir(mut self, slot: usize, path: impl Into<PathBuf>) -> Self {
        self.data_dirs.push((slot, path.into()));
        self
    }

    /// Starts the nodes and waits until all are voters and healthy.
    ///
    /// # Panics
    /// When they do not become so: with their logs.
    pub async fn start(self) -> Cluster {
        let scratch = tempfile::Builder::new().prefix("kvasir-cluster-").tempdir().unwrap();
        let relay = self.relay.then(|| Relay::start(self.members));
        let members = self.members;
        let addresses = Arc::new(Addresses::default());
        let mut cluster = Cluster { builder: self, slots: Vec::new(), relay, addresses, scratch };
        for slot in 0..members {
            let join = match slot {
                0 => None,
                _ => Some(cluster.token().await),
            };
            let made = cluster.make(slot, 0, join, None);
            cluster.slots.push(made);
        }
        cluster.wait_whole().await;
        cluster
    }
}

impl Cluster {
    /// A cluster of so many voters.
    pub fn builder(members: usize) -> ClusterBuilder {
        ClusterBuilder {
            members,
            heartbeat_ms: 50,
            election_ms: 500,
            relay: true,
            same_ports: false,
            arguments: Vec::new(),
            data_dirs: Vec::new(),
        }
    }

    /// How many slots there are.
    #[allow(clippy::len_without_is_empty)] // a cluster has members
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The node in a slot.
    pub fn node(&self, slot: usize) -> &Node {
        &self.slots[slot].node
    }

    /// What is between the nodes.
    ///
    /// # Panics
    /// When the cluster was started without one.
    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("the cluster has a relay")
    }

    /// Where clients find the nodes, now and after restarts.
    pub fn addresses(&self) -> Arc<Addresses> {
        Arc::clone(&self.addresses)
    }

    /// The longest a follower waits before it stands for election.
    pub fn election_max(&self) -> Duration {
        Duration::from_millis(2 * self.builder.election_ms)
    }

    /// A client of one node.
    pub async fn client(&self, slot: usize) -> Client {
        self.node(slot).client().await
    }

    /// A token for one more member, from the first running member that gives one.
    ///
    /// # Panics
    /// When none does.
    pub async fn token(&self) -> String {
        let slots: Vec<usize> = self.running().collect();
        let ask = |slot: usize| tokio::task::block_in_place(|| self.node(slot).cli(["token", "create"]));
        eventually("a member gives a token", WHOLE_WITHIN, || async {
            let mut said = String::new();
            for slot in &slots {
                let answer = ask(*slot);
                if answer.status.success() {
                    return Ok(answer.stdout.trim().to_owned());
                }
                said.push_str(&answer.stderr);
            }
            Err(said)
        })
        .await
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.slots.len()).filter(|slot| self.slots[*slot].node.pid().is_some() && !self.slots[*slot].frozen)
    }

    /// Starts a node of a slot for the first time.
    fn make(&self, slot: usize, predecessors: usize, join: Option<String>, listen: Option<String>) -> Slot {
        let name = match predecessors {
            0 => format!("n{slot}"),
            nth => format!("n{slot}-{nth}"),
        };
        let peers = Arc::new(Mutex::new(None));
        let told = Arc::clone(&peers);
        let place = self.relay.as_ref().map(|relay| relay.placer(slot));
        let own = self.builder.data_dirs.iter().find(|(of, _)| *of == slot).map(|(_, path)| path.join(&name));
        let data_dir = own.unwrap_or_else(|| self.scratch.path().join(&name));
        let builder = match listen {
            Some(url) => Node::builder().listen(url),
            None => Node::builder(),
        };
        let builder = builder
            .data_dir(data_dir)
            .ready_within(WHOLE_WITHIN)
            .env(CLOCK_VARIABLE, self.clock_file(slot).to_str().unwrap())
            .on_peer_address(move |address| {
                *told.lock().unwrap() = Some(address);
                if let Some(place) = &place {
                    place(address);
                }
            });
        let flags = self.flags(slot, &name, None).into_iter().chain(join.map(|token| format!("--join={token}")));
        let node = tokio::task::block_in_place(|| flags.fold(builder, NodeBuilder::arg).start());
        self.addresses.set(slot, node.address());
        Slot { node, name, frozen: false, peers, predecessors }
    }

    fn flags(&self, slot: usize, name: &str, peers: Option<SocketAddr>) -> Vec<String> {
        let mut flags = vec![
            format!("--name={name}"),
            format!("--heartbeat-interval={}", self.builder.heartbeat_ms),
            format!("--election-timeout={}", self.builder.election_ms),
        ];
        match (&self.relay, peers) {
            (Some(relay), _) => {
                flags.push("--listen-peer-urls=https://127.0.0.1:0".to_owned());
                flags.push(format!("--initial-advertise-peer-urls=https://{}", relay.front(slot)));
            }
            // Members that all come back at once find each other only where they were.
            (None, Some(address)) => flags.push(format!("--listen-peer-urls=https://{address}")),
            (None, None) => flags.push("--listen-peer-urls=https://127.0.0.1:0".to_owned()),
        }
        flags.extend(self.builder.arguments.iter().cloned());
        flags
    }

    /// `kill -9`.
    pub fn kill(&mut self, slot: usize) {
        tokio::task::block_in_place(|| self.slots[slot].node.kill());
        self.slots[slot].frozen = false;
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(&mut self, slot: usize) -> ExitStatus {
        tokio::task::block_in_place(|| self.slots[slot].node.terminate())
    }

    /// SIGSTOP.
    pub fn freeze(&mut self, slot: usize) {
        self.slots[slot].node.freeze();
        self.slots[slot].frozen = true;
    }

    /// SIGCONT.
    pub fn thaw(&mut self, slot: usize) {
        self.slots[slot].node.thaw();
        self.slots[slot].frozen = false;
    }

    /// Whether the process of a slot is there.
    pub fn is_running(&mut self, slot: usize) -> bool {
        self.slots[slot].node.is_running()
    }

    /// Starts the stopped node of a slot on what it left.
    pub fn restart(&mut self, slot: usize) {
        self.restart_all(&[slot]);
    }

    /// Starts several stopped nodes at once: of a majority that is down none can serve before the others run.
    pub fn restart_all(&mut self, slots: &[usize]) {
        for slot in slots {
            let peers = *self.slots[*slot].peers.lock().unwrap();
            let flags = self.flags(*slot, &self.slots[*slot].name, peers);
            self.slots[*slot].node.set_arguments(flags);
        }
        let same_ports = self.builder.same_ports;
        let chosen = self.slots.iter_mut().enumerate().filter(|(slot, _)| slots.contains(slot));
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                for (_, slot) in chosen {
                    let node = &mut slot.node;
                    scope.spawn(move || if same_ports { node.restart_here() } else { node.restart() });
                }
            });
        });
        for slot in slots {
            self.addresses.set(*slot, self.slots[*slot].node.address());
        }
    }

    /// Removes the member of a slot from the cluster, whatever state it is in, with its data, and lets a new one join in its place.
    ///
    /// # Panics
    /// When the cluster does not agree.
    pub async fn replace(&mut self, slot: usize) {
        self.kill(slot);
        let name = self.slots[slot].name.clone();
        self.remove_member(&name).await;
        let predecessors = self.slots[slot].predecessors + 1;
        let _ = std::fs::remove_dir_all(self.node(slot).data_dir());
        let token = self.token().await;
        // Its clients may know the old port only.
        let listen = self.builder.same_ports.then(|| self.node(slot).endpoint());
        let made = self.make(slot, predecessors, Some(token), listen);
        self.slots[slot] = made;
    }

    /// Removes a member by its name, and waits until it is none.
    ///
    /// # Panics
    /// When the cluster does not agree.
    pub async fn remove_member(&self, name: &str) {
        eventually("the member is removed", WHOLE_WITHIN, || async {
            let members = self.members().await?;
            let Some(member) = members.iter().find(|member| member.name == name) else { return Ok(()) };
            let mut said = String::new();
            for slot in self.running() {
                let removed = probe(self.endpoint(slot), |client| async move {
                    client.cluster.clone().member_remove(MemberRemoveRequest { id: member.id }).await
                });
                match removed.await {
                    Ok(_) => return Ok(()),
                    Err(why) => said.push_str(&why),
                }
            }
            Err(said)
        })
        .await;
    }

    fn endpoint(&self, slot: usize) -> String {
        self.addresses.endpoint(slot)
    }

    /// The members as the first node that answers has them, linearizably.
    ///
    /// # Errors
    /// What the nodes said when none answered.
    pub async fn members(&self) -> Result<Vec<Member>, String> {
        let mut said = String::new();
        for slot in self.running() {
            let list = |client: Client| async move {
                client.cluster.clone().member_list(MemberListRequest { linearizable: true }).await
            };
            match probe(self.endpoint(slot), list).await {
                Ok(answer) => return Ok(answer.members),
                Err(why) => writeln!(said, "{}: {why}", self.slots[slot].name).unwrap(),
            }
        }
        Err(said)
    }

    /// What a node says of itself.
    ///
    /// # Errors
    /// What it said when it did not answer.
    pub async fn status(&self, slot: usize) -> Result<StatusResponse, String> {
        let ask = |client: Client| async move { client.maintenance.clone().status(StatusRequest {}).await };
        probe(self.endpoint(slot), ask).await
    }

    /// The slot whose node leads, by the word of the node with the highest term.
    ///
    /// # Errors
    /// Why that is not known.
    pub async fn leader(&self) -> Result<usize, String> {
        let mut statuses = Vec::new();
        for slot in self.running() {
            if let Ok(status) = self.status(slot).await {
                statuses.push((slot, status));
            }
        }
        let newest = statuses.iter().filter(|(_, status)| status.leader != 0).max_by_key(|(_, status)| status.raft_term);
        let Some((_, newest)) = newest else { return Err("no node knows a leader".to_owned()) };
        let id = |status: &StatusResponse| status.header.as_ref().map_or(0, |header| header.member_id);
        let leading = statuses.iter().find(|(_, status)| id(status) == newest.leader);
        leading.map(|(slot, _)| *slot).ok_or_else(|| "the leader does not answer".to_owned())
    }

    /// Waits for a leader that answers.
    pub async fn wait_leader(&self) -> usize {
        eventually("a leader", WHOLE_WITHIN, || self.leader()).await
    }

    /// Waits until every slot's node is a voter and all agree on the leader and have applied what it had applied.
    pub async fn wait_whole(&self) {
        eventually("every member is a voter and follows the leader", WHOLE_WITHIN, || self.whole()).await;
    }

    async fn whole(&self) -> Result<(), String> {
        let members = self.members().await?;
        let mut names: Vec<(&str, bool)> = members.iter().map(|member| (member.name.as_str(), member.is_learner)).collect();
        names.sort_unstable();
        let mut expected: Vec<(&str, bool)> = self.slots.iter().map(|slot| (slot.name.as_str(), false)).collect();
        expected.sort_unstable();
        if names != expected {
            return Err(format!("members (and whether learners): {names:?} instead of {expected:?}"));
        }
        let leader = self.leader().await?;
        let leading = self.status(leader).await?;
        for slot in 0..self.slots.len() {
            let status = self.status(slot).await.map_err(|why| format!("{}: {why}", self.slots[slot].name))?;
            if (status.leader, status.raft_term) != (leading.leader, leading.raft_term) {
                return Err(format!("{} follows {:x} in term {}", self.slots[slot].name, status.leader, status.raft_term));
            }
            if status.raft_applied_index < leading.raft_applied_index {
                return Err(format!("{} has applied {}", self.slots[slot].name, status.raft_applied_index));
            }
        }
        Ok(())
    }

    /// The hash of the keys at a revision, as each member has it.
    ///
    /// # Panics
    /// When a member does not answer.
    pub async fn hash_kv(&self, revision: i64) -> Vec<HashKvResponse> {
        let mut hashes = Vec::new();
        for slot in 0..self.slots.len() {
            let hash = || async {
                let ask = |client: Client| async move { client.maintenance.clone().hash_kv(HashKvRequest { revision }).await };
                // All that it holds: a large store takes a while.
                probe_within(WHOLE_WITHIN, self.endpoint(slot), ask).await
            };
            hashes.push(eventually("every member hashes its keys", WHOLE_WITHIN, hash).await);
        }
        hashes
    }

    /// Sets a node's wall clock off by so much; it takes note within a fraction of a second.
    pub fn step_clock(&self, slot: usize, offset_ms: i64) {
        let file = self.clock_file(slot);
        let next = file.with_extension("next");
        std::fs::write(&next, offset_ms.to_string()).unwrap();
        std::fs::rename(next, file).unwrap();
    }

    fn clock_file(&self, slot: usize) -> PathBuf {
        self.scratch.path().join(format!("clock-{slot}"))
    }

    /// Every node's log; for asserting that something was never said.
    pub fn logs(&self) -> Vec<String> {
        self.slots.iter().map(|slot| slot.node.log()).collect()
    }
}

/// Asks one node something, in bounded time.
async fn probe<T, F, P>(endpoint: String, ask: F) -> Result<T, String>
where
    F: FnOnce(Client) -> P,
    P: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    probe_within(PROBE, endpoint, ask).await
}

async fn probe_within<T, F, P>(within: Duration, endpoint: String, ask: F) -> Result<T, String>
where
    F: FnOnce(Client) -> P,
    P: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let asked = async {
        let client = Client::try_connect(&endpoint, PROBE).await?;
        ask(client)
            .await
            .map(tonic::Response::into_inner)
            .map_err(|status| format!("{:?}: {}", status.code(), status.message()))
    };
    tokio::time::timeout(within, asked).await.unwrap_or_else(|_| Err(format!("no answer within {within:?}")))
}
