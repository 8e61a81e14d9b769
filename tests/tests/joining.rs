//! Nodes that join, strangers that do not, and certificates that are kept fresh: real processes on loopback, driven by the command
//! line alone.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::path::Path;
use std::time::Instant;

use kvasir_tests::{DEADLINE, Failure, Node, NodeBuilder, artefacts, run};
use serde_json::Value;

/// Waits until something is so; the last answer is shown when it never is.
#[track_caller]
fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(last) => assert!(Instant::now() < end, "{what} never came to be: {last}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn token(node: &Node) -> String {
    node.cli(["token", "create"]).ok().trim().to_owned()
}

fn joining(name: &str, token: &str) -> NodeBuilder {
    Node::builder().arg("--name").arg(name).arg("--join").arg(token)
}

/// `status -w json`, one row for each member.
fn status(node: &Node) -> Vec<Value> {
    serde_json::from_str::<Value>(&node.cli(["status", "-w", "json"]).ok()).unwrap().as_array().unwrap().clone()
}

fn row<'a>(rows: &'a [Value], name: &str) -> Option<&'a Value> {
    rows.iter().find(|row| row["Name"] == name)
}

fn id(node: &Node, name: &str) -> String {
    format!("{:x}", row(&status(node), name).unwrap()["ID"].as_u64().unwrap())
}

/// Waits until all of these are healthy voters.
#[track_caller]
fn wait_for_voters(node: &Node, names: &[&str]) {
    until("a cluster of voters", || {
        let rows = status(node);
        let well = |name: &&str| {
            row(&rows, name)
                .is_some_and(|row| row["Health"] == "ok" && ["leader", "follower"].iter().any(|role| row["Role"] == *role))
        };
        if rows.len() == names.len() && names.iter().all(well) { Ok(()) } else { Err(format!("{rows:?}")) }
    });
}

#[track_caller]
fn refusal(started: Result<Node, Failure>) -> String {
    let failure = started.expect_err("the start is refused");
    let errors: Vec<&str> = failure.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one line says why: {failure}");
    assert!(!failure.stderr.contains("panicked"), "{failure}");
    errors[0].to_owned()
}

#[track_caller]
fn assert_says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
}

#[test]
fn three_nodes_join_by_token_serve_as_one_and_show_on_one_screen_also_while_one_is_down() {
    let a = Node::builder().arg("--name").arg("a").start();
    let b = joining("b", &token(&a)).start();
    // Any member makes tokens, and passes on who comes with one.
    let mut c = joining("c", &token(&b)).start();
    wait_for_voters(&a, &["a", "b", "c"]);
    for (node, key) in [(&a, "of-a"), (&b, "of-b"), (&c, "of-c")] {
        node.cli(["put", key, "1"]).ok();
    }
    for node in [&a, &b, &c] {
        assert_eq!(node.cli(["get", "--prefix", "of-", "--keys-only"]).ok().split_whitespace().count(), 3);
    }
    for node in [&a, &b, &c] {
        for key in ["node.key", "ca.key"] {
            let file = node.data_dir().join("identity").join(key);
            let mode =
                until("a voter's keys", || std::fs::metadata(&file).map_err(|error| format!("{}: {error}", file.display())))
                    .permissions();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600, "{}", file.display());
        }
    }

    c.kill();
    let rows = until("a member that is down, on the screen", || {
        let rows = status(&a);
        let down = row(&rows, "c").and_then(|row| row["Health"].as_str()).is_some_and(|health| health.starts_with("DOWN"));
        if down && row(&rows, "b").unwrap()["Health"] == "ok" { Ok(rows) } else { Err(format!("{rows:?}")) }
    });
    assert_eq!(rows.len(), 3);
    assert!(row(&rows, "c").unwrap()["Lag"].is_u64(), "the leader knows how far it is: {rows:?}");
    let screen = b.cli(["status"]).ok();
    for word in ["NAME", "CERTIFICATE", "DOWN", "leader", "follower", "2 of 3 members answer"] {
        assert!(screen.contains(word), "{word:?} is not in:\n{screen}");
    }
    a.cli(["put", "while", "down"]).ok();
    // Joined once and for all: the used token in its flags does no harm.
    c.restart();
    until("what was missed", || {
        let seen = c.cli(["get", "while", "--print-value-only"]).stdout;
        if seen.trim() == "down" { Ok(()) } else { Err(seen) }
    });
    assert!(c.log().contains("--join is ignored"), "{}", c.log());
    wait_for_voters(&c, &["a", "b", "c"]);
}

