//! The relay between two sockets that stand for nodes.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::{Relay, Rule, socket};
use crate::DEADLINE;

/// A pair of nodes behind a relay.
struct Pair {
    relay: Relay,
    nodes: [UdpSocket; 2],
}

impl Pair {
    fn new() -> Self {
        let relay = Relay::start(2);
        let nodes = [node(), node()];
        for (number, node) in nodes.iter().enumerate() {
            relay.place(number, node.local_addr().unwrap());
        }
        Self { relay, nodes }
    }

    fn send(&self, from: usize, to: usize, number: u32) {
        self.nodes[from].send_to(&number.to_be_bytes(), self.relay.front(to)).unwrap();
    }

    /// The next packet that a node gets.
    fn receive(&self, at: usize) -> (u32, SocketAddr) {
        receive(&self.nodes[at]).expect("a packet arrives")
    }

    /// Sends numbers one way, a few at a time so that no buffer overflows, and collects all that arrives.
    fn run(&self, from: usize, to: usize, count: u32) -> Vec<u32> {
        let mut arrived = Vec::new();
        let before = self.relay.counts(from, to);
        for number in 0..count {
            self.send(from, to, number);
            if number % 16 == 15 {
                std::thread::sleep(Duration::from_millis(1));
                while let Some((number, _)) = receive_now(&self.nodes[to]) {
                    arrived.push(number);
                }
            }
        }
        let end = Instant::now() + DEADLINE;
        loop {
            let counts = self.relay.counts(from, to);
            let (passed, lost) = (counts.passed - before.passed, counts.lost - before.lost);
            if passed + lost == u64::from(count) && arrived.len() as u64 == passed {
                break;
            }
            assert!(Instant::now() < end, "{counts:?}, arrived {}", arrived.len());
            self.nodes[to].set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            if let Some((number, _)) = receive_once(&self.nodes[to]) {
                arrived.push(number);
            }
        }
        arrived
    }
}

fn node() -> UdpSocket {
    let node = socket();
    node.set_nonblocking(false).unwrap();
    node
}

fn receive(socket: &UdpSocket) -> Option<(u32, SocketAddr)> {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end {
        if let Some(got) = receive_once(socket) {
            return Some(got);
        }
    }
    None
}

fn receive_now(socket: &UdpSocket) -> Option<(u32, SocketAddr)> {
    socket.set_read_timeout(Some(Duration::from_micros(1))).unwrap();
    receive_once(socket)
}

fn receive_once(socket: &UdpSocket) -> Option<(u32, SocketAddr)> {
    let mut bytes = [0; 4];
    match socket.recv_from(&mut bytes) {
        Ok((_, from)) => Some((u32::from_be_bytes(bytes), from)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn packets_go_both_ways_and_the_answer_comes_from_where_the_question_went() {
    let pair = Pair::new();
    pair.send(0, 1, 7);
    let (number, from) = pair.receive(1);
    assert_eq!(number, 7);
    pair.nodes[1].send_to(&8_u32.to_be_bytes(), from).unwrap();
    let (number, from) = pair.receive(0);
    assert_eq!((number, from), (8, pair.relay.front(1)));
    assert_eq!((pair.relay.counts(0, 1).passed, pair.relay.counts(1, 0).passed), (1, 1));
}

#[test]
fn a_cut_is_of_one_direction_and_heals() {
    let pair = Pair::new();
    pair.send(0, 1, 1);
    let (_, back) = pair.receive(1);
    pair.relay.set(0, 1, Rule::CUT);
    assert_eq!(pair.run(0, 1, 5), [0; 0], "nothing arrives");
    // The answer to the packet before the cut has another direction.
    pair.nodes[1].send_to(&2_u32.to_be_bytes(), back).unwrap();
    assert_eq!(pair.receive(0).0, 2);
    pair.relay.heal();
    pair.send(0, 1, 3);
    assert_eq!(pair.receive(1).0, 3);
    pair.relay.isolate(1);
    assert_eq!(pair.run(1, 0, 5), [0; 0]);
}

#[test]
fn a_delay_keeps_order_and_takes_its_time() {
    let pair = Pair::new();
    pair.relay.set(0, 1, Rule { delay: Duration::from_millis(40), jitter: Duration::from_millis(40), ..Rule::default() });
    let begin = Instant::now();
    assert_eq!(pair.run(0, 1, 64), (0..64).collect::<Vec<_>>());
    assert!(begin.elapsed() >= Duration::from_millis(40));
}

#[test]
fn losing_and_reordering_change_no_packet_and_double_none() {
    let pair = Pair::new();
    pair.relay.set(0, 1, Rule { drop_percent: 20, reorder_percent: 10, ..Rule::default() });
    let arrived = pair.run(0, 1, 1_000);
    let counts = pair.relay.counts(0, 1);
    assert!(counts.lost > 50 && counts.held_back > 20, "{counts:?}");
    assert_eq!(arrived.len(), arrived.iter().collect::<BTreeSet<_>>().len(), "none twice");
    assert!(arrived.iter().all(|number| *number < 1_000));
    assert!(arrived.windows(2).any(|pair| pair[0] > pair[1]), "some are overtaken");
}

#[test]
fn a_node_at_a_new_place_is_reached_there_and_a_stranger_is_under_no_rule() {
    let mut pair = Pair::new();
    pair.send(0, 1, 1);
    assert_eq!(pair.receive(1).0, 1);
    pair.nodes[1] = node();
    pair.relay.place(1, pair.nodes[1].local_addr().unwrap());
    pair.send(0, 1, 2);
    assert_eq!(pair.receive(1).0, 2);
    pair.relay.set_all(Rule::CUT);
    let stranger = node();
    stranger.send_to(&3_u32.to_be_bytes(), pair.relay.front(1)).unwrap();
    let (number, back) = pair.receive(1);
    assert_eq!(number, 3);
    pair.nodes[1].send_to(&4_u32.to_be_bytes(), back).unwrap();
    assert_eq!(receive(&stranger).map(|(number, _)| number), Some(4));
}

#[test]
fn many_senders_do_not_cost_more_than_their_share() {
    let pair = Pair::new();
    for _ in 0..2 {
        let senders: Vec<UdpSocket> = (0..300).map(|_| node()).collect();
        for (number, sender) in senders.iter().enumerate() {
            sender.send_to(&(number as u32).to_be_bytes(), pair.relay.front(0)).unwrap();
            assert_eq!(pair.receive(0).0, number as u32);
        }
    }
    let front = pair.relay.front(0);
    drop(pair);
    UdpSocket::bind(front).expect("the front's port is free when the relay is gone");
}
