//! Range, Put, DeleteRange, Compact, and the node's own status.

use kvasir_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use kvasir_api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, MemberListRequest, PutRequest, RangeRequest, StatusRequest, TxnRequest,
};
use kvasir_tests::Node;
use tonic::Code;

use super::*;

#[tokio::test]
async fn an_empty_store_is_at_revision_1_and_the_first_put_makes_it_2() {
    let node = Node::start();
    let client = node.client().await;
    assert_eq!(client.revision().await.unwrap(), 1);
    let nothing = client.delete("absent").await.unwrap();
    assert_eq!((nothing.deleted, revision(&nothing.header)), (0, 1));
    let zero = CompactionRequest { revision: 0, physical: false };
    client.kv.clone().compact(zero).await.unwrap();
    let put = client.put("a", "1").await.unwrap();
    assert_eq!(revision(&put.header), 2);
    let header = put.header.unwrap();
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term > 0, "{header:?}");
}

#[tokio::test]
async fn versions_and_revisions_count_as_etcds_do() {
    let (_node, client) = shared().await;
    let first = revision(&client.put("ver/a", "1").await.unwrap().header);
    let second = revision(&client.put("ver/a", "2").await.unwrap().header);
    let kv = client.entry("ver/a").await.unwrap().unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (first, second, 2));
    client.delete("ver/a").await.unwrap();
    let again = revision(&client.put("ver/a", "3").await.unwrap().header);
    let kv = client.entry("ver/a").await.unwrap().unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (again, again, 1));
    let old = client.range(RangeRequest { revision: second, ..single("ver/a") }).await.unwrap();
    assert_eq!(old.kvs[0].value, "2");
    assert!(revision(&old.header) >= again, "the header tells the store's revision, not the one that was read");
}

#[tokio::test]
async fn an_empty_key_is_refused_with_etcds_words() {
    let (_node, client) = shared().await;
    let words = "etcdserver: key is not provided";
    refused(client.put("", "x").await, Code::InvalidArgument, words);
    refused(client.range(RangeRequest::default()).await, Code::InvalidArgument, words);
    refused(client.delete("").await, Code::InvalidArgument, words);
    let txn = TxnRequest { success: vec![put_op("", "x")], ..TxnRequest::default() };
    refused(client.txn(txn).await, Code::InvalidArgument, words);
}

#[tokio::test]
async fn count_ignores_limit_and_revision_filters_and_more_is_told_by_limit_only() {
    let (_node, client) = shared().await;
    let mut revisions = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        revisions.push(revision(&client.put(format!("cnt/{name}"), name).await.unwrap().header));
    }
    let limited = client.range(RangeRequest { limit: 2, ..prefix("cnt/") }).await.unwrap();
    assert_eq!((limited.count, limited.more, limited.kvs.len()), (6, true, 2));
    let exact = client.range(RangeRequest { limit: 6, ..prefix("cnt/") }).await.unwrap();
    assert_eq!((exact.count, exact.more, exact.kvs.len()), (6, false, 6));
    let newer = RangeRequest { min_mod_revision: revisions[3], ..prefix("cnt/") };
    let newer = client.range(newer).await.unwrap();
    assert_eq!((newer.count, newer.more, keys(&newer.kvs)), (6, false, vec!["cnt/d".into(), "cnt/e".into(), "cnt/f".into()]));
    let older = RangeRequest { max_create_revision: revisions[1], limit: 1, ..prefix("cnt/") };
    let older = client.range(older).await.unwrap();
    assert_eq!((older.count, keys(&older.kvs)), (6, vec!["cnt/a".into()]));
    let counted = client.range(RangeRequest { count_only: true, ..prefix("cnt/") }).await.unwrap();
    assert_eq!((counted.count, counted.kvs.len()), (6, 0));
    let names = client.range(RangeRequest { keys_only: true, ..prefix("cnt/") }).await.unwrap();
    assert!(names.kvs.len() == 6 && names.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 0));
}

#[tokio::test]
async fn a_sort_target_without_an_order_sorts_ascending_and_the_limit_comes_after_the_sort() {
    let (_node, client) = shared().await;
    for (name, value) in [("a", "3"), ("b", "1"), ("c", "2")] {
        client.put(format!("srt/{name}"), value).await.unwrap();
    }
    client.put("srt/a", "3").await.unwrap();
    let sorted = |target: SortTarget, order: SortOrder, limit: i64| {
        let request = RangeRequest { sort_target: target.into(), sort_order: order.into(), limit, ..prefix("srt/") };
        let client = client.clone();
        async move { keys(&client.range(request).await.unwrap().kvs) }
    };
    assert_eq!(sorted(SortTarget::Value, SortOrder::None, 0).await, ["srt/b", "srt/c", "srt/a"]);
    assert_eq!(sorted(SortTarget::Value, SortOrder::Descend, 1).await, ["srt/a"]);
    assert_eq!(sorted(SortTarget::Version, SortOrder::Descend, 1).await, ["srt/a"]);
    assert_eq!(sorted(SortTarget::Create, SortOrder::Descend, 1).await, ["srt/c"]);
    assert_eq!(sorted(SortTarget::Mod, SortOrder::Ascend, 2).await, ["srt/b", "srt/c"]);
    assert_eq!(sorted(SortTarget::Key, SortOrder::Descend, 0).await, ["srt/c", "srt/b", "srt/a"]);
    let wrong = RangeRequest { sort_target: 77, ..prefix("srt/") };
    refused(client.range(wrong).await, Code::InvalidArgument, "etcdserver: invalid sort option");
}