#[test]
fn what_is_left_of_a_cluster_goes_on_alone_when_it_is_told_to_and_grows_again() {
    let mut a = Node::builder().arg("--name").arg("a").start();
    let mut b = joining("b", &token(&a)).start();
    let mut c = joining("c", &token(&a)).arg("--learner").start();
    let rows = until("two voters and a learner that has everything", || {
        b.cli(["put", "kept", "1"]).ok();
        let rows = status(&a);
        let well = rows.len() == 3 && rows.iter().all(|row| row["Health"] == "ok" && row["Lag"] == 0);
        if well { Ok(rows) } else { Err(format!("{rows:?}")) }
    });
    assert_eq!(row(&rows, "c").unwrap()["Role"], "learner");
    a.kill();
    b.kill();
    // A learner, without the authority's key: the least that can be left.
    c.terminate();
    c.set_arguments(["--name", "c", "--force-new-cluster"]);
    c.restart();
    wait_for_voters(&c, &["c"]);
    assert_eq!(c.cli(["get", "kept", "--print-value-only"]).ok().trim(), "1");
    c.cli(["put", "alone", "1"]).ok();
    c.terminate();
    c.set_arguments(["--name", "c"]);
    c.restart();
    c.cli(["cert", "rotate-authority"]).ok();
    let d = joining("d", &token(&c)).start();
    wait_for_voters(&d, &["c", "d"]);
    assert_eq!(d.cli(["get", "--prefix", "", "--count-only"]).ok().trim(), "2");
}

#[test]
fn a_token_is_good_once_for_a_time_and_for_its_cluster_alone() {
    let a = Node::builder().arg("--name").arg("a").start();
    let good = token(&a);
    // What is no token, or no more whole, does not get as far as the network.
    let cut = &good[..good.len() - 2];
    assert_says(&refusal(joining("x", cut).try_start()), &["--join", "damaged"]);

    let b = joining("b", &good).start();
    let replayed = refusal(joining("c", &good).try_start());
    assert_says(&replayed, &["used by another node", "kvasir token create"]);

    let removed = token(&a);
    let listed: Value = serde_json::from_str(&a.cli(["token", "ls", "-w", "json"]).ok()).unwrap();
    let unused = listed["tokens"].as_array().unwrap().iter().find(|token| token["node"].is_null()).unwrap();
    a.cli(["token", "rm", unused["id"].as_str().unwrap()]).ok();
    assert_says(&refusal(joining("c", &removed).try_start()), &["not one of this cluster's", "kvasir token create"]);

    let short = a.cli(["token", "create", "--ttl", "1s"]).ok().trim().to_owned();
    until("the end of a token", || {
        let listed: Value = serde_json::from_str(&a.cli(["token", "ls", "-w", "json"]).ok()).unwrap();
        let over = listed["tokens"].as_array().unwrap().iter().any(|token| token["expired"] == true);
        if over { Ok(()) } else { Err(listed.to_string()) }
    });
    assert_says(&refusal(joining("c", &short).try_start()), &["time is over"]);

    // A name or an address that another has is told before the token is used up.
    let next = token(&b);
    assert_says(&refusal(joining("b", &next).try_start()), &["\"b\"", "--name", "kvasir member remove"]);
    let c = joining("c", &next).arg("--learner").start();
    let learner = status(&c);
    assert_eq!(row(&learner, "c").unwrap()["Role"], "learner");
    assert!(!c.data_dir().join("identity/ca.key").exists(), "a learner has no authority's key");
    for (ttl, word) in [("0s", "--ttl"), ("100000h", "720h"), ("soon", "--ttl")] {
        assert_says(&a.cli(["token", "create", "--ttl", ttl]).refused(), &[word]);
    }
    assert_says(&a.cli(["token", "rm", "1"]).refused(), &["no join token"]);
}

