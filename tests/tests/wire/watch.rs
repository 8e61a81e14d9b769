//! Watch streams: order, old revisions, filters, ids, cancellation and progress.

use std::time::Duration;

use kvasir_api::etcdserverpb::watch_create_request::FilterType;
use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::{CompactionRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest};
use kvasir_api::mvccpb::event::EventType;
use kvasir_tests::Node;

use super::*;

#[tokio::test]
async fn a_watch_sees_put_delete_put_in_order() {
    let (_node, client) = shared().await;
    let mut watching = client.watch(watch("wat/a")).await.unwrap();
    client.put("wat/a", "1").await.unwrap();
    client.delete("wat/a").await.unwrap();
    let last = revision(&client.put("wat/a", "2").await.unwrap().header);
    let events = watching.events(3).await.unwrap();
    let told: Vec<_> = events.iter().map(shown).collect();
    assert_eq!(told.iter().map(|it| it.0).collect::<Vec<_>>(), [EventType::Put, EventType::Delete, EventType::Put]);
    assert_eq!((told[2].1.as_str(), told[2].2), ("2", last));
    let tombstone = events[1].kv.as_ref().unwrap();
    assert_eq!(
        (tombstone.value.len(), tombstone.create_revision, tombstone.version),
        (0, 0, 0),
        "a delete carries its key only"
    );
}

#[tokio::test]
async fn a_watch_from_an_old_revision_tells_all_since_with_previous_values() {
    let (_node, client) = shared().await;
    let first = revision(&client.put("old/a", "1").await.unwrap().header);
    client.put("old/a", "2").await.unwrap();
    client.delete("old/a").await.unwrap();
    let request = WatchCreateRequest { start_revision: first, prev_kv: true, ..watch("old/a") };
    let mut watching = client.watch(request).await.unwrap();
    let events = watching.events(3).await.unwrap();
    let previous: Vec<_> = events.iter().map(|event| event.prev_kv.as_ref().map(|kv| kv.value.clone())).collect();
    assert_eq!(previous, [None, Some("1".into()), Some("2".into())]);
}

