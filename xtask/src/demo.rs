//! `cargo xtask demo`: kvasir shown whole on this machine, from a fresh clone to a clean stop.
//!
//! Builds what is missing, starts a node on a scratch folder and a free port, installs the two plugins, and shows what they do
//! to writes of kvasir's own client and of a stock etcd client.
//!
//! **Invariant:** every step is checked, not only shown: what does not happen in time fails the demo. The node and every watch
//! are gone when it ends, however it ends, and so is the scratch folder.

mod narrator;
mod node;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::narrator::{chapter, quote, say};
use self::node::{Node, Watch};
use crate::clients::{self, Clients};
use crate::shell::Cmd;
use crate::{wasm_target, workspace};

/// What should happen at once may take this long on a busy machine.
const SOON: Duration = Duration::from_secs(30);

pub(crate) fn run() -> Result<()> {
    let begin = Instant::now();
    chapter("What it needs");
    wasm_target::ensure()?;
    let kvasir = build()?;
    let clients = clients::prepare_for_demo()?;

    chapter("A node");
    let mut node = Node::start(&kvasir)?;
    fragments(&node, &clients)?;
    cleaning(&node)?;
    overview(&node)?;

    chapter("The end");
    node.stop()?;
    say(&format!("all done in {:.0} seconds", begin.elapsed().as_secs_f64()));
    Ok(())
}

/// Builds the node and the two plugins.
fn build() -> Result<std::path::PathBuf> {
    say("building the node (the first time this takes some minutes: there is a compiler in it)");
    Cmd::cargo().args(["build", "--package", "kvasir-node", "--bin", "kvasir", "--locked"]).folder(workspace::root()).run()?;
    say("building the plugins, as wasm components");
    Cmd::cargo()
        .args(["build", "--package", "config-render", "--package", "janitor", "--locked"])
        .args(["--target", wasm_target::TARGET, "--profile", "guest"])
        .folder(workspace::root())
        .run()?;
    Ok(workspace::target().join("debug/kvasir"))
}

/// The component of a plugin, as the build left it.
fn component(name: &str) -> String {
    let file = format!("{}.wasm", name.replace('-', "_"));
    workspace::target().join(wasm_target::TARGET).join("guest").join(file).display().to_string()
}

