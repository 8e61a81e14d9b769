//! The relay's thread: sockets on one side, rules on the other.
//!
//! One task reads each front, one each flow (a sender and the node it sends to), one sends what has waited long enough. All run on
//! one thread and share [`Pump`] without locks between them.
//!
//! **Invariant:** no more than [`FLOWS_MAX`] flows; the one that was silent for the longest makes room.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::UdpSocket as Reader;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::line::{Direction, Fate, Line};
use super::{Rule, State, socket};
use crate::Random;

/// The most pairs of a sender and the node it sends to.
const FLOWS_MAX: usize = 256;
/// Packets read from one socket before the others have their turn.
const BURST_MAX: usize = 64;
/// The largest packet there is.
const PACKET_BYTES_MAX: usize = 65_536;
/// By which packets are lost and held back: always the same choices, though not of the same packets.
const SEED: u64 = 0x6b76_6173;

pub(super) struct Pump {
    state: Arc<State>,
    fronts: Vec<Rc<UdpSocket>>,
    flows: HashMap<(SocketAddr, usize), Flow>,
    /// The table's generation that the flows belong to.
    generation: u64,
    directions: Vec<Vec<Direction>>,
    line: Line<Target>,
    waiting: Rc<Notify>,
    random: Random,
    uses: u64,
}

/// What one sender sends to one node, and the answers.
struct Flow {
    socket: Rc<UdpSocket>,
    /// The node's address that the socket is connected to.
    place: SocketAddr,
    reader: AbortHandle,
    used: u64,
}

/// Where a packet goes: out of a connected socket, or out of a front to a sender.
#[derive(Clone)]
enum Target {
    Node(Rc<UdpSocket>),
    Sender(Rc<UdpSocket>, SocketAddr),
}

impl Target {
    fn send(&self, packet: &[u8]) {
        // Full buffers and ports that nobody listens on lose packets; that is a network's right.
        let _ = match self {
            Target::Node(socket) => socket.send(packet),
            Target::Sender(socket, to) => socket.send_to(packet, *to),
        };
    }
}

impl Pump {
    /// Runs until the other end of `stopping` is dropped.
    pub(super) async fn run(state: Arc<State>, sockets: Vec<UdpSocket>, stopping: oneshot::Receiver<()>) {
        let nodes = sockets.len();
        let fronts: Vec<Rc<UdpSocket>> = sockets.into_iter().map(Rc::new).collect();
        let waiting = Rc::new(Notify::new());
        let pump = Rc::new(RefCell::new(Pump {
            state,
            fronts: fronts.clone(),
            flows: HashMap::new(),
            generation: 0,
            directions: vec![vec![Direction::default(); nodes]; nodes],
            line: Line::new(),
            waiting: Rc::clone(&waiting),
            random: Random::new(SEED),
            uses: 0,
        }));
        let tasks = tokio::task::LocalSet::new();
        for (node, front) in fronts.into_iter().enumerate() {
            let front = reader(&front);
            tasks.spawn_local(read_front(Rc::clone(&pump), node, front));
        }
        tasks.spawn_local(send_waiting(Rc::clone(&pump), waiting));
        // Either way the relay is dropped.
        let _ = tasks.run_until(stopping).await;
    }

    /// A packet for `node` has come to its front.
    fn arrive(pump: &Rc<RefCell<Pump>>, node: usize, source: SocketAddr, packet: &[u8]) {
        let this = &mut *pump.borrow_mut();
        let (from, place) = {
            let table = this.state.table.lock().unwrap();
            if table.generation != this.generation {
                this.generation = table.generation;
                this.flows.retain(|(_, to), flow| {
                    let current = table.places[*to] == Some(flow.place);
                    if !current {
                        flow.reader.abort();
                    }
                    current
                });
            }
            (table.node_at(source), table.places[node])
        };
        // A node that nobody knows the place of has not started yet.
        let Some(place) = place else { return };
        let target = Target::Node(this.flow(pump, source, node, place));
        this.forward(from, Some(node), packet, target);
    }

