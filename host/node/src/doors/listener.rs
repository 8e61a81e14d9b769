//! The client port: listens, accepts, and serves HTTP/1.1 and HTTP/2 (gRPC) on one connection after looking at its first bytes.
//!
//! **Invariant:** at most `CONNECTIONS_MAX` connections are open, on all addresses together; one on which nothing is asked for in
//! time is closed; and when the node stops each is told so and ends within the drain's deadline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kvasir_api::limits;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch as flag};
use tokio::task::JoinSet;

use super::greeting::{Asked, greeted};
use super::{Front, stopped};
use crate::config::Config;

/// How connections are served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    streams_max: u32,
    keepalive_interval: Option<Duration>,
    keepalive_timeout: Duration,
    pub(super) head_timeout: Duration,
}

impl Settings {
    /// The config's part of it.
    pub(crate) fn of(config: &Config) -> Settings {
        Settings {
            streams_max: config.streams_max,
            keepalive_interval: config.keepalive_interval,
            keepalive_timeout: config.keepalive_timeout,
            head_timeout: Duration::from_millis(limits::REQUEST_HEAD_TIMEOUT_MS),
        }
    }
}

/// Listens on the first address the host and port stand for that can be; nothing is accepted yet.
///
/// # Errors
/// One line: which address, why, and what to do.
pub(crate) async fn bind(host_port: &str) -> Result<(TcpListener, SocketAddr), String> {
    let listener = TcpListener::bind(host_port).await.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "stop the process that listens there, or give another --listen-client-urls",
            io::ErrorKind::PermissionDenied => "give a port above 1023 with --listen-client-urls",
            _ => "give an address of this machine with --listen-client-urls",
        };
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => "the address is in use".to_owned(),
            _ => error.to_string(),
        };
        format!("cannot listen on {host_port}: {reason}; {remedy}")
    })?;
    let address = listener.local_addr().map_err(|error| format!("cannot listen on {host_port}: {error}"))?;
    Ok((listener, address))
}

/// Places for connections, which all listeners share.
pub(crate) fn permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(limits::CONNECTIONS_MAX))
}

/// Accepts connections until the node stops, then waits for those that are open; whoever calls bounds the wait.
pub(crate) async fn serve(
    listener: TcpListener,
    front: Front,
    settings: Settings,
    permits: Arc<Semaphore>,
    mut stopping: flag::Receiver<bool>,
) {
    let builder = builder(settings);
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            // Never closed, so a permit always comes.
            let permit = permits.clone().acquire_owned().await.ok();
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = stopped(&mut stopping) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let serving = connection(stream, peer, builder.clone(), front.clone(), settings, stopping.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(error) if of_one_connection(&error) => {}
            Err(error) => {
                // Out of descriptors, most likely: those that are open go on, and closing one helps.
                tracing::warn!(%error, "cannot accept a connection; raise the limit of open files if this goes on");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn builder(settings: Settings) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(settings.head_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_frame_size(256 * 1024)
        .max_concurrent_streams(settings.streams_max)
        // clientv3 cancels watches and requests freely; the library's defaults would end its connection for that.
        .max_pending_accept_reset_streams(limits::RESET_STREAMS_MAX)
        .max_local_error_reset_streams(limits::RESET_STREAMS_MAX)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout);
    builder
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    builder: auto::Builder<TokioExecutor>,
    front: Front,
    settings: Settings,
    mut stopping: flag::Receiver<bool>,
) {
    // Without it a small answer waits for the client's delayed acknowledgement: 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "the connection is gone already");
        return;
    }
    let deadline = tokio::time::Instant::now() + settings.head_timeout;
    let greeted = tokio::select! {
        greeted = tokio::time::timeout_at(deadline, greeted(stream)) => greeted,
        () = stopped(&mut stopping) => return,
    };
    let Ok(Ok(stream)) = greeted else {
        tracing::debug!(%peer, "the connection ended before anything was asked for");
        return;
    };
    let (front, asked) = Asked::new(front);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), front));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = unasked(&asked, deadline) => {
            // A client that says nothing may not answer to a farewell either.
            tracing::debug!(%peer, "the connection is closed: nothing was asked for");
            return;
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, error, "connection ended");
    }
}

/// Resolves at the deadline if nothing was asked for by then.
async fn unasked(asked: &AtomicBool, deadline: tokio::time::Instant) {
    tokio::time::sleep_until(deadline).await;
    if asked.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

/// Errors of `accept` that say nothing about the next connection.
fn of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::bind;

    #[tokio::test]
    async fn an_occupied_port_is_refused_with_a_remedy() {
        let (_listener, address) = bind("127.0.0.1:0").await.expect("a free port");
        let line = bind(&address.to_string()).await.expect_err("occupied");
        assert!(
            line.contains(&address.to_string()) && line.contains("in use") && line.contains("--listen-client-urls"),
            "{line}"
        );
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_refused_with_a_remedy() {
        let line = bind("192.0.2.1:1").await.expect_err("not ours");
        assert!(line.contains("192.0.2.1:1") && line.contains("--listen-client-urls"), "{line}");
    }
}
