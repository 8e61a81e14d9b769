//! After a run: whether everything that clients, watchers and the counting plugin were told is true, and on every member.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kvasir_api::etcdserverpb::{LeaseLeasesRequest, RangeRequest};
use kvasir_api::mvccpb::event::EventType;
use kvasir_api::mvccpb::{Event, KeyValue};
use kvasir_tests::history::{self, Operation, Outcome, Request, Timeline};
use kvasir_tests::traffic::{COUNTED, COUNTS, Fenced, LOCKS, PROBES, Traffic, fenced};
use kvasir_tests::{Client, Cluster, Install, artefacts, eventually};

/// How long what was begun may go on: leases that were left, a plugin that is behind.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);

/// Installs the counting plugin; `false`, said out loud, where components cannot be built.
pub(crate) async fn install_counter(client: &Client) -> bool {
    let Some(component) = artefacts::guest("counter-guest") else { return false };
    client.install(&component, Install::accepting()).await.expect("the counting plugin is installed");
    true
}

/// Stops the traffic and judges all of it. The cluster is whole.
pub(crate) async fn judge(cluster: &Cluster, mut traffic: Traffic, counts: bool) {
    let operations = traffic.stop().await;
    cluster.wait_whole().await;
    let client = cluster.client(cluster.wait_leader().await).await;
    eventually("every lease has ended", SETTLED_WITHIN, || async {
        let leases = client.lease.clone().lease_leases(LeaseLeasesRequest {}).await;
        let leases = leases.map_err(|status| status.to_string())?.into_inner().leases;
        if leases.is_empty() { Ok(()) } else { Err(format!("{} leases", leases.len())) }
    })
    .await;
    if counts {
        wait_counted(&client).await;
    }

    let revision = client.revision().await.unwrap();
    let events = client.history(2, revision).await.unwrap();
    let timeline = Timeline::new(events.iter().cloned(), None).unwrap_or_else(|broken| panic!("{broken}"));
    assert_eq!(timeline.last(), revision);
    same_everywhere(cluster, &timeline, &events).await;
    let watches = traffic.finish_watches(&timeline).await;

    let foreign = |events: &[Event]| {
        let theirs = |kv: &KeyValue| [LOCKS, COUNTS, PROBES].iter().any(|prefix| kv.key.starts_with(prefix.as_bytes()));
        events.iter().all(|event| event.kv.as_ref().is_some_and(theirs))
    };
    let judged = || {
        let explained = history::explain(&operations, &timeline, foreign)?;
        history::linearizable(&without_locks(&operations), Some(&explained))?;
        history::leases_keep_their_time(&without_leases_of_locks(&operations, &timeline), &explained)?;
        for watch in &watches {
            history::watched(watch, &timeline, Some(revision))?;
        }
        fenced(&timeline)
    };
    let Fenced { writes, handovers } = judged().unwrap_or_else(|broken| panic!("{broken}"));
    if counts {
        counted_exactly(&timeline);
    }

    let unknown = operations.iter().filter(|operation| operation.outcome == Outcome::Unknown).count();
    let refused = operations.iter().filter(|operation| operation.outcome == Outcome::Refused).count();
    let batches: usize = watches.iter().flat_map(|watch| &watch.streams).map(|(_, batches)| batches.len()).sum();
    let streams: usize = watches.iter().map(|watch| watch.streams.len()).sum();
    eprintln!(
        "{} requests, {unknown} of unknown fate, {refused} refused; {revision} revisions; {writes} writes under locks, \
         {handovers} handovers; {batches} responses on {streams} watch streams",
        operations.len()
    );
}

/// The same operations, but for reads of locks' keys: a search that looks at one key at a time does not know who wrote those.
fn without_locks(operations: &[Operation]) -> Vec<Operation> {
    let mut operations = operations.to_vec();
    for operation in &mut operations {
        if matches!(&operation.request, Request::Range(range) if range.key.starts_with(LOCKS.as_bytes())) {
            // Nothing that a search looks at, in the same place.
            (operation.request, operation.outcome) = (Request::KeepAlive { id: 0 }, Outcome::Refused);
        }
    }
    operations
}