#[test]
fn a_node_that_was_removed_is_refused_and_its_token_is_no_way_back() {
    let a = Node::builder().arg("--name").arg("a").start();
    let (tb, tc) = (token(&a), token(&a));
    let _b = joining("b", &tb).start();
    let mut c = joining("c", &tc).start();
    wait_for_voters(&a, &["a", "b", "c"]);
    let removed = id(&a, "c");
    a.cli(["member", "remove", &removed]).ok();
    let ended = c.wait();
    assert!(!ended.success(), "{ended}: {}", c.log());
    assert_says(&c.log(), &["removed"]);
    // Nor does it come back by itself, nor with its old token on its old key in a new folder.
    assert_says(&c.try_restart().expect_err("it is refused").stderr, &["error: ", "removed"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("identity")).unwrap();
    std::fs::copy(c.data_dir().join("identity/node.key"), folder.path().join("identity/node.key")).unwrap();
    let line = refusal(joining("c", &tc).data_dir(folder.path()).try_start());
    assert_says(&line, &[&removed, "removed", "kvasir token create"]);
    // Its place is free for another.
    let _d = joining("c", &token(&a)).start();
    wait_for_voters(&a, &["a", "b", "c"]);
    assert_ne!(id(&a, "c"), removed, "an id is never used again");
}

#[test]
fn certificates_are_renewed_while_the_nodes_run_a_learners_by_a_voter() {
    let short = ["--peer-cert-life", "6s"];
    let start = |builder: NodeBuilder| short.iter().fold(builder, |builder, flag| builder.arg(*flag)).start();
    let a = start(Node::builder().arg("--name").arg("a"));
    let _b = start(joining("b", &token(&a)));
    let _c = start(joining("c", &token(&a)).arg("--learner"));
    let ends = |rows: &[Value]| -> Vec<String> {
        let end = |name| row(rows, name).and_then(|row| row["Status"]["certificateNotAfter"].as_str().map(str::to_owned));
        ["a", "b", "c"].into_iter().filter_map(end).collect()
    };
    let first = until("three certificates", || {
        let ends = ends(&status(&a));
        if ends.len() == 3 { Ok(ends) } else { Err(format!("{ends:?}")) }
    });
    // Twice: what was renewed is renewed again, and the cluster goes on with it.
    let mut before = first;
    for _ in 0..2 {
        before = until("renewed certificates", || {
            let now = ends(&status(&a));
            // Times in this form sort as they follow each other.
            if now.len() == 3 && now.iter().zip(&before).all(|(now, before)| now > before) {
                Ok(now)
            } else {
                Err(format!("{now:?}, before {before:?}"))
            }
        });
    }
    a.cli(["put", "still", "here"]).ok();
}

#[test]
fn the_authority_is_replaced_while_the_cluster_serves() {
    let a = Node::builder().arg("--name").arg("a").start();
    let old = token(&a);
    let b = joining("b", &token(&a)).start();
    let mut c = joining("c", &token(&a)).start();
    let d = joining("d", &token(&a)).arg("--learner").start();
    wait_for_learner(&a);
    let authorities = |rows: &[Value], name: &str| row(rows, name).map(|row| row["Status"]["authorities"].clone());
    let before = authorities(&status(&a), "a").unwrap();

    // With a member down it waits, says for whom, and serves.
    c.kill();
    b.cli(["cert", "rotate-authority"]).ok();
    until("a change that waits", || {
        let screen = a.cli(["status"]).ok();
        if screen.contains("being replaced") && screen.contains("waiting for c") { Ok(()) } else { Err(screen) }
    });
    a.cli(["put", "while", "it waits"]).ok();
    c.restart();
    let after = until("one new authority on every member", || {
        let rows = status(&a);
        let seen: Vec<Value> = ["a", "b", "c", "d"].iter().filter_map(|name| authorities(&rows, name)).collect();
        let same = seen.len() == 4 && seen.iter().all(|prints| *prints == seen[0] && prints.as_array().unwrap().len() == 1);
        if same && seen[0] != before { Ok(seen[0].clone()) } else { Err(format!("{rows:?}")) }
    });
    assert_ne!(after, before);
    for node in [&a, &b, &c] {
        node.cli(["put", "after", node.address()]).ok();
    }
    until("the last write, on the learner", || {
        let seen = d.cli(["get", "after", "--consistency=s", "--print-value-only"]).stdout;
        if seen.trim() == c.address() { Ok(()) } else { Err(seen) }
    });
    // The old authority is trusted no more: a token that names it leads nowhere. A new one does.
    assert_says(&refusal(joining("e", &old).try_start()), &["cannot join", "not a member of the cluster"]);
    let e = joining("e", &token(&c)).start();
    wait_for_learner(&e);
    // And all of it is on disk.
    c.kill();
    c.restart();
    c.cli(["put", "again", "1"]).ok();
}

/// Waits until everybody is healthy, and nobody but `d` is a learner.
#[track_caller]
fn wait_for_learner(node: &Node) {
    until("a healthy cluster with a learner", || {
        let rows = status(node);
        let well = rows.iter().all(|row| row["Health"] == "ok" && (row["Role"] == "learner") == (row["Name"] == "d"));
        if well { Ok(()) } else { Err(format!("{rows:?}")) }
    });
}

/// Runs the binary without a node.
#[track_caller]
fn kvasir(arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(artefacts::kvasir());
    command.args(arguments);
    run(command).ok()
}

/// A member's certificate of the operator's own, for the founding of a cluster.
fn certify(authority: &Path, to: &Path, name: &str) {
    let (authority, to) = (authority.to_str().unwrap(), to.to_str().unwrap());
    kvasir(&["cert", "create", "--authority", authority, "--name", name, "--initial-cluster-token", "static", "--out", to]);
}

fn with_files(builder: NodeBuilder, folder: &Path) -> NodeBuilder {
    [("--peer-cert-file", "node.crt"), ("--peer-key-file", "node.key"), ("--peer-trusted-ca-file", "ca.crt")]
        .into_iter()
        .fold(builder, |builder, (flag, file)| builder.arg(flag).arg(folder.join(file).to_str().unwrap()))
}

#[test]
fn a_static_cluster_bootstraps_with_the_operators_own_certificates_and_reads_them_again() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    kvasir(&["cert", "create-authority", "--out", at("authority").to_str().unwrap()]);
    let names = ["a", "b", "c"];
    names.iter().for_each(|name| certify(&at("authority"), &at(name), name));
    // Ports that were free a moment ago.
    let sockets = names.map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let urls = sockets.each_ref().map(|socket| format!("https://{}", socket.local_addr().unwrap()));
    drop(sockets);
    let cluster = names.iter().zip(&urls).map(|(name, url)| format!("{name}={url}")).collect::<Vec<_>>().join(",");
    let builder = |nth: usize, folder: &Path| {
        let flags = [
            "--name",
            names[nth],
            "--initial-cluster",
            &cluster,
            "--initial-cluster-token",
            "static",
            "--listen-peer-urls",
            &urls[nth],
        ];
        with_files(flags.iter().fold(Node::builder(), |builder, flag| builder.arg(*flag)), folder)
    };
    // Somebody else's certificate is told from one's own before anything is made.
    let line = refusal(builder(0, &at("b")).try_start());
    assert_says(&line, &["--peer-cert-file", "kvasir://", "kvasir cert name"]);

    let mut nodes: Vec<Node> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..3)
            .map(|nth| {
                let builder = builder(nth, &at(names[nth]));
                scope.spawn(move || builder.start())
            })
            .collect();
        starting.into_iter().map(|starting| starting.join().unwrap()).collect()
    });
    wait_for_voters(&nodes[0], &names);
    nodes[2].cli(["put", "x", "1"]).ok();
    assert_says(&nodes[0].cli(["token", "create"]).refused(), &["your own", "kvasir member add"]);
    assert_says(&nodes[0].cli(["cert", "rotate-authority"]).refused(), &["your own"]);

    // A certificate is replaced under a running node.
    certify(&at("authority"), &at("fresh"), "a");
    for file in ["node.key", "node.crt"] {
        std::fs::copy(at("fresh").join(file), at("a").join(file)).unwrap();
    }
    until("the changed files", || if nodes[0].log().contains("read again") { Ok(()) } else { Err(nodes[0].log()) });

    // A fourth is added by name, and starts with a certificate for the id that it was given.
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", port.local_addr().unwrap());
    drop(port);
    let added: Value =
        serde_json::from_str(&nodes[0].cli(["member", "add", "d", "--peer-urls", &url, "-w", "json"]).ok()).unwrap();
    let new_id = format!("{:x}", added["member"]["ID"].as_u64().unwrap());
    kvasir(&[
        "cert",
        "create",
        "--authority",
        at("authority").to_str().unwrap(),
        "--id",
        &new_id,
        "--initial-cluster-token",
        "static",
        "--out",
        at("d").to_str().unwrap(),
    ]);
    let d = ["--name", "d", "--initial-cluster-state", "existing", "--listen-peer-urls", &url];
    let d = with_files(d.iter().fold(Node::builder(), |builder, flag| builder.arg(*flag)), &at("d")).start();
    wait_for_voters(&d, &["a", "b", "c", "d"]);
    d.cli(["put", "from", "d"]).ok();

    // One that comes back without its data is no new member: it may have voted, and what it said to have stored may count.
    nodes[2].kill();
    let line = refusal(builder(2, &at("c")).try_start());
    assert_says(&line, &["--data-dir", "has been started before", "kvasir member remove", "kvasir member add"]);
    nodes[2].restart();
    wait_for_voters(&d, &["a", "b", "c", "d"]);
}
