//! The node's life as an operator sees it: it starts without flags, says when it is ready, answers the checks, stops gracefully
//! with everything in place; and the verbs of the command line do what etcdctl's do.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use kvasir_tests::{DEADLINE, Node, artefacts, eventually, run};

/// Status code and body of a page over HTTP/1.1.
fn page(node: &Node, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(node.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", node.address()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_default().parse().unwrap_or_else(|_| panic!("not HTTP: {answer:?}"));
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

#[tokio::test]
async fn a_node_that_is_asked_to_stop_does_so_with_success_and_everything_is_there_again() {
    let mut node = Node::start();
    let client = node.client().await;
    for n in 0..500 {
        client.put(format!("/life/{n:03}"), format!("value {n}")).await.unwrap();
    }
    client.delete("/life/007").await.unwrap();
    let lease = client.grant(3_600).await.unwrap();
    let before = client.prefix("/life/").await.unwrap();
    let revision = client.revision().await.unwrap();
    // A second node finds the first by its folder only; the first may be stopped while clients are connected.
    let mut watching = client
        .watch(kvasir_api::etcdserverpb::WatchCreateRequest { key: "/life/x".into(), ..Default::default() })
        .await
        .unwrap();
    assert!(node.terminate().success());
    assert!(watching.next().await.is_err(), "the watch ends with the node");
    node.restart();
    let client = node.client().await;
    assert_eq!(client.prefix("/life/").await.unwrap(), before);
    assert_eq!(client.revision().await.unwrap(), revision);
    let request = kvasir_api::etcdserverpb::LeaseTimeToLiveRequest { id: lease, keys: false };
    assert!(client.lease.clone().lease_time_to_live(request).await.unwrap().into_inner().ttl > 0);
    let old = client.history(2, revision).await.unwrap();
    assert_eq!(old.len(), 501, "the whole history can still be watched");
    // The same after a stop that nobody was asked about.
    node.kill();
    node.restart();
    let client = node.client().await;
    assert_eq!(client.prefix("/life/").await.unwrap(), before);
}

#[tokio::test]
async fn interrupting_from_the_terminal_stops_it_as_well() {
    let mut node = Node::start();
    node.client().await.put("a", "1").await.unwrap();
    let pid = rustix::process::Pid::from_raw(node.pid().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = tokio::task::spawn_blocking(move || (node.wait(), node)).await.unwrap().0;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn serve_needs_no_flags() {
    let scratch = tempfile::tempdir().unwrap();
    let mut node = Node::builder().without_flags_in(scratch.path()).start();
    node.client().await.put("a", "1").await.unwrap();
    assert!(node.terminate().success());
    assert!(scratch.path().join("kvasir-data").is_dir());
}

#[test]
fn the_pages_tell_health_version_and_metrics() {
    let node = Node::start();
    let (status, body) = page(&node, "/health");
    assert_eq!((status, json(&body)["health"].as_str()), (200, Some("true")), "{body}");
    for path in ["/livez", "/readyz", "/readyz?verbose", "/livez/serializable_read"] {
        let (status, body) = page(&node, path);
        assert!(status == 200 && body.trim_end().ends_with("ok"), "{path}: {status} {body}");
    }
    let (status, body) = page(&node, "/version");
    let version = json(&body);
    assert!(status == 200 && version["etcdserver"].as_str().is_some_and(|version| version.starts_with("3.")), "{body}");
    assert!(version["etcdcluster"].is_string(), "{body}");
    node.cli(["put", "a", "1"]).ok();
    let (status, body) = page(&node, "/metrics");
    assert_eq!(status, 200);
    for name in ["etcd_server_has_leader 1", "etcd_mvcc_put_total 1", "kvasir_log_syncs_total "] {
        assert!(body.lines().any(|line| line.starts_with(name)), "{name} is not in {body}");
    }
    assert_eq!(page(&node, "/no-such-page").0, 404);
}

#[test]
fn put_get_and_del_print_what_etcdctl_prints() {
    let node = Node::start();
    assert_eq!(node.cli(["put", "/a/1", "one"]).ok(), "OK\n");
    assert_eq!(node.cli(["put", "/a/2", "two"]).ok(), "OK\n");
    assert_eq!(node.cli(["put", "/a/2", "2", "--prev-kv"]).ok(), "OK\n/a/2\ntwo\n");
    assert_eq!(node.cli(["get", "/a/1"]).ok(), "/a/1\none\n");
    assert_eq!(node.cli(["get", "/absent"]).ok(), "");
    assert_eq!(node.cli(["get", "--prefix", "/a/"]).ok(), "/a/1\none\n/a/2\n2\n");
    assert_eq!(node.cli(["get", "--prefix", "/a/", "--keys-only", "--order=DESCEND"]).ok(), "/a/2\n\n/a/1\n\n");
    assert_eq!(node.cli(["get", "--prefix", "/a/", "--print-value-only", "--limit=1"]).ok(), "one\n");
    assert_eq!(node.cli(["get", "/a/2", "--rev=3"]).ok(), "/a/2\ntwo\n");
    let counted = json(&node.cli(["get", "--prefix", "/a/", "--count-only", "-w", "json"]).ok());
    assert_eq!((counted["count"].as_i64(), counted["header"]["revision"].as_i64()), (Some(2), Some(4)));
    let one = json(&node.cli(["get", "/a/1", "-w", "json"]).ok());
    assert_eq!(one["kvs"][0]["key"], "L2EvMQ==");
    assert_eq!(one["kvs"][0]["value"], "b25l");
    assert_eq!(one["kvs"][0]["mod_revision"], 2);
    assert_eq!(node.cli(["del", "/a/", "--prefix"]).ok(), "2\n");
    assert_eq!(node.cli(["del", "/a/1"]).ok(), "0\n");
    assert_eq!(node.cli(["compaction", "5"]).ok(), "compacted revision 5\n");
    let refused = node.cli(["get", "/a/1", "--rev=3"]).refused();
    assert!(refused.contains("required revision has been compacted"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_prints_changes_as_they_come() {
    let node = Node::start();
    let client = node.client().await;
    client.put("/w/a", "1").await.unwrap();
    client.delete("/w/a").await.unwrap();
    client.put("/w/b", "2").await.unwrap();
    let mut command = tokio::process::Command::new(artefacts::kvasir());
    command.args(["watch", "--prefix", "/w/", "--rev=2"]).env("KVASIR_ENDPOINTS", node.address());
    let mut child = command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    let wanted = "PUT\n/w/a\n1\nDELETE\n/w/a\n\nPUT\n/w/b\n2\n";
    while text.len() < wanted.len() {
        let read = tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut text);
        let read = tokio::time::timeout(DEADLINE, read).await.unwrap_or_else(|_| panic!("only {text:?}"));
        assert!(read.unwrap() > 0, "it ended after {text:?}");
    }
    assert_eq!(text, wanted);
}

#[test]
fn leases_go_round_from_grant_to_revoke() {
    let node = Node::start();
    let granted = node.cli(["lease", "grant", "600"]).ok();
    // etcdctl: `lease 694d81417acd4754 granted with TTL(600s)`.
    let id = granted.split_ascii_whitespace().nth(1).unwrap_or_else(|| panic!("{granted:?}")).to_owned();
    assert!(granted.contains("granted with TTL(600s)"), "{granted}");
    node.cli(["put", "/l/a", "1", &format!("--lease={id}")]).ok();
    let shown = node.cli(["lease", "timetolive", &id, "--keys"]).ok();
    assert!(shown.contains("granted with TTL(600s), remaining(") && shown.contains("/l/a"), "{shown}");
    assert!(node.cli(["lease", "list"]).ok().contains(&id));
    let kept = node.cli(["lease", "keep-alive", "--once", &id]).ok();
    assert!(kept.contains(&id) && kept.contains("600"), "{kept}");
    let revoked = node.cli(["lease", "revoke", &id]).ok();
    assert!(revoked.contains("revoked"), "{revoked}");
    assert_eq!(node.cli(["get", "/l/a"]).ok(), "");
    let gone = node.cli(["lease", "revoke", &id]).refused();
    assert!(gone.contains("requested lease not found"), "{gone}");
    let after = node.cli(["lease", "timetolive", &id]).ok();
    assert!(after.contains("already expired"), "{after}");
}

#[test]
fn a_lock_is_held_while_its_command_runs_and_the_exit_code_is_the_commands() {
    let node = Node::start();
    let script = "test -n \"$ETCD_LOCK_KEY\" && echo held && exit 7";
    let held = node.cli(["lock", "/jobs/a", "sh", "-c", script]);
    assert_eq!((held.status.code(), held.stdout.as_str()), (Some(7), "held\n"), "{}", held.stderr);
    assert_eq!(node.cli(["get", "--prefix", "/jobs/"]).ok(), "", "the lock's key is gone with it");
}

#[tokio::test]
async fn a_lock_that_is_interrupted_is_released() {
    let node = Node::start();
    let client = node.client().await;
    let mut command = tokio::process::Command::new(artefacts::kvasir());
    command.args(["lock", "/jobs/b"]).env("KVASIR_ENDPOINTS", node.address());
    let mut child = command.stdout(std::process::Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let keys = |wanted: usize| {
        let client = client.clone();
        eventually("the lock's key comes and goes", DEADLINE, move || {
            let client = client.clone();
            async move {
                let there = client.prefix("/jobs/b/").await.map_err(|status| status.to_string())?.len();
                if there == wanted { Ok(()) } else { Err(format!("{there} keys")) }
            }
        })
    };
    keys(1).await;
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    keys(0).await;
    let status = tokio::time::timeout(DEADLINE, child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn status_members_and_alarms_tell_how_the_node_is() {
    let node = Node::start();
    node.cli(["put", "a", "1"]).ok();
    let status = node.cli(["status"]).ok();
    assert!(status.contains("leader") && status.contains("revision"), "{status}");
    let status = json(&node.cli(["status", "-w", "json"]).ok());
    assert_eq!(status[0]["Status"]["header"]["revision"], 2);
    let members = node.cli(["member", "list"]).ok();
    assert!(members.lines().count() == 1 && members.contains("started"), "{members}");
    assert_eq!(node.cli(["alarm", "list"]).ok(), "");
}

#[tokio::test]
async fn a_full_quota_raises_the_alarm_and_deleting_and_disarming_lowers_it() {
    let node = Node::builder().arg("--quota-backend-bytes=200000").start();
    let client = node.client().await;
    let value = vec![b'x'; 10_000];
    let full = eventually("the quota is full", DEADLINE, || async {
        for n in 0..100 {
            if let Err(status) = client.put(format!("/full/{n}"), value.clone()).await {
                return Ok(status);
            }
        }
        Err("all were taken".to_owned())
    })
    .await;
    assert_eq!(full.message(), "etcdserver: mvcc: database space exceeded");
    assert!(node.cli(["alarm", "list"]).ok().contains("NOSPACE"));
    let (status, body) = page(&node, "/health");
    assert!(status == 503 && body.contains("NOSPACE"), "{status} {body}");
    assert!(client.get("/full/0").await.unwrap().is_some(), "reads go on");
    let refused = node.cli(["put", "a", "1"]).refused();
    assert!(refused.contains("database space exceeded"), "{refused}");
    node.cli(["del", "--prefix", "/full/"]).ok();
    let revision = client.revision().await.unwrap().to_string();
    node.cli(["compaction", &revision, "--physical"]).ok();
    node.cli(["alarm", "disarm"]).ok();
    assert_eq!(node.cli(["put", "a", "1"]).ok(), "OK\n");
    assert_eq!(page(&node, "/health").0, 200);
}

#[test]
fn a_verb_that_cannot_reach_a_node_says_so_in_one_line() {
    let mut command = Command::new(artefacts::kvasir());
    // Nothing listens on the discard port.
    command.args(["get", "a", "--endpoints", "127.0.0.1:9", "--dial-timeout", "500ms"]);
    let refused = run(command).refused();
    assert!(refused.lines().count() == 1 && refused.contains("127.0.0.1:9"), "{refused}");
}

/// Runs `kvasir txn` with these lines on its standard input.
fn txn(node: &Node, flags: &[&str], lines: &str) -> (Option<i32>, String, String) {
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(lines.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let mut command = Command::new(artefacts::kvasir());
    command.arg("txn").args(flags).env("KVASIR_ENDPOINTS", node.address()).stdin(input);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn txn_reads_etcdctls_lines_and_prints_what_etcdctl_prints() {
    let node = Node::start();
    let lines = "mod(\"/t/a\") > \"0\"\n\nput /t/a \"over written\"\n\nput /t/a 'made anew'\nput /t/b 2\nget --prefix /t/\n\n";
    let (code, out, _) = txn(&node, &[], lines);
    assert_eq!((code, out.as_str()), (Some(0), "FAILURE\n\nOK\n\nOK\n\n/t/a\nmade anew\n/t/b\n2\n"));
    // The end of the input ends the last list too.
    let (code, out, _) = txn(&node, &[], "mod(\"/t/a\") > \"0\"\nval(\"/t/b\") = \"2\"\n\nput /t/a x --prev-kv\ndel /t/b");
    assert_eq!((code, out.as_str()), (Some(0), "SUCCESS\n\nOK\n/t/a\nmade anew\n\n1\n"));
    let (code, out, _) = txn(&node, &["-i"], "\nget /t/a\n\n\n");
    let prompts = "compares:\nsuccess requests (get, put, del):\nfailure requests (get, put, del):\n";
    assert_eq!((code, out), (Some(0), format!("{prompts}SUCCESS\n\n/t/a\nx\n")));
    let (_, out, _) = txn(&node, &["-w", "json"], "\nput /t/c 3\nget /t/c\ndel /t/b\n\n\n");
    let done = json(&out);
    assert_eq!((done["succeeded"].as_bool(), done["header"]["revision"].as_i64()), (Some(true), Some(4)), "{out}");
    assert_eq!(done["responses"][0]["Response"]["response_put"]["header"]["revision"], 4, "{out}");
    assert_eq!(done["responses"][1]["Response"]["response_range"]["kvs"][0]["value"], "Mw==", "{out}");
    assert_eq!(done["responses"][2]["Response"]["response_delete_range"]["deleted"], 0, "{out}");
    // What is not understood is refused before anything is sent.
    for lines in ["mod(/t/a) > \"0\"\n\nput /t/z 1\n", "\nput /t/z 1\nwatch /t/z\n", "\nput /t/z\n"] {
        let (code, out, reason) = txn(&node, &[], lines);
        assert_eq!((code, out.as_str(), reason.lines().count()), (Some(2), "", 1), "{lines:?}: {reason}");
    }
    assert_eq!(node.cli(["get", "/t/z"]).ok(), "");
}

#[test]
fn status_names_the_endpoint_that_answered() {
    let node = Node::start();
    let endpoints = format!("127.0.0.1:9,{}", node.address());
    let status = node.cli(["status", "--endpoints", &endpoints]).ok();
    assert!(status.contains(node.address()) && !status.contains("127.0.0.1:9,"), "{status}");
    let status = json(&node.cli(["status", "--endpoints", &endpoints, "-w", "json"]).ok());
    assert_eq!(status[0]["Endpoint"].as_str(), Some(node.address()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_ends_before_its_first_event_says_where_to_go_on() {
    let mut node = Node::start();
    node.client().await.put("a", "1").await.unwrap();
    let mut command = tokio::process::Command::new(artefacts::kvasir());
    command.args(["watch", "a"]).env("KVASIR_ENDPOINTS", node.address());
    let child = command.stderr(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    eventually("the watcher is there", DEADLINE, || async {
        let (_, body) = page(&node, "/metrics");
        let there = body.lines().any(|line| line == "etcd_debugging_mvcc_watcher_total 1");
        if there { Ok(()) } else { Err("no watcher".to_owned()) }
    })
    .await;
    assert!(node.terminate().success());
    let ended = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    let reason = String::from_utf8(ended.stderr).unwrap();
    assert!(reason.contains("--rev 3 goes on from here"), "{reason}");
}
