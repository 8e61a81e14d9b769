//! A client of one node: etcd's gRPC services and kvasir's plugin service, with shorthands for what tests do all the time.
//!
//! The generated clients are public fields; each call clones one, which costs a reference count.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::etcdserverpb::cluster_client::ClusterClient;
use kvasir_api::etcdserverpb::kv_client::KvClient;
use kvasir_api::etcdserverpb::lease_client::LeaseClient;
use kvasir_api::etcdserverpb::maintenance_client::MaintenanceClient;
use kvasir_api::etcdserverpb::watch_client::WatchClient;
use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use kvasir_api::kvasir::plugin::v1 as plugin;
use kvasir_api::kvasir::plugin::v1::plugins_client::PluginsClient;
use kvasir_api::mvccpb::{Event, KeyValue};
use kvasir_api::v3lockpb::lock_client::LockClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::{DEADLINE, eventually};

/// Piece of a component in one message of an installation.
const INSTALL_CHUNK_BYTES: usize = 256 * 1024;
/// What a test is ready to receive in one response.
const RESPONSE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// One connection to one node.
#[derive(Debug, Clone)]
pub struct Client {
    /// etcd's KV.
    pub kv: KvClient<Channel>,
    /// etcd's Watch; see [`Client::watch`].
    pub watch: WatchClient<Channel>,
    /// etcd's Lease.
    pub lease: LeaseClient<Channel>,
    /// etcd's Cluster.
    pub cluster: ClusterClient<Channel>,
    /// etcd's Maintenance.
    pub maintenance: MaintenanceClient<Channel>,
    /// etcd's v3lock.
    pub lock: LockClient<Channel>,
    /// kvasir's plugins.
    pub plugins: PluginsClient<Channel>,
}

/// What to install, besides the component.
#[derive(Debug, Clone, Default)]
pub struct Install {
    /// TOML; empty: the one inside the component.
    pub manifest: String,
    /// As the operator's `--grant`.
    pub grants: Vec<String>,
    /// As the operator's `--accept-requested`.
    pub accept_requested: bool,
    /// As the operator's `--upgrade`.
    pub upgrade: bool,
    /// Values that override the manifest's `[config]`.
    pub config: HashMap<String, String>,
}

impl Install {
    /// The manifest inside the component, with all the grants it asks for.
    pub fn accepting() -> Self {
        Self { accept_requested: true, ..Self::default() }
    }

    /// This manifest, with all the grants it asks for.
    pub fn with_manifest(manifest: impl Into<String>) -> Self {
        Self { manifest: manifest.into(), ..Self::accepting() }
    }

    /// Overrides a value of `[config]`.
    #[must_use]
    pub fn config(mut self, name: &str, value: &str) -> Self {
        self.config.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Replaces an installed plugin of the same name.
    #[must_use]
    pub fn upgrading(mut self) -> Self {
        self.upgrade = true;
        self
    }
}

impl Client {
    /// Connects to `http://HOST:PORT`.
    ///
    /// # Panics
    /// When it cannot within the deadline.
    pub async fn connect(endpoint: &str) -> Self {
        eventually("the node takes connections", DEADLINE, || Self::try_connect(endpoint, DEADLINE)).await
    }

