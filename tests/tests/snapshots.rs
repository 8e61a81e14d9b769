//! Snapshots that an operator saves, looks at and restores: real processes, driven by the command line, by `etcdctl` and by a client
//! that misbehaves.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

// Shared with the tests of etcd's clients; not all of it is used here.
#[allow(dead_code)]
#[path = "etcd_clients/server.rs"]
mod clients;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::{
    CompactionRequest, LeaseTimeToLiveRequest, MemberListRequest, PutRequest, RangeRequest, SnapshotRequest, SnapshotResponse,
    WatchCreateRequest,
};
use kvasir_tests::{Cli, Client, DEADLINE, Node, NodeBuilder, artefacts, eventually, run};
use serde_json::Value;
use tonic::{Code, Streaming};

/// Runs the binary without a node.
fn kvasir<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Cli {
    let mut command = Command::new(artefacts::kvasir());
    command.args(arguments);
    run(command)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn status(file: &Path) -> Value {
    serde_json::from_str(&kvasir(["snapshot", "status", text(file), "-w", "json"]).ok()).unwrap()
}

fn restore(file: &Path, folder: &Path, more: &[&str]) -> Cli {
    kvasir([&["snapshot", "restore", text(file), "--data-dir", text(folder)], more].concat())
}

fn named(name: &str) -> NodeBuilder {
    Node::builder().arg("--name").arg(name)
}

fn joining(node: &Node, name: &str) -> NodeBuilder {
    named(name).arg("--join").arg(node.cli(["token", "create"]).ok().trim())
}

/// Everything there is, as of a revision.
async fn everything(client: &Client, revision: i64) -> Vec<kvasir_api::mvccpb::KeyValue> {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..RangeRequest::default() };
    client.range(all).await.unwrap().kvs
}

async fn fill(client: &Client) {
    for round in 0..3 {
        for key in 0..40 {
            client.put(format!("/k/{key}"), format!("{round}")).await.unwrap();
        }
    }
    for key in 0..5 {
        client.delete(format!("/k/{key}")).await.unwrap();
    }
    client.put("/k/0", "again").await.unwrap();
}

/// The one line that says why, with these words in it.
#[track_caller]
fn refused(cli: Cli, words: &[&str]) {
    let line = cli.refused();
    assert_eq!(line.lines().count(), 1, "{line}");
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
}

