//! Nodes and strangers over QUIC on loopback.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::identity::{Authority, CERTIFICATE_LIFE, NodeKey, fingerprint};

const CLUSTER: u64 = 0xc1a5;
/// What should happen may take this long on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Sends every frame back, with the class in front, and keeps a list of who is not admitted.
#[derive(Default)]
struct Echo {
    removed: Mutex<Vec<u64>>,
    streams: AtomicUsize,
}

impl Accept for Echo {
    fn admits(&self, node: u64) -> Result<(), String> {
        if self.removed.lock().contains(&node) { Err(format!("node {node:x} was removed")) } else { Ok(()) }
    }

    fn accept(&self, from: u64, class: Class, mut stream: Stream) {
        self.streams.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            while let Ok(Some(frame)) = stream.source.next().await {
                let mut frames = vec![vec![Bytes::from(format!("{from:x} {class:?} ")), frame]];
                if stream.sink.send(&mut frames).await.is_err() {
                    return;
                }
            }
            stream.sink.finish();
        });
    }

    fn join(&self, request: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async move { Bytes::from([b"welcome ", request.as_ref()].concat()) })
    }
}

struct Node {
    quic: Quic,
    echo: Arc<Echo>,
}

fn options() -> QuicOptions {
    QuicOptions { connect_timeout: Duration::from_secs(2), redial_after: Duration::ZERO, ..QuicOptions::default() }
}

fn credentials(authority: &Authority, cluster: u64, node: u64, signed: SystemTime) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let name = NodeName { cluster, node };
    let certificate = authority.sign(&key.request().unwrap(), name, signed, CERTIFICATE_LIFE).unwrap();
    Credentials::new(key, certificate, vec![authority.certificate().clone()]).unwrap()
}

fn node(credentials: &Credentials, options: QuicOptions) -> Node {
    let echo = Arc::new(Echo::default());
    let accept: Arc<dyn Accept> = Arc::clone(&echo) as _;
    let quic = Quic::start(([127, 0, 0, 1], 0).into(), credentials, accept, options).unwrap();
    Node { quic, echo }
}

fn authority() -> Authority {
    Authority::create(CLUSTER, SystemTime::now()).unwrap()
}

fn member(authority: &Authority, id: u64) -> Node {
    node(&credentials(authority, CLUSTER, id, SystemTime::now()), options())
}

impl Node {
    fn peer(&self) -> Peer {
        Peer { id: self.quic.name().node, addresses: vec![self.quic.address().unwrap().to_string()] }
    }

