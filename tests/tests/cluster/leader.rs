//! What happens when the leader goes, and when it stands still and comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvasir_api::Error;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request as Op;
use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::{Compare, PutRequest, RequestOp, StatusRequest, TxnRequest, WatchCreateRequest, WatchRequest};
use kvasir_tests::traffic::{Load, PROBES, Traffic};
use kvasir_tests::{Addresses, Client, Cluster, eventually};
use tokio_stream::wrappers::ReceiverStream;

use crate::judge::{install_counter, judge};
use crate::{seed, turn};

const KILLS: usize = 10;
/// How long one attempt to write may take before another is made.
const ATTEMPT: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_in_time_and_plugins_go_on() {
    let _turn = turn().await;
    let mut random = seed("leader");
    let mut cluster = Cluster::builder(3).start().await;
    let counts = install_counter(&cluster.client(0).await).await;
    let load = Load { writers: 4, leasers: 1, lockers: 2, rest_max: Duration::from_millis(40) };
    let traffic = Traffic::start(cluster.addresses(), load, &mut random);
    let longest = cluster.election_max();
    let (mut resumed, mut reacted) = (Vec::new(), Vec::new());
    for nth in 0..KILLS {
        let before = traffic.answered();
        eventually("there is load", Duration::from_secs(30), || async {
            if traffic.answered() > before + 100 { Ok(()) } else { Err("not enough".to_owned()) }
        })
        .await;
        let leader = cluster.wait_leader().await;
        let begin = Instant::now();
        cluster.kill(leader);
        let others: Vec<usize> = (0..cluster.len()).filter(|slot| *slot != leader).collect();
        let key = format!("{PROBES}{nth}");
        let revision = first_write(&cluster.addresses(), &others, &key).await;
        resumed.push(begin.elapsed());
        if counts {
            counted(&cluster.addresses(), &others, revision).await;
            reacted.push(begin.elapsed());
        }
        cluster.restart(leader);
        cluster.wait_whole().await;
    }
    judge_spans("writes resume", &mut resumed, 2 * longest, 5 * longest);
    if counts {
        let second = Duration::from_secs(1);
        judge_spans("reactors go on", &mut reacted, 2 * longest + second, 5 * longest + second);
    }
    judge(&cluster, traffic, counts).await;
}

/// Writes the key through any of these nodes until one says that it is written; answers with the revision.
async fn first_write(addresses: &Arc<Addresses>, slots: &[usize], key: &str) -> i64 {
    let mut tries = tokio::task::JoinSet::new();
    for slot in slots.iter().copied() {
        let (addresses, key) = (Arc::clone(addresses), key.to_owned());
        tries.spawn(async move {
            eventually("a write after the leader is gone", Duration::from_secs(60), || async {
                let client = Client::try_connect(&addresses.endpoint(slot), ATTEMPT).await?;
                // Written twice is as good: nothing is asked of this key.
                let put = tokio::time::timeout(ATTEMPT, client.put(key.clone(), format!("by way of {slot}"))).await;
                let answer = put.map_err(|_| "no answer".to_owned())?.map_err(|status| status.to_string())?;
                Ok(answer.header.unwrap().revision)
            })
            .await
        });
    }
    tries.join_next().await.unwrap().unwrap()
}

/// Waits until the plugin has counted the event of a revision.
async fn counted(addresses: &Arc<Addresses>, slots: &[usize], revision: i64) {
    let client = Client::connect(&addresses.endpoint(slots[0])).await;
    eventually("the plugin goes on", Duration::from_secs(60), || async {
        let read = tokio::time::timeout(ATTEMPT, client.get("/count/last-revision")).await;
        let last = read.map_err(|_| "no answer".to_owned())?.map_err(|status| status.to_string())?.unwrap_or_default();
        let last: i64 = std::str::from_utf8(&last).unwrap().parse().unwrap_or(0);
        if last >= revision { Ok(()) } else { Err(format!("{last} of {revision}")) }
    })
    .await;
}

