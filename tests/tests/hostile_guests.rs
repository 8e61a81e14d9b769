//! Guests that mean harm: each is stopped by the limit it is meant to meet or refused at the door, `plugin ls` and `plugin logs`
//! say so in that limit's words, and meanwhile a client's puts keep flowing.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // a failed expectation is a failed test; what was skipped goes to the terminal

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvasir_tests::{Client, DEADLINE, Install, Node, artefacts, eventually};
use tonic::Code;

/// The manifest that the hostile guest carries; each mode is installed as a plugin of its own.
const MANIFEST: &str = include_str!("../guests/hostile/plugin.toml");
/// Puts must go on at no less than this part of what they do alone. Generous: the guests take a core for as long as they may,
/// and the machine may have two.
const SLOWDOWN_MAX: u64 = 20;

/// A way to misbehave, and the reason that the operator reads.
struct Mode {
    name: &'static str,
    says: &'static str,
    /// Room in the other limits, so that a slow machine does not decide which one is met first.
    limits: &'static [(&'static str, &'static str)],
}

const HOST_CALLS: &str = "stopped by the limit `host-calls`: it made more than 1000 calls of the host";
const CALL_BYTES: &str = "stopped by the limit on host-call bytes: one call of the host carried more than 4MiB";
const ROOM: &[(&str, &str)] = &[("cpu = \"500ms\"", "cpu = \"30s\""), ("wall = \"2s\"", "wall = \"60s\"")];
/// A string of 100 MB and a copy of it fit.
const HUGE: &[(&str, &str)] = &[("memory = \"192MiB\"", "memory = \"256MiB\""), ROOM[0], ROOM[1]];

const MODES: &[Mode] = &[
    Mode {
        name: "endless-loop",
        says: "stopped by the limit `cpu`: it used more than 500ms of processor time",
        limits: &[ROOM[1]],
    },
    Mode { name: "allocation-bomb", says: "stopped by the limit `memory`: it asked for", limits: ROOM },
    Mode {
        name: "recursion",
        says: "stopped by its own stack: it recursed until the stack in its memory was full",
        limits: ROOM,
    },
    Mode { name: "deep-recursion", says: "stopped by the limit on stack: it recursed past 512KiB", limits: ROOM },
    Mode { name: "host-call-flood", says: HOST_CALLS, limits: ROOM },
    Mode { name: "huge-string", says: CALL_BYTES, limits: HUGE },
    Mode { name: "huge-put", says: CALL_BYTES, limits: HUGE },
    Mode { name: "huge-fault", says: CALL_BYTES, limits: HUGE },
    Mode { name: "large-put", says: "stopped by the limit `staged-bytes`", limits: ROOM },
    Mode { name: "many-puts", says: "stopped by the limit `staged-ops`: more than 100 writes staged", limits: ROOM },
    Mode { name: "trap", says: "trapped on purpose by /hostile/in/trap/x", limits: ROOM },
    Mode { name: "exit", says: "it called exit(1) instead of returning", limits: ROOM },
    Mode { name: "reject", says: "rejected on purpose", limits: ROOM },
    Mode { name: "retry", says: "failed on purpose, attempt 3", limits: ROOM },
    Mode { name: "staged-flood", says: HOST_CALLS, limits: ROOM },
    Mode { name: "log-flood", says: HOST_CALLS, limits: ROOM },
    Mode { name: "denied", says: "no grant covers writing /elsewhere", limits: ROOM },
    Mode { name: "slow", says: "stopped by the limit `wall`: it ran for more than 2s", limits: &[ROOM[0]] },
];

fn manifest(mode: &str) -> String {
    edited(
        MANIFEST,
        &[
            ("name = \"hostile\"", &format!("name = \"hostile-{mode}\"")),
            ("start = \"beginning\"", "start = \"now\""),
            ("prefix = \"/hostile/in/\"", &format!("prefix = \"/hostile/in/{mode}/\"")),
            ("mode = \"ok\"", &format!("mode = \"{mode}\"")),
        ],
    )
}