    /// A node has answered a sender.
    fn answer(&mut self, node: usize, sender: SocketAddr, packet: &[u8]) {
        let to = self.state.table.lock().unwrap().node_at(sender);
        let target = Target::Sender(Rc::clone(&self.fronts[node]), sender);
        self.forward(Some(node), to, packet, target);
    }

    fn forward(&mut self, from: Option<usize>, to: Option<usize>, packet: &[u8], target: Target) {
        let (Some(from), Some(to)) = (from, to) else {
            return target.send(packet);
        };
        let mut table = self.state.table.lock().unwrap();
        let rule: Rule = table.rules[from][to];
        let counts = &mut table.counts[from][to];
        let fate = self.directions[from][to].fate(rule, Instant::now(), &mut self.random);
        match fate {
            Fate::Pass => {
                counts.passed += 1;
                target.send(packet);
            }
            Fate::Lose => counts.lost += 1,
            Fate::Wait(due) | Fate::HoldBack(due) => {
                if !self.line.push(due, packet, target) {
                    counts.lost += 1;
                    return;
                }
                counts.passed += 1;
                counts.held_back += u64::from(matches!(fate, Fate::HoldBack(_)));
                self.waiting.notify_one();
            }
        }
    }

    /// The socket by which this sender's packets go to the node.
    fn flow(&mut self, pump: &Rc<RefCell<Pump>>, source: SocketAddr, node: usize, place: SocketAddr) -> Rc<UdpSocket> {
        self.uses += 1;
        let used = self.uses;
        if let Some(flow) = self.flows.get_mut(&(source, node)) {
            flow.used = used;
            return Rc::clone(&flow.socket);
        }
        if self.flows.len() >= FLOWS_MAX
            && let Some((key, oldest)) = self.flows.iter().min_by_key(|(_, flow)| flow.used).map(|(key, flow)| (*key, flow))
        {
            oldest.reader.abort();
            self.flows.remove(&key);
        }
        let outward = socket();
        outward.connect(place).unwrap();
        let reading = tokio::task::spawn_local(read_flow(Rc::clone(pump), node, source, reader(&outward)));
        let outward = Rc::new(outward);
        let flow = Flow { socket: Rc::clone(&outward), place, reader: reading.abort_handle(), used };
        self.flows.insert((source, node), flow);
        outward
    }
}

/// The same socket, to wait for what it receives; what is sent waits for nothing.
fn reader(socket: &UdpSocket) -> Reader {
    Reader::from_std(socket.try_clone().unwrap()).unwrap()
}

async fn read_front(pump: Rc<RefCell<Pump>>, node: usize, front: Reader) {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    while front.readable().await.is_ok() {
        for _ in 0..BURST_MAX {
            match front.try_recv_from(&mut buffer) {
                Ok((length, source)) => Pump::arrive(&pump, node, source, &buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // An answer that came too late for its sender; the socket goes on.
                Err(_) => {}
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn read_flow(pump: Rc<RefCell<Pump>>, node: usize, sender: SocketAddr, flow: Reader) {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    while flow.readable().await.is_ok() {
        for _ in 0..BURST_MAX {
            match flow.try_recv(&mut buffer) {
                Ok(length) => pump.borrow_mut().answer(node, sender, &buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The node is not there (any more): it is a network's right not to care.
                Err(_) => {}
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn send_waiting(pump: Rc<RefCell<Pump>>, waiting: Rc<Notify>) {
    loop {
        let due = pump.borrow().line.next_due();
        match due {
            None => waiting.notified().await,
            Some(due) => {
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => {}
                    () = waiting.notified() => {}
                }
            }
        }
        loop {
            let next = pump.borrow_mut().line.pop(Instant::now());
            let Some((packet, target)) = next else { break };
            target.send(&packet);
        }
    }
}
