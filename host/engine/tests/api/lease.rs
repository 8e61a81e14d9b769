//! Leases: expiry, renewal, restart, and etcd's answers for leases that are not there.
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{get, options, put_request, start, within};
use kvasir_api::Error;
use kvasir_api::etcdserverpb::{
    LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest,
};
use kvasir_engine::{Caller, Engine};
use kvasir_storage::disk::SimDisk;

async fn grant(engine: &Engine, ttl: i64) -> i64 {
    engine.lease_grant(&Caller::client(), LeaseGrantRequest { ttl, id: 0 }).await.unwrap().id
}

async fn put_leased(engine: &Engine, key: &str, lease: i64) {
    engine.put(&Caller::client(), PutRequest { lease, ..put_request(key, "v") }).await.unwrap();
}

async fn ttl(engine: &Engine, id: i64) -> LeaseTimeToLiveResponse {
    engine.lease_time_to_live(&Caller::client(), LeaseTimeToLiveRequest { id, keys: true }).await.unwrap()
}

async fn until_gone(engine: &Engine, key: &str) {
    within("the key is gone", async {
        while get(engine, key).await.is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_with_its_keys_not_before_its_time_and_a_renewed_one_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    let began = Instant::now();
    let (dies, lives) = (grant(&engine, 1).await, grant(&engine, 2).await);
    put_leased(&engine, "dies", dies).await;
    put_leased(&engine, "lives", lives).await;
    let listed = engine.lease_leases(&client, LeaseLeasesRequest {}).await.unwrap();
    assert_eq!(listed.leases.len(), 2);
    let of = ttl(&engine, dies).await;
    // A TTL below the least one is raised to it.
    assert_eq!((of.granted_ttl, of.keys.len()), (2, 1));
    let keeper = {
        let (engine, client) = (engine.clone(), client.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(4_500) {
                let renewed = engine.lease_keep_alive(&client, lives).await.unwrap();
                assert_eq!(renewed.ttl, 2);
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        })
    };
    until_gone(&engine, "dies").await;
    assert!(began.elapsed() >= Duration::from_secs(2), "a lease never ends early");
    assert_eq!(ttl(&engine, dies).await.ttl, -1);
    assert_eq!(engine.lease_keep_alive(&client, dies).await.unwrap().ttl, 0);
    keeper.await.unwrap();
    assert!(get(&engine, "lives").await.is_some(), "a lease that is renewed lives past its TTL");
    until_gone(&engine, "lives").await;
    // Counted when the entry is answered, which is after its keys are gone.
    within("both are counted", async {
        while engine.metrics().leases_expired < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(engine.metrics().leases_expired, 2);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_survive_a_restart_and_still_end() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let lease = grant(&engine, 2).await;
    put_leased(&engine, "k", lease).await;
    engine.shutdown().await;
    drop(engine);
    let engine = start(dir.path()).await;
    assert!(get(&engine, "k").await.is_some());
    assert_eq!(ttl(&engine, lease).await.granted_ttl, 2);
    until_gone(&engine, "k").await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_about_missing_and_revoked_leases_are_etcds() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let client = Caller::client();
    assert_eq!(ttl(&engine, 404).await.ttl, -1);
    assert_eq!(engine.lease_keep_alive(&client, 404).await.unwrap().ttl, 0);
    let missing = LeaseRevokeRequest { id: 404 };
    assert_eq!(engine.lease_revoke(&client, missing).await, Err(Error::LeaseNotFound));
    let too_long = LeaseGrantRequest { ttl: 9_000_000_001, id: 0 };
    assert_eq!(engine.lease_grant(&client, too_long).await, Err(Error::LeaseTtlTooLarge));
    let chosen = LeaseGrantRequest { ttl: 100, id: 7 };
    assert_eq!(engine.lease_grant(&client, chosen).await.unwrap().id, 7);
    assert_eq!(engine.lease_grant(&client, chosen).await, Err(Error::LeaseExists));
    put_leased(&engine, "a", 7).await;
    put_leased(&engine, "b", 7).await;
    let revoked = engine.lease_revoke(&client, LeaseRevokeRequest { id: 7 }).await.unwrap();
    // Both keys go in one revision.
    assert_eq!(revoked.header.unwrap().revision, 4);
    assert_eq!((get(&engine, "a").await, get(&engine, "b").await), (None, None));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalives_that_wait_share_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path()).await;
    let mut leases = Vec::new();
    for _ in 0..200 {
        leases.push(grant(&engine, 100).await);
    }
    let before = engine.metrics().log_entries;
    let renewals: Vec<_> = leases
        .into_iter()
        .map(|lease| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.lease_keep_alive(&Caller::client(), lease).await.unwrap().ttl })
        })
        .collect();
    for renewal in renewals {
        assert_eq!(renewal.await.unwrap(), 100);
    }
    let entries = engine.metrics().log_entries - before;
    assert!(entries < 100, "200 renewals took {entries} entries");
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_was_slow_to_commit_lives_its_ttl_from_the_reply_on() {
    let disk = SimDisk::new(1);
    let engine = Engine::start(options(Path::new("/node"), Arc::new(disk.clone()))).await.unwrap();
    disk.set_sync_delay(Duration::from_millis(1_500));
    let lease = grant(&engine, 2).await;
    // From here on the client counts.
    let told = Instant::now();
    disk.set_sync_delay(Duration::ZERO);
    put_leased(&engine, "k", lease).await;
    until_gone(&engine, "k").await;
    assert!(told.elapsed() >= Duration::from_secs(2), "a lease of 2 s ended {:?} after the reply", told.elapsed());
    engine.shutdown().await;
}
