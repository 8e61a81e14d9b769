//! Leases and the lock service that stands on them.

use std::time::Duration;

use kvasir_api::etcdserverpb::{
    LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, WatchCreateRequest,
};
use kvasir_api::mvccpb::event::EventType;
use kvasir_api::v3lockpb::{LockRequest, UnlockRequest};
use kvasir_tests::{DEADLINE, eventually};
use tonic::Code;

use super::*;

#[tokio::test]
async fn ignore_value_and_ignore_lease_keep_the_other_half() {
    let (_node, client) = shared().await;
    let kept = |request: PutRequest| {
        let mut kv = client.kv.clone();
        async move { kv.put(request).await }
    };
    let value = PutRequest { key: "ign/a".into(), ignore_value: true, ..PutRequest::default() };
    refused(kept(value.clone()).await, Code::InvalidArgument, "etcdserver: key not found");
    let both = PutRequest { value: "x".into(), ..value.clone() };
    refused(kept(both).await, Code::InvalidArgument, "etcdserver: value is provided");
    let lease = PutRequest { key: "ign/a".into(), lease: 1, ignore_lease: true, ..PutRequest::default() };
    refused(kept(lease).await, Code::InvalidArgument, "etcdserver: lease is provided");

    let id = client.grant(600).await.unwrap();
    kept(PutRequest { key: "ign/a".into(), value: "1".into(), lease: id, ..PutRequest::default() }).await.unwrap();
    kept(PutRequest { key: "ign/a".into(), value: "2".into(), ignore_lease: true, ..PutRequest::default() }).await.unwrap();
    let kv = client.entry("ign/a").await.unwrap().unwrap();
    assert_eq!((kv.value.as_ref(), kv.lease), (&b"2"[..], id));
    // A put without a lease detaches the old one, and keeps the value when asked to.
    kept(value).await.unwrap();
    let kv = client.entry("ign/a").await.unwrap().unwrap();
    assert_eq!((kv.value.as_ref(), kv.lease), (&b"2"[..], 0));
}

#[tokio::test]
async fn leases_that_are_missing_are_told_by_ttl_or_refused_as_etcd_does() {
    let (_node, client) = shared().await;
    let ttl = client.lease.clone().lease_time_to_live(LeaseTimeToLiveRequest { id: 0x1234, keys: false }).await.unwrap();
    assert_eq!(ttl.into_inner().ttl, -1);
    assert_eq!(client.keep_alive(0x1234).await.unwrap().ttl, 0);
    let words = "etcdserver: requested lease not found";
    refused(client.lease.clone().lease_revoke(LeaseRevokeRequest { id: 0x1234 }).await, Code::NotFound, words);
    let put = PutRequest { key: "lea/a".into(), lease: 0x1234, ..PutRequest::default() };
    refused(client.kv.clone().put(put).await, Code::NotFound, words);
}

#[tokio::test]
async fn a_lease_is_granted_within_etcds_bounds_and_only_once() {
    let (_node, client) = shared().await;
    let grant = |ttl: i64, id: i64| {
        let mut lease = client.lease.clone();
        async move { lease.lease_grant(LeaseGrantRequest { ttl, id }).await.map(|answer| answer.into_inner()) }
    };
    let chosen = grant(60, 0).await.unwrap();
    assert!(chosen.id > 0 && chosen.ttl == 60, "{chosen:?}");
    assert_eq!(grant(60, 0x4711).await.unwrap().id, 0x4711);
    refused(grant(60, 0x4711).await, Code::FailedPrecondition, "etcdserver: lease already exists");
    refused(grant(9_000_000_001, 0).await, Code::OutOfRange, "etcdserver: too large lease TTL");
    let short = grant(1, 0).await.unwrap();
    assert!(short.ttl >= 1 && short.ttl <= 2, "a short TTL is raised to the least one: {short:?}");
    let leases = client.lease.clone().lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner().leases;
    assert!(leases.iter().any(|lease| lease.id == 0x4711));
}