/// Replaces text of a manifest that must be there.
fn edited(manifest: &str, edits: &[(&str, &str)]) -> String {
    edits.iter().fold(manifest.to_owned(), |manifest, (from, to)| {
        assert!(manifest.contains(from), "{from:?} is not in {manifest}");
        manifest.replacen(from, to, 1)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_guest_is_stopped_by_its_limit_and_says_so_while_puts_keep_flowing() {
    let Some(component) = artefacts::guest("hostile-guest") else { return };
    let node = Node::start();
    let client = node.client().await;
    let flow = Flow::start(&node).await;
    // Unhindered: as long as it takes for the count to mean something.
    let alone = flow.rate(Duration::from_secs(1)).await;
    assert!(alone > 0, "puts flow before any guest runs");

    let mut wrong = Vec::new();
    for mode in MODES {
        let begun = flow.mark();
        if let Err(reason) = misbehave(&node, &client, &component, mode).await {
            wrong.push(format!("{}: {reason}", mode.name));
        }
        let during = begun.rate(&flow);
        eprintln!("{}: {during} puts/s meanwhile, {alone} alone", mode.name);
        if during < alone / SLOWDOWN_MAX {
            wrong.push(format!("{}: puts went on at {during}/s only, {alone}/s alone", mode.name));
        }
    }
    let longest = flow.stop().await;
    eprintln!("longest put: {longest:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Installs the guest in one mode, gives it an event, and waits until it is stopped and the event is parked.
async fn misbehave(node: &Node, client: &Client, component: &Path, mode: &Mode) -> Result<(), String> {
    let name = format!("hostile-{}", mode.name);
    client
        .install(component, Install::with_manifest(edited(&manifest(mode.name), mode.limits)))
        .await
        .map_err(|status| format!("install: {status}"))?;
    client.put(format!("/hostile/in/{}/x", mode.name), "go").await.map_err(|status| format!("put: {status}"))?;
    let end = Instant::now() + DEADLINE;
    let trigger = loop {
        let plugin = client.plugin(&name).await.map_err(|status| format!("list: {status}"))?.ok_or("it is not listed")?;
        let trigger = plugin.triggers.first().cloned().unwrap_or_default();
        if trigger.dead_letters > 0 || plugin.state == "quarantined" {
            break trigger;
        }
        if Instant::now() >= end {
            return Err(format!("neither parked nor quarantined: {plugin:?}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mut wrong = Vec::new();
    if !trigger.last_error.contains(mode.says) {
        wrong.push(format!("the last error is not {:?}: {:?}", mode.says, trigger.last_error));
    }
    // What the operator sees.
    let listed = node.cli(["plugin", "ls"]).ok();
    if !listed.contains(mode.says) {
        wrong.push(format!("`plugin ls` does not say why: {listed}"));
    }
    let logged = node.cli(["plugin", "logs", &name]).ok();
    if !logged.contains(mode.says) {
        wrong.push(format!("`plugin logs` does not say why: {}", logged.chars().take(2_000).collect::<String>()));
    }
    if logged.len() > 8 << 20 {
        wrong.push(format!("`plugin logs` prints {} bytes", logged.len()));
    }
    let letters = node.cli(["plugin", "dlq", "list", &name]).ok();
    if trigger.dead_letters > 0 && !letters.contains(&format!("/hostile/in/{}/x", mode.name)) {
        wrong.push(format!("`plugin dlq list` does not show the event: {letters}"));
    }
    let kept = client.prefix("/hostile/out/").await.map_err(|status| format!("range: {status}"))?;
    if !kept.is_empty() || client.get("/elsewhere").await.map_err(|status| format!("get: {status}"))?.is_some() {
        wrong.push(format!("a failed run has written: {} keys", kept.len()));
    }
    client.plugin_remove(&name).await.map_err(|status| format!("remove: {status}"))?;
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_behaves_goes_on_beside_one_that_does_not() {
    let Some(component) = artefacts::guest("hostile-guest") else { return };
    let node = Node::start();
    let client = node.client().await;
    for mode in ["ok", "endless-loop"] {
        client.install(&component, Install::with_manifest(manifest(mode))).await.unwrap();
    }
    client.put("/hostile/in/endless-loop/x", "go").await.unwrap();
    let at = client.put("/hostile/in/ok/y", "go").await.unwrap().header.unwrap().revision;
    let answered = || async {
        match client.get("/hostile/out/y").await.map_err(|status| status.to_string())? {
            Some(value) => Ok(value),
            None => Err("nothing yet".to_owned()),
        }
    };
    assert_eq!(eventually("the good guest has answered", DEADLINE, answered).await, at.to_string());
}

#[tokio::test]
async fn what_is_no_plugin_is_refused_at_the_door_and_leaves_nothing_behind() {
    let node = Node::start();
    let client = node.client().await;
    let scratch = tempfile::tempdir().unwrap();
    let before = client.revision().await.unwrap();
    let mut cases: Vec<(&str, Bytes, &[&str])> = vec![
        (
            "not wasm",
            "this is not wasm at all".into(),
            &["not a WebAssembly", "not WebAssembly", "not wasm", "magic", "component"],
        ),
        ("nothing", Bytes::new(), &["empty", "component"]),
        ("core module", Bytes::from_static(b"\0asm\x01\0\0\0"), &["core module", "module"]),
        ("wrong world", Bytes::from_static(b"\0asm\x0d\0\x01\0"), &["export"]),
        ("wrong import", component_importing("wasi:sockets/tcp@0.2.0"), &["wasi:sockets/tcp", "export"]),
    ];
    let component = artefacts::guest("hostile-guest").map(|path| Bytes::from(std::fs::read(path).unwrap()));
    if let Some(component) = &component {
        for part in [1, 10, 50, 99] {
            let cut = component.slice(..component.len() * part / 100);
            cases.push((
                "truncated",
                cut,
                &["truncated", "unexpected end", "ends early", "incomplete", "cut off", "damaged", "not a valid"],
            ));
        }
        let mut flipped = component.to_vec();
        let middle = flipped.len() / 2;
        flipped[middle..middle + 64].fill(0xff);
        cases.push(("damaged", flipped.into(), &["valid", "damaged", "malformed", "component"]));
    }
    for (case, bytes, words) in cases {
        let status = client.install_bytes(bytes.clone(), Install::with_manifest(manifest("ok"))).await.expect_err(case);
        assert_eq!(status.code(), Code::InvalidArgument, "{case}: {status:?}");
        assert!(words.iter().any(|word| status.message().contains(word)), "{case}: {}", status.message());
        let path: PathBuf = scratch.path().join("component.wasm");
        std::fs::write(&path, &bytes).unwrap();
        std::fs::write(scratch.path().join("plugin.toml"), manifest("ok")).unwrap();
        let manifest_path = scratch.path().join("plugin.toml");
        let line = node
            .cli([
                "plugin",
                "install",
                path.to_str().unwrap(),
                "--manifest",
                manifest_path.to_str().unwrap(),
                "--accept-requested",
            ])
            .refused();
        let errors: Vec<_> = line.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{case}: one line says what is wrong: {line}");
    }
    assert_eq!(client.plugin_list().await.unwrap(), []);
    assert_eq!(client.revision().await.unwrap(), before);
}

/// `(component (import NAME (instance)))`.
fn component_importing(name: &str) -> Bytes {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    bytes.extend([0x07, 0x03, 0x01, 0x42, 0x00]);
    bytes.extend([0x0a, name.len() as u8 + 5, 0x01, 0x00, name.len() as u8]);
    bytes.extend(name.as_bytes());
    bytes.extend([0x05, 0x00]);
    bytes.into()
}

/// A client that puts as fast as it is answered.
struct Flow {
    done: Arc<AtomicU64>,
    longest_us: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

struct Mark {
    at: Instant,
    done: u64,
}

impl Flow {
    async fn start(node: &Node) -> Self {
        let client = node.client().await;
        let (done, longest_us) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counted, timed) = (Arc::clone(&done), Arc::clone(&longest_us));
        let task = tokio::spawn(async move {
            for n in 0_u64.. {
                let start = Instant::now();
                client.put(format!("/flow/{}", n % 100), n.to_string()).await.expect("a client's puts keep flowing");
                counted.fetch_add(1, Ordering::Relaxed);
                timed.fetch_max(start.elapsed().as_micros() as u64, Ordering::Relaxed);
            }
        });
        Self { done, longest_us, task }
    }

    fn mark(&self) -> Mark {
        Mark { at: Instant::now(), done: self.done.load(Ordering::Relaxed) }
    }

    async fn rate(&self, span: Duration) -> u64 {
        let mark = self.mark();
        tokio::time::sleep(span).await;
        mark.rate(self)
    }

    async fn stop(self) -> Duration {
        assert!(!self.task.is_finished(), "the flow has not ended by itself");
        self.task.abort();
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }
}

impl Mark {
    /// Puts a second since the mark.
    fn rate(&self, flow: &Flow) -> u64 {
        let done = flow.done.load(Ordering::Relaxed) - self.done;
        done * 1_000 / (self.at.elapsed().as_millis() as u64).max(1)
    }
}
