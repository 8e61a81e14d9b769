//! Lives of many seeds, each in a process of its own: what a process has done before must not matter.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::Level;

use crate::life::{Mutation, live};

/// The test that lives one seed when it is told one.
const TEST: &str = "a_cluster_keeps_its_promises_whatever_befalls_it";
/// A life takes a second or two; one that takes so long has hung.
const PATIENCE: Duration = Duration::from_secs(300);
/// What a life ends with that has seen a promise broken.
const BROKEN: i32 = 101;

/// Where openraft panics when two tasks ask why its core has stopped and the one that asked first is dropped before it is told
/// (`RaftInner::get_core_stop_error`), and for everybody who asks after them: first with one of these words, then with the other.
/// The core has stopped then, and with it the node: nothing more is lost.
const STOPPED_TWICE: (&str, [&str; 2]) = ("raft_inner.rs", ["RaftCore should have already quit", "PoisonError"]);

/// How a life went.
pub(crate) enum Lived {
    /// Its tally.
    Well(BTreeMap<String, Value>),
    /// What went wrong, on a line.
    Badly(String),
}

/// What many lives came to.
pub(crate) struct Sum {
    pub(crate) seeds: u64,
    pub(crate) failed: bool,
    pub(crate) tally: BTreeMap<String, u64>,
}

/// Lives a seed in this process, which ends with it if it goes wrong.
pub(crate) fn here(seed: u64) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Also a panic of a task, which tokio would keep to itself.
        hook(panic);
        let (file, words) = STOPPED_TWICE;
        let there = panic.location().is_some_and(|place| place.file().ends_with(file));
        if there && panic.payload_as_str().is_some_and(|why| words.iter().any(|word| why.contains(word))) {
            return;
        }
        std::process::exit(BROKEN);
    }));
    let mutation = std::env::var("KVASIR_MUTANT").map_or(Mutation::None, |name| Mutation::named(&name));
    let loud = std::env::var_os("KVASIR_TRACE").is_some();
    if loud {
        let level = if std::env::var("KVASIR_TRACE").is_ok_and(|it| it == "debug") { Level::DEBUG } else { Level::WARN };
        tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(std::io::stderr).without_time().init();
    }
    let tally = live(seed, mutation, loud).unwrap();
    println!("seed {seed}: {}", tally.line());
}

/// Lives a seed in a process of its own.
pub(crate) fn elsewhere(seed: u64, mutant: Option<&str>) -> Lived {
    let mut told = tempfile::tempfile().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture"]).env("KVASIR_SEED", seed.to_string());
    command.env_remove("KVASIR_TRACE").env_remove("KVASIR_MUTANT").env("RUST_BACKTRACE", "0");
    if let Some(mutant) = mutant {
        command.env("KVASIR_MUTANT", mutant);
    }
    command.stdin(Stdio::null()).stdout(told.try_clone().unwrap()).stderr(told.try_clone().unwrap());
    let mut process = Process(command.spawn().unwrap());
    let begin = Instant::now();
    let status = loop {
        match process.0.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if begin.elapsed() > PATIENCE => break None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    drop(process);
    told.rewind().unwrap();
    let mut text = Vec::new();
    told.read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text);
    let tally = text.lines().find_map(|line| line.strip_prefix(&format!("seed {seed}: ")));
    match (status, tally) {
        (Some(status), Some(tally)) if status.success() => Lived::Well(serde_json::from_str(tally).unwrap()),
        (None, _) => Lived::Badly(format!("it hangs: {}", said(&text))),
        (Some(_), _) => Lived::Badly(said(&text)),
    }
}

/// What a process said about its end.
fn said(text: &str) -> String {
    let begin = text.find("panicked at").or_else(|| text.find("the simulated world")).unwrap_or(0);
    let lines: Vec<&str> = text[begin..].lines().filter(|line| !line.starts_with("note:")).take(12).collect();
    lines.join("\n").chars().take(4_000).collect()
}

/// A process that does not outlive the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended, or it ends now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command that lives a seed again.
fn again(seed: u64) -> String {
    format!("KVASIR_SEED={seed} KVASIR_TRACE=1 cargo test --workspace --test simulation -- {TEST} --nocapture")
}

/// Lives one seed after the other, one on each core at a time, while there are to be more.
pub(crate) fn many(first: u64, more: impl Fn(u64) -> bool + Sync) -> Sum {
    let next = AtomicU64::new(first);
    let failed = AtomicBool::new(false);
    let tallies = Mutex::new(BTreeMap::<String, u64>::new());
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) && more(next.load(Ordering::Relaxed)) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    match elsewhere(seed, None) {
                        Lived::Well(tally) => {
                            let mut sum = tallies.lock().unwrap();
                            for (what, count) in tally.iter().filter_map(|(what, count)| Some((what, count.as_u64()?))) {
                                *sum.entry(what.clone()).or_insert(0) += count;
                            }
                        }
                        Lived::Badly(why) => {
                            failed.store(true, Ordering::Relaxed);
                            eprintln!("seed {seed} failed: {why}\nagain: {}", again(seed));
                        }
                    }
                }
            });
        }
    });
    Sum { seeds: next.into_inner() - first, failed: failed.into_inner(), tally: tallies.into_inner().unwrap() }
}
