//! The doors over a real connection, with a real engine on a scratch folder behind them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kvasir_api::Error;
use kvasir_api::etcdserverpb::cluster_client::ClusterClient;
use kvasir_api::etcdserverpb::kv_client::KvClient;
use kvasir_api::etcdserverpb::lease_client::LeaseClient;
use kvasir_api::etcdserverpb::maintenance_client::MaintenanceClient;
use kvasir_api::etcdserverpb::watch_client::WatchClient;
use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::*;
use kvasir_api::kvasir::plugin::v1::plugins_client::PluginsClient;
use kvasir_api::kvasir::plugin::v1::{InspectRequest, ListRequest};
use kvasir_api::v3lockpb::lock_client::LockClient;
use kvasir_api::v3lockpb::{LockRequest, UnlockRequest};
use kvasir_engine::{Engine, EngineOptions};
use kvasir_plugins::{PluginHost, PluginHostOptions};
use kvasir_storage::disk::{Disk, RealDisk, SimDisk};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::*;
use crate::config::Config;

/// A node in this process, behind a real port.
struct Node {
    address: SocketAddr,
    engine: Engine,
    plugins: PluginHost,
    stop: flag::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Node {
    async fn start() -> Node {
        Node::start_on(Arc::new(RealDisk), Duration::from_secs(60)).await
    }

    /// `timeout` is for a request's head and for its body.
    async fn start_on(disk: Arc<dyn Disk>, timeout: Duration) -> Node {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let options = EngineOptions::new(folder.path().join("data"), disk);
        let engine = Engine::start(options).await.expect("an engine");
        let options = PluginHostOptions { cache_dir: folder.path().join("cache"), threads: 1 };
        let plugins = PluginHost::start(engine.clone(), options).expect("a plugin host");
        let (stop, stopping) = flag::channel(false);
        let (_, health) = tonic_health::server::health_reporter();
        let door = Door::new(engine.clone(), plugins.clone(), None, stopping.clone());
        let front = front(door, |routes| routes.add_service(health)).with_body_timeout(timeout);
        let (listener, address) = listener::bind("127.0.0.1:0").await.expect("a free port");
        let config = Config::settle(|_| None, |_| None).expect("defaults");
        let mut settings = listener::Settings::of(&config);
        settings.head_timeout = timeout;
        let serving = tokio::spawn(listener::serve(listener, front, settings, listener::permits(), stopping));
        Node { address, engine, plugins, stop, serving, _folder: folder }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        endpoint.connect().await.expect("a connection")
    }

    /// A page over HTTP/1.1: its status and its body.
    async fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nhost: kvasir\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    async fn end(self) {
        self.stop.send(true).expect("somebody listens");
        soon(self.serving).await.expect("the listener ends");
        self.plugins.shutdown().await;
        self.engine.shutdown().await;
    }
}

/// Bounds a wait that should be short.
async fn soon<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("in time")
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() }
}