#[tokio::test]
async fn a_range_end_of_one_zero_byte_means_every_key_from_the_first_on() {
    let (_node, client) = shared().await;
    client.put("zz-last/a", "1").await.unwrap();
    client.put("zz-last/b", "2").await.unwrap();
    let from = RangeRequest { range_end: "\0".into(), ..single("zz-last/b") };
    assert_eq!(keys(&client.range(from).await.unwrap().kvs), ["zz-last/b"]);
    let backwards = RangeRequest { range_end: "zz-last/a".into(), ..single("zz-last/b") };
    assert_eq!(client.range(backwards).await.unwrap().count, 0);
}

#[tokio::test]
async fn a_put_and_a_delete_tell_what_was_there_before() {
    let (_node, client) = shared().await;
    let put =
        |value: &'static str| PutRequest { key: "prv/a".into(), value: value.into(), prev_kv: true, ..PutRequest::default() };
    let first = client.kv.clone().put(put("1")).await.unwrap().into_inner();
    assert_eq!(first.prev_kv, None);
    let second = client.kv.clone().put(put("2")).await.unwrap().into_inner();
    let previous = second.prev_kv.unwrap();
    assert_eq!((previous.value.as_ref(), previous.mod_revision), (&b"1"[..], revision(&first.header)));
    let delete = DeleteRangeRequest { key: "prv/".into(), range_end: "prv0".into(), prev_kv: true };
    let deleted = client.kv.clone().delete_range(delete).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.prev_kvs[0].value.as_ref()), (1, &b"2"[..]));
}

#[tokio::test]
async fn revisions_that_are_compacted_or_to_come_are_refused_with_etcds_words() {
    let node = Node::start();
    let client = node.client().await;
    for value in ["1", "2", "3", "4"] {
        client.put("cmp/a", value).await.unwrap();
    }
    let current = client.revision().await.unwrap();
    assert_eq!(current, 5);
    let compact = |revision: i64| {
        let mut kv = client.kv.clone();
        async move { kv.compact(CompactionRequest { revision, physical: true }).await }
    };
    let (gone, future) =
        ("etcdserver: mvcc: required revision has been compacted", "etcdserver: mvcc: required revision is a future revision");
    refused(compact(current + 1).await, Code::OutOfRange, future);
    compact(3).await.unwrap();
    refused(compact(3).await, Code::OutOfRange, gone);
    refused(compact(2).await, Code::OutOfRange, gone);
    let at = |revision: i64| client.range(RangeRequest { revision, ..single("cmp/a") });
    refused(at(2).await, Code::OutOfRange, gone);
    refused(at(current + 1).await, Code::OutOfRange, future);
    assert_eq!(at(3).await.unwrap().kvs[0].value, "2", "the compacted revision itself is still there");
    compact(current).await.unwrap();
    assert_eq!(at(current).await.unwrap().kvs[0].value, "4");
    assert_eq!(client.get("cmp/a").await.unwrap().unwrap(), "4");
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_with_etcds_words() {
    let (_node, client) = shared().await;
    let large = vec![b'x'; kvasir_api::limits::REQUEST_BYTES_MAX + 1];
    refused(client.put("big/a", large).await, Code::InvalidArgument, "etcdserver: request is too large");
    assert_eq!(client.get("big/a").await.unwrap(), None);
    let fits = vec![b'x'; 1024 * 1024];
    client.put("big/a", fits.clone()).await.unwrap();
    assert_eq!(client.get("big/a").await.unwrap().unwrap(), fits);
}

#[tokio::test]
async fn status_and_members_tell_of_one_leader() {
    let (_node, client) = shared().await;
    let status = client.maintenance.clone().status(StatusRequest {}).await.unwrap().into_inner();
    let header = status.header.unwrap();
    assert_eq!(status.leader, header.member_id);
    assert!(status.raft_applied_index > 0 && status.raft_term > 0 && !status.version.is_empty());
    let members =
        client.cluster.clone().member_list(MemberListRequest { linearizable: true }).await.unwrap().into_inner().members;
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].id, header.member_id);
    assert!(!members[0].client_ur_ls.is_empty());
}
