//! Real `kvasir` processes: started, killed, stopped, started again, and never left behind.
//!
//! **Invariant:** a process dies with the [`Node`] that owns it, and with the test process, however that one ends.

mod cli;
mod cluster;
mod log;
mod spawn;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

pub use cli::{Cli, run};
pub use cluster::{Addresses, Cluster, ClusterBuilder};
use log::{Log, OnPeerAddress};
use spawn::{spawn, wait_until};

use crate::{Client, DEADLINE, artefacts};

/// A running (or stopped) `kvasir serve` on a data folder of its own.
///
/// When a test fails while it holds a node, the node's log is shown.
#[derive(Debug)]
pub struct Node {
    builder: NodeBuilder,
    /// Held for its `Drop`: the scratch folder that the data folder stands in, unless the test named its own.
    _scratch: Option<TempDir>,
    data_dir: PathBuf,
    child: Option<Child>,
    log: Arc<Log>,
    address: String,
}

/// How to start a node: data folder, flags, environment.
#[derive(Clone, Default)]
pub struct NodeBuilder {
    data_dir: Option<PathBuf>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    listen: Option<String>,
    working_dir: Option<PathBuf>,
    on_peer_address: Option<OnPeerAddress>,
    ready_within: Option<Duration>,
}

/// What is left of a node that ended before it was ready.
#[derive(Debug)]
pub struct Failure {
    /// `None` when it neither ended nor became ready in time, and was killed.
    pub status: Option<ExitStatus>,
    /// All it wrote to stderr.
    pub stderr: String,
}

impl Node {
    /// A node on a fresh scratch folder, ready to serve.
    ///
    /// # Panics
    /// When it does not become ready: with its log.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// A node with flags or a folder of the test's choice.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// Where clients connect: `127.0.0.1:45123`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same as a URL: `http://127.0.0.1:45123`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The folder the node keeps its data in.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// All that the node has written to stderr since it was last started.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// A client of the running node.
    ///
    /// # Panics
    /// When it cannot connect.
    pub async fn client(&self) -> Client {
        Client::connect(&self.endpoint()).await
    }

    /// Runs one of the binary's verbs against this node: `node.cli(["put", "a", "1"])`.
    pub fn cli<I, A>(&self, arguments: I) -> Cli
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        let mut command = Command::new(artefacts::kvasir());
        command.args(arguments).env("KVASIR_ENDPOINTS", &self.address);
        run(command)
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; either way it is gone after the wait.
            let _ = child.kill();
            let _ = child.wait();
            self.log.wait_closed();
        }
    }

    /// SIGTERM, and waits until the process ended by itself.
    ///
    /// # Panics
    /// When it does not within the deadline.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits until the process ended by itself.
    ///
    /// # Panics
    /// When it does not within the deadline.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the node runs");
        match wait_until(&mut child, Instant::now() + DEADLINE) {
            Some(status) => {
                self.log.wait_closed();
                status
            }
            None => {
                self.child = Some(child);
                panic!("the node did not end within {DEADLINE:?}");
            }
        }
    }

    /// SIGSTOP: the process stands still, its sockets stay open.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT: it goes on where it was.
    ///
    /// # Panics
    /// When it does not run.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the node runs");
        rustix::process::kill_process(pid_of(child), signal).expect("the node can be signalled");
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Starts the stopped node again on the same folder, on another free port.
    ///
    /// # Panics
    /// When it does not become ready: with its log.
    pub fn restart(&mut self) {
        if let Err(failure) = self.try_restart() {
            panic!("the node did not start again: {failure}");
        }
    }

    /// As [`Node::restart`], on the same port: for clients that reconnect by themselves.
    ///
    /// # Panics
    /// When it does not become ready: with its log.
    pub fn restart_here(&mut self) {
        let before = self.builder.listen.replace(format!("http://{}", self.address));
        self.restart();
        self.builder.listen = before;
    }

    /// Starts the stopped node again on the same folder and kills it after `span`, ready or not.
    pub fn start_and_kill(&mut self, span: Duration) {
        assert!(self.child.is_none(), "the node still runs");
        let mut child = spawn(serve(&self.builder, &self.data_dir)).unwrap();
        let log = Log::follow(child.stderr.take().unwrap(), None);
        // Not a wait for something: the span is where the kill strikes.
        std::thread::sleep(span);
        let _ = child.kill();
        let _ = child.wait();
        log.wait_closed();
    }

    /// As [`Node::restart`], for a start that may be refused.
    ///
    /// # Errors
    /// When the node ends before it is ready.
    pub fn try_restart(&mut self) -> Result<(), Failure> {
        assert!(self.child.is_none(), "the node still runs");
        let (child, log, address) = launch(&self.builder, &self.data_dir)?;
        self.child = Some(child);
        self.log = log;
        self.address = address;
        Ok(())
    }

    /// Changes a flag for the next start.
    pub fn set_arguments<I: IntoIterator<Item = A>, A: Into<String>>(&mut self, arguments: I) {
        self.builder.arguments = arguments.into_iter().map(Into::into).collect();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of the node at {} ({}):\n{}---", self.address, self.data_dir.display(), self.log.tail(200));
        }
    }
}

