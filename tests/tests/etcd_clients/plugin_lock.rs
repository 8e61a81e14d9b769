//! A plugin's task and clientv3's `concurrency.Mutex` on the same name exclude each other.
//!
//! The task is `janitor`'s, once a second, with so much to delete that it has something to write in every run. The Go program
//! takes the same lock again and again meanwhile, and judges from the history of the lock's keys who had it at each write.

use std::path::Path;
use std::time::Duration;

use kvasir_tests::{DEADLINE, Install, Node, artefacts, eventually};

use crate::process::run;
use crate::server::{client, skip};

/// The lock of both.
const LOCK: &str = "/janitor/lock";
/// What the task deletes, a few keys in each run.
const OLD: &str = "/old/";
/// More than the task can delete while the test runs.
const OLD_KEYS: usize = 400;
/// How often the Go program takes the lock; with what it does between, about six seconds.
const ROUNDS: &str = "30";

/// janitor's manifest, with a run every second and leave to delete what the test calls old.
fn manifest() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/janitor/plugin.toml");
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(&format!("lock = \"{LOCK}\"")), "janitor's lock has another name: {text}");
    let lines = text.lines().map(|line| match line.split_once(" = ") {
        Some(("every", _)) => "every = \"1s\"".to_owned(),
        Some((grant @ ("kv-read" | "kv-write"), _)) => format!("{grant} = [\"/janitor/\", \"{OLD}\"]"),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

async fn exclusion(case: &str, variable: &str, name: &str) {
    if std::env::var_os("KVASIR_CLIENT_TESTS_ENDPOINT").is_some() {
        return skip(case, "the server is not ours: it runs no plugins");
    }
    let Some(program) = client(case, variable, name) else { return };
    let Some(component) = artefacts::guest("janitor") else {
        return skip(case, "janitor could not be built: the wasm32-wasip2 target is missing");
    };
    let node = Node::start();
    let kvasir = node.client().await;
    for nth in 0..OLD_KEYS {
        kvasir.put(format!("{OLD}{nth:04}"), "").await.unwrap();
    }
    let policy = format!(r#"{{"prefix": "{OLD}", "older_than_s": 1, "max_deletes": 8, "batch": 2}}"#);
    kvasir.put("/janitor/policy/old", policy).await.unwrap();
    kvasir.install(&component, Install::with_manifest(manifest())).await.unwrap();
    eventually("the task deletes something", DEADLINE, || async {
        let left = kvasir.prefix(OLD).await.map_err(|error| error.to_string())?.len();
        if left < OLD_KEYS { Ok(()) } else { Err(format!("{left} keys; {:?}", kvasir.plugin("janitor").await)) }
    })
    .await;

    let address = node.address().to_owned();
    let ended = tokio::task::spawn_blocking(move || {
        let arguments = ["-endpoint", &address, "-lock", LOCK, "-writes", OLD, "-rounds", ROUNDS, "exclusion"];
        run(&program, &arguments, "", Duration::from_secs(100))
    })
    .await
    .unwrap();
    assert!(ended.success && ended.stdout.ends_with("ok\n"), "{}{}", ended.stdout, ended.stderr);
    let faults: u64 = kvasir.plugin("janitor").await.unwrap().unwrap().triggers.iter().map(|trigger| trigger.faults).sum();
    assert_eq!(faults, 0, "waiting for a lock is no fault: {:?}", kvasir.plugin_logs("janitor").await);
}

#[tokio::test]
async fn a_plugin_task_and_a_mutex_of_todays_clientv3_exclude_each_other() {
    exclusion("task and Mutex, today's path", "KVASIR_GO_CLIENT", "clientv3").await;
}

#[tokio::test]
async fn a_plugin_task_and_a_mutex_of_the_old_clientv3_exclude_each_other() {
    exclusion("task and Mutex, old path", "KVASIR_GO_CLIENT_OLD", "clientv3-old").await;
}
