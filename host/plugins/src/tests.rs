//! The host on a real engine in a scratch folder: installing, running, failing, stopping. Guests are a few lines of WebAssembly text.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::etcdserverpb::alarm_request::AlarmAction;
use kvasir_api::etcdserverpb::{AlarmRequest, AlarmType, PutRequest, RangeRequest};
use kvasir_api::kvasir::plugin::v1 as api;
use kvasir_api::mvccpb::KeyValue;
use kvasir_engine::{Caller, Engine, EngineOptions};
use kvasir_storage::disk::RealDisk;

use crate::testing::{reactor, reactor_importing, reactor_with, task};
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

    /// Raises or lifts the alarm under which nothing may be put or parked.
    async fn no_space(&self, raised: bool) {
        let action = if raised { AlarmAction::Activate } else { AlarmAction::Deactivate };
        let request =
            AlarmRequest { action: action.into(), member_id: self.engine.node_id(), alarm: AlarmType::Nospace.into() };
        self.engine.alarm(&Caller::client(), request).await.unwrap();
    }

    async fn letters(&self, after_trigger: &str) -> api::DeadLettersResponse {
        let after_trigger = after_trigger.to_owned();
        let request = api::DeadLettersRequest { name: "p".into(), after_trigger, ..api::DeadLettersRequest::default() };
        self.host.dead_letters(request).await.unwrap()
    }

    fn plugin(&self) -> api::PluginStatus {
        self.host.list_here().plugins.into_iter().next().unwrap()
    }

    fn log(&self) -> String {
        let lines = self.host.log_here("p");
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
            panic!("{what}: {:#?}\n{}", self.host.list_here(), self.log());
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
        let letter = node.letters("").await.letters[0].clone();
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

/// A plugin that is paused before there is anything to do, so that a test chooses what it meets when it goes on.
async fn paused(component: Vec<u8>, manifest: &str) -> Node {
    let node = Node::start().await;
    node.install(component, manifest).await.unwrap();
    node.host.pause("p").await.unwrap();
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn no_space_between_the_halves_of_a_batch_loses_no_event() {
    let single =
        "(if (result i32) (i32.gt_u (local.get 3) (i32.const 1)) (then (call $reject)) (else (call $count) (call $ok)))";
    let node = paused(reactor(single), &watching("").replace("max-events = 1", "max-events = 64")).await;
    for key in ["/in/a", "/in/b", "/in/c", "/in/d", "/in/e"] {
        node.put(key, "1").await;
    }
    node.no_space(true).await;
    node.host.resume("p").await.unwrap();
    node.until("a half meets it", async |node| node.plugin().triggers[0].last_error.contains("space exceeded")).await;
    assert_eq!(node.count().await, 0);
    node.no_space(false).await;
    node.until("all is delivered", async |node| node.plugin().triggers[0].lag_revisions == 0).await;
    assert_eq!(node.count().await, 5);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_parked_for_want_of_space_is_parked_later_without_running_again() {
    let node = paused(reactor("(call $reject)"), &watching("").replace("max-events = 1", "max-events = 64")).await;
    for key in ["/in/a", "/in/b", "/in/c"] {
        node.put(key, "1").await;
    }
    node.no_space(true).await;
    node.host.resume("p").await.unwrap();
    node.until("parking meets it", async |node| node.plugin().triggers[0].last_error.contains("space exceeded")).await;
    let runs = node.plugin().triggers[0].runs;
    let tried = node.engine.metrics().proposals;
    node.until("it was tried again", async |node| node.engine.metrics().proposals > tried + 1).await;
    assert_eq!(node.plugin().triggers[0].runs, runs);
    node.no_space(false).await;
    node.until("all are parked", async |node| node.plugin().triggers[0].dead_letters == 3).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_a_huge_key_is_parked_with_the_start_of_it() {
    let node = Node::start().await;
    node.put(&format!("/in/{}", "k".repeat(kvasir_api::limits::REQUEST_BYTES_MAX - 1_000)), "1").await;
    node.install(reactor("(call $reject)"), &watching("")).await.unwrap();
    node.until("it is parked", async |node| node.plugin().triggers[0].dead_letters == 1).await;
    let letters = node.letters("").await.letters;
    assert_eq!(letters[0].key.len(), kvasir_api::limits::DEAD_LETTER_KEY_BYTES_MAX);
    assert!(letters[0].key.starts_with(b"/in/kkk"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_and_dropped() {
    let node = Node::start().await;
    node.install(reactor("(call $reject)"), &watching("")).await.unwrap();
    for key in ["/in/a", "/in/b", "/in/c"] {
        node.put(key, &format!("value of {key}")).await;
    }
    node.until("all are parked", async |node| node.plugin().triggers[0].dead_letters == 3).await;
    let letters = node.letters("").await.letters;
    assert_eq!(letters.iter().map(|letter| letter.key.as_ref()).collect::<Vec<_>>(), [b"/in/a", b"/in/b", b"/in/c"]);
    let second = &letters[1];
    let after =
        api::DeadLettersRequest { name: "p".into(), after_trigger: "w".into(), after_main: second.main, after_sub: second.sub };
    let page = node.host.dead_letters(after).await.unwrap();
    assert_eq!((page.letters.len(), page.more), (1, false));
    assert_eq!(page.letters[0].key, "/in/c");

    let show = |main| {
        let request = api::ShowDeadLetterRequest { name: "p".into(), trigger: "w".into(), main, sub: second.sub };
        node.host.dead_letter(request)
    };
    let shown = show(second.main).await.unwrap();
    assert_eq!(shown.letter.as_ref(), Some(second));
    assert_eq!((shown.event_found, shown.key.as_ref(), shown.value.as_ref()), (true, &b"/in/b"[..], &b"value of /in/b"[..]));
    assert!(matches!(show(1).await, Err(Error::Missing(_))));

    let drop = |at: Vec<api::drop_dead_letters_request::At>, all| {
        let trigger = if all { String::new() } else { "w".to_owned() };
        node.host.drop_dead_letters(api::DropDeadLettersRequest { name: "p".into(), trigger, at, all })
    };
    assert!(matches!(drop(vec![], false).await, Err(Error::Invalid(_))), "nothing is dropped by leaving out what");
    let one = api::drop_dead_letters_request::At { main: second.main, sub: second.sub };
    assert_eq!(drop(vec![one], false).await.unwrap().dropped, 1);
    assert_eq!(drop(vec![], true).await.unwrap().dropped, 2);
    assert_eq!(node.letters("").await.letters, []);
    assert_eq!(node.plugin().triggers[0].dead_letters, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_goes_on_after_a_key_before_its_range_wedges_nothing_and_shows_the_runs_own_writes() {
    // Stages /out/count, then scans the prefix /out/ after /in/a. Its answer is at 200: the page's entries count at 212.
    let scan = r#"(import "kvasir:plugin/kv@0.1.0" "scan"
        (func $scan (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
        (data (i32.const 112) "/out/")
        (data (i32.const 120) "@AFTER@")"#;
    let body = "(call $count)
        (call $scan (i32.const 1) (i32.const 112) (i32.const 5) (i32.const 0) (i32.const 0)
            (i32.const 1) (i32.const 120) (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 200))
        (if (i32.load8_u (i32.const 200)) (then (unreachable)))
        (if (i32.ne (i32.load (i32.const 212)) (i32.const @SHOWN@)) (then (unreachable)))
        (call $ok)";
    for (after, shown) in [("/in/a", "1"), ("/p/zz", "0")] {
        let node = Node::start().await;
        let manifest = watching("").replace("kv-read = [\"/in/\"]", "kv-read = [\"/in/\", \"/out/\"]");
        let guest = reactor_importing(&scan.replace("@AFTER@", after), &body.replace("@SHOWN@", shown));
        node.install(guest, &manifest).await.unwrap();
        node.put("/in/a", "1").await;
        node.until("it is counted", async |node| node.count().await == 1).await;
        assert_eq!((node.plugin().triggers[0].faults, node.log().matches("conflict").count()), (0, 0), "{}", node.log());
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_exhausted_halt_stops_that_trigger_alone_until_it_is_resumed() {
    let node = Node::start().await;
    node.put("/in/a", "1").await;
    let other = "[[trigger.watch]]\nid = \"other\"\nkey = \"/in/other\"\n[grants]";
    let manifest = watching("on-exhausted = \"halt\"").replace("[grants]", other);
    node.install(reactor("(call $reject)"), &manifest).await.unwrap();
    let trigger = |node: &Node, id: &str| node.plugin().triggers.into_iter().find(|trigger| trigger.id == id).unwrap();
    node.until("halted", async |node| trigger(node, "w").state == "halted").await;
    assert!(trigger(&node, "w").reason.contains("because"), "{}", trigger(&node, "w").reason);
    assert_eq!((node.plugin().state.as_str(), trigger(&node, "other").state.as_str()), ("ready", "idle"));
    // It stays so over a restart, and a trigger resumed meets the event again.
    let node = Node::start_in(node.stop().await).await;
    node.until("it is up", async |node| node.plugin().state == "ready").await;
    assert_eq!((trigger(&node, "w").state.as_str(), trigger(&node, "w").runs), ("halted", 0));
    node.host.resume_trigger("p", "w").await.unwrap();
    node.until("it tried again", async |node| node.log().contains("halted:")).await;
    node.until("it is halted again", async |node| trigger(node, "w").state == "halted").await;
    assert!(matches!(node.host.resume_trigger("p", "none").await, Err(Error::Missing(_))));
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
    assert!(node.host.list().await.unwrap().plugins.is_empty());
    assert!(matches!(node.host.inspect("p").await, Err(Error::Missing(_))));
    assert!(matches!(node.host.remove("p").await, Err(Error::Missing(_))));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_run_ends_soon_after_its_plugin_is_removed() {
    let node = Node::start().await;
    let endless = "(loop $l (br $l)) (unreachable)";
    let limits = "[limits]\ncpu = \"60s\"\nwall = \"10m\"";
    node.install(task(endless), &format!("{EVERY_SECOND}{limits}")).await.unwrap();
    node.until("it runs", async |node| node.host.metrics().running == 1).await;
    node.host.remove("p").await.unwrap();
    tokio::time::timeout(DEADLINE / 2, async {
        while node.host.metrics().running > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    let metrics = node.host.metrics();
    assert_eq!((metrics.faults_total, metrics.stopped_total), (0, 0), "nothing of it is the guest's fault");
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
    assert!(node.host.list().await.unwrap().plugins.is_empty());
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
