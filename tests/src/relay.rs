//! A network between nodes that does what networks do: every packet from one peer to another goes through here, and may be cut,
//! delayed, dropped or overtaken.
//!
//! Each node has a *front*: a UDP socket whose address the node advertises to its peers. What arrives there is sent on to the node
//! from a socket that belongs to the sender alone, so that the answers find their way back through the front. The sender is known
//! by the port it sends from ([`Relay::place`] says whose it is); a sender that is nobody's (a node that has yet to join) is under
//! no rule. Rules are per direction and hold from the next packet on.
//!
//! **Invariants:** a packet leaves by the rule of its direction at the moment it came, once or not at all, unchanged. What waits is
//! bounded in bytes and what does not fit is dropped, as a router's queue does. Its thread and sockets end with the [`Relay`].

mod line;
mod pump;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pump::Pump;
use tokio::sync::oneshot;

/// What happens to packets in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rule {
    /// Nothing arrives.
    pub cut: bool,
    /// How much later each packet arrives.
    pub delay: Duration,
    /// How much later still, at most, by chance; order is kept.
    pub jitter: Duration,
    /// How many of a hundred packets are lost.
    pub drop_percent: u8,
    /// How many of a hundred packets are held back until later ones have overtaken them.
    pub reorder_percent: u8,
}

impl Rule {
    /// Nothing arrives.
    pub const CUT: Self =
        Self { cut: true, delay: Duration::ZERO, jitter: Duration::ZERO, drop_percent: 0, reorder_percent: 0 };
}

/// What became of the packets of one direction, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Sent on, some of them later.
    pub passed: u64,
    /// Lost by a cut, by chance, or for want of room.
    pub lost: u64,
    /// Overtaken by later ones.
    pub held_back: u64,
}

/// The relay between `nodes` nodes, which are known by their numbers from 0.
#[derive(Debug)]
pub struct Relay {
    state: Arc<State>,
    fronts: Vec<SocketAddr>,
    /// Dropped, it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the tests and the relay's thread share.
#[derive(Debug)]
struct State {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    /// By sender, then by receiver.
    rules: Vec<Vec<Rule>>,
    counts: Vec<Vec<Counts>>,
    /// Where each node is.
    places: Vec<Option<SocketAddr>>,
    /// Grows when a node has another place: what was set up for the old one is of no use.
    generation: u64,
}

impl Relay {
    /// A relay without rules.
    ///
    /// # Panics
    /// When the system gives no sockets or threads.
    pub fn start(nodes: usize) -> Self {
        let table = Table {
            rules: vec![vec![Rule::default(); nodes]; nodes],
            counts: vec![vec![Counts::default(); nodes]; nodes],
            places: vec![None; nodes],
            generation: 0,
        };
        let state = Arc::new(State { table: Mutex::new(table) });
        let sockets: Vec<UdpSocket> = (0..nodes).map(|_| socket()).collect();
        let fronts = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let (stop, stopping) = oneshot::channel();
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Pump::run(shared, sockets, stopping));
        });
        Self { state, fronts, stop: Some(stop), thread: Some(thread.unwrap()) }
    }

    /// What a node advertises to its peers: `127.0.0.1:45123`.
    pub fn front(&self, node: usize) -> SocketAddr {
        self.fronts[node]
    }

    /// Says where a node listens for peers, and sends from.
    pub fn place(&self, node: usize, address: SocketAddr) {
        self.state.place(node, address);
    }

    /// A handle by which a node can be placed from elsewhere.
    pub fn placer(&self, node: usize) -> impl Fn(SocketAddr) + Send + Sync + 'static {
        let state = Arc::clone(&self.state);
        move |address| state.place(node, address)
    }

    /// Sets the rule for packets of one direction.
    pub fn set(&self, from: usize, to: usize, rule: Rule) {
        self.state.table.lock().unwrap().rules[from][to] = rule;
    }

    /// Sets the rule for both directions.
    pub fn set_both(&self, one: usize, other: usize, rule: Rule) {
        self.set(one, other, rule);
        self.set(other, one, rule);
    }

    /// Sets the rule for every direction.
    pub fn set_all(&self, rule: Rule) {
        let mut table = self.state.table.lock().unwrap();
        table.rules.iter_mut().flatten().for_each(|it| *it = rule);
    }

    /// Cuts a node off from all others, both ways.
    pub fn isolate(&self, node: usize) {
        (0..self.fronts.len()).filter(|other| *other != node).for_each(|other| self.set_both(node, other, Rule::CUT));
    }

    /// No rule any more.
    pub fn heal(&self) {
        self.set_all(Rule::default());
    }

    /// What became of the packets of one direction.
    pub fn counts(&self, from: usize, to: usize) -> Counts {
        self.state.table.lock().unwrap().counts[from][to]
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A relay that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl State {
    fn place(&self, node: usize, address: SocketAddr) {
        let mut table = self.table.lock().unwrap();
        if table.places[node] != Some(address) {
            table.places[node] = Some(address);
            table.generation += 1;
        }
    }
}

impl Table {
    /// Whose address this is.
    fn node_at(&self, address: SocketAddr) -> Option<usize> {
        self.places.iter().position(|place| *place == Some(address))
    }
}

/// A socket on a free port of loopback.
fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}