    async fn ask(&self, peer: &Peer, class: Class, text: &str) -> Result<String, NetworkError> {
        let exchange = async {
            let mut stream = self.quic.open(peer, class).await?;
            stream.sink.send(&mut vec![vec![Bytes::from(text.to_owned())]]).await?;
            stream.sink.finish();
            let answer = stream.source.next().await?.ok_or_else(|| NetworkError::Ended("no answer".to_owned()))?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        tokio::time::timeout(SOON, exchange).await.expect("neither an answer nor an error came")
    }

    /// An error of asking, and that nothing of it reached the peer.
    async fn refused_by(&self, peer: &Node) -> String {
        let error = self.ask(&peer.peer(), Class::Append, "let me in").await.unwrap_err().to_string();
        assert_eq!(peer.echo.streams.load(Ordering::Relaxed), 0, "a stream was handed out");
        error
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_go_both_ways_over_one_connection_in_every_class() {
    let authority = authority();
    let (one, two) = (member(&authority, 1), member(&authority, 2));
    for class in Class::ALL {
        assert_eq!(one.ask(&two.peer(), class, "to two").await.unwrap(), format!("1 {class:?} to two"));
        assert_eq!(two.ask(&one.peer(), class, "to one").await.unwrap(), format!("2 {class:?} to one"));
    }
    assert_eq!(one.quic.inner.endpoint.open_connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_frames_in_flight_come_back_in_order_and_whole() {
    let authority = authority();
    let (one, two) = (member(&authority, 1), member(&authority, 2));
    let mut stream = one.quic.open(&two.peer(), Class::Append).await.unwrap();
    let body = Bytes::from(vec![7u8; 3_000]);
    let sent = tokio::spawn(async move {
        for round in 0..50u32 {
            let mut frames =
                (0..40u32).map(|nth| vec![Bytes::from((round * 40 + nth).to_le_bytes().to_vec()), body.clone()]).collect();
            stream.sink.send(&mut frames).await.unwrap();
        }
        stream.sink.finish();
        stream.sink
    });
    let head = b"1 Append ".len();
    let mut expected = 0u32;
    let receive = async {
        while let Some(frame) = stream.source.next().await.unwrap() {
            assert_eq!(frame.len(), head + 4 + 3_000);
            assert_eq!(frame[head..head + 4], expected.to_le_bytes());
            expected += 1;
        }
    };
    tokio::time::timeout(SOON * 3, receive).await.unwrap();
    sent.await.unwrap();
    assert_eq!(expected, 2_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_both_dial_at_once_one_connection_is_kept_and_both_use_it() {
    let authority = authority();
    for _ in 0..5 {
        let (one, two) = (member(&authority, 1), member(&authority, 2));
        let (to_two, to_one) = (two.peer(), one.peer());
        let _ = tokio::join!(one.ask(&to_two, Class::Vote, "a"), two.ask(&to_one, Class::Vote, "b"));
        // Whichever was cut off finds the kept one.
        assert_eq!(one.ask(&to_two, Class::Vote, "again").await.unwrap(), "1 Vote again");
        assert_eq!(two.ask(&to_one, Class::Vote, "again").await.unwrap(), "2 Vote again");
        let deadline = tokio::time::Instant::now() + SOON;
        while one.quic.inner.endpoint.open_connections() != 1 || two.quic.inner.endpoint.open_connections() != 1 {
            assert!(tokio::time::Instant::now() < deadline, "more than one connection is kept");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarted_at_the_same_place_is_found_again() {
    let authority = authority();
    let one = member(&authority, 1);
    let credentials = credentials(&authority, CLUSTER, 2, SystemTime::now());
    let two = node(&credentials, options());
    let peer = two.peer();
    one.ask(&peer, Class::Vote, "first").await.unwrap();
    let address = two.quic.address().unwrap();
    two.quic.close().await;
    drop(two);
    let echo: Arc<dyn Accept> = Arc::new(Echo::default());
    let deadline = tokio::time::Instant::now() + SOON;
    let again = loop {
        match Quic::start(address, &credentials, Arc::clone(&echo), options()) {
            Ok(quic) => break quic,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    while one.ask(&peer, Class::Vote, "again").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the restarted peer is not found");
    }
    again.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_certificate_of_another_authority_gets_nowhere() {
    let peer = member(&authority(), 2);
    let stranger = member(&authority(), 1);
    let error = stranger.refused_by(&peer).await;
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_gets_nowhere_even_under_the_same_authority() {
    let authority = authority();
    let peer = member(&authority, 2);
    let stranger = node(&credentials(&authority, CLUSTER + 1, 1, SystemTime::now()), options());
    // It would not talk to us either: ask as one that does not look at whom it reaches.
    let error = unlooking(&stranger, &peer).await;
    assert!(error.contains("this is cluster 000000000000c1a5, the certificate is for cluster 000000000000c1a6"), "{error}");
    let error = stranger.refused_by(&peer).await;
    assert!(error.contains("refused"), "{error}");
}

/// Connects as `from`, naming the peer by whatever name it will answer to, and returns how that ends.
async fn unlooking(from: &Node, peer: &Node) -> String {
    let config = from.quic.inner.configs.read().client.clone();
    let name = peer.quic.name().dns();
    let connection = from.quic.inner.endpoint.connect_with(config, peer.quic.address().unwrap(), &name).unwrap().await.unwrap();
    let ended = tokio::time::timeout(SOON, connection.closed()).await.expect("the connection is kept");
    assert_eq!(peer.echo.streams.load(Ordering::Relaxed), 0);
    connections::why(&ended)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_refused_and_told_why_also_while_connected() {
    let authority = authority();
    let (one, two) = (member(&authority, 1), member(&authority, 2));
    one.ask(&two.peer(), Class::Append, "as a member").await.unwrap();
    two.echo.removed.lock().push(1);
    two.quic.expel(1, "node 1 was removed");
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let error = one.ask(&two.peer(), Class::Append, "once more").await.unwrap_err().to_string();
        if error.contains("node 1 was removed") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "it is never told: {error}");
    }
    assert_eq!(two.echo.streams.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_answers_for_another_id_is_not_believed() {
    let authority = authority();
    let (one, two) = (member(&authority, 1), member(&authority, 2));
    let error = one.ask(&Peer { id: 3, ..two.peer() }, Class::Append, "three?").await.unwrap_err();
    assert!(matches!(&error, NetworkError::Refused { node: 3, .. }), "{error}");
    assert_eq!(two.echo.streams.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_gets_nowhere_and_a_renewed_one_does() {
    let authority = authority();
    let two = member(&authority, 2);
    let old = SystemTime::now() - CERTIFICATE_LIFE - Duration::from_secs(60);
    let one = node(&credentials(&authority, CLUSTER, 1, old), options());
    let error = one.refused_by(&two).await;
    assert!(error.contains("certificate"), "{error}");
    one.quic.renew(&credentials(&authority, CLUSTER, 1, SystemTime::now())).unwrap();
    assert_eq!(one.ask(&two.peer(), Class::Vote, "renewed").await.unwrap(), "1 Vote renewed");
    let others = credentials(&authority, CLUSTER, 5, SystemTime::now());
    assert!(one.quic.renew(&others).unwrap_err().to_string().contains("0000000000000005"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_without_a_certificate_may_ask_to_join_and_nothing_else() {
    let authority = authority();
    let member = member(&authority, 2);
    let at = [member.quic.address().unwrap().to_string()];
    let pin = fingerprint(authority.certificate());
    let answer = join(&at, pin, Bytes::from_static(b"stranger"), &options()).await.unwrap();
    assert_eq!(answer, "welcome stranger");
    // More than a request may be.
    let error = join(&at, pin, Bytes::from(vec![0; 100_000]), &options()).await.unwrap_err();
    assert!(matches!(error, JoinFailed::Unreachable { .. }), "{error}");
    // A token of another cluster.
    let error = join(&at, [1; 32], Bytes::new(), &options()).await.unwrap_err();
    assert!(matches!(error, JoinFailed::OtherCluster { .. }), "{error}");
    // Speaking as a peer without a certificate.
    let mut tls = rustls::ClientConfig::builder_with_provider(config::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(config::roots(&[authority.certificate().clone()]).unwrap())
        .with_no_client_auth();
    tls.alpn_protocols = vec![PEER_PROTOCOL.to_vec()];
    let client = quinn::ClientConfig::new(Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let name = NodeName { cluster: CLUSTER, node: 2 }.dns();
    let connection = endpoint.connect_with(client, member.quic.address().unwrap(), &name).unwrap().await.unwrap();
    let ended = tokio::time::timeout(SOON, connection.closed()).await.expect("a stranger is kept");
    assert!(connections::why(&ended).contains("no certificate"), "{ended}");
    assert_eq!(member.echo.streams.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_packets_are_let_go_and_members_get_through() {
    let authority = authority();
    let two = member(&authority, 2);
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = two.quic.address().unwrap();
    for nth in 0..500usize {
        let packet: Vec<u8> = (0..1_200).map(|at| (nth * 31 + at * 7) as u8 ^ 0xc0).collect();
        noise.send_to(&packet[..1 + (nth * 97) % 1_200], address).unwrap();
    }
    let one = member(&authority, 1);
    assert_eq!(one.ask(&two.peer(), Class::Vote, "through").await.unwrap(), "1 Vote through");
    assert_eq!(two.quic.inner.handshakes.count(), 0);
}

/// Begins a handshake with `server` from an address that shows itself, and never says more. What it returns keeps it open.
async fn half_handshake(
    from: [u8; 4],
    client: &quinn::Endpoint,
    config: quinn::ClientConfig,
    server: &Node,
) -> quinn::Connecting {
    let between = tokio::net::UdpSocket::bind(SocketAddr::from((from, 0))).await.unwrap();
    let (at, name) = (server.quic.address().unwrap(), server.quic.name().dns());
    let dialling = client.connect_with(config, between.local_addr().unwrap(), &name).unwrap();
    let (mut dialler, mut packet) = (None, [0; 2_048]);
    let begin = async {
        loop {
            let (length, from) = between.recv_from(&mut packet).await.unwrap();
            match dialler {
                // A retry is answered; what comes after it is the server's part of the handshake.
                Some(dialler) if from == at && packet[0] & 0xf0 == 0xf0 => {
                    between.send_to(&packet[..length], dialler).await.unwrap();
                }
                _ if from == at => return,
                _ => {
                    dialler = Some(from);
                    between.send_to(&packet[..length], at).await.unwrap();
                }
            }
        }
    };
    tokio::time::timeout(SOON, begin).await.expect("the server does not shake hands");
    dialling
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_are_never_finished_keep_no_member_out_and_are_let_go() {
    let authority = authority();
    let (places, patience) = (8, Duration::from_secs(120));
    let slow = QuicOptions { handshakes_max: places, connect_timeout: patience, ..options() };
    let server = node(&credentials(&authority, CLUSTER, 2, SystemTime::now()), slow);
    let stranger = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let one = member(&authority, 1);
    let config = one.quic.inner.configs.read().client.clone();
    let mut open = Vec::new();
    for from in [[127, 0, 0, 2], [127, 0, 0, 1]] {
        for _ in 0..2 * places {
            open.push(half_handshake(from, &stranger, config.clone(), &server).await);
        }
        // All places are taken, for minutes; and a member gets in, from an address of its own as from that of the strangers.
        assert_eq!(server.quic.inner.handshakes.count(), places);
        let member = member(&authority, 3 + u64::from(from[3]));
        let told = tokio::time::timeout(SOON, member.ask(&server.peer(), Class::Vote, "through")).await.unwrap();
        assert!(told.unwrap().ends_with("Vote through"));
        // Those that gave up their places are gone, but for the closing of them.
        let deadline = tokio::time::Instant::now() + SOON;
        while server.quic.inner.endpoint.open_connections() > places + 2 {
            assert!(tokio::time::Instant::now() < deadline, "handshakes without a place go on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    // With little patience each is let go by itself.
    let quick = QuicOptions { handshakes_max: places, connect_timeout: Duration::from_millis(300), ..options() };
    let server = node(&credentials(&authority, CLUSTER, 9, SystemTime::now()), quick);
    open.push(half_handshake([127, 0, 0, 2], &stranger, config, &server).await);
    let deadline = tokio::time::Instant::now() + SOON;
    while server.quic.inner.handshakes.count() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "an unfinished handshake keeps its place");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_breaks_the_protocol_is_cut_off() {
    let authority = authority();
    let (one, two) = (member(&authority, 1), member(&authority, 2));
    for hello in [[9u8, 1], [1, 99]] {
        let connection = connections::connect(&one.quic.inner, &two.peer()).await.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&hello).await.unwrap();
        let ended = tokio::time::timeout(SOON, connection.closed()).await.expect("the connection is kept");
        assert!(connections::why(&ended).contains("broke the protocol"), "{ended}");
    }
    // A frame above the bound ends its stream only.
    let connection = connections::connect(&one.quic.inner, &two.peer()).await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&[1, Class::Append as u8]).await.unwrap();
    send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let answer = tokio::time::timeout(SOON, receive.read_to_end(1_000)).await.expect("the stream is kept");
    assert!(answer.is_err() || answer.is_ok_and(|bytes| bytes.is_empty()));
    assert_eq!(one.ask(&two.peer(), Class::Vote, "still").await.unwrap(), "1 Vote still");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_has_not_shown_itself_is_sent_less_than_came_from_it() {
    let authority = authority();
    let short = QuicOptions { connect_timeout: Duration::from_millis(700), ..options() };
    let server = node(&credentials(&authority, CLUSTER, 2, SystemTime::now()), short);
    // The first flight of a handshake, whose sender then says nothing more: as one does who gives somebody else's address.
    let trap = UdpSocket::bind("127.0.0.1:0").unwrap();
    trap.set_read_timeout(Some(SOON)).unwrap();
    let client = member(&authority, 1);
    let config = client.quic.inner.configs.read().client.clone();
    let name = server.quic.name().dns();
    let dialling = client.quic.inner.endpoint.connect_with(config, trap.local_addr().unwrap(), &name).unwrap();
    let mut packet = [0; 2_048];
    let sent = trap.recv(&mut packet).unwrap();
    drop(dialling);
    let victim = UdpSocket::bind("127.0.0.1:0").unwrap();
    victim.send_to(&packet[..sent], server.quic.address().unwrap()).unwrap();
    // All that comes until well after the server has given the handshake up, retransmissions among it.
    let received = tokio::task::spawn_blocking(move || {
        victim.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let (mut received, mut packet) = (0, [0; 2_048]);
        while let Ok(length) = victim.recv(&mut packet) {
            received += length;
        }
        received
    });
    let received = received.await.unwrap();
    assert!(received > 0, "the server did not take it for a handshake");
    assert!(received <= sent, "{received} bytes for {sent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_connect_to_join_and_say_nothing_take_no_place_from_members_and_are_let_go() {
    let authority = authority();
    let few = QuicOptions { handshakes_max: 4, joins_max: 2, connect_timeout: Duration::from_secs(1), ..options() };
    let server = node(&credentials(&authority, CLUSTER, 2, SystemTime::now()), few);
    let pin = fingerprint(authority.certificate());
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let mut silent = Vec::new();
    for _ in 0..8 {
        let config = join::client(pin, &options()).unwrap();
        let connecting = endpoint.connect_with(config, server.quic.address().unwrap(), "join.kvasir").unwrap();
        // Those beyond the bound are told so, or end before their handshake does.
        if let Ok(connection) = connecting.await {
            silent.push(connection);
        }
    }
    let one = member(&authority, 1);
    assert_eq!(one.ask(&server.peer(), Class::Vote, "through").await.unwrap(), "1 Vote through");
    for connection in silent {
        tokio::time::timeout(SOON, connection.closed()).await.expect("a silent stranger is kept");
    }
    let at = [server.quic.address().unwrap().to_string()];
    assert_eq!(join(&at, pin, Bytes::from_static(b"again"), &options()).await.unwrap(), "welcome again");
}