#[tokio::test]
async fn the_end_of_a_lease_deletes_its_keys_in_one_revision() {
    let (_node, client) = shared().await;
    let id = client.grant(600).await.unwrap();
    let with_lease = |key: &'static str| {
        let mut kv = client.kv.clone();
        async move { kv.put(PutRequest { key: key.into(), value: "x".into(), lease: id, ..PutRequest::default() }).await.unwrap() }
    };
    for key in ["lse/c", "lse/a", "lse/b"] {
        with_lease(key).await;
    }
    let mut shown =
        client.lease.clone().lease_time_to_live(LeaseTimeToLiveRequest { id, keys: true }).await.unwrap().into_inner();
    assert_eq!(shown.granted_ttl, 600);
    assert!(shown.ttl > 0 && shown.ttl <= 600);
    // etcd tells them in no order.
    shown.keys.sort();
    assert_eq!(shown.keys, ["lse/a", "lse/b", "lse/c"]);
    let mut watching = client.watch(WatchCreateRequest { range_end: "lse0".into(), ..watch("lse/") }).await.unwrap();
    client.lease.clone().lease_revoke(LeaseRevokeRequest { id }).await.unwrap();
    let events = watching.events(3).await.unwrap();
    let told: Vec<_> = events.iter().map(|event| event.kv.as_ref().unwrap()).collect();
    assert!(told.iter().all(|kv| kv.mod_revision == told[0].mod_revision), "{told:?}");
    let order: Vec<_> = told.iter().map(|kv| kv.key.clone()).collect();
    assert_eq!(order, ["lse/a", "lse/b", "lse/c"]);
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_ends_and_one_that_is_stays() {
    let (_node, client) = shared().await;
    let (ends, stays) = (client.grant(2).await.unwrap(), client.grant(2).await.unwrap());
    for (key, lease) in [("ttl/ends", ends), ("ttl/stays", stays)] {
        let put = PutRequest { key: key.into(), value: "x".into(), lease, ..PutRequest::default() };
        client.kv.clone().put(put).await.unwrap();
    }
    let mut watching = client.watch(watch("ttl/ends")).await.unwrap();
    let renewing = client.clone();
    let renewal = tokio::spawn(async move {
        loop {
            assert_eq!(renewing.keep_alive(stays).await.unwrap().ttl, 2);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    assert_eq!(watching.events(1).await.unwrap()[0].r#type(), EventType::Delete);
    assert_eq!(client.get("ttl/ends").await.unwrap(), None);
    assert_eq!(client.get("ttl/stays").await.unwrap().unwrap(), "x");
    assert_eq!(client.keep_alive(ends).await.unwrap().ttl, 0);
    renewal.abort();
}

#[tokio::test]
async fn a_lock_is_held_by_one_at_a_time_and_passed_on_in_order() {
    let (_node, client) = shared().await;
    let first = client.lock.clone().lock(LockRequest { name: "lck/a".into(), lease: 0 }).await.unwrap().into_inner();
    assert!(first.key.starts_with(b"lck/a/"), "{first:?}");
    let lease = client.grant(600).await.unwrap();
    let mut waiting = client.lock.clone();
    let waiter = tokio::spawn(async move { waiting.lock(LockRequest { name: "lck/a".into(), lease }).await });
    // The waiter's key is there while it waits, behind the holder's.
    eventually("the second waits", DEADLINE, || async {
        match client.prefix("lck/a/").await.unwrap().len() {
            2 => Ok(()),
            other => Err(format!("{other} keys")),
        }
    })
    .await;
    assert!(!waiter.is_finished());
    client.lock.clone().unlock(UnlockRequest { key: first.key }).await.unwrap();
    let second = tokio::time::timeout(DEADLINE, waiter).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(second.key, format!("lck/a/{lease:x}"), "the key is the name and the lease, as clientv3's Mutex has it");
    client.lock.clone().unlock(UnlockRequest { key: second.key }).await.unwrap();
    assert_eq!(client.prefix("lck/a/").await.unwrap(), []);
}
