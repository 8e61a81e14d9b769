//! The demo's node and the watches on it.
//!
//! **Invariant:** both are killed when they are dropped; the node's scratch folder goes with it.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::narrator::{overhear, quote, say};
use super::{SOON, Scratch};
use crate::shell::{Cmd, Running};

const READY: &str = "ready to serve client requests on ";

/// A running `kvasir serve`.
pub(super) struct Node {
    program: PathBuf,
    address: String,
    running: Running,
    log: Arc<Mutex<Vec<String>>>,
    scratch: Scratch,
}

impl Node {
    /// Starts a node on a scratch folder and a free port, and waits until it is ready.
    pub(super) fn start(program: &Path) -> Result<Self> {
        let scratch = Scratch::new()?;
        let serve = Cmd::new(program)
            .args([
                "serve",
                "--listen-client-urls",
                "http://127.0.0.1:0",
                "--listen-peer-urls",
                "https://127.0.0.1:0",
                "--data-dir",
            ])
            .arg(scratch.path().join("data"));
        println!("  $ {serve} &");
        let mut running = serve.start()?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let (send, ready) = mpsc::channel();
        for pipe in running.pipes() {
            follow(pipe, Arc::clone(&log), send.clone());
        }
        drop(send);
        let address = match ready.recv_timeout(SOON) {
            Ok(address) => address,
            Err(_) => bail!("the node did not become ready; it said:\n{}", text_of(&log)),
        };
        quote(&text_of(&log));
        Ok(Self { program: program.to_owned(), address, running, log, scratch })
    }

    /// `127.0.0.1:45123`
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// A folder that goes with the node.
    pub(super) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// One of kvasir's verbs against this node.
    pub(super) fn verb(&self, words: &[&str]) -> Cmd {
        Cmd::new(&self.program).args(words).env("KVASIR_ENDPOINTS", &self.address)
    }

    /// SIGTERM; the node must end by itself, with exit code 0.
    pub(super) fn stop(&mut self) -> Result<()> {
        let seen = self.log.lock().map_or(0, |log| log.len());
        let kill = Cmd::new("kill").args(["-TERM", &self.running.child.id().to_string()]);
        println!("  $ {kill}");
        kill.read()?;
        let status = self.running.wait(Some(SOON)).with_context(|| format!("it said:\n{}", text_of(&self.log)))?;
        let log = text_of(&self.log);
        quote(&log.lines().skip(seen).collect::<Vec<_>>().join("\n"));
        if !status.success() {
            bail!("the node ended with {status}; it said:\n{log}");
        }
        say("the node stopped by itself, exit code 0");
        Ok(())
    }
}

fn text_of(log: &Mutex<Vec<String>>) -> String {
    log.lock().map(|log| log.join("\n")).unwrap_or_default()
}

/// Keeps what the node says, and reports where it serves once it does.
fn follow(pipe: Box<dyn Read + Send>, log: Arc<Mutex<Vec<String>>>, ready: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(std::result::Result::ok) {
            let address = line.split_once(READY).and_then(|(_, rest)| rest.split_whitespace().next()).map(str::to_owned);
            if let Ok(mut log) = log.lock() {
                log.push(line);
            }
            if let Some(address) = address {
                // Somebody waits for the first address only.
                let _ = ready.send(address);
            }
        }
    });
}

/// A running `kvasir watch`, whose lines are printed as they are waited for.
pub(super) struct Watch {
    lines: Receiver<String>,
    seen: Vec<String>,
    _running: Running,
}

impl Watch {
    pub(super) fn start(command: &Cmd) -> Result<Self> {
        let mut running = command.start()?;
        let (send, lines) = mpsc::channel();
        for pipe in running.pipes() {
            let send = send.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(std::result::Result::ok) {
                    // The demo has seen enough.
                    if send.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self { lines, seen: Vec::new(), _running: running })
    }

    /// Prints what comes until these texts have been seen in this order, each in a line of its own or a later part of one.
    pub(super) fn wait_for(&mut self, what: &str, texts: &[&str], limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        let mut left = texts;
        self.seen.clear();
        while let Some(next) = left.first() {
            let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) else {
                bail!("the watch did not show {what} within {} seconds; it showed: {:?}", limit.as_secs(), self.seen);
            };
            overhear(&line);
            let mut rest = line.as_str();
            let mut wanted = Some(*next);
            while let Some((_, after)) = wanted.and_then(|text| rest.split_once(text)) {
                left = &left[1..];
                (rest, wanted) = (after, left.first().copied());
            }
            self.seen.push(line);
        }
        say(&format!("the watch showed {what}"));
        Ok(())
    }
}
