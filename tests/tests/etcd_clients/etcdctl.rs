//! `etcdctl`: put, get, del, watch, txn, compaction, lock.

use std::path::PathBuf;
use std::time::Duration;

use kvasir_tests::DEADLINE;

use crate::process::{Ended, Running, run};
use crate::server::{Server, client};

/// The stock `etcdctl` and the server it talks to.
pub(crate) struct Ctl {
    program: PathBuf,
    server: Server,
}

impl Ctl {
    /// `None`, said out loud, when there is no `etcdctl`.
    pub(crate) fn start(case: &str) -> Option<Self> {
        let program = client(case, "KVASIR_ETCDCTL", "etcdctl")?;
        Some(Self { program, server: Server::start() })
    }

    /// Runs a command to its end.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> Ended {
        let endpoints = format!("--endpoints={}", self.server.address());
        let all: Vec<&str> = std::iter::once(endpoints.as_str()).chain(arguments.iter().copied()).collect();
        run(&self.program, &all, input, DEADLINE)
    }

    /// Runs a command that must succeed, and answers what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, "")
    }

    #[track_caller]
    pub(crate) fn ok_with(&self, arguments: &[&str], input: &str) -> String {
        let ended = self.run(arguments, input);
        assert!(ended.success, "etcdctl {arguments:?}\nstdout: {}\nstderr: {}", ended.stdout, ended.stderr);
        ended.stdout
    }

    /// Runs a command that must be refused, and answers what it said about it.
    #[track_caller]
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments, "");
        assert!(!ended.success, "etcdctl {arguments:?} succeeded: {}", ended.stdout);
        ended.stderr
    }

    /// Starts a command that runs on.
    pub(crate) fn running(&self, arguments: &[&str]) -> Running {
        let endpoints = format!("--endpoints={}", self.server.address());
        let all: Vec<&str> = std::iter::once(endpoints.as_str()).chain(arguments.iter().copied()).collect();
        Running::start(&self.program, &all)
    }

    /// The revision of the key's last put.
    pub(crate) fn mod_revision(&self, key: &str) -> u64 {
        let json = self.ok(&["get", key, "-w", "json"]);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        value["kvs"][0]["mod_revision"].as_u64().unwrap_or_else(|| panic!("{key} is not there: {json}"))
    }
}

#[test]
fn etcdctl_puts_and_gets_a_key() {
    let Some(ctl) = Ctl::start("etcdctl put and get") else { return };
    assert_eq!(ctl.ok(&["put", "pg/foo", "bar"]), "OK\n");
    assert_eq!(ctl.ok(&["get", "pg/foo"]), "pg/foo\nbar\n");
    assert_eq!(ctl.ok(&["get", "pg/foo", "--print-value-only"]), "bar\n");
    assert_eq!(ctl.ok(&["get", "pg/missing"]), "");
    assert_eq!(ctl.ok_with(&["put", "pg/stdin"], "from standard input"), "OK\n");
    assert_eq!(ctl.ok(&["get", "pg/stdin", "--print-value-only"]), "from standard input\n");
    assert_eq!(ctl.ok(&["put", "pg/foo", "baz", "--prev-kv"]), "OK\npg/foo\nbar\n");
    assert!(ctl.refused(&["put", "pg/foo", "x", "--lease=1234"]).contains("etcdserver: requested lease not found"));
    assert!(ctl.refused(&["put", "pg/none", "--ignore-value"]).contains("etcdserver: key not found"));
}

