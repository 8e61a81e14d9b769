//! What only tasks may use - commits, watches, leases, locks - by a real guest on a real node, and that the SDK's harness is
//! true to it: `tests/guests/tasks/conformance.txt` is run by both.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use kvasir_api::etcdserverpb::{CompactionRequest, PutRequest, RequestOp, TxnRequest, request_op};
use kvasir_api::v3lockpb::LockRequest;
use kvasir_tests::{Client, DEADLINE, Install, Node, artefacts, eventually};

const CONFORMANCE: &str = include_str!("../guests/tasks/conformance.txt");

async fn with_tasks() -> Option<(Node, Client)> {
    let component = artefacts::guest("tasks-guest")?;
    let node = Node::start();
    let client = node.client().await;
    // The manifest is the component's own: two attributes in one crate embed it once.
    client.install(&component, Install::accepting()).await.unwrap();
    Some((node, client))
}

/// Waits until a key has a value and returns it.
async fn value(client: &Client, key: &str) -> String {
    let found = eventually(&format!("{key} is there"), DEADLINE, || async {
        client.get(key.to_owned()).await.map_err(|status| status.to_string())?.ok_or_else(|| "not yet".to_owned())
    })
    .await;
    String::from_utf8(found.to_vec()).unwrap()
}

async fn give(client: &Client, order: &str, argument: &str) {
    client.put(format!("/tasks/do/{order}"), argument.to_owned()).await.unwrap();
}

/// Waits until the order is carried out and returns the answer.
async fn answer(client: &Client, order: &str) -> String {
    eventually(&format!("{order} is done"), DEADLINE, || async {
        match client.get(format!("/tasks/do/{order}")).await.map_err(|status| status.to_string())? {
            None => Ok(()),
            Some(_) => Err(format!("{:?}", client.plugin("tasks").await)),
        }
    })
    .await;
    value(client, &format!("/tasks/done/{order}")).await
}

async fn hold(client: &Client, name: &str) {
    let lease = client.grant(600).await.unwrap();
    client.lock.clone().lock(LockRequest { name: name.to_owned().into(), lease }).await.unwrap();
}

async fn txn(client: &Client, keys: &[&str]) -> i64 {
    let put = |key: &&str| PutRequest { key: (*key).to_owned().into(), value: "x".into(), ..PutRequest::default() };
    let op = |key| RequestOp { request: Some(request_op::Request::RequestPut(put(key))) };
    let txn = TxnRequest { success: keys.iter().map(op).collect(), ..TxnRequest::default() };
    client.txn(txn).await.unwrap().header.unwrap().revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_does_what_the_harness_does() {
    let Some((_node, client)) = with_tasks().await else { return };
    let (mut case, mut revision, mut wrong) = ("", 0, Vec::new());
    for line in CONFORMANCE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (step, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split(' ').collect();
        match (step, words.as_slice()) {
            ("case", _) => case = rest,
            ("put", [key, value]) => drop(client.put((*key).to_owned(), (*value).to_owned()).await.unwrap()),
            ("txn", keys) => revision = txn(&client, keys).await,
            ("many", [count, prefix]) => {
                for n in 0..count.parse::<usize>().unwrap() {
                    client.put(format!("{prefix}{n:03}"), "x").await.unwrap();
                }
            }
            ("compact", _) => {
                let compaction = CompactionRequest { revision: client.revision().await.unwrap(), physical: false };
                client.kv.clone().compact(compaction).await.unwrap();
            }
            ("hold", [name]) => hold(&client, name).await,
            ("see", [key, expected]) => {
                let seen = value(&client, key).await;
                if seen != *expected {
                    wrong.push(format!("{case}: {line}: {seen}"));
                }
            }
            ("do", [order, argument, "=>", ..]) => {
                give(&client, order, &argument.replace('@', &revision.to_string())).await;
                let answer = answer(&client, order).await;
                if Some(answer.as_str()) != rest.split_once(" => ").map(|(_, expected)| expected) {
                    wrong.push(format!("{case}: {line}: {answer}"));
                }
            }
            _ => panic!("not a step: {line}"),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_fences_the_commits_of_its_holder_and_goes_with_its_handle() {
    let Some((_node, client)) = with_tasks().await else { return };
    let mut tokens = Vec::new();
    for (name, lost) in [("/tasks/second", false), ("/tasks/third", true)] {
        client.delete("/tasks/own/lock").await.unwrap();
        give(&client, "guard", name).await;
        let place = value(&client, "/tasks/own/lock").await;
        let (token, key) = place.split_once(' ').unwrap();
        let entry = client.entry(key.to_owned()).await.unwrap().unwrap();
        assert!(key.starts_with(&format!("{name}/")) && entry.lease != 0, "{entry:?}");
        assert_eq!(entry.create_revision.to_string(), token, "the fencing token is the create revision of the lock's key");
        tokens.push(entry.create_revision);
        if lost {
            client.delete(key.to_owned()).await.unwrap();
        }
        client.put("/tasks/step/guard", "").await.unwrap();
        let expected = if lost { "conflict" } else { "committed" };
        assert_eq!(answer(&client, "guard").await, expected);
        assert_eq!(
            client.get("/tasks/own/guarded").await.unwrap().is_some(),
            !lost,
            "a commit without its lock writes nothing"
        );
        assert_eq!(client.prefix(&format!("{name}/")).await.unwrap(), [], "the lock is given back with its handle");
        client.delete("/tasks/own/guarded").await.unwrap();
    }
    assert!(tokens.is_sorted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leases_key_is_there_until_the_lease_is_revoked() {
    let Some((_node, client)) = with_tasks().await else { return };
    give(&client, "lease", "60").await;
    value(&client, "/tasks/own/leased").await;
    let entry = client.entry("/tasks/own/leased").await.unwrap().unwrap();
    assert_ne!(entry.lease, 0);
    client.put("/tasks/step/lease", "").await.unwrap();
    assert_eq!(answer(&client, "lease").await, "renewed, then not-found");
    assert_eq!(client.get("/tasks/own/leased").await.unwrap(), None);
}