    /// Connects once, for clients that try others when they cannot.
    ///
    /// # Errors
    /// Why it cannot within this span.
    pub async fn try_connect(endpoint: &str, within: Duration) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned()).unwrap().tcp_nodelay(true).connect_timeout(within);
        let channel = endpoint.connect().await.map_err(|error| format!("{error:?}"))?;
        Ok(Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX),
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX),
            lease: LeaseClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            lock: LockClient::new(channel.clone()),
            plugins: PluginsClient::new(channel),
        })
    }

    /// Puts a value and answers with the whole response.
    ///
    /// # Errors
    /// The node's status.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<PutResponse, Status> {
        let request = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        Ok(self.kv.clone().put(request).await?.into_inner())
    }

    /// The value of one key, read linearizably.
    ///
    /// # Errors
    /// The node's status.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, Status> {
        Ok(self.entry(key).await?.map(|kv| kv.value))
    }

    /// One key with its revisions, read linearizably.
    ///
    /// # Errors
    /// The node's status.
    pub async fn entry(&self, key: impl Into<Bytes>) -> Result<Option<KeyValue>, Status> {
        let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
        Ok(self.range(request).await?.kvs.pop())
    }

    /// All keys that start with `prefix`.
    ///
    /// # Errors
    /// The node's status.
    pub async fn prefix(&self, prefix: &str) -> Result<Vec<KeyValue>, Status> {
        Ok(self.range(prefix_request(prefix)).await?.kvs)
    }

    /// Any range request.
    ///
    /// # Errors
    /// The node's status.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        Ok(self.kv.clone().range(request).await?.into_inner())
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// The node's status.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<DeleteRangeResponse, Status> {
        let request = DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() };
        Ok(self.kv.clone().delete_range(request).await?.into_inner())
    }

    /// Any transaction.
    ///
    /// # Errors
    /// The node's status.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        Ok(self.kv.clone().txn(request).await?.into_inner())
    }

    /// The store's current revision, read linearizably.
    ///
    /// # Errors
    /// The node's status.
    pub async fn revision(&self) -> Result<i64, Status> {
        let request = RangeRequest { key: "\0".into(), count_only: true, ..RangeRequest::default() };
        Ok(self.range(request).await?.header.unwrap_or_default().revision)
    }

    /// A lease with an id of the node's choice; answers with the id.
    ///
    /// # Errors
    /// The node's status.
    pub async fn grant(&self, ttl_s: i64) -> Result<i64, Status> {
        let request = LeaseGrantRequest { ttl: ttl_s, id: 0 };
        Ok(self.lease.clone().lease_grant(request).await?.into_inner().id)
    }

    /// Keeps a lease alive once.
    ///
    /// # Errors
    /// The node's status.
    pub async fn keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let requests = tokio_stream::once(LeaseKeepAliveRequest { id });
        let mut responses = self.lease.clone().lease_keep_alive(requests).await?.into_inner();
        responses.message().await?.ok_or_else(|| Status::unknown("the stream ended without an answer"))
    }

    /// Opens a watch stream with its first request.
    ///
    /// # Errors
    /// The node's status.
    pub async fn watch_stream(&self, first: RequestUnion) -> Result<Watching, Status> {
        let (requests, queue) = mpsc::channel(64);
        // The first request goes in before the call: etcd answers the call only when it has something to say.
        requests.try_send(WatchRequest { request_union: Some(first) }).unwrap();
        let responses = self.watch.clone().watch(ReceiverStream::new(queue)).await?.into_inner();
        Ok(Watching { requests, responses })
    }

    /// Opens a watch stream with one watcher and waits for it to be created.
    ///
    /// # Errors
    /// The node's status.
    pub async fn watch(&self, create: WatchCreateRequest) -> Result<Watching, Status> {
        let mut watching = self.watch_stream(RequestUnion::CreateRequest(create)).await?;
        let first = watching.next().await?;
        if !first.created {
            return Err(Status::unknown(format!("the first response is not `created`: {first:?}")));
        }
        Ok(watching)
    }

    /// All events from one revision to another, both included, through a watch of everything.
    ///
    /// # Errors
    /// The node's status, or the reason the watch was cancelled with.
    pub async fn history(&self, from: i64, to: i64) -> Result<Vec<Event>, Status> {
        if from > to {
            return Ok(Vec::new());
        }
        let everything = WatchCreateRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            start_revision: from,
            ..WatchCreateRequest::default()
        };
        let mut watching = self.watch(everything).await?;
        let mut events = Vec::new();
        loop {
            let response = watching.next().await?;
            if response.canceled {
                return Err(Status::out_of_range(response.cancel_reason));
            }
            events.extend(response.events);
            if last_revision(&events) >= to {
                events.retain(|event| revision_of(event) <= to);
                return Ok(events);
            }
        }
    }

    /// Installs a plugin from a component on disk.
    ///
    /// # Errors
    /// The node's status.
    pub async fn install(&self, component: &Path, install: Install) -> Result<plugin::InstallResponse, Status> {
        let bytes = std::fs::read(component).unwrap();
        self.install_bytes(bytes.into(), install).await
    }

    /// Installs a plugin from bytes.
    ///
    /// # Errors
    /// The node's status.
    pub async fn install_bytes(&self, component: Bytes, install: Install) -> Result<plugin::InstallResponse, Status> {
        use plugin::install_request::{Header, Part};
        let header = Header {
            manifest_toml: install.manifest,
            grants: install.grants,
            accept_requested: install.accept_requested,
            dry_run: false,
            upgrade: install.upgrade,
            config: install.config,
            total_bytes: component.len() as u64,
        };
        let mut requests = vec![plugin::InstallRequest { part: Some(Part::Header(header)) }];
        for from in (0..component.len()).step_by(INSTALL_CHUNK_BYTES) {
            let chunk = component.slice(from..component.len().min(from + INSTALL_CHUNK_BYTES));
            requests.push(plugin::InstallRequest { part: Some(Part::Data(chunk)) });
        }
        Ok(self.plugins.clone().install(tokio_stream::iter(requests)).await?.into_inner())
    }

    /// All plugins, as `kvasir plugin ls` shows them.
    ///
    /// # Errors
    /// The node's status.
    pub async fn plugin_list(&self) -> Result<Vec<plugin::PluginStatus>, Status> {
        Ok(self.plugins.clone().list(plugin::ListRequest {}).await?.into_inner().plugins)
    }

    /// One plugin; `None` when there is no plugin of that name.
    ///
    /// # Errors
    /// The node's status.
    pub async fn plugin(&self, name: &str) -> Result<Option<plugin::PluginStatus>, Status> {
        Ok(self.plugin_list().await?.into_iter().find(|plugin| plugin.name == name))
    }

    /// All the lines that the node keeps of a plugin.
    ///
    /// # Errors
    /// The node's status.
    pub async fn plugin_logs(&self, name: &str) -> Result<Vec<plugin::LogLine>, Status> {
        let request = plugin::LogsRequest { name: name.to_owned(), follow: false, tail: 0 };
        let mut stream = self.plugins.clone().logs(request).await?.into_inner();
        let mut lines = Vec::new();
        while let Some(line) = stream.message().await? {
            lines.push(line);
        }
        Ok(lines)
    }

    /// Removes a plugin.
    ///
    /// # Errors
    /// The node's status.
    pub async fn plugin_remove(&self, name: &str) -> Result<(), Status> {
        self.plugins.clone().remove(plugin::RemoveRequest { name: name.to_owned() }).await?;
        Ok(())
    }
}

