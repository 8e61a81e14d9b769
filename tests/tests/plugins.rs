//! Plugins end to end: the two that come with kvasir, and what the host promises every plugin - grants, cursors that survive,
//! upgrades that go on where the old version was, locks that are everybody's locks.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use kvasir_api::etcdserverpb::WatchCreateRequest;
use kvasir_api::mvccpb::event::EventType;
use kvasir_api::v3lockpb::{LockRequest, UnlockRequest};
use kvasir_tests::{Client, DEADLINE, Install, Node, artefacts, eventually};
use serde_json::{Value, json};

const HOSTILE: &str = include_str!("../guests/hostile/plugin.toml");
const COUNTER: &str = include_str!("../guests/counter/plugin.toml");
const JANITOR: &str = include_str!("../../plugins/janitor/plugin.toml");

fn as_json(value: &[u8]) -> Value {
    serde_json::from_slice(value).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(value)))
}

/// Waits until a key has a value that satisfies the condition.
async fn until(client: &Client, key: &str, condition: impl Fn(&[u8]) -> bool) -> Bytes {
    eventually(&format!("{key} is as expected"), DEADLINE, || async {
        match client.get(key.to_owned()).await.map_err(|status| status.to_string())? {
            Some(value) if condition(&value) => Ok(value),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

async fn until_gone(client: &Client, key: &str) {
    eventually(&format!("{key} is gone"), DEADLINE, || async {
        match client.get(key.to_owned()).await.map_err(|status| status.to_string())? {
            None => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Replaces text of a manifest that must be there.
fn edited(manifest: &str, edits: &[(&str, &str)]) -> String {
    edits.iter().fold(manifest.to_owned(), |manifest, (from, to)| {
        assert!(manifest.contains(from), "{from:?} is not in {manifest}");
        manifest.replacen(from, to, 1)
    })
}

async fn with_plugin(package: &str, install: Install) -> Option<(Node, Client, PathBuf)> {
    let component = artefacts::guest(package)?;
    let node = Node::start();
    let client = node.client().await;
    client.install(&component, install).await.unwrap();
    Some((node, client, component))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_render_merges_fragments_tells_what_is_wrong_and_survives_restarts() {
    let Some(component) = artefacts::guest("config-render") else { return };
    let mut node = Node::start();
    let client = node.client().await;
    let installed = node
        .cli([
            "plugin",
            "install",
            component.to_str().unwrap(),
            "--grant=kv:read=/config/",
            "--grant=kv:read=/rendered/",
            "--grant=kv:write=/rendered/",
        ])
        .ok();
    assert!(installed.contains("/config/") && installed.contains("/rendered/"), "the grants are shown in words: {installed}");

    let rendered = WatchCreateRequest { key: "/rendered/shop".into(), ..WatchCreateRequest::default() };
    let mut watching = client.watch(rendered).await.unwrap();
    node.cli(["put", "/config/shop/10-base", r#"{"db":{"host":"a","port":1}}"#]).ok();
    let second = client.put("/config/shop/20-site", r#"{"db":{"host":"b"}}"#).await.unwrap().header.unwrap().revision;
    // One event or two: the fragments may be rendered one by one or in one run.
    let value = loop {
        let event = watching.events(1).await.unwrap().remove(0);
        let value = as_json(&event.kv.unwrap().value);
        if value["sources"]["/config/shop/20-site"] == json!(second) {
            break value;
        }
    };
    assert_eq!(value["config"], json!({"db": {"host": "b", "port": 1}}));

    client.put("/config/shop/30-broken", "{\"db\": ").await.unwrap();
    let error = until(&client, "/rendered/shop/error", |_| true).await;
    let error = String::from_utf8_lossy(&error);
    assert!(error.contains("30-broken") && error.contains("JSON"), "{error}");
    assert_eq!(as_json(&client.get("/rendered/shop").await.unwrap().unwrap()), value, "the last good value stays");

    node.kill();
    node.restart();
    let client = node.client().await;
    client.delete("/config/shop/30-broken").await.unwrap();
    until_gone(&client, "/rendered/shop/error").await;
    client.put("/config/shop/20-site", r#"{"db":{"host":"c"}}"#).await.unwrap();
    until(&client, "/rendered/shop", |value| as_json(value)["config"]["db"]["host"] == "c").await;
    let entry = client.entry("/rendered/shop").await.unwrap().unwrap();
    assert!(node.terminate().success());
    node.restart();
    let client = node.client().await;
    assert_eq!(client.entry("/rendered/shop").await.unwrap().unwrap(), entry, "a restart renders nothing anew");
}

#[tokio::test]
async fn a_plugin_writes_only_where_it_was_granted() {
    let manifest = edited(HOSTILE, &[("mode = \"ok\"", "mode = \"denied\"")]);
    let Some((_node, client, _)) = with_plugin("hostile-guest", Install::with_manifest(manifest)).await else { return };
    client.put("/hostile/in/a", "x").await.unwrap();
    let trigger = eventually("the write is refused", DEADLINE, || async {
        let plugin = client.plugin("hostile").await.map_err(|status| status.to_string())?.ok_or("not listed")?;
        plugin.triggers.into_iter().find(|trigger| trigger.dead_letters > 0).ok_or_else(|| "not parked yet".to_owned())
    })
    .await;
    assert!(trigger.last_error.contains("/elsewhere"), "{}", trigger.last_error);
    assert_eq!(client.get("/elsewhere").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_janitor_deletes_what_its_policy_calls_old_and_reports() {
    let manifest = edited(JANITOR, &[("every = \"10s\"", "every = \"300ms\"")]);
    let Some((_node, client, _)) = with_plugin("janitor", Install::with_manifest(manifest)).await else { return };
    for n in 0..25 {
        client.put(format!("/tmp/{n:02}"), "old").await.unwrap();
    }
    client.put("/kept/a", "not in the policy").await.unwrap();
    client.put("/janitor/policy/tmp", r#"{"prefix":"/tmp/","older_than_s":1,"batch":10}"#).await.unwrap();
    eventually("the old keys are gone", DEADLINE, || async {
        match client.prefix("/tmp/").await.map_err(|status| status.to_string())?.len() {
            0 => Ok(()),
            left => Err(format!("{left} left")),
        }
    })
    .await;
    let report = until(&client, "/janitor/report/tmp", |report| as_json(report)["deleted_total"] == 25).await;
    assert_eq!(as_json(&report)["errors"], json!([]));
    assert!(client.get("/kept/a").await.unwrap().is_some());
    // Bounded batches with a commit each: no revision deletes more than ten keys.
    let revision = client.revision().await.unwrap();
    let mut deleted = BTreeMap::<i64, usize>::new();
    for event in client.history(2, revision).await.unwrap() {
        let kv = event.kv.as_ref().unwrap();
        if event.r#type() == EventType::Delete && kv.key.starts_with(b"/tmp/") {
            *deleted.entry(kv.mod_revision).or_default() += 1;
        }
    }
    assert!(deleted.values().sum::<usize>() == 25 && deleted.values().all(|count| *count <= 10), "{deleted:?}");
    client.put("/janitor/policy/bad", "{}").await.unwrap();
    let report = until(&client, "/janitor/report/bad", |_| true).await;
    assert!(as_json(&report)["errors"][0].as_str().unwrap().contains("invalid policy"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_and_a_client_with_the_same_lock_exclude_each_other() {
    let manifest = edited(JANITOR, &[("every = \"10s\"", "every = \"100ms\"")]);
    let Some((_node, client, _)) = with_plugin("janitor", Install::with_manifest(manifest)).await else { return };
    client.put("/janitor/policy/tmp", r#"{"prefix":"/tmp/","older_than_s":1}"#).await.unwrap();
    until(&client, "/janitor/report/tmp", |_| true).await;

    let lock = |lease: i64| {
        let mut lock = client.lock.clone();
        async move { lock.lock(LockRequest { name: "/janitor/lock".into(), lease }).await.unwrap().into_inner().key }
    };
    let lease = client.grant(600).await.unwrap();
    let mut clients_keys = Vec::new();
    for round in 0..4 {
        let key = lock(lease).await;
        // While it is held, the task waits: first seen as its key behind ours, or as its trigger's state.
        eventually("the task waits for the lock", DEADLINE, || async {
            let waiting = client.prefix("/janitor/lock/").await.map_err(|status| status.to_string())?.len() > 1;
            let plugin = client.plugin("janitor").await.map_err(|status| status.to_string())?.ok_or("not listed")?;
            let state = &plugin.triggers.first().ok_or("no trigger")?.state;
            if waiting || state == "waiting-for-lock" { Ok(()) } else { Err(format!("it is {state}")) }
        })
        .await;
        client.put(format!("/tmp/round-{round}"), "x").await.unwrap();
        clients_keys.push(key.clone());
        client.lock.clone().unlock(UnlockRequest { key }).await.unwrap();
        until_gone(&client, &format!("/tmp/round-{round}")).await;
    }

    // The history is the proof: nothing of the task's was written while a client's key was the first under the lock's name.
    let revision = client.revision().await.unwrap();
    let mut waiting = BTreeMap::<i64, Bytes>::new();
    let (mut held_by_client, mut written) = (0, 0);
    for event in client.history(2, revision).await.unwrap() {
        let (kind, kv) = (event.r#type(), event.kv.unwrap());
        if kv.key.starts_with(b"/janitor/lock/") {
            match kind {
                EventType::Put => drop(waiting.insert(kv.create_revision, kv.key)),
                EventType::Delete => waiting.retain(|_, key| *key != kv.key),
            }
            continue;
        }
        let by_client = waiting.values().next().is_some_and(|first| clients_keys.contains(first));
        held_by_client += usize::from(by_client);
        let tasks = kv.key.starts_with(b"/janitor/report/") || (kind == EventType::Delete && kv.key.starts_with(b"/tmp/"));
        if tasks {
            written += 1;
            assert!(!by_client, "the task wrote {:?} at {} while a client held its lock", kv.key, kv.mod_revision);
        }
    }
    assert!(held_by_client >= 4 && written >= 4, "{held_by_client} writes under the client's lock, {written} of the task");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ls_inspect_logs_and_rm_show_and_remove_a_plugin() {
    let Some((node, client, _)) = with_plugin("hostile-guest", Install::with_manifest(HOSTILE)).await else { return };
    client.put("/hostile/in/a", "x").await.unwrap();
    until(&client, "/hostile/out/a", |_| true).await;
    let listed = node.cli(["plugin", "ls"]).ok();
    assert!(listed.contains("hostile") && listed.contains("0.1.0") && listed.contains("ready"), "{listed}");
    let listed: Value = serde_json::from_str(&node.cli(["plugin", "ls", "-w", "json"]).ok()).unwrap();
    assert!(listed.to_string().contains("\"hostile\""), "{listed}");
    let shown = node.cli(["plugin", "inspect", "hostile"]).ok();
    for word in ["hostile", "/hostile/in/", "/hostile/out/", "kvasir:plugin/kv", "kvasir:plugin/reactor"] {
        assert!(shown.contains(word), "{word} is not in {shown}");
    }
    node.cli(["plugin", "logs", "hostile"]).ok();
    assert!(node.cli(["plugin", "logs", "nobody"]).refused().contains("nobody"));
    node.cli(["plugin", "rm", "hostile"]).ok();
    assert_eq!(client.plugin_list().await.unwrap(), []);
    assert!(client.get("/hostile/out/a").await.unwrap().is_some(), "what it wrote stays");
    client.put("/hostile/in/b", "x").await.unwrap();
    assert!(node.cli(["plugin", "rm", "hostile"]).refused().contains("hostile"));
    assert_eq!(client.get("/hostile/out/b").await.unwrap(), None);
}

#[tokio::test]
async fn installing_over_a_plugin_needs_upgrade_and_an_upgrade_goes_on_where_the_old_version_was() {
    let Some((_node, client, component)) = with_plugin("counter-guest", Install::with_manifest(COUNTER)).await else { return };
    for n in 0..20 {
        client.put(format!("/in/{n}"), "x").await.unwrap();
    }
    until(&client, "/count/total", |count| count == b"20").await;
    let again = client.install(&component, Install::with_manifest(COUNTER)).await.expect_err("it is installed already");
    assert!(again.message().contains("upgrade"), "{again:?}");
    let newer = edited(COUNTER, &[("version = \"0.1.0\"", "version = \"0.2.0\"")]);
    let before = client.plugin("counter").await.unwrap().unwrap();
    let upgraded = client.install(&component, Install::with_manifest(newer).upgrading()).await.unwrap();
    assert!(upgraded.version == "0.2.0" && upgraded.generation > before.generation, "{upgraded:?}");
    for n in 0..5 {
        client.delete(format!("/in/{n}")).await.unwrap();
    }
    until(&client, "/count/total", |count| count == b"25").await;
    let plugin = client.plugin("counter").await.unwrap().unwrap();
    assert_eq!((plugin.version.as_str(), plugin.generation), ("0.2.0", upgraded.generation));
}

#[tokio::test]
async fn a_paused_plugin_rests_and_a_resumed_one_has_missed_nothing() {
    let Some((node, client, _)) = with_plugin("counter-guest", Install::with_manifest(COUNTER)).await else { return };
    client.put("/in/a", "x").await.unwrap();
    until(&client, "/count/total", |count| count == b"1").await;
    node.cli(["plugin", "pause", "counter"]).ok();
    client.put("/in/a", "y").await.unwrap();
    let paused = client.plugin("counter").await.unwrap().unwrap();
    assert_eq!(paused.state, "paused");
    assert_eq!(client.get("/count/total").await.unwrap().unwrap(), "1");
    node.cli(["plugin", "resume", "counter"]).ok();
    until(&client, "/count/total", |count| count == b"2").await;
}

#[tokio::test]
async fn a_latest_trigger_that_rested_gets_the_newest_change_of_each_key_once() {
    let latest = edited(COUNTER, &[("mode = \"every\"", "mode = \"latest\"")]);
    let Some((node, client, _)) = with_plugin("counter-guest", Install::with_manifest(latest)).await else { return };
    node.cli(["plugin", "pause", "counter"]).ok();
    let mut last = 0;
    for n in 0..50 {
        last = client.put("/in/a", n.to_string()).await.unwrap().header.unwrap().revision;
    }
    node.cli(["plugin", "resume", "counter"]).ok();
    until(&client, "/count/total", |_| true).await;
    assert_eq!(client.get("/count/last-revision").await.unwrap().unwrap(), last.to_string());
    // What comes after it shows that nothing else of the fifty was delivered.
    client.put("/in/b", "x").await.unwrap();
    until(&client, "/count/key/b", |count| count == b"1").await;
    assert_eq!(client.get("/count/total").await.unwrap().unwrap(), "2");
    assert_eq!(client.get("/count/key/a").await.unwrap().unwrap(), "1");
}

#[tokio::test]
async fn a_component_of_several_chunks_is_whole_after_a_restart() {
    let Some(component) = artefacts::guest("counter-guest") else { return };
    // A custom section that nobody reads; its bytes repeat nowhere, so that no chunk is like another.
    let padding: Vec<u8> = (0..600_u32 << 8).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut body = b"\x07padding".to_vec();
    body.extend(padding);
    let mut bytes = std::fs::read(component).unwrap();
    bytes.push(0);
    let mut size = body.len();
    while size >= 0x80 {
        bytes.push(size as u8 | 0x80);
        size >>= 7;
    }
    bytes.push(size as u8);
    bytes.extend(body);
    assert!(bytes.len() > 2 * kvasir_api::limits::BLOB_CHUNK_BYTES, "it does not fit two chunks");
    let mut node = Node::start();
    let client = node.client().await;
    client.install_bytes(bytes.into(), Install::accepting()).await.unwrap();
    node.kill();
    // Without the compiled code, what runs next is compiled from the chunks.
    std::fs::remove_dir_all(node.data_dir().join("plugins")).unwrap();
    node.restart();
    let client = node.client().await;
    client.put("/in/a", "x").await.unwrap();
    until(&client, "/count/total", |count| count == b"1").await;
}

#[tokio::test]
async fn a_plugin_that_would_start_itself_is_refused_unless_it_says_so() {
    let Some(component) = artefacts::guest("hostile-guest") else { return };
    let node = Node::start();
    let client = node.client().await;
    let manifest = edited(HOSTILE, &[("prefix = \"/hostile/in/\"", "prefix = \"/hostile/\"")]);
    let refused = client.install(&component, Install::with_manifest(manifest)).await.expect_err("it could trigger itself");
    for word in ["/hostile/", "/hostile/out/", "self-events"] {
        assert!(refused.message().contains(word), "{word} is not in {refused:?}");
    }
    assert_eq!(client.plugin_list().await.unwrap(), []);
}

#[tokio::test]
async fn plugins_that_start_each_other_stop_at_the_bound_of_causality() {
    let Some(component) = artefacts::guest("hostile-guest") else { return };
    let node = Node::start();
    let client = node.client().await;
    // A plugin that asks for its own events answers itself for ever, but for the bound.
    let manifest = edited(
        HOSTILE,
        &[("prefix = \"/hostile/in/\"", "prefix = \"/hostile/\"\nself-events = true"), ("retries = 2", "retries = 0")],
    );
    client.install(&component, Install::with_manifest(manifest)).await.unwrap();
    client.put("/hostile/in/a", "x").await.unwrap();
    let trigger = eventually("the chain ends visibly", DEADLINE, || async {
        let plugin = client.plugin("hostile").await.map_err(|status| status.to_string())?.ok_or("not listed")?;
        let trigger = plugin.triggers.into_iter().next().ok_or("no trigger")?;
        if trigger.dead_letters > 0 { Ok(trigger) } else { Err(format!("{trigger:?}")) }
    })
    .await;
    let bound = kvasir_api::limits::CAUSALITY_DEPTH_MAX;
    let says = format!(
        "these writes would be the {}th in a chain of plugins that write because of each other; {bound} are allowed",
        bound + 1
    );
    assert!(trigger.last_error.contains(&says), "{}", trigger.last_error);
    let version = client.entry("/hostile/out/a").await.unwrap().unwrap().version;
    assert!(version <= i64::from(bound), "{version} rounds");
    assert_eq!(node.log().matches("panicked").count(), 0);
}

#[tokio::test]
async fn a_plugin_that_is_removed_and_installed_again_starts_anew() {
    let Some((_node, client, component)) = with_plugin("counter-guest", Install::with_manifest(COUNTER)).await else { return };
    for n in 0..3 {
        client.put(format!("/in/{n}"), "x").await.unwrap();
    }
    until(&client, "/count/total", |count| count == b"3").await;
    client.plugin_remove("counter").await.unwrap();
    client.delete("/count/total").await.unwrap();
    client.install(&component, Install::with_manifest(COUNTER)).await.unwrap();
    until(&client, "/count/total", |count| count == b"3").await;
}

#[tokio::test]
async fn a_guests_log_lines_can_be_followed() {
    let manifest = edited(HOSTILE, &[("mode = \"ok\"", "mode = \"trap\"")]);
    let Some((node, client, _)) = with_plugin("hostile-guest", Install::with_manifest(manifest)).await else { return };
    let mut command = tokio::process::Command::new(artefacts::kvasir());
    command.args(["plugin", "logs", "-f", "hostile"]).env("KVASIR_ENDPOINTS", node.address());
    let mut child = command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    client.put("/hostile/in/a", "x").await.unwrap();
    let found = tokio::time::timeout(DEADLINE, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("trapped on purpose") {
                return;
            }
        }
        panic!("the lines ended");
    });
    found.await.expect("the trap is told as it happens");
}
