//! Locks: one holder, fair in order of arrival, no key left behind, the keys of clientv3's Mutex.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{delete, get, options, put, put_request, scan, start, until, within};
use kvasir_api::Error;
use kvasir_api::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, PutRequest};
use kvasir_api::v3lockpb::{LockRequest, UnlockRequest};
use kvasir_engine::{Caller, Engine, Grants, KeyRange};
use kvasir_storage::disk::SimDisk;
use parking_lot::Mutex;

async fn lease(engine: &Engine) -> i64 {
    engine.lease_grant(&Caller::client(), LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().id
}

fn request(lease: i64) -> LockRequest {
    LockRequest { name: "/my-lock".into(), lease }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_are_served_in_the_order_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    let first = engine.lock(&client, request(0)).await.unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for n in 0..3usize {
        let (engine, client, served, lease) = (engine.clone(), client.clone(), Arc::clone(&served), lease(&engine).await);
        waiters.push(tokio::spawn({
            let engine = engine.clone();
            async move {
                let held = engine.lock(&client, request(lease)).await.unwrap();
                assert_eq!(held.key, format!("/my-lock/{lease:x}"));
                served.lock().push(n);
                engine.unlock(&client, UnlockRequest { key: held.key }).await.unwrap();
            }
        }));
        within("the waiter is in line", async {
            while scan(&engine, "/my-lock/").await.count < n as i64 + 2 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
    assert!(served.lock().is_empty(), "the lock is held");
    assert_eq!(engine.metrics().lock_waiters, 3);
    engine.unlock(&client, UnlockRequest { key: first.key }).await.unwrap();
    for waiter in waiters {
        within("the waiter is served", waiter).await.unwrap();
    }
    assert_eq!(*served.lock(), vec![0, 1, 2]);
    assert_eq!(scan(&engine, "/my-lock/").await.count, 0);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_that_leaves_gives_its_place_up_and_one_whose_lease_ends_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    let held = engine.lock(&client, request(0)).await.unwrap();
    let leaves = {
        let (engine, client, lease) = (engine.clone(), client.clone(), lease(&engine).await);
        tokio::spawn(async move { engine.lock(&client, request(lease)).await })
    };
    let ends = lease(&engine).await;
    let told = {
        let (engine, client) = (engine.clone(), client.clone());
        tokio::spawn(async move { engine.lock(&client, request(ends)).await })
    };
    until("both are in line", || engine.metrics().lock_waiters == 2).await;
    within("both keys are there", async {
        while scan(&engine, "/my-lock/").await.count < 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    leaves.abort();
    within("the key of the one that left is gone", async {
        while scan(&engine, "/my-lock/").await.count > 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    engine.lease_revoke(&client, LeaseRevokeRequest { id: ends }).await.unwrap();
    engine.unlock(&client, UnlockRequest { key: held.key }).await.unwrap();
    let told = within("the other is told", told).await.unwrap();
    assert_eq!(told, Err(Error::Unknown("mutex: session is expired".to_owned())));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_asks_again_and_goes_away_keeps_its_lock() {
    let disk = SimDisk::new(1);
    let engine = Engine::start(options(Path::new("/node"), Arc::new(disk.clone()))).await.unwrap();
    let client = Caller::client();
    let lease = lease(&engine).await;
    let held = engine.lock(&client, request(lease)).await.unwrap();
    let key = String::from_utf8(held.key.to_vec()).unwrap();
    disk.set_sync_delay(Duration::from_millis(100));
    let again = {
        let (engine, client) = (engine.clone(), client.clone());
        tokio::spawn(async move { engine.lock(&client, request(lease)).await })
    };
    until("the second call is on its way", || engine.metrics().lock_waiters == 1).await;
    again.abort();
    until("it is gone", || engine.metrics().lock_waiters == 0).await;
    disk.set_sync_delay(Duration::ZERO);
    // Whatever it left to be done is done before the last of these.
    for _ in 0..50 {
        put(&engine, "other", "x").await;
    }
    assert!(get(&engine, &key).await.is_some(), "the holder lost its lock");
    // Another one waits for it still.
    let waiter = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.lock(&Caller::client(), request(0)).await })
    };
    until("the waiter waits", || engine.metrics().lock_waiters == 1).await;
    engine.unlock(&client, UnlockRequest { key: held.key }).await.unwrap();
    within("the waiter is served", waiter).await.unwrap().unwrap();
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_given_up_leaves_the_key_to_its_repetition() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    let held = engine.lock(&client, request(0)).await.unwrap();
    let lease = lease(&engine).await;
    let call = || {
        let (engine, client) = (engine.clone(), client.clone());
        tokio::spawn(async move { engine.lock(&client, request(lease)).await })
    };
    let first = call();
    within("the first call is in line", async {
        while scan(&engine, "/my-lock/").await.count < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let second = call();
    until("both calls wait", || engine.metrics().lock_waiters == 2).await;
    first.abort();
    until("the first is gone", || engine.metrics().lock_waiters == 1).await;
    for _ in 0..50 {
        put(&engine, "other", "x").await;
    }
    engine.unlock(&client, UnlockRequest { key: held.key }).await.unwrap();
    let held = within("the second call returns", second).await.unwrap().unwrap();
    assert_eq!(held.key, format!("/my-lock/{lease:x}"));
    assert!(get(&engine, &format!("/my-lock/{lease:x}")).await.is_some());
    engine.unlock(&client, UnlockRequest { key: held.key }).await.unwrap();
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutex_of_a_client_and_the_servers_lock_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    // What clientv3's Mutex writes.
    let lease = lease(&engine).await;
    let key = format!("/my-lock/{lease:x}");
    engine.put(&Caller::client(), PutRequest { lease, ..put_request(&key, "") }).await.unwrap();
    let waiter = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.lock(&Caller::client(), request(0)).await })
    };
    until("the waiter waits", || engine.metrics().lock_waiters == 1).await;
    assert!(!waiter.is_finished());
    assert!(get(&engine, &key).await.is_some());
    delete(&engine, &key).await;
    within("the waiter is served", waiter).await.unwrap().unwrap();
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_locks_only_where_it_was_granted_to() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let grants = Grants { lock: vec![KeyRange::prefix("/my-lock")], ..Grants::default() };
    let plugin = Caller { grants: Some(Arc::new(grants)), ..Caller::client() };
    let held = engine.lock(&plugin, request(0)).await.unwrap();
    engine.unlock(&plugin, UnlockRequest { key: held.key }).await.unwrap();
    let elsewhere = LockRequest { name: "/other".into(), lease: 0 };
    assert_eq!(engine.lock(&plugin, elsewhere).await, Err(Error::PermissionDenied));
    engine.shutdown().await;
}
