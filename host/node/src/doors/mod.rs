//! The doors on the client port: etcd's v3 API and kvasir's own services over gRPC, and a few pages over HTTP.
//!
//! A connection is accepted by `listener`, a request passes `front` (rules that hold for every gRPC request) and ends in one of
//! the services or in `pages`.
//!
//! **Invariant:** a door decodes, calls the engine or the plugin host as [`Caller::client`], and encodes; it decides nothing about
//! keys.

mod cluster;
mod front;
mod greeting;
mod kv;
mod lease;
pub(crate) mod listener;
mod lock;
mod maintenance;
mod metrics;
mod nodes;
mod pages;
mod plugins;
mod save;
#[cfg(test)]
mod tests;
mod timely;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri};
use kvasir_api::etcdserverpb::cluster_server::ClusterServer;
use kvasir_api::etcdserverpb::kv_server::KvServer;
use kvasir_api::etcdserverpb::lease_server::LeaseServer;
use kvasir_api::etcdserverpb::maintenance_server::MaintenanceServer;
use kvasir_api::kvasir::cluster::v1::nodes_server::NodesServer;
use kvasir_api::kvasir::plugin::v1::plugins_server::PluginsServer;
use kvasir_api::v3lockpb::lock_server::LockServer;
use kvasir_api::{Error, limits};
use kvasir_engine::{Caller, Engine};
use kvasir_plugins::PluginHost;
use tokio::sync::{Semaphore, watch as flag};
use tonic::service::Routes;
use tonic::{Code, Status};

pub(crate) use front::Front;

use crate::identity::Identity;

/// What every door needs: the engine, the plugins, and to know when the node stops.
#[derive(Clone)]
pub(crate) struct Door {
    engine: Engine,
    plugins: PluginHost,
    /// `None` for a node that no other can reach.
    identity: Option<Identity>,
    caller: Arc<Caller>,
    installs: Arc<Semaphore>,
    stopping: flag::Receiver<bool>,
}

impl Door {
    /// `stopping` turns true when open streams are to end.
    pub(crate) fn new(engine: Engine, plugins: PluginHost, identity: Option<Identity>, stopping: flag::Receiver<bool>) -> Door {
        let installs = Arc::new(Semaphore::new(limits::INSTALLS_MAX));
        Door { engine, plugins, identity, caller: Arc::new(Caller::client()), installs, stopping }
    }

    /// Resolves once the node stops.
    async fn stopped(&mut self) {
        stopped(&mut self.stopping).await;
    }

    /// What tells a stream that there is no leader, if its client requires one.
    fn leader_for(&self, metadata: &tonic::metadata::MetadataMap) -> Option<Leader> {
        front::requires_leader(metadata.as_ref()).then(|| self.engine.leaderless())
    }

    /// Resolves once an open stream must end: the node stops, or its client requires a leader and there is none.
    async fn ended(&mut self, leader: &mut Option<Leader>) -> Error {
        tokio::select! {
            () = self.stopped() => Error::Stopped,
            () = lost(leader) => Error::NoLeader,
        }
    }
}

/// Tells a stream whose client requires a leader that there is none.
type Leader = flag::Receiver<bool>;

/// Resolves once there is no leader, if one is required.
async fn lost(leader: &mut Option<Leader>) {
    if let Some(leader) = leader
        && leader.wait_for(|leaderless| *leaderless).await.is_ok()
    {
        return;
    }
    // None is required, or the engine is gone, and the stream ends by that.
    std::future::pending().await
}

/// Resolves once the flag is true, or once nobody can raise it any more.
pub(crate) async fn stopped(stopping: &mut flag::Receiver<bool>) {
    // An error means that the sender is gone, and the node with it.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Everything that is served on the client port.
pub(crate) fn front(door: Door, health: impl FnOnce(Routes) -> Routes) -> Front {
    let engine = door.engine.clone();
    macro_rules! sized {
        ($server:ident) => {
            $server::new(door.clone())
                .max_decoding_message_size(limits::GRPC_RECV_BYTES_MAX)
                .max_encoding_message_size(usize::MAX)
        };
    }
    let routes = Routes::new(sized!(KvServer))
        .add_service(watch::WatchService::new(door.clone()))
        .add_service(sized!(LeaseServer))
        .add_service(sized!(ClusterServer))
        .add_service(sized!(MaintenanceServer))
        .add_service(sized!(LockServer))
        .add_service(sized!(PluginsServer))
        .add_service(sized!(NodesServer));
    let router: Router = health(routes).into_axum_router().merge(pages::router(door)).fallback(nothing_here);
    Front::new(router.with_state(()), engine)
}

/// Answers what no service and no page does: gRPC in gRPC's way, HTTP in HTTP's.
async fn nothing_here(uri: Uri, headers: HeaderMap) -> Response {
    if !front::is_grpc(&headers) {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    let status = match uri.path() {
        // What etcd answers while auth is off; clientv3 then goes on without a token.
        "/etcdserverpb.Auth/Authenticate" => Status::new(Code::FailedPrecondition, "etcdserver: authentication is not enabled"),
        path => Status::unimplemented(format!("{path} is not served by this version of kvasir")),
    };
    status.into_http::<axum::body::Body>()
}