/// An open watch stream.
#[derive(Debug)]
pub struct Watching {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Watching {
    /// Sends any request.
    ///
    /// # Panics
    /// When the stream has ended.
    pub async fn request(&self, request: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(request) }).await.expect("the watch stream is open");
    }

    /// The next response.
    ///
    /// # Errors
    /// The stream's status when it ended, and `DeadlineExceeded` when nothing came within the tests' deadline.
    pub async fn next(&mut self) -> Result<WatchResponse, Status> {
        match tokio::time::timeout(DEADLINE, self.responses.message()).await {
            Ok(Ok(Some(response))) => Ok(response),
            Ok(Ok(None)) => Err(Status::unknown("the watch stream ended")),
            Ok(Err(status)) => Err(status),
            Err(_) => Err(Status::deadline_exceeded(format!("no watch response within {DEADLINE:?}"))),
        }
    }

    /// The next response if one comes within `wait`; for asserting silence after something that must have come before it.
    pub async fn poll(&mut self, wait: Duration) -> Option<WatchResponse> {
        tokio::time::timeout(wait, self.responses.message()).await.ok()?.ok()?
    }

    /// As [`Watching::poll`], and tells a stream that ended from one that is silent.
    pub async fn poll_result(&mut self, wait: Duration) -> Option<Result<WatchResponse, Status>> {
        let next = tokio::time::timeout(wait, self.responses.message()).await.ok()?;
        Some(next.and_then(|response| response.ok_or_else(|| Status::unknown("the watch stream ended"))))
    }

    /// Sends any request, without waiting for room.
    ///
    /// # Errors
    /// When the stream has ended, or stands still.
    pub fn try_request(&self, request: RequestUnion) -> Result<(), Status> {
        let request = WatchRequest { request_union: Some(request) };
        self.requests.try_send(request).map_err(|_| Status::unavailable("the watch stream takes no request"))
    }

    /// The next `count` events, whatever responses they come in.
    ///
    /// # Errors
    /// As [`Watching::next`], and the reason when a watcher is cancelled.
    pub async fn events(&mut self, count: usize) -> Result<Vec<Event>, Status> {
        let mut events = Vec::new();
        while events.len() < count {
            let response = self.next().await?;
            if response.canceled {
                return Err(Status::cancelled(response.cancel_reason));
            }
            events.extend(response.events);
        }
        Ok(events)
    }
}

/// The range request for all keys that start with `prefix`, which is not empty.
pub(crate) fn prefix_request(prefix: &str) -> RangeRequest {
    RangeRequest {
        key: Bytes::copy_from_slice(prefix.as_bytes()),
        range_end: prefix_end(prefix.as_bytes()),
        ..RangeRequest::default()
    }
}

/// The end of the range of all keys that start with `prefix`: its last byte that can grow, grown by one.
pub(crate) fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

/// The revision an event happened at.
pub(crate) fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn last_revision(events: &[Event]) -> i64 {
    events.last().map_or(0, revision_of)
}
