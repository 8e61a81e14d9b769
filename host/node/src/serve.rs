//! `kvasir serve`, from start to end, in the order it happens.
//!
//! **Invariant:** nothing is served before the engine can answer, nothing is accepted after the stop was asked for, and what was
//! acknowledged is on disk whichever way the process ends.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use kvasir_api::limits;
use kvasir_consensus::Member;
use kvasir_engine::COMMAND_VERSION;
use kvasir_plugins::{PluginHost, PluginHostOptions, THREAD_NAME_PREFIX};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch as flag;
use tokio::task::JoinSet;

use crate::args::{EXIT_FAILED, fail};
use crate::config::{Config, LogOutput};
use crate::doors::{self, Door, listener};
use crate::logging;
use crate::peers::{self, Started};

/// Serves until a signal or a fault of the disk, and says how it ended.
pub(crate) fn run(config: Config) -> ExitCode {
    if let Err(reason) = logging::start(&config) {
        return fail(&reason, EXIT_FAILED);
    }
    end_on_panic();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("kvasir").build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start threads: {error}; raise the limit of processes"), EXIT_FAILED),
    };
    let outcome = runtime.block_on(async {
        let mut signals = Signals::new()?;
        live(config, &mut signals).await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => fail(&reason, EXIT_FAILED),
    }
}

/// The node's life.
async fn live(config: Config, signals: &mut Signals) -> Result<(), String> {
    // The ports first: when one is taken, the data has not been touched.
    let mut listeners = Vec::new();
    for host_port in &config.listen {
        listeners.push(listener::bind(host_port).await?);
    }
    let (socket, peer_address) = peers::bind(&config.peers.listen).await?;
    let me = Member {
        name: config.name.clone(),
        peer_urls: peers::advertised(&config.peers.advertise, peer_address),
        client_urls: advertised(&config, &listeners),
        command_version: COMMAND_VERSION,
        ..Member::default()
    };

    // Who this node is, the way to the others, and the engine: opens the folder, goes through the log or gets it from the others,
    // and is able to serve when it returns.
    tracing::info!(version = env!("CARGO_PKG_VERSION"), data_dir = %config.data_dir.display(), "kvasir starts");
    let started = tokio::select! {
        started = peers::start(&config, &me, socket) => started?,
        name = signals.next() => {
            tracing::info!("{name} while starting: nothing was served, stopping");
            return Ok(());
        }
    };
    let Started { engine, identity, quic } = started;

    // The plugins: each comes up in the background.
    let plugins = match PluginHost::start(engine.clone(), plugin_options(&config)) {
        Ok(plugins) => plugins,
        Err(error) => {
            engine.shutdown().await;
            quic.close().await;
            return Err(error.to_string());
        }
    };

    identity.attend_plugins(plugins.clone());

    // The doors.
    let (stop, stopping) = flag::channel(false);
    let (health, health_service) = tonic_health::server::health_reporter();
    let door = Door::new(engine.clone(), plugins.clone(), Some(identity.clone()), stopping.clone());
    let front = doors::front(door, |routes| routes.add_service(health_service));
    let mut serving = JoinSet::new();
    serving.spawn(identity.keep(stopping.clone()));
    let permits = listener::permits();
    for (listener, address) in listeners {
        let settings = listener::Settings::of(&config);
        serving.spawn(listener::serve(listener, front.clone(), settings, permits.clone(), stopping.clone()));
        say(&format!("ready to serve client requests on {address}"));
    }

    // Until somebody or the disk ends it.
    let reason = tokio::select! {
        name = signals.next() => name,
        reason = engine.fatal() => return Err(aloud(&config, reason)),
    };

    // The stop: no new connections, open streams are told, requests under way may finish; then the plugins, then the engine with
    // its last checkpoint. A second signal ends it at once, which costs the next start some reading of the log.
    tracing::info!("{reason}: stopping; the same again stops at once");
    health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    // Nobody is listening when every door has ended already.
    let _ = stop.send(true);
    let stopped = async {
        let drained = async { while serving.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_millis(limits::SHUTDOWN_DRAIN_MS), drained).await.is_err() {
            tracing::warn!("some requests took longer than {} ms and were cut off", limits::SHUTDOWN_DRAIN_MS);
            serving.shutdown().await;
        }
        plugins.shutdown().await;
        engine.shutdown().await;
        // After the engine has handed over what it led.
        quic.close().await;
    };
    tokio::select! {
        () = stopped => {}
        name = signals.next() => return Err(format!("{name} again: stopped at once; every acknowledged write is in the log")),
        reason = engine.fatal() => return Err(aloud(&config, reason)),
    }
    tracing::info!("stopped");
    Ok(())
}

/// Why the process must end, for its last line; logs that go elsewhere have it too.
fn aloud(config: &Config, reason: String) -> String {
    if config.log_output != LogOutput::Stderr {
        tracing::error!("{reason}");
    }
    reason
}

fn plugin_options(config: &Config) -> PluginHostOptions {
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    PluginHostOptions { cache_dir: config.data_dir.join("plugins"), threads: threads.clamp(1, 8) }
}

/// What clients are told to connect to: as configured, else what was bound; an address that means "all" becomes `localhost`.
fn advertised(config: &Config, listeners: &[(TcpListener, std::net::SocketAddr)]) -> Vec<String> {
    if !config.advertise.is_empty() {
        return config.advertise.clone();
    }
    let url = |address: &std::net::SocketAddr| match address.ip().is_unspecified() {
        true => format!("http://localhost:{}", address.port()),
        false => format!("http://{address}"),
    };
    listeners.iter().map(|(_, address)| url(address)).collect()
}

/// Logs a line that others wait for; it is written even where the level leaves it out.
pub(crate) fn say(line: &str) {
    if tracing::enabled!(tracing::Level::INFO) {
        tracing::info!("{line}");
    } else {
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// Ends the process on a panic outside the plugins' threads: whatever was half done must not be served.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let of_a_plugin = std::thread::current().name().is_some_and(|name| name.starts_with(THREAD_NAME_PREFIX));
        if !of_a_plugin {
            let _ = writeln!(
                std::io::stderr(),
                "error: a fault in kvasir itself, reported above; restart the node, its data is whole"
            );
            std::process::abort();
        }
    }));
}

/// The signals that end the process.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals, String> {
        let listen = |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
        Ok(Signals { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