/// config-render: fragments in, one validated value out.
fn fragments(node: &Node, clients: &Clients) -> Result<()> {
    chapter("A plugin that reacts: config-render");
    node.kvasir(&[
        "plugin",
        "install",
        &component("config-render"),
        "--grant",
        "kv:read=/config/",
        "--grant",
        "kv:read=/rendered/",
        "--grant",
        "kv:write=/rendered/",
    ])?;
    say("somebody watches what is rendered:");
    let mut watch = node.watch(&["--prefix", "/rendered/", "--rev", "1"])?;

    say("a fragment, written with kvasir's own client:");
    node.kvasir(&["put", "/config/shop/10-base", r#"{"replicas": 2, "database": {"host": "db.internal", "pool": 10}}"#])?;
    watch.wait_for("the value rendered from one fragment", &["/rendered/shop", "10-base"], SOON)?;

    let limits = r#"{"database": {"pool": 25}, "features": ["gift-cards"]}"#;
    if stock_put(node, clients, "/config/shop/20-limits", limits)? {
        watch.wait_for("the value merged from both fragments", &["\"pool\":25", "20-limits"], SOON)?;
    }

    say("a fragment that does not fit:");
    node.kvasir(&["put", "/config/shop/30-oops", r#"{"database": "db2.internal"}"#])?;
    watch.wait_for("the reason, for a person to read", &["/rendered/shop/error", "30-oops"], SOON)?;
    say("what was rendered before stays:");
    let kept = node.kvasir(&["get", "/rendered/shop"])?;
    if !kept.contains("db.internal") {
        bail!("/rendered/shop is not what it was: {kept}");
    }
    say("the fragment is taken back, and the error with it:");
    node.kvasir(&["del", "/config/shop/30-oops"])?;
    watch.wait_for("the error deleted", &["DELETE", "/rendered/shop/error"], SOON)
}

/// Writes with a stock etcd client, if there is one.
fn stock_put(node: &Node, clients: &Clients, key: &str, value: &str) -> Result<bool> {
    let command = match (clients.path("KVASIR_ETCDCTL"), clients.path("KVASIR_GO_CLIENT")) {
        (Some(etcdctl), _) => {
            say("another fragment, written with etcd's own etcdctl:");
            Cmd::new(etcdctl).arg(format!("--endpoints={}", node.address())).args(["put", key, value])
        }
        (None, Some(program)) => {
            say("another fragment, written by a Go program with etcd's clientv3:");
            Cmd::new(program).args(["-endpoint", node.address(), "-prefix", key, "-value", value, "put"])
        }
        (None, None) => {
            say("SKIPPED: the fragment of a stock etcd client: none could be had (see above)");
            return Ok(false);
        }
    };
    println!("  $ {command}");
    quote(&command.limit(SOON).read()?);
    Ok(true)
}

/// janitor: a task under a lock.
fn cleaning(node: &Node) -> Result<()> {
    chapter("A plugin that runs under a lock: janitor");
    say("three keys that nobody needs any more, and the policy that says what is old:");
    for nth in 1..=3 {
        node.kvasir(&["put", &format!("/tmp/{nth}"), "left behind"])?;
    }
    node.kvasir(&["put", "/janitor/policy/tmp", r#"{"prefix": "/tmp/", "older_than_s": 1}"#])?;
    let mut own = node.watch(&["--prefix", "/janitor/", "--rev", "1"])?;
    let mut cleaned = node.watch(&["--prefix", "/tmp/", "--rev", "1"])?;
    say("its manifest says every 10 seconds; for the demo, every second:");
    let manifest = every_second(node)?;
    node.kvasir(&["plugin", "install", &component("janitor"), "--manifest", &manifest, "--accept-requested"])?;
    own.wait_for("the lock taken: the key that any etcd client would make and wait for", &["PUT", "/janitor/lock/"], SOON)?;
    cleaned.wait_for("the last old key deleted", &["DELETE", "/tmp/3"], SOON)?;
    own.wait_for("the report", &["PUT", "/janitor/report/tmp", "\"deleted\":3"], SOON)?;
    own.wait_for("the lock given back", &["DELETE", "/janitor/lock/"], SOON)?;
    let left = node.kvasir(&["get", "--prefix", "/tmp/"])?;
    if !left.trim().is_empty() {
        bail!("old keys are left: {left}");
    }
    Ok(())
}

/// janitor's manifest with a shorter interval, in the scratch folder.
fn every_second(node: &Node) -> Result<String> {
    let manifest = workspace::root().join("plugins/janitor/plugin.toml");
    let text = std::fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let changed = text.replace("every = \"10s\"", "every = \"1s\"");
    if changed == text {
        bail!("{} does not say every = \"10s\"", manifest.display());
    }
    let path = node.scratch().join("janitor.toml");
    std::fs::write(&path, changed)?;
    println!("  $ sed s/10s/1s/ plugins/janitor/plugin.toml > {}", narrator::word(&path.display().to_string()));
    Ok(path.display().to_string())
}

/// What an operator sees.
fn overview(node: &Node) -> Result<()> {
    chapter("What an operator sees");
    let list = node.kvasir(&["plugin", "ls"])?;
    for name in ["config-render", "janitor"] {
        list.lines().find(|line| line.starts_with(name)).with_context(|| format!("`plugin ls` does not list {name}"))?;
    }
    node.kvasir(&["plugin", "logs", "--tail", "5", "config-render"])?;
    node.kvasir(&["status"])?;
    Ok(())
}

/// A scratch folder that is removed when this is dropped.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let folder = workspace::target().join("demo").join(std::process::id().to_string());
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed lies under `target`, where `cargo clean` finds it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Node {
    /// Runs one of kvasir's verbs, showing the command and what it said.
    fn kvasir(&self, words: &[&str]) -> Result<String> {
        let shown: Vec<String> = words.iter().map(|word| narrator::word(word)).collect();
        println!("  $ kvasir {}", shown.join(" "));
        let said = self.verb(words).limit(SOON * 4).read()?;
        quote(&said);
        Ok(said)
    }

    fn watch(&self, words: &[&str]) -> Result<Watch> {
        let shown: Vec<String> = words.iter().map(|word| narrator::word(word)).collect();
        println!("  $ kvasir watch {} &", shown.join(" "));
        Watch::start(&self.verb(&[&["watch"], words].concat()))
    }
}