/// Files of saves that are not finished.
fn parts(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".part")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_founded_on_a_snapshot_that_was_saved_while_writes_went_on() {
    let scratch = tempfile::tempdir().unwrap();
    let (file, folder) = (scratch.path().join("a.snap"), scratch.path().join("restored"));
    let a = named("a").start();
    let client = a.client().await;
    fill(&client).await;
    let lease = client.grant(600).await.unwrap();
    let leased = PutRequest { key: "/leased".into(), value: "1".into(), lease, ..PutRequest::default() };
    client.kv.clone().put(leased).await.unwrap();
    client.kv.clone().compact(CompactionRequest { revision: 30, physical: true }).await.unwrap();
    // What must not go over: a token that is good still, and authorities that the members agreed on.
    a.cli(["token", "create"]).ok();
    a.cli(["cert", "rotate-authority"]).ok();

    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        async move {
            let mut count = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                client.put(format!("/w/{count:06}"), count.to_string()).await.unwrap();
                count += 1;
            }
            count
        }
    });
    eventually("some writes", DEADLINE, || async {
        if client.prefix("/w/").await.unwrap().len() > 20 { Ok(()) } else { Err(String::new()) }
    })
    .await;
    // Acknowledged before the save: it is in it.
    let acknowledged = client.put("/last", "before").await.unwrap().header.unwrap().revision;
    tokio::task::block_in_place(|| a.cli(["snapshot", "save", text(&file)]).ok());
    stop.store(true, Ordering::Relaxed);
    assert!(writing.await.unwrap() > 20);
    assert_eq!(parts(scratch.path()), Vec::<String>::new());
    tokio::task::block_in_place(|| refused(a.cli(["snapshot", "save", text(&file)]), &["a.snap", "is there already"]));
    assert_eq!(std::fs::read_dir(a.data_dir().join("snapshot")).unwrap().count(), 0, "the node keeps no copy");

    let said = status(&file);
    let revision = said["revision"].as_i64().unwrap();
    assert!(revision >= acknowledged, "{said}");
    assert_eq!((said["compactRevision"].as_i64(), said["leases"].as_u64()), (Some(30), Some(1)));
    let header = client.put("/after", "the save").await.unwrap().header.unwrap();
    assert_eq!(said["clusterID"].as_u64(), Some(header.cluster_id));

    let made = restore(&file, &folder, &["--name", "r", "--initial-cluster-token", "another"]).ok();
    assert!(made.contains("kvasir serve") && made.contains(&format!("revision {revision}")), "{made}");
    let mut r = named("r").data_dir(&folder).start();
    let fresh = r.client().await;
    assert_eq!(fresh.revision().await.unwrap(), revision, "it goes on where the snapshot ends");
    assert_eq!(everything(&fresh, 0).await, everything(&client, revision).await, "revisions, versions, leases and values");
    assert_eq!(everything(&fresh, 60).await, everything(&client, 60).await);
    let history = fresh.history(31, revision).await.unwrap();
    assert_eq!(history, client.history(31, revision).await.unwrap());
    let old = RangeRequest { key: "/k/1".into(), revision: 29, ..RangeRequest::default() };
    assert_eq!(fresh.range(old).await.unwrap_err().code(), Code::OutOfRange, "what was compacted stays so");
    let ask = LeaseTimeToLiveRequest { id: lease, keys: true };
    let left = fresh.lease.clone().lease_time_to_live(ask).await.unwrap().into_inner();
    assert!((1..=600).contains(&left.ttl), "{left:?}");
    assert_eq!(left.keys, ["/leased"]);
    let next = fresh.put("/next", "1").await.unwrap().header.unwrap();
    assert_eq!(next.revision, revision + 1);
    assert_ne!(next.cluster_id, header.cluster_id);

    // It is a cluster like any other: of this one member, with an authority and tokens of its own.
    tokio::task::block_in_place(|| {
        assert_eq!(r.cli(["member", "list"]).ok().lines().count(), 1);
        let tokens: Value = serde_json::from_str(&r.cli(["token", "ls", "-w", "json"]).ok()).unwrap();
        assert_eq!(tokens["tokens"].as_array().unwrap().len(), 0, "the old cluster's token is not here: {tokens}");
        r.kill();
        r.restart();
    });
    let b = tokio::task::block_in_place(|| joining(&r, "b").start());
    let voting = || async {
        let members =
            r.client().await.cluster.member_list(MemberListRequest { linearizable: true }).await.unwrap().into_inner();
        let voters = members.members.iter().filter(|member| !member.is_learner).count();
        if voters == 2 { Ok(()) } else { Err(format!("{members:?}")) }
    };
    eventually("a second voter", DEADLINE, voting).await;
    let second = b.client().await;
    assert_eq!(second.get("/last").await.unwrap().as_deref(), Some(&b"before"[..]));
    second.put("/by", "b").await.unwrap();
    assert_eq!(everything(&second, revision).await, everything(&client, revision).await, "as a snapshot between nodes has it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_saves_from_every_member_of_a_cluster_also_from_one_without_a_vote() {
    let scratch = tempfile::tempdir().unwrap();
    let etcdctl = clients::client("snapshots saved by etcdctl", "KVASIR_ETCDCTL", "etcdctl");
    let a = named("a").start();
    let (b, l) = tokio::task::block_in_place(|| {
        let b = joining(&a, "b").start();
        (b, joining(&a, "l").arg("--learner").start())
    });
    fill(&a.client().await).await;
    for (node, name) in [(&a, "a"), (&b, "b"), (&l, "l")] {
        // Written to another member: who saves asks the leader how far it is.
        let revision = b.client().await.put("/for", name).await.unwrap().header.unwrap().revision;
        let save = |file: PathBuf, cli: Cli| {
            cli.ok();
            let said = status(&file);
            assert!(said["revision"].as_i64().unwrap() >= revision, "{name}: {said}");
            file
        };
        let file = scratch.path().join(format!("{name}.snap"));
        let mut saved = vec![tokio::task::block_in_place(|| save(file.clone(), node.cli(["snapshot", "save", text(&file)])))];
        if let Some(etcdctl) = &etcdctl {
            let file = scratch.path().join(format!("{name}.etcdctl"));
            let mut command = Command::new(etcdctl);
            command.arg(format!("--endpoints={}", node.address())).args(["snapshot", "save", text(&file)]);
            saved.push(tokio::task::block_in_place(|| save(file, run(command))));
        }
        // Nothing was written between: the same state, whoever saved it.
        let keys: Vec<Value> = saved.iter().map(|file| status(file)["totalKey"].clone()).collect();
        assert!(keys.iter().all(|count| *count == keys[0]), "{keys:?}");
        if name == "l" {
            let folder = scratch.path().join("restored");
            restore(saved.last().unwrap(), &folder, &[]).ok();
            let restored = tokio::task::block_in_place(|| Node::builder().data_dir(&folder).start());
            let client = restored.client().await;
            assert_eq!(everything(&client, 0).await, everything(&a.client().await, revision).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_of_the_old_cluster_start_anew_where_revisions_are_left_out() {
    let scratch = tempfile::tempdir().unwrap();
    let (file, folder) = (scratch.path().join("a.snap"), scratch.path().join("restored"));
    let a = Node::start();
    let client = a.client().await;
    fill(&client).await;
    let revision = client.revision().await.unwrap();
    tokio::task::block_in_place(|| a.cli(["snapshot", "save", text(&file)]).ok());
    let too_many = ["--bump-revision", "9223372036854775807", "--mark-compacted"];
    refused(restore(&file, &folder, &too_many), &["--bump-revision"]);
    let made = restore(&file, &folder, &["--bump-revision", "1000000", "--mark-compacted"]).ok();
    assert!(made.contains("--initial-cluster-token"), "the same ID is said: {made}");
    let mut r = tokio::task::block_in_place(|| Node::builder().data_dir(&folder).start());
    let fresh = r.client().await;
    let bumped = revision + 1_000_000;
    assert_eq!(fresh.revision().await.unwrap(), bumped);
    assert_eq!(everything(&fresh, 0).await, everything(&client, 0).await);
    let old = RangeRequest { key: "/k/1".into(), revision, ..RangeRequest::default() };
    assert_eq!(fresh.range(old).await.unwrap_err().code(), Code::OutOfRange);
    let watch = WatchCreateRequest { key: "/k/7".into(), start_revision: revision, ..WatchCreateRequest::default() };
    let mut watching = fresh.watch_stream(RequestUnion::CreateRequest(watch)).await.unwrap();
    let ended = loop {
        let response = watching.next().await.unwrap();
        if response.canceled {
            break response;
        }
    };
    assert_eq!(ended.compact_revision, bumped);
    assert_eq!(fresh.put("/k/7", "new").await.unwrap().header.unwrap().revision, bumped + 1);
    assert_eq!(fresh.history(bumped + 1, bumped + 1).await.unwrap().len(), 1);
    tokio::task::block_in_place(|| {
        r.kill();
        r.restart();
    });
    assert_eq!(r.client().await.revision().await.unwrap(), bumped + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_a_folder_in_use_and_a_file_in_the_way_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let file = at("a.snap");
    let a = Node::start();
    fill(&a.client().await).await;
    tokio::task::block_in_place(|| a.cli(["snapshot", "save", text(&file)]).ok());
    let good = std::fs::read(&file).unwrap();
    assert_eq!(good.len() % 512, 32);
    let bad = at("bad.snap");
    let spread = (0..12).map(|nth| good.len() * nth / 12);
    for (nth, place) in spread.chain([8, 13, 33, 40, good.len() - 33, good.len() - 1]).enumerate() {
        let mut bytes = good.clone();
        bytes[place] ^= 1 << (nth % 8);
        std::fs::write(&bad, bytes).unwrap();
        refused(kvasir(["snapshot", "status", text(&bad)]), &["bad.snap", "altered"]);
        if nth % 6 == 0 {
            refused(restore(&bad, &at("new"), &[]), &["bad.snap", "altered", "again"]);
        }
    }
    for length in [0, 31, 32, 544, 1000, good.len() - 512, good.len() - 32, good.len() - 1] {
        std::fs::write(&bad, &good[..length]).unwrap();
        refused(kvasir(["snapshot", "status", text(&bad)]), &["bad.snap", "cut short"]);
        refused(restore(&bad, &at("new"), &[]), &["bad.snap", "cut short"]);
    }
    assert!(!at("new").exists(), "nothing is made of what cannot be used");
    refused(kvasir(["snapshot", "status", text(&at("none"))]), &["none", "cannot be read"]);

    // A folder that has anything in it is left alone: another's, a running node's.
    std::fs::create_dir(at("full")).unwrap();
    std::fs::write(at("full").join("mine"), "x").unwrap();
    refused(restore(&file, &at("full"), &[]), &["full", "mine", "empty folder"]);
    assert_eq!(std::fs::read_dir(at("full")).unwrap().count(), 1);
    refused(restore(&file, a.data_dir(), &[]), &["not empty"]);
    refused(restore(&file, &file, &[]), &["a.snap", "--data-dir"]);
    // An empty one is as good as none, and what was restored is in the way of the next.
    std::fs::create_dir(at("empty")).unwrap();
    restore(&file, &at("empty"), &[]).ok();
    refused(restore(&file, &at("empty"), &[]), &["not empty"]);

    // Who cannot be reached leaves nothing of a file.
    let gone = kvasir(["snapshot", "save", text(&at("b.snap")), "--endpoints=127.0.0.1:1"]);
    refused(gone, &["127.0.0.1:1"]);
    refused(a.cli(["snapshot", "save", text(&at("no/b.snap"))]), &["b.snap"]);
    assert!(!at("b.snap").exists());
    assert_eq!(parts(scratch.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_leaves_nothing_and_a_third_is_told_to_wait() {
    let a = Node::start();
    let client = a.client().await;
    for key in 0..8 {
        client.put(format!("{key}"), vec![key; 1 << 20]).await.unwrap();
    }
    let copies = || std::fs::read_dir(a.data_dir().join("snapshot")).unwrap().count();
    let begin = || async {
        let mut saving = client.maintenance.clone().snapshot(SnapshotRequest {}).await?.into_inner();
        let first = saving.message().await?.unwrap();
        assert!(first.remaining_bytes > 7 << 20 && first.header.is_some(), "{}", first.remaining_bytes);
        Ok::<Streaming<SnapshotResponse>, tonic::Status>(saving)
    };
    // More than the node reads ahead: they stand still.
    let (one, other) = (begin().await.unwrap(), begin().await.unwrap());
    assert_eq!(copies(), 2);
    let third = begin().await.unwrap_err();
    assert_eq!(third.code(), Code::ResourceExhausted);
    assert!(third.message().contains("another member"), "{third:?}");
    drop((one, other));
    eventually("no copy is left", DEADLINE, || async { if copies() == 0 { Ok(()) } else { Err(format!("{}", copies())) } })
        .await;
    // Their turns are free again.
    let mut saving = begin().await.unwrap();
    let (mut bytes, mut last) = (0, Vec::new());
    while let Some(message) = tokio::time::timeout(Duration::from_secs(20), saving.message()).await.unwrap().unwrap() {
        bytes += message.blob.len();
        last = message.blob.to_vec();
    }
    assert!(bytes > 7 << 20);
    assert_eq!(last.len(), 32, "the hash comes last, alone");
}
