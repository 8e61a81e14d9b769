//! The client's way to a node: the first endpoint that answers, a bound on every wait, and errors in words.
//!
//! **Invariant:** nothing is sent twice; a write that timed out is reported as of unknown fate.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, anyhow};
use kvasir_api::etcdserverpb::cluster_client::ClusterClient;
use kvasir_api::etcdserverpb::kv_client::KvClient;
use kvasir_api::etcdserverpb::lease_client::LeaseClient;
use kvasir_api::etcdserverpb::maintenance_client::MaintenanceClient;
use kvasir_api::etcdserverpb::watch_client::WatchClient;
use kvasir_api::kvasir::cluster::v1::nodes_client::NodesClient;
use kvasir_api::kvasir::plugin::v1::plugins_client::PluginsClient;
use kvasir_api::v3lockpb::lock_client::LockClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::Global;

/// A node to be reached, and how long to wait for it.
pub(super) struct Connection {
    endpoints: String,
    /// The one of them that answered.
    answered: OnceLock<String>,
    dial_timeout: Duration,
    command_timeout: Duration,
}

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident: $client:ident;)*) => {
        $($(#[$doc])* pub(super) async fn $name(&self) -> anyhow::Result<$client<Channel>> {
            Ok($client::new(self.channel().await?).max_decoding_message_size(usize::MAX))
        })*
    };
}

impl Connection {
    pub(super) fn new(global: &Global) -> Connection {
        Connection {
            endpoints: global.endpoints.clone(),
            answered: OnceLock::new(),
            dial_timeout: global.dial_timeout,
            command_timeout: global.command_timeout,
        }
    }

    /// Another node, with the same patience.
    pub(super) fn elsewhere(&self, endpoints: String) -> Connection {
        let Connection { dial_timeout, command_timeout, .. } = *self;
        Connection { endpoints, answered: OnceLock::new(), dial_timeout, command_timeout }
    }

    clients! {
        kv: KvClient;
        watch: WatchClient;
        lease: LeaseClient;
        lock: LockClient;
        cluster: ClusterClient;
        maintenance: MaintenanceClient;
        plugins: PluginsClient;
        nodes: NodesClient;
    }

    /// Waits for one answer within the command's timeout.
    pub(super) async fn answer<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> anyhow::Result<T> {
        match tokio::time::timeout(self.command_timeout, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(anyhow!(
                "no answer from the node within {:?}; a write may or may not have been done (--command-timeout waits longer)",
                self.command_timeout
            )),
        }
    }

    /// The endpoint that was connected to, as the user gave it; all of them before.
    pub(super) fn endpoint(&self) -> &str {
        self.answered.get().unwrap_or(&self.endpoints)
    }

    async fn channel(&self) -> anyhow::Result<Channel> {
        let mut last = anyhow!("no address is given");
        for address in self.endpoints.split(',').map(str::trim).filter(|address| !address.is_empty()) {
            match self.dial(address).await {
                Ok(channel) => {
                    // A verb that connects twice finds the same one unless it has just gone.
                    let _ = self.answered.set(address.to_owned());
                    return Ok(channel);
                }
                Err(error) => last = error,
            }
        }
        Err(last.context(format!("cannot reach a node at {}", self.endpoints)))
    }

    async fn dial(&self, address: &str) -> anyhow::Result<Channel> {
        if address.starts_with("https://") {
            return Err(anyhow!("TLS is not supported in this version; give host:port"));
        }
        let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(url).with_context(|| format!("{address:?} is no address; give host:port"))?;
        let endpoint = endpoint
            .connect_timeout(self.dial_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20);
        tokio::time::timeout(self.dial_timeout, endpoint.connect())
            .await
            .map_err(|_| anyhow!("no connection within {:?}; is `kvasir serve` running there?", self.dial_timeout))?
            .map_err(|error| anyhow!("{}; is `kvasir serve` running there?", innermost(&error)))
    }
}

/// An error as its user needs it: the server's own words, or what became of the connection.
pub(super) fn explain(error: &anyhow::Error) -> String {
    let Some(status) = error.downcast_ref::<Status>() else {
        return format!("{error:#}");
    };
    if std::error::Error::source(status).is_some() {
        return format!("the connection to the node was lost ({}); a write may or may not have been done", innermost(status));
    }
    match (status.code(), status.message()) {
        (code, "") => code.description().to_owned(),
        (Code::Unimplemented, message) => format!("the node does not offer this: {message}"),
        (_, message) => message.to_owned(),
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