impl NodeBuilder {
    /// Keeps the data in this folder instead of a scratch one; it stays when the node is dropped.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// Adds a flag.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Listens here (a URL) instead of on a free port of 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, url: impl Into<String>) -> Self {
        self.listen = Some(url.into());
        self
    }

    /// Tells where the node listens for peers as soon as it does, at each start.
    #[must_use]
    pub fn on_peer_address(mut self, told: impl Fn(SocketAddr) + Send + Sync + 'static) -> Self {
        self.on_peer_address = Some(Arc::new(told));
        self
    }

    /// How long each start may take: one that must be sent much before it can serve takes longer than others.
    #[must_use]
    pub fn ready_within(mut self, span: Duration) -> Self {
        self.ready_within = Some(span);
        self
    }

    /// Runs it in this folder without any flag, so that the data is in `kvasir-data` there; the port is still a free one.
    #[must_use]
    pub fn without_flags_in(mut self, working_dir: impl Into<PathBuf>) -> Self {
        let working_dir = working_dir.into();
        self.data_dir = Some(working_dir.join("kvasir-data"));
        self.working_dir = Some(working_dir);
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready: with its log.
    pub fn start(self) -> Node {
        match self.try_start() {
            Ok(node) => node,
            Err(failure) => panic!("the node did not start: {failure}"),
        }
    }

    /// Starts it and waits until it is ready, or has ended.
    ///
    /// # Errors
    /// When the node ends before it is ready.
    pub fn try_start(self) -> Result<Node, Failure> {
        let (scratch, data_dir) = match &self.data_dir {
            Some(path) => (None, path.clone()),
            None => {
                let scratch = tempfile::Builder::new().prefix("kvasir-test-").tempdir().unwrap();
                let data_dir = scratch.path().join("data");
                (Some(scratch), data_dir)
            }
        };
        let (child, log, address) = launch(&self, &data_dir)?;
        Ok(Node { builder: self, _scratch: scratch, data_dir, child: Some(child), log, address })
    }
}

impl std::fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeBuilder")
            .field("data_dir", &self.data_dir)
            .field("arguments", &self.arguments)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => writeln!(f, "it ended with {status}:")?,
            None => writeln!(f, "it was not ready in time:")?,
        }
        f.write_str(&self.stderr)
    }
}

fn serve(builder: &NodeBuilder, data_dir: &Path) -> Command {
    let mut command = Command::new(artefacts::kvasir());
    command.arg("serve");
    let listen = builder.listen.as_deref().unwrap_or("http://127.0.0.1:0");
    match &builder.working_dir {
        Some(working_dir) => command.current_dir(working_dir).env("KVASIR_LISTEN_CLIENT_URLS", listen),
        None => command.arg("--data-dir").arg(data_dir).arg("--listen-client-urls").arg(listen),
    };
    // Nodes of tests that run side by side; a flag or variable of the test's own goes before it.
    if !builder.arguments.iter().any(|argument| argument.starts_with("--listen-peer-urls")) {
        command.env("KVASIR_LISTEN_PEER_URLS", "https://127.0.0.1:0");
    }
    command.args(&builder.arguments).envs(builder.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn launch(builder: &NodeBuilder, data_dir: &Path) -> Result<(Child, Arc<Log>, String), Failure> {
    let mut child = spawn(serve(builder, data_dir)).unwrap();
    let log = Log::follow(child.stderr.take().unwrap(), builder.on_peer_address.clone());
    match log.wait_ready(Instant::now() + builder.ready_within.unwrap_or(DEADLINE)) {
        Some(address) => Ok((child, log, address)),
        None => {
            let grace = Instant::now() + if log.is_closed() { DEADLINE } else { Duration::ZERO };
            let status = wait_until(&mut child, grace);
            let _ = child.kill();
            let _ = child.wait();
            log.wait_closed();
            Err(Failure { status, stderr: log.text() })
        }
    }
}

/// Anonymous memory of a process in bytes (`RssAnon` of `/proc/PID/status`): its own, without files it has mapped; 0 once it is
/// gone.
pub fn anonymous_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}