fn create(key: &'static str) -> WatchRequest {
    let create = WatchCreateRequest { key: key.into(), ..WatchCreateRequest::default() };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.expect_err("refused");
    (status.code(), status.message().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_go_in_and_come_out_through_grpc() {
    let node = Node::start().await;
    let mut kv = KvClient::new(node.channel().await);
    let revision = soon(kv.put(put("a", "1"))).await.expect("put").into_inner().header.expect("a header").revision;
    let range = RangeRequest { key: "a".into(), ..RangeRequest::default() };
    let found = soon(kv.range(range)).await.expect("range").into_inner();
    assert_eq!((found.kvs[0].value.as_ref(), found.kvs[0].mod_revision, found.count), (&b"1"[..], revision, 1));
    let compare = Compare { key: "a".into(), target_union: Some(compare::TargetUnion::Version(1)), ..Compare::default() };
    let op = RequestOp { request: Some(request_op::Request::RequestPut(put("b", "2"))) };
    let txn = TxnRequest { compare: vec![compare], success: vec![op], failure: vec![] };
    assert!(soon(kv.txn(txn)).await.expect("txn").into_inner().succeeded);
    let everything = DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: true };
    assert_eq!(soon(kv.delete_range(everything)).await.expect("delete").into_inner().prev_kvs.len(), 2);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_carry_etcds_code_and_text() {
    let node = Node::start().await;
    let mut kv = KvClient::new(node.channel().await);
    let empty = refusal(soon(kv.put(put("", "x"))).await);
    assert_eq!(empty, (Code::InvalidArgument, "etcdserver: key is not provided".to_owned()));
    let future = RangeRequest { key: "a".into(), revision: 1_000, ..RangeRequest::default() };
    let expected = "etcdserver: mvcc: required revision is a future revision".to_owned();
    assert_eq!(refusal(soon(kv.range(future)).await), (Code::OutOfRange, expected));
    let too_large = (Code::InvalidArgument, "etcdserver: request is too large".to_owned());
    for bytes in [limits::REQUEST_BYTES_MAX + 1, limits::GRPC_RECV_BYTES_MAX + 1, 4 * limits::GRPC_RECV_BYTES_MAX] {
        assert_eq!(refusal(soon(kv.put(put("a", &"x".repeat(bytes)))).await), too_large, "{bytes}");
    }
    soon(kv.put(put("a", "the connection is still good"))).await.expect("put");
    let mut request = tonic::Request::new(put("a", "b"));
    let not_text = tonic::metadata::MetadataValue::try_from(&b"\xff"[..]).expect("a header may carry it");
    request.metadata_mut().insert("client-api-version", not_text);
    let expected = "etcdserver: invalid client api version".to_owned();
    assert_eq!(refusal(soon(kv.put(request)).await), (Code::InvalidArgument, expected));
    let mut request = tonic::Request::new(put("a", "b"));
    request.metadata_mut().insert("hasleader", "true".parse().expect("text"));
    request.metadata_mut().insert("token", "whatever".parse().expect("text"));
    soon(kv.put(request)).await.expect("there is a leader, and auth is off");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_delivers_goes_on_after_a_half_close_and_ends_with_the_node() {
    let node = Node::start().await;
    let mut kv = KvClient::new(node.channel().await);
    let mut watch = WatchClient::new(node.channel().await);
    let (requests, outbound) = mpsc::channel(4);
    requests.send(create("w")).await.expect("taken");
    let mut responses = soon(watch.watch(ReceiverStream::new(outbound))).await.expect("a stream").into_inner();
    assert!(soon(responses.message()).await.expect("alive").expect("a response").created);
    drop(requests);
    soon(kv.put(put("w", "1"))).await.expect("put");
    let response = soon(responses.message()).await.expect("alive").expect("a response");
    assert_eq!(response.events[0].kv.as_ref().expect("a pair").value.as_ref(), b"1");
    node.end().await;
    let end = refusal(soon(responses.message()).await);
    assert_eq!(end, (Code::Unavailable, "etcdserver: server stopped".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_of_a_lease_that_is_gone_answers_zero() {
    let node = Node::start().await;
    let mut lease = LeaseClient::new(node.channel().await);
    let granted = soon(lease.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 })).await.expect("granted").into_inner();
    let asked = tokio_stream::iter([granted.id, 7].map(|id| LeaseKeepAliveRequest { id }));
    let mut answers = soon(lease.lease_keep_alive(asked)).await.expect("a stream").into_inner();
    assert_eq!(soon(answers.message()).await.expect("alive").expect("an answer").ttl, 60);
    assert_eq!(soon(answers.message()).await.expect("alive").expect("an answer").ttl, 0);
    assert_eq!(soon(answers.message()).await.expect("ended well"), None);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalives_of_one_stream_share_entries_and_are_answered_in_order() {
    const LEASES: i64 = 500;
    let disk = SimDisk::new(1);
    let node = Node::start_on(Arc::new(disk.clone()), Duration::from_secs(60)).await;
    let mut lease = LeaseClient::new(node.channel().await);
    for id in 1..=LEASES {
        soon(lease.lease_grant(LeaseGrantRequest { ttl: 600, id })).await.expect("granted");
    }
    let before = node.engine.metrics().log_entries;
    disk.set_sync_delay(Duration::from_millis(10));
    let asked = tokio_stream::iter((1..=LEASES).map(|id| LeaseKeepAliveRequest { id }));
    let mut answers = soon(lease.lease_keep_alive(asked)).await.expect("a stream").into_inner();
    for id in 1..=LEASES {
        let answer = soon(answers.message()).await.expect("alive").expect("an answer");
        assert_eq!((answer.id, answer.ttl), (id, 600));
    }
    let entries = node.engine.metrics().log_entries - before;
    assert!(entries < 50, "{LEASES} renewals of one stream took {entries} entries");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_members_and_plugins_answer() {
    let node = Node::start().await;
    let channel = node.channel().await;
    let mut lock = LockClient::new(channel.clone());
    let held = soon(lock.lock(LockRequest { name: "l".into(), lease: 0 })).await.expect("held").into_inner();
    assert!(held.key.starts_with(b"l/"));
    soon(lock.unlock(UnlockRequest { key: held.key })).await.expect("released");
    let mut cluster = ClusterClient::new(channel.clone());
    let members =
        soon(cluster.member_list(MemberListRequest { linearizable: true })).await.expect("members").into_inner().members;
    assert_eq!(members.len(), 1);
    let unknown = refusal(soon(cluster.member_remove(MemberRemoveRequest { id: 1 })).await);
    assert_eq!(unknown, (Code::NotFound, "etcdserver: member not found".to_owned()));
    let last = refusal(soon(cluster.member_remove(MemberRemoveRequest { id: members[0].id })).await);
    assert_eq!(last.0, Code::FailedPrecondition);
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let status = soon(maintenance.status(StatusRequest {})).await.expect("status").into_inner();
    assert_eq!((status.version.as_str(), status.leader), (kvasir_api::ETCD_VERSION, members[0].id));
    let mut plugins = PluginsClient::new(channel);
    assert!(soon(plugins.list(ListRequest {})).await.expect("a list").into_inner().plugins.is_empty());
    let missing = refusal(soon(plugins.inspect(InspectRequest { name: "nobody".into() })).await);
    assert_eq!(missing.0, Code::NotFound);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_on_which_nothing_is_asked_for_is_closed_while_others_are_served() {
    let node = Node::start_on(Arc::new(RealDisk), Duration::from_millis(300)).await;
    let mut kv = KvClient::new(node.channel().await);
    soon(kv.put(put("a", "1"))).await.expect("put");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    // HTTP/2's preface with empty settings behind it.
    let settings = [preface, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    for said in [&b""[..], b"PRI * H", b"GET /hea", preface, &settings] {
        let mut silent = TcpStream::connect(node.address).await.expect("a connection");
        silent.write_all(said).await.expect("sent");
        let closed = async {
            let mut buffer = [0; 1024];
            // What the server says before it closes does not matter.
            while silent.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        };
        soon(closed).await;
        // Who has asked for something may be silent as long as it likes.
        soon(kv.put(put("a", "2"))).await.expect("put");
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_message_does_not_come_is_given_up_and_a_stream_is_not() {
    let node = Node::start_on(Arc::new(RealDisk), Duration::from_millis(300)).await;
    let channel = node.channel().await;
    let mut watch = WatchClient::new(channel.clone());
    let (_requests, outbound) = mpsc::channel(4);
    let mut responses = soon(watch.watch(ReceiverStream::new(outbound))).await.expect("a stream").into_inner();
    let mut grpc = tonic::client::Grpc::new(channel);
    soon(grpc.ready()).await.expect("ready");
    let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let never = tonic::Request::new(tokio_stream::pending::<PutRequest>());
    let given_up = refusal(soon(grpc.client_streaming(never, path, codec)).await);
    assert_eq!(given_up, (Error::Timeout.code(), Error::Timeout.to_string()));
    // The watch has been waiting at least as long.
    let waiting = tokio::time::timeout(Duration::from_millis(50), responses.message()).await;
    assert!(waiting.is_err(), "the watch goes on: {waiting:?}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_are_served_on_the_same_port() {
    let node = Node::start().await;
    let (status, body) = node.page("/health").await;
    assert_eq!((status, body.as_str()), (200, r#"{"health":"true","reason":""}"#));
    assert_eq!(node.page("/livez").await, (200, "ok\n".to_owned()));
    let (status, body) = node.page("/readyz?verbose").await;
    assert_eq!((status, body.lines().last()), (200, Some("ok")));
    assert!(body.contains("[+]linearizable_read ok\n"), "{body}");
    assert_eq!(node.page("/readyz/serializable_read").await.0, 200);
    assert_eq!(node.page("/readyz/nonsense").await.0, 404);
    assert_eq!(node.page("/nonsense").await.0, 404);
    let (_, version) = node.page("/version").await;
    assert!(version.contains("\"etcdserver\":\"3.6.0\"") && version.contains("\"kvasir\":"), "{version}");
    let (status, metrics) = node.page("/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("\netcd_server_has_leader 1\n"), "{metrics}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_makes_the_node_unhealthy_unless_it_is_excluded() {
    let node = Node::start().await;
    let mut maintenance = MaintenanceClient::new(node.channel().await);
    let raise = AlarmRequest {
        action: alarm_request::AlarmAction::Activate.into(),
        member_id: node.engine.node_id(),
        alarm: AlarmType::Nospace.into(),
    };
    soon(maintenance.alarm(raise)).await.expect("raised");
    let unhealthy = (503, r#"{"health":"false","reason":"ALARM NOSPACE"}"#.to_owned());
    assert_eq!(node.page("/health").await, unhealthy);
    assert_eq!(node.page("/health?exclude=NOSPACE").await.0, 200);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_served_says_so_in_grpcs_way() {
    let node = Node::start().await;
    let channel = node.channel().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let answer = soon(health.check(request)).await.expect("an answer").into_inner();
    assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    for (path, code, text) in [
        ("/etcdserverpb.Auth/Authenticate", Code::FailedPrecondition, "etcdserver: authentication is not enabled"),
        ("/etcdserverpb.Auth/UserList", Code::Unimplemented, "not served"),
        ("/v3electionpb.Election/Campaign", Code::Unimplemented, "not served"),
        ("/etcdserverpb.Watch/Nonsense", Code::Unimplemented, "one method"),
    ] {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        soon(grpc.ready()).await.expect("ready");
        let codec = tonic_prost::ProstCodec::<StatusRequest, StatusResponse>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        let (got, said) = refusal(soon(grpc.unary(tonic::Request::new(StatusRequest {}), path, codec)).await);
        assert!(got == code && said.contains(text), "{got:?} {said}");
    }
    node.end().await;
}