fn judge_spans(what: &str, spans: &mut [Duration], median_max: Duration, worst_max: Duration) {
    spans.sort();
    let (median, worst) = (spans[spans.len() / 2], spans[spans.len() - 1]);
    eprintln!("{what} after a median of {median:?}, at worst {worst:?}; allowed {median_max:?} and {worst_max:?}");
    assert!(median <= median_max, "{what}: a median of {median:?}, of {spans:?}");
    assert!(worst <= worst_max, "{what}: at worst {worst:?}, of {spans:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stood_still_neither_serves_nor_writes_what_is_stale() {
    let _turn = turn().await;
    let mut cluster = Cluster::builder(3).start().await;
    for round in 0..4 {
        let frozen = cluster.wait_leader().await;
        let old = cluster.client(frozen).await;
        let key = format!("frozen-{round}");
        let before = old.put(key.clone(), "before").await.unwrap().header.unwrap().revision;
        cluster.freeze(frozen);
        let leader = cluster.wait_leader().await;
        let new = cluster.client(leader).await;
        let after = eventually("a write by way of the new leader", Duration::from_secs(30), || async {
            new.put(key.clone(), "after").await.map_err(|status| status.to_string())
        })
        .await;
        let after = after.header.unwrap().revision;

        // All this waits in the frozen node's sockets, sent after the write was acknowledged.
        let reads: Vec<_> = (0..8).map(|_| spawn(&old, &key, |client, key| async move { client.entry(key).await })).collect();
        let stale = TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Mod.into(),
                key: key.clone().into(),
                target_union: Some(TargetUnion::ModRevision(before)),
                ..Compare::default()
            }],
            success: vec![RequestOp {
                request: Some(Op::RequestPut(PutRequest {
                    key: key.clone().into(),
                    value: "stale".into(),
                    ..PutRequest::default()
                })),
            }],
            ..TxnRequest::default()
        };
        let write = spawn(&old, &key, |client, _| async move { client.txn(stale).await });
        let plain = spawn(&old, &format!("{key}-other"), |client, key| async move { client.put(key, "late").await });
        // Long enough for the requests to be sent, which nothing tells.
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.thaw(frozen);

        for read in reads {
            // Refused is right, too: it may not know a leader yet.
            if let Ok(Some(kv)) = read.await.unwrap() {
                assert_eq!((kv.value.as_ref(), kv.mod_revision), (b"after".as_slice(), after), "a stale read");
            }
        }
        if let Ok(answer) = write.await.unwrap() {
            assert!(!answer.succeeded, "a write on what was stale");
        }
        if let Ok(answer) = plain.await.unwrap() {
            let revision = answer.header.unwrap().revision;
            assert!(revision > after, "a write at {revision}, and {after} was acknowledged before it was sent");
            let entry = new.entry(format!("{key}-other")).await.unwrap().expect("an acknowledged write is there");
            assert_eq!(entry.mod_revision, revision);
        }
        cluster.wait_whole().await;
        for slot in 0..cluster.len() {
            let entry = cluster.client(slot).await.entry(key.clone()).await.unwrap().unwrap();
            assert_eq!((entry.value.as_ref(), entry.mod_revision), (b"after".as_slice(), after));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_cut_off_says_so_and_sends_away_who_requires_a_leader() {
    let _turn = turn().await;
    let cluster = Cluster::builder(3).start().await;
    let requiring = |request: WatchCreateRequest| {
        let (requests, queue) = tokio::sync::mpsc::channel(4);
        requests.try_send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) }).unwrap();
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        (requests, request)
    };
    let leader = cluster.wait_leader().await;
    // A follower that hears nobody, and a leader that nobody answers.
    for slot in [(leader + 1) % 3, leader] {
        let client = cluster.client(slot).await;
        let (requests, request) = requiring(WatchCreateRequest { key: "w".into(), ..WatchCreateRequest::default() });
        let mut watching = client.watch.clone().watch(request).await.unwrap().into_inner();
        assert!(watching.message().await.unwrap().unwrap().created);
        let create = WatchCreateRequest { key: "w".into(), ..WatchCreateRequest::default() };
        let mut patient = client.watch(create).await.unwrap();
        let status = |wanted: bool| {
            let client = client.clone();
            async move {
                let answer = client.maintenance.clone().status(StatusRequest {}).await.map_err(|status| status.to_string())?;
                let answer = answer.into_inner();
                let has_none = answer.leader == 0 && answer.errors.contains(&Error::NoLeader.to_string());
                if has_none == wanted { Ok(()) } else { Err(format!("{answer:?}")) }
            }
        };
        status(false).await.unwrap();
        cluster.relay().isolate(slot);
        eventually("it says that it has no leader", Duration::from_secs(60), || status(true)).await;
        let ended = tokio::time::timeout(Duration::from_secs(60), watching.message()).await.expect("the watch is kept open");
        assert_eq!(ended.expect_err("the watch goes on").message(), Error::NoLeader.to_string());
        drop(requests);
        let (_requests, request) = requiring(WatchCreateRequest::default());
        let refused = client.watch.clone().watch(request).await.expect_err("a watch is opened without a leader");
        assert_eq!(refused.message(), Error::NoLeader.to_string());
        cluster.relay().heal();
        cluster.wait_whole().await;
        eventually("it has a leader again", Duration::from_secs(60), || status(false)).await;
        // Who does not require one has missed nothing.
        let revision = client.put("w", "after").await.unwrap().header.unwrap().revision;
        let events = patient.next().await.unwrap().events;
        assert_eq!(events[0].kv.as_ref().unwrap().mod_revision, revision);
    }
}

fn spawn<T, F, P>(client: &Client, key: &str, ask: F) -> tokio::task::JoinHandle<T>
where
    T: Send + 'static,
    F: FnOnce(Client, String) -> P + Send + 'static,
    P: Future<Output = T> + Send + 'static,
{
    tokio::spawn(ask(client.clone(), key.to_owned()))
}