/// The same operations, but for what was asked of leases that held locks: an unlock, which nobody notes, looks as if they had ended.
fn without_leases_of_locks(operations: &[Operation], timeline: &Timeline) -> Vec<Operation> {
    let kvs = timeline.revisions().flat_map(|(_, events)| events).filter_map(|event| event.kv.as_ref());
    let of_locks: BTreeSet<i64> = kvs.filter(|kv| kv.key.starts_with(LOCKS.as_bytes())).map(|kv| kv.lease).collect();
    let mut operations = operations.to_vec();
    for operation in &mut operations {
        if matches!(&operation.request, Request::Grant { id, .. } | Request::KeepAlive { id } if of_locks.contains(id)) {
            operation.outcome = Outcome::Refused;
        }
    }
    operations
}

/// Every member has the same history and the same keys.
async fn same_everywhere(cluster: &Cluster, timeline: &Timeline, events: &[Event]) {
    let revision = timeline.last();
    let expected: Vec<&KeyValue> = timeline.keys().live().values().collect();
    for slot in 0..cluster.len() {
        let client = cluster.client(slot).await;
        let told = client.history(2, revision).await.unwrap();
        assert!(told == events, "the history as member {slot} has it is not the leader's");
        let all =
            RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, serializable: true, ..RangeRequest::default() };
        let range = client.range(all).await.unwrap();
        assert_eq!(range.kvs.iter().collect::<Vec<_>>(), expected, "the keys as member {slot} has them at {revision}");
    }
    let hashes = cluster.hash_kv(revision).await;
    let first = (hashes[0].hash, hashes[0].compact_revision);
    assert!(hashes.iter().all(|it| (it.hash, it.compact_revision) == first), "HashKV at {revision}: {hashes:?}");
}

/// Waits until the plugin has seen everything.
async fn wait_counted(client: &Client) {
    eventually("every event is counted", SETTLED_WITHIN, || async {
        let status = |status: tonic::Status| status.to_string();
        let last = client.get("/count/last-revision").await.map_err(status)?.unwrap_or_default();
        let last: i64 = std::str::from_utf8(&last).unwrap().parse().unwrap_or(0);
        let newest = client.prefix(COUNTED).await.map_err(status)?.iter().map(|kv| kv.mod_revision).max().unwrap_or(0);
        // The newest event may be a delete, which is seen in the history only.
        let revision = client.revision().await.map_err(status)?;
        let since = client.history(last.max(newest) + 1, revision).await.map_err(status)?;
        let missing = since.iter().filter(|event| is_counted(event)).count();
        if last >= newest && missing == 0 { Ok(()) } else { Err(format!("{last} of {newest}, {missing} after it")) }
    })
    .await;
}

fn is_counted(event: &Event) -> bool {
    event.kv.as_ref().is_some_and(|kv| kv.key.starts_with(COUNTED.as_bytes()))
}

/// Each event under the counted prefix was counted once, in all and by key.
fn counted_exactly(timeline: &Timeline) {
    let mut by_key = BTreeMap::<Vec<u8>, u64>::new();
    for (_, events) in timeline.revisions() {
        for event in events.iter().filter(|event| is_counted(event)) {
            let key = &event.kv.as_ref().unwrap().key;
            *by_key.entry(key[COUNTED.len()..].to_vec()).or_default() += 1;
        }
    }
    let live = timeline.keys().live();
    let count = |key: &[u8]| -> u64 { live.get(key).map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap()) };
    let resync = live.get(b"/count/resync".as_slice());
    assert!(resync.is_none(), "nothing was compacted away from under the plugin: {resync:?}");
    for (suffix, expected) in &by_key {
        let counted = count(&[b"/count/key/".as_slice(), suffix].concat());
        assert_eq!(counted, *expected, "events of {}", String::from_utf8_lossy(suffix));
    }
    let total: u64 = by_key.values().sum();
    assert_eq!(count(b"/count/total"), total, "events in all");
    let puts = timeline.revisions().flat_map(|(_, events)| events).filter(|event| event.r#type() == EventType::Put).count();
    eprintln!("{total} events counted, each once; {puts} puts in all");
}