#[test]
fn etcdctl_gets_prefixes_with_limit_order_and_sort() {
    let Some(ctl) = Ctl::start("etcdctl get --prefix --limit --sort-by") else { return };
    for (key, value) in [("gp/b", "1"), ("gp/a", "3"), ("gp/c", "2"), ("gq", "outside")] {
        ctl.ok(&["put", key, value]);
    }
    ctl.ok(&["put", "gp/b", "1"]);
    assert_eq!(ctl.ok(&["get", "--prefix", "gp/"]), "gp/a\n3\ngp/b\n1\ngp/c\n2\n");
    assert_eq!(ctl.ok(&["get", "--prefix", "--limit=2", "gp/"]), "gp/a\n3\ngp/b\n1\n");
    let keys = |flags: &[&str]| {
        let arguments: Vec<&str> = [&["get", "--prefix", "--keys-only", "gp/"], flags].concat();
        ctl.ok(&arguments).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(keys(&[]), "gp/a gp/b gp/c");
    assert_eq!(keys(&["--order=DESCEND"]), "gp/c gp/b gp/a");
    assert_eq!(keys(&["--sort-by=CREATE"]), "gp/b gp/a gp/c");
    assert_eq!(keys(&["--sort-by=MODIFY"]), "gp/a gp/c gp/b");
    assert_eq!(keys(&["--sort-by=VALUE"]), "gp/b gp/c gp/a");
    assert_eq!(keys(&["--sort-by=VALUE", "--order=DESCEND", "--limit=1"]), "gp/a");
    assert_eq!(keys(&["--sort-by=VERSION", "--order=DESCEND", "--limit=1"]), "gp/b");
    assert_eq!(ctl.ok(&["get", "gp/b", "gp/d"]), "gp/b\n1\ngp/c\n2\n");
    assert_eq!(ctl.ok(&["get", "--from-key", "--limit=1", "gp/bb"]), "gp/c\n2\n");
    assert!(ctl.ok(&["get", "--prefix", "--count-only", "-w", "fields", "gp/"]).contains("\"Count\" : 3\n"));
}

#[test]
fn etcdctl_gets_an_old_revision_until_it_is_compacted() {
    let Some(ctl) = Ctl::start("etcdctl get --rev") else { return };
    ctl.ok(&["put", "rev/k", "one"]);
    let first = ctl.mod_revision("rev/k");
    ctl.ok(&["put", "rev/k", "two"]);
    let second = ctl.mod_revision("rev/k");
    ctl.ok(&["del", "rev/k"]);
    ctl.ok(&["put", "rev/k", "three"]);
    let now = ctl.mod_revision("rev/k");
    let at = |revision: u64| ctl.ok(&["get", "rev/k", &format!("--rev={revision}"), "--print-value-only"]);
    assert_eq!(at(first), "one\n");
    assert_eq!(at(second), "two\n");
    assert_eq!(at(now - 1), "", "deleted then");
    assert_eq!(at(now), "three\n");
    let future = ctl.refused(&["get", "rev/k", &format!("--rev={}", now + 1_000_000)]);
    assert!(future.contains("etcdserver: mvcc: required revision is a future revision"), "{future}");

    assert_eq!(ctl.ok(&["compaction", &now.to_string()]), format!("compacted revision {now}\n"));
    let compacted = ctl.refused(&["get", "rev/k", &format!("--rev={first}")]);
    assert!(compacted.contains("etcdserver: mvcc: required revision has been compacted"), "{compacted}");
    assert_eq!(at(now), "three\n");
}

#[test]
fn etcdctl_deletes_keys_and_prefixes() {
    let Some(ctl) = Ctl::start("etcdctl del") else { return };
    for key in ["del/a", "del/b", "del/c", "delx"] {
        ctl.ok(&["put", key, "v"]);
    }
    assert_eq!(ctl.ok(&["del", "del/a"]), "1\n");
    assert_eq!(ctl.ok(&["del", "del/a"]), "0\n");
    assert_eq!(ctl.ok(&["del", "--prefix", "--prev-kv", "del/"]), "2\ndel/b\nv\ndel/c\nv\n");
    assert_eq!(ctl.ok(&["get", "--prefix", "del"]), "delx\nv\n");
}

#[test]
fn etcdctl_watches_from_a_revision_with_what_was_before() {
    let Some(ctl) = Ctl::start("etcdctl watch --rev --prev-kv") else { return };
    ctl.ok(&["put", "w/a", "0"]);
    ctl.ok(&["put", "w/a", "1"]);
    let from = format!("--rev={}", ctl.mod_revision("w/a"));
    ctl.ok(&["put", "w/b", "2"]);
    let mut watch = ctl.running(&["watch", "--prefix", &from, "--prev-kv", "w/"]);
    // History first, with the value that each replaced; then what happens while it watches.
    watch.expect(&["PUT", "w/a", "0", "w/a", "1"]);
    watch.expect(&["PUT", "w/b", "2"]);
    ctl.ok(&["del", "w/a"]);
    watch.expect(&["DELETE", "w/a", "1", "w/a", ""]);
    ctl.ok(&["put", "elsewhere", "x"]);
    ctl.ok(&["put", "w/a", "3"]);
    watch.expect(&["PUT", "w/a", "3"]);
}

#[test]
fn etcdctl_watches_what_a_transaction_did_as_one() {
    let Some(ctl) = Ctl::start("etcdctl watch and txn") else { return };
    let mut watch = ctl.running(&["watch", "--prefix", "wt/"]);
    // The watch starts at the revision after its creation, and etcdctl does not say when that was: puts tell.
    let started = (0..200).any(|_| {
        ctl.ok(&["put", "wt/start", "0"]);
        watch.try_line(Duration::from_millis(100)).is_some()
    });
    assert!(started, "the watch sees puts");
    ctl.ok_with(&["txn"], "\nput wt/x 1\nput wt/y 2\n\n\n");
    let mut lines = Vec::new();
    while lines.last().map(String::as_str) != Some("wt/y") {
        lines.push(watch.line());
    }
    lines.push(watch.line());
    assert_eq!(lines[lines.len() - 6..], ["PUT", "wt/x", "1", "PUT", "wt/y", "2"]);
}

#[test]
fn etcdctl_runs_transactions() {
    let Some(ctl) = Ctl::start("etcdctl txn") else { return };
    ctl.ok(&["put", "txn/k", "1"]);
    let compares = "value(\"txn/k\") = \"1\"\nversion(\"txn/k\") > \"0\"\n\nput txn/k 2\nget txn/k\n\nput txn/k lost\n\n";
    assert_eq!(ctl.ok_with(&["txn"], compares), "SUCCESS\n\nOK\n\ntxn/k\n2\n");
    assert_eq!(ctl.ok_with(&["txn"], compares), "FAILURE\n\nOK\n");
    assert_eq!(ctl.ok(&["get", "txn/k", "--print-value-only"]), "lost\n");

    let absent = "create(\"txn/new\") = \"0\"\n\nput txn/new made\n\nget txn/new\n\n";
    assert_eq!(ctl.ok_with(&["txn"], absent), "SUCCESS\n\nOK\n");
    assert_eq!(ctl.ok_with(&["txn"], absent), "FAILURE\n\ntxn/new\nmade\n");
    assert_eq!(ctl.ok_with(&["txn"], "mod(\"txn/new\") > \"1\"\n\ndel txn/new\n\n\n"), "SUCCESS\n\n1\n");

    let twice = ctl.run(&["txn"], "\nput txn/d 1\nput txn/d 2\n\n\n");
    assert!(!twice.success && twice.stderr.contains("duplicate key given in txn request"), "{}", twice.stderr);
}

#[test]
fn etcdctl_locks_exclude_each_other() {
    let Some(ctl) = Ctl::start("etcdctl lock") else { return };
    let mut holder = ctl.running(&["lock", "lock/one"]);
    let held = holder.line();
    assert!(held.starts_with("lock/one/"), "{held}");
    let mut waiter = ctl.running(&["lock", "lock/one"]);
    waiter.expect_silence(Duration::from_millis(700));
    holder.interrupt();
    let next = waiter.line();
    assert!(next.starts_with("lock/one/") && next != held, "{next} after {held}");
    waiter.interrupt();
    assert_eq!(ctl.ok(&["get", "--prefix", "--keys-only", "lock/one/"]), "");
    assert_eq!(ctl.ok(&["lock", "lock/one", "echo", "done", "under", "the", "lock"]), "done under the lock\n");
}

#[test]
fn etcdctl_finds_the_endpoint_healthy_and_itself_a_member() {
    let Some(ctl) = Ctl::start("etcdctl endpoint health and member list") else { return };
    let health = ctl.run(&["endpoint", "health"], "");
    assert!(health.success && format!("{}{}", health.stdout, health.stderr).contains("is healthy"), "{}", health.stderr);
    let status: serde_json::Value = serde_json::from_str(&ctl.ok(&["endpoint", "status", "-w", "json"])).unwrap();
    let status = &status[0]["Status"];
    assert_eq!(status["leader"], status["header"]["member_id"], "{status}");
    assert_eq!(ctl.ok(&["member", "list"]).lines().count(), 1);
}
