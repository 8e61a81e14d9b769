//! The host on a real engine in a scratch folder: installing, running, failing, stopping. Guests are a few lines of WebAssembly text.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::etcdserverpb::{PutRequest, RangeRequest};
use kvasir_api::kvasir::plugin::v1 as api;
use kvasir_api::mvccpb::KeyValue;
use kvasir_engine::{Caller, Engine, EngineOptions};
use kvasir_storage::disk::RealDisk;

use crate::testing::{reactor, reactor_with, task};
use crate::{PluginHost, PluginHostOptions};

const DEADLINE: Duration = Duration::from_secs(60);

struct Node {
    dir: tempfile::TempDir,
    engine: Engine,
    host: PluginHost,
}

impl Node {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    async fn start_in(dir: tempfile::TempDir) -> Self {
        let engine = Engine::start(EngineOptions::new(dir.path().join("data"), Arc::new(RealDisk))).await.unwrap();
        let options = PluginHostOptions { cache_dir: dir.path().join("cache"), threads: 2 };
        let host = PluginHost::start(engine.clone(), options).unwrap();
        Self { dir, engine, host }
    }

    async fn stop(self) -> tempfile::TempDir {
        self.host.shutdown().await;
        drop(self.host);
        self.engine.shutdown().await;
        self.dir
    }

    async fn install(&self, component: Vec<u8>, manifest: &str) -> Result<api::InstallResponse, Error> {
        let header = api::install_request::Header {
            manifest_toml: manifest.to_owned(),
            accept_requested: true,
            ..api::install_request::Header::default()
        };
        self.host.install(header, Bytes::from(component)).await
    }

    async fn put(&self, key: &str, value: &str) {
        let put = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
        self.engine.put(&Caller::client(), put).await.unwrap();
    }

    async fn get(&self, key: &str) -> Option<KeyValue> {
        let range = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
        self.engine.range(&Caller::client(), range).await.unwrap().kvs.into_iter().next()
    }

    /// How often the guest has put `/out/count`.
    async fn count(&self) -> i64 {
        self.get("/out/count").await.map_or(0, |kv| kv.version)
    }

    fn plugin(&self) -> api::PluginStatus {
        self.host.list().plugins.into_iter().next().unwrap()
    }

    fn log(&self) -> String {
        let lines = self.host.logs("p", 0).unwrap().lines;
        lines.into_iter().map(|line| format!("{} {}\n", line.level, line.message)).collect()
    }

    /// Waits until a condition holds; what it looks at is in memory, so asking often is cheap.
    async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
        let waiting = async {
            while !holds(self).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, waiting).await.is_err() {
            panic!("{what}: {:#?}\n{}", self.host.list(), self.log());
        }
    }
}

fn watching(more: &str) -> String {
    format!(
        r#"
        [plugin]
        name = "p"
        version = "1"
        [[trigger.watch]]
        id = "w"
        prefix = "/in/"
        start = "beginning"
        batch = {{ max-events = 1 }}
        [grants]
        kv-read = ["/in/"]
        kv-write = ["/out/"]
        [failure]
        retries = 1
        backoff = "1ms..2ms"
        {more}"#
    )
}

const EVERY_SECOND: &str = r#"
    [plugin]
    name = "p"
    version = "1"
    [[trigger.schedule]]
    id = "s"
    every = "100ms"
    lock = "/jobs/p"
    [grants]
    kv-write = ["/out/"]
    [failure]
    retries = 1
    backoff = "1ms..2ms"
"#;

const COUNT: &str = "(call $count) (call $ok)";