#[tokio::test]
async fn watch_filters_leave_out_puts_or_deletes() {
    let (_node, client) = shared().await;
    let first = revision(&client.put("flt/a", "1").await.unwrap().header);
    client.delete("flt/a").await.unwrap();
    client.put("flt/a", "2").await.unwrap();
    let filtered =
        |filter: FilterType| WatchCreateRequest { start_revision: first, filters: vec![filter.into()], ..watch("flt/a") };
    let mut no_delete = client.watch(filtered(FilterType::Nodelete)).await.unwrap();
    assert!(no_delete.events(2).await.unwrap().iter().all(|event| event.r#type() == EventType::Put));
    let mut no_put = client.watch(filtered(FilterType::Noput)).await.unwrap();
    assert_eq!(no_put.events(1).await.unwrap()[0].r#type(), EventType::Delete);
}

#[tokio::test]
async fn a_watch_of_a_compacted_revision_is_created_then_cancelled_with_the_compact_revision() {
    let node = Node::start();
    let client = node.client().await;
    for value in ["1", "2"] {
        client.put("wcp/a", value).await.unwrap();
    }
    let deleted = revision(&client.delete("wcp/a").await.unwrap().header);
    client.put("wcp/b", "1").await.unwrap();
    client.kv.clone().compact(CompactionRequest { revision: deleted, physical: true }).await.unwrap();
    let mut watching = client.watch(WatchCreateRequest { start_revision: 2, ..watch("wcp/a") }).await.unwrap();
    let response = watching.next().await.unwrap();
    assert!(response.canceled && response.events.is_empty(), "{response:?}");
    assert_eq!(response.compact_revision, deleted);
    // A tombstone at the compacted revision itself is still told (etcd #19179).
    let request = WatchCreateRequest { start_revision: deleted, range_end: "wcp0".into(), ..watch("wcp/") };
    let mut watching = client.watch(request).await.unwrap();
    let events = watching.events(2).await.unwrap();
    assert_eq!(events.iter().map(|event| event.r#type()).collect::<Vec<_>>(), [EventType::Delete, EventType::Put]);
    let negative = RequestUnion::CreateRequest(WatchCreateRequest { start_revision: -1, ..watch("wcp/a") });
    let mut negative = client.watch_stream(negative).await.unwrap();
    let refused = negative.next().await.unwrap();
    assert!(refused.created && refused.canceled && refused.watch_id == -1, "{refused:?}");
    // clientv3 makes its ErrCompacted of this text.
    assert_eq!(refused.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
    assert!(refused.cancel_reason.contains("required revision has been compacted"), "{}", refused.cancel_reason);
}

#[tokio::test]
async fn a_watch_of_a_revision_to_come_is_silent_until_then() {
    let (_node, client) = shared().await;
    let now = client.revision().await.unwrap();
    let mut watching = client.watch(WatchCreateRequest { start_revision: now + 1_000_000, ..watch("fut/a") }).await.unwrap();
    client.put("fut/a", "too early").await.unwrap();
    // A second watcher that is told of the put proves that the first one was passed over.
    let mut other = client.watch(WatchCreateRequest { start_revision: now, ..watch("fut/a") }).await.unwrap();
    other.events(1).await.unwrap();
    assert_eq!(watching.poll(Duration::from_millis(100)).await, None);
}

#[tokio::test]
async fn watch_ids_are_given_refused_and_cancelled_as_etcd_does() {
    let (_node, client) = shared().await;
    let mut watching = client.watch_stream(RequestUnion::CreateRequest(watch("wid/a"))).await.unwrap();
    let first = watching.next().await.unwrap();
    assert_eq!((first.created, first.watch_id), (true, 0), "ids start at 0");
    watching.request(RequestUnion::CreateRequest(WatchCreateRequest { watch_id: 7, ..watch("wid/b") })).await;
    assert_eq!(watching.next().await.unwrap().watch_id, 7);
    watching.request(RequestUnion::CreateRequest(WatchCreateRequest { watch_id: 7, ..watch("wid/c") })).await;
    let duplicate = watching.next().await.unwrap();
    assert!(duplicate.created && duplicate.canceled && duplicate.watch_id == -1, "{duplicate:?}");
    assert_eq!(duplicate.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    let empty = WatchCreateRequest { range_end: "wid/a".into(), ..watch("wid/b") };
    watching.request(RequestUnion::CreateRequest(empty)).await;
    let empty = watching.next().await.unwrap();
    assert!(empty.created && empty.canceled && empty.watch_id == -1, "{empty:?}");
    assert_eq!(empty.cancel_reason, "mvcc: watcher range is empty");
    watching.request(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 7 })).await;
    let cancelled = watching.next().await.unwrap();
    assert_eq!((cancelled.canceled, cancelled.watch_id), (true, 7));
    client.put("wid/b", "not told").await.unwrap();
    client.put("wid/a", "told").await.unwrap();
    let told = watching.next().await.unwrap();
    assert_eq!((told.watch_id, told.events[0].kv.as_ref().unwrap().key.as_ref()), (0, &b"wid/a"[..]));
}

#[tokio::test]
async fn progress_is_told_on_request_after_the_events_before_it() {
    let (_node, client) = shared().await;
    let mut watching = client.watch(watch("prg/a")).await.unwrap();
    let at = revision(&client.put("prg/a", "1").await.unwrap().header);
    let mut seen = false;
    // etcd drops the request while any watcher of the stream is behind, so it is asked again.
    let progress = loop {
        watching.request(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        let Some(response) = watching.poll(Duration::from_millis(500)).await else { continue };
        if response.events.is_empty() {
            break response;
        }
        seen = true;
    };
    assert_eq!(progress.watch_id, -1);
    if revision(&progress.header) >= at {
        assert!(seen, "progress to {} before the event of {at}", revision(&progress.header));
    }
}

#[tokio::test]
async fn many_watchers_each_get_every_event_once() {
    let (_node, client) = shared().await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(client.watch(WatchCreateRequest { range_end: "fan0".into(), ..watch("fan/") }).await.unwrap());
    }
    for n in 0..100 {
        client.put(format!("fan/{n}"), n.to_string()).await.unwrap();
    }
    for stream in &mut streams {
        let events = stream.events(100).await.unwrap();
        let values: Vec<_> = events.iter().map(|event| shown(event).1).collect();
        assert_eq!(values, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}
