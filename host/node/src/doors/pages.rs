//! The pages over HTTP: health checks and version as etcd has them, and metrics.
//!
//! **Invariant:** a check waits at most as long as a request may take, and reads only.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, Uri, header};
use kvasir_api::etcdserverpb::AlarmType;
use kvasir_api::{ETCD_VERSION, limits};
use serde_json::json;

use super::{Door, metrics};

pub(super) fn router(door: Door) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/livez/{check}", get(live))
        .route("/readyz/{check}", get(ready))
        .route("/version", get(version))
        .route("/metrics", get(metrics_page))
        .with_state(door)
}

async fn version() -> Response {
    json_page(
        StatusCode::OK,
        json!({
            "etcdserver": ETCD_VERSION,
            "etcdcluster": ETCD_VERSION,
            "storage": ETCD_VERSION,
            "kvasir": env!("CARGO_PKG_VERSION"),
        }),
    )
}

async fn metrics_page(State(door): State<Door>) -> Response {
    // What the kernel is asked for may block.
    let read = move || {
        let certificate_ends_s = door.identity.as_ref().map(|identity| identity.certificate_not_after_ms() / 1_000);
        metrics::text(&door.engine.metrics(), &door.plugins.metrics(), &door.plugins.list_here().plugins, certificate_ends_s)
    };
    let Ok(text) = tokio::task::spawn_blocking(read).await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the node is stopping\n").into_response();
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// etcd's `/health`: no alarm that is not excluded, a leader, and a read that succeeds.
async fn health(State(door): State<Door>, uri: Uri) -> Response {
    let excluded = values(&uri, "exclude");
    let serializable = values(&uri, "serializable").contains(&"true");
    let alarm = door.alarms().into_iter().find(|alarm| !excluded.contains(alarm));
    let reason = match alarm {
        Some(alarm) => Err(format!("ALARM {alarm}")),
        None if serializable => Ok(()),
        None => match door.leader() {
            // Nothing could be read for as long as a request may take.
            Err(reason) => Err(reason),
            Ok(()) => door.linearizable().await.map_err(|reason| format!("QGET ERROR:{reason}")),
        },
    };
    match reason {
        Ok(()) => json_page(StatusCode::OK, json!({ "health": "true", "reason": "" })),
        Err(reason) => json_page(StatusCode::SERVICE_UNAVAILABLE, json!({ "health": "false", "reason": reason })),
    }
}

async fn live(State(door): State<Door>, uri: Uri) -> Response {
    checks(&door, &uri, "/livez", &["serializable_read"]).await
}

async fn ready(State(door): State<Door>, uri: Uri) -> Response {
    checks(&door, &uri, "/readyz", &["data_corruption", "serializable_read", "linearizable_read"]).await
}

/// Runs the checks of a page, or the one that its path names, in the form of etcd and Kubernetes.
async fn checks(door: &Door, uri: &Uri, page: &str, names: &[&str]) -> Response {
    let named = uri.path().strip_prefix(page).and_then(|rest| rest.strip_prefix('/'));
    let (excluded, allowed) = (values(uri, "exclude"), values(uri, "allowlist"));
    let chosen = names.iter().filter(|name| {
        named.is_none_or(|named| named == **name)
            && !excluded.contains(*name)
            && (allowed.is_empty() || allowed.contains(*name))
    });
    let (mut report, mut failed, mut ran) = (String::new(), false, 0);
    for name in chosen {
        ran += 1;
        match door.check(name).await {
            Ok(()) => report.push_str(&format!("[+]{name} ok\n")),
            Err(reason) => {
                failed = true;
                report.push_str(&format!("[-]{name} failed: {reason}\n"));
            }
        }
    }
    if named.is_some() && ran == 0 {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    let verbose = uri.query().is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("verbose")));
    match (failed, verbose) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, report).into_response(),
        (false, true) => format!("{report}ok\n").into_response(),
        (false, false) => "ok\n".into_response(),
    }
}

impl Door {
    async fn check(&self, name: &str) -> Result<(), String> {
        match name {
            "data_corruption" => match self.alarms().contains(&"CORRUPT") {
                true => Err("alarm activated: CORRUPT".to_owned()),
                false => Ok(()),
            },
            "linearizable_read" => match self.leader() {
                Err(reason) => Err(reason),
                Ok(()) => self.linearizable().await,
            },
            // What is in memory can be read as long as this answers at all.
            _ => Ok(()),
        }
    }

    fn leader(&self) -> Result<(), String> {
        if self.engine.has_leader() { Ok(()) } else { Err("RAFT NO LEADER".to_owned()) }
    }

    async fn linearizable(&self) -> Result<(), String> {
        let wait = Duration::from_millis(limits::REQUEST_TIMEOUT_MS);
        match tokio::time::timeout(wait, self.engine.linearize()).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err(kvasir_api::Error::Timeout.to_string()),
        }
    }

    /// The alarms that this node knows to be raised; asks no other.
    fn alarms(&self) -> Vec<&'static str> {
        let raised = self.engine.alarms();
        let alarms = [AlarmType::Nospace, AlarmType::Corrupt];
        alarms.iter().filter(|alarm| raised.iter().any(|(_, other)| other == *alarm)).map(AlarmType::as_str_name).collect()
    }
}

/// The values that a query gives to a name.
fn values<'u>(uri: &'u Uri, name: &str) -> Vec<&'u str> {
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).collect()
}

fn json_page(status: StatusCode, body: serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