#[tokio::test(flavor = "multi_thread")]
async fn a_reactor_counts_every_event_once_also_over_a_restart() {
    let node = Node::start().await;
    node.put("/in/before", "1").await;
    let installed = node.install(reactor(COUNT), &watching("")).await.unwrap();
    assert_eq!((installed.name.as_str(), installed.generation > 0), ("p", true));
    assert!(installed.permissions.iter().any(|words| words == "may read keys under /in/"), "{:?}", installed.permissions);
    for n in 0..20 {
        node.put(&format!("/in/{n}"), "1").await;
        node.put(&format!("/elsewhere/{n}"), "1").await;
    }
    node.until("21 events are counted", async |node| node.count().await == 21).await;
    let node = Node::start_in(node.stop().await).await;
    node.put("/in/after", "1").await;
    node.until("the event after the restart is counted", async |node| node.count().await == 22).await;
    node.until("nothing is behind", async |node| node.plugin().triggers[0].lag_revisions == 0).await;
    assert_eq!(node.count().await, 22, "and none is counted twice");
    assert_eq!(node.plugin().triggers[0].faults, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_commits_under_its_lock_and_gives_it_back() {
    let node = Node::start().await;
    node.install(task(COUNT), EVERY_SECOND).await.unwrap();
    node.until("the task ran twice", async |node| node.count().await >= 2).await;
    // A client that takes the lock keeps the task out.
    let lock = kvasir_api::v3lockpb::LockRequest { name: "/jobs/p".into(), lease: 0 };
    let held = tokio::time::timeout(DEADLINE, node.engine.lock(&Caller::client(), lock)).await.unwrap().unwrap();
    let during = node.count().await;
    node.until("the task waits", async |node| node.plugin().triggers[0].state == "waiting-for-lock").await;
    assert_eq!(node.count().await, during);
    let unlock = kvasir_api::v3lockpb::UnlockRequest { key: held.key };
    node.engine.unlock(&Caller::client(), unlock).await.unwrap();
    node.until("the task runs again", async |node| node.count().await > during).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_hostile_guest_is_stopped_by_its_own_limit_and_says_so() {
    let flood =
        "(loop $l (call $log (i32.const 2) (i32.const 64) (i32.const 1) (i32.const 64) (i32.const 1)) (br $l)) (unreachable)";
    let long = "(drop (memory.grow (i32.const 100)))
        (call $log (i32.const 2) (i32.const 64) (i32.const 1) (i32.const 64) (i32.const 6000000)) (call $ok)";
    let forever =
        "(func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (i32.add (local.get 0) (i32.const 1)))))";
    let wait = "(loop $l (br $l)) (unreachable)";
    let cases = [
        ("an endless loop", reactor(wait), "cpu = \"50ms\"\nwall = \"30s\"", "stopped by the limit `cpu`"),
        ("a slow one", reactor(wait), "cpu = \"60s\"\nwall = \"100ms\"", "stopped by the limit `wall`"),
        (
            "an allocation bomb",
            reactor("(loop $l (drop (memory.grow (i32.const 16))) (br $l)) (unreachable)"),
            "memory = \"4MiB\"",
            "stopped by the limit `memory`",
        ),
        (
            "recursion",
            reactor_with(forever, "(drop (call $deep (i32.const 0))) (call $ok)", "(call $ok)"),
            "cpu = \"30s\"\nwall = \"60s\"",
            "stopped by the limit on stack",
        ),
        ("a flood of host calls", reactor(flood), "host-calls = 100", "stopped by the limit `host-calls`"),
        ("a huge string", reactor(long), "memory = \"32MiB\"", "stopped by the limit on host-call bytes"),
        ("a trap", reactor("(unreachable)"), "", "it trapped: wasm `unreachable`"),
    ];
    for (what, component, limits, says) in cases {
        let node = Node::start().await;
        node.install(component, &watching(&format!("[limits]\n{limits}"))).await.unwrap();
        node.put("/in/a", "1").await;
        node.until(what, async |node| node.plugin().triggers[0].dead_letters == 1).await;
        let trigger = node.plugin().triggers[0].clone();
        assert!(trigger.last_error.contains(says), "{what}: {}", trigger.last_error);
        assert!(node.log().contains(says), "{what}: {}", node.log());
        let letter = node.host.dead_letters("p").await.unwrap().letters[0].clone();
        assert_eq!((letter.key.as_ref(), letter.attempts), (&b"/in/a"[..], 2), "{what}");
        assert!(letter.error.contains(says), "{what}: {}", letter.error);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_batch_is_halved_until_each_event_stands_alone() {
    let node = Node::start().await;
    for key in ["/in/a", "/in/b", "/in/c", "/in/d", "/in/e"] {
        node.put(key, "1").await;
    }
    // The guest looks at how many events it got: more than one is rejected, so that every batch is halved down to single events.
    let single =
        "(if (result i32) (i32.gt_u (local.get 3) (i32.const 1)) (then (call $reject)) (else (call $count) (call $ok)))";
    let manifest = watching("").replace("max-events = 1", "max-events = 64");
    node.install(reactor(single), &manifest).await.unwrap();
    node.until("all are counted", async |node| node.count().await == 5).await;
    assert_eq!(node.plugin().triggers[0].dead_letters, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_exhausted_halt_quarantines_and_resume_lifts_it() {
    let node = Node::start().await;
    node.put("/in/a", "1").await;
    let manifest = watching("on-exhausted = \"halt\"");
    node.install(reactor("(call $reject)"), &manifest).await.unwrap();
    node.until("quarantined", async |node| node.plugin().state == "quarantined").await;
    assert!(node.plugin().reason.contains("because"), "{}", node.plugin().reason);
    node.host.resume("p").await.unwrap();
    node.until("it tried again", async |node| node.log().matches("quarantined:").count() >= 2).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_a_grant_is_denied_and_a_reactor_cannot_commit() {
    let node = Node::start().await;
    let manifest = watching("").replace("kv-write = [\"/out/\"]", "kv-write = [\"/other/\"]");
    // An answer is a result: its first byte is 1 for an error, whose case follows 8 bytes later. Denied is case 0, unsupported 7.
    let body = "(call $count)
        (if (i32.ne (i32.load8_u (i32.const 32)) (i32.const 1)) (then (unreachable)))
        (if (i32.load8_u (i32.const 40)) (then (unreachable)))
        (call $commit (i32.const 32))
        (if (i32.ne (i32.load8_u (i32.const 32)) (i32.const 1)) (then (unreachable)))
        (if (i32.ne (i32.load8_u (i32.const 40)) (i32.const 7)) (then (unreachable)))
        (call $ok)";
    node.install(reactor(body), &manifest).await.unwrap();
    node.put("/in/a", "1").await;
    node.until("it ran", async |node| node.plugin().triggers[0].runs >= 1).await;
    node.until("it is through", async |node| node.plugin().triggers[0].lag_revisions == 0).await;
    assert_eq!(node.plugin().triggers[0].last_error, "");
    assert_eq!(node.count().await, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_stops_and_resume_goes_on_where_it_was_and_remove_forgets() {
    let node = Node::start().await;
    node.install(reactor(COUNT), &watching("")).await.unwrap();
    node.put("/in/a", "1").await;
    node.until("counted", async |node| node.count().await == 1).await;
    node.host.pause("p").await.unwrap();
    node.until("paused", async |node| node.plugin().state == "paused").await;
    node.put("/in/b", "1").await;
    node.host.resume("p").await.unwrap();
    node.until("counted after the pause", async |node| node.count().await == 2).await;
    node.host.remove("p").await.unwrap();
    assert!(node.host.list().plugins.is_empty());
    assert!(matches!(node.host.inspect("p"), Err(Error::Missing(_))));
    assert!(matches!(node.host.remove("p").await, Err(Error::Missing(_))));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_installed_changes_nothing() {
    let node = Node::start().await;
    let refused = |result: Result<api::InstallResponse, Error>| match result {
        Err(Error::Invalid(text)) => text,
        other => panic!("{other:?}"),
    };
    let good = reactor(COUNT);
    assert!(refused(node.install(good[..good.len() - 10].to_vec(), &watching("")).await).contains("truncated"));
    assert!(refused(node.install(good.clone(), "").await).contains("no manifest"));
    assert!(refused(node.install(good.clone(), &watching("[nonsense]")).await).contains("unknown field `nonsense`"));
    assert!(refused(node.install(good.clone(), EVERY_SECOND).await).contains("needs the export kvasir:plugin/task"));
    let header = api::install_request::Header { manifest_toml: watching(""), ..api::install_request::Header::default() };
    assert!(refused(node.host.install(header.clone(), good.clone().into()).await).contains("--accept-requested"));
    let dry = api::install_request::Header { dry_run: true, accept_requested: true, ..header };
    assert!(!node.host.install(dry, good.clone().into()).await.unwrap().permissions.is_empty());
    assert!(node.host.list().plugins.is_empty());
    node.install(good.clone(), &watching("")).await.unwrap();
    assert!(matches!(node.install(good, &watching("")).await, Err(Error::Precondition(text)) if text.contains("--upgrade")));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_trigger_resyncs_and_goes_on() {
    let node = Node::start().await;
    for n in 0..10 {
        node.put(&format!("/in/{n}"), "1").await;
    }
    let revision = node.engine.revision();
    let compact = kvasir_api::etcdserverpb::CompactionRequest { revision: revision as i64, physical: true };
    node.engine.compact(&Caller::client(), compact).await.unwrap();
    // `on-resync` counts once for its page, `on-events` once for each event.
    node.install(reactor_with("", COUNT, COUNT), &watching("")).await.unwrap();
    node.until("resynced", async |node| node.count().await == 1).await;
    node.put("/in/new", "1").await;
    node.until("the change after it is delivered", async |node| node.count().await == 2).await;
    node.until("it is not lost any more", async |node| node.plugin().triggers[0].state == "idle").await;
    node.stop().await;
}
