//! Three engines: what only a leader decides, through changes of who leads.
#[path = "../support/cluster.rs"]
mod nodes;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::etcdserverpb::{AlarmType, LeaseGrantRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest, PutRequest};
use kvasir_api::kvasir::peer::member_answer::Answer;
use kvasir_api::kvasir::peer::member_ask::Ask;
use kvasir_api::kvasir::peer::{HashAnswer, MemberAnswer, MemberAsk, Refused};
use kvasir_consensus::{Attendant, Member, Mutant};
use kvasir_engine::{Caller, Engine};
use kvasir_transport::BoxFuture;
use prost::Message;

use crate::support::put_request;
use nodes::{Cluster, PATIENCE, eventually};

/// Asks until there is an answer: a leader may be on its way.
async fn asked<T, F: Future<Output = Result<T, Error>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{what}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn keep_alive(engine: &Engine, id: i64) -> Result<LeaseKeepAliveResponse, Error> {
    engine.lease_keep_alive(&Caller::client(), id).await
}

/// Whether a key is there, as far as this member has applied.
async fn has(engine: &Engine, key: &'static str) -> bool {
    engine.snapshot_get(&Caller::client(), key.into(), 0).await.unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_granted_and_kept_alive_by_any_member_and_end_neither_early_nor_never_when_their_leader_goes() {
    let mut cluster = Cluster::start().await;
    let client = Caller::client();
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let (one, other) = (cluster.node(one).engine.clone(), cluster.node(other).engine.clone());
    let grant =
        |engine: Engine, ttl| async move { engine.lease_grant(&Caller::client(), LeaseGrantRequest { ttl, id: 0 }).await };
    let kept = asked("a grant by a follower", || grant(one.clone(), 3)).await.id;
    let left = asked("a grant by another", || grant(other.clone(), 3)).await.id;
    for (key, lease) in [("kept", kept), ("left", left)] {
        let put = || one.put(&client, PutRequest { lease, ..put_request(key, "v") });
        asked("a put with it", put).await;
    }
    // From here on nobody renews `left`; `kept` is renewed by the members that stay.
    let told = asked("a renewal", || async {
        let answer = keep_alive(&one, left).await?;
        Ok((Instant::now(), answer.ttl))
    })
    .await;
    assert_eq!(told.1, 3);
    let keeper = tokio::spawn({
        let (one, other) = (one.clone(), other.clone());
        async move {
            let began = Instant::now();
            let mut last = Instant::now();
            for engine in [&one, &other].into_iter().cycle() {
                match keep_alive(engine, kept).await {
                    Ok(answer) => {
                        assert_eq!(answer.ttl, 3, "a lease that is renewed in time is there");
                        last = Instant::now();
                    }
                    Err(error) => assert!(last.elapsed() < Duration::from_secs(3), "not renewed in time: {error}"),
                }
                if began.elapsed() > Duration::from_secs(6) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    cluster.stop(leader).await;
    eventually("the lease that nobody renews ends", async || (!has(&other, "left").await).then_some(())).await;
    assert!(told.0.elapsed() >= Duration::from_secs(3), "it ended {:?} after its last renewal", told.0.elapsed());
    keeper.await.unwrap();
    assert!(has(&one, "kept").await);
    let remaining =
        asked("what is left", || other.lease_time_to_live(&client, LeaseTimeToLiveRequest { id: kept, keys: true })).await;
    assert_eq!((remaining.granted_ttl, remaining.keys.len()), (3, 1));
    assert!((0..=3).contains(&remaining.ttl));
    let gone = async || (!has(&one, "kept").await && !has(&other, "kept").await).then_some(());
    eventually("then it ends as well", gone).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quota_in_force_is_the_leaders_and_no_member_overrules_it() {
    const QUOTA: u64 = 100 << 20;
    let mut cluster = Cluster::start_with(|nth, options| options.quota_bytes = Some(QUOTA + nth as u64)).await;
    let leader = cluster.leader().await;
    let in_force = |cluster: &Cluster, nth: usize| {
        cluster.running().all(|(_, node)| node.engine.metrics().quota_bytes == QUOTA + nth as u64).then_some(())
    };
    eventually("the leader's quota holds", async || in_force(&cluster, leader)).await;
    cluster.stop(leader).await;
    let next = cluster.leader().await;
    eventually("the next leader's quota holds", async || in_force(&cluster, next)).await;
    cluster.launch(leader).await;
    let proposals = cluster.node(leader).engine.metrics().proposals;
    eventually("it holds on the member that came back", async || in_force(&cluster, next)).await;
    assert_eq!(proposals, 0, "that one has proposed nothing");
    cluster.stop_all().await;
}

/// Answers other members as the node's identity does, where it is about hashes.
struct Hashes(Engine);

impl Attendant for Hashes {
    fn join(&self, _: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { Bytes::new() })
    }

    fn ask(&self, _: u64, request: Bytes) -> BoxFuture<'static, Bytes> {
        let answer = match MemberAsk::decode(request).unwrap().ask {
            Some(Ask::Hash(ask)) => match self.0.member_hash(ask.revision) {
                Some(hash) => Answer::Hash(HashAnswer { hash: hash.unwrap() }),
                None => Answer::Refused(Refused::default()),
            },
            other => panic!("not about a hash: {other:?}"),
        };
        Box::pin(async { Bytes::from(MemberAnswer { answer: Some(answer) }.encode_to_vec()) })
    }

    fn prepare_voter(&self, _: u64) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// Three members that are compared all the time.
async fn compared(change: fn(usize, &mut kvasir_engine::EngineOptions)) -> Cluster {
    let cluster = Cluster::start_with(change).await;
    for (nth, node) in cluster.running() {
        cluster.attend(nth, std::sync::Arc::new(Hashes(node.engine.clone())));
    }
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_holds_other_values_is_told_on_and_writes_stop() {
    let cluster = compared(|nth, options| {
        options.corrupt_check_interval = Some(Duration::from_millis(100));
        if nth == 2 {
            options.mutant = Mutant::OtherValues;
        }
    })
    .await;
    let client = Caller::client();
    let engine = cluster.node(0).engine.clone();
    // A lease has no value: all hold the same, and so they go on.
    let grant = || async { engine.lease_grant(&client, LeaseGrantRequest { ttl: 60, id: 0 }).await };
    asked("a grant", grant).await;
    asked("a put", || engine.put(&client, put_request("key", "v"))).await;
    let alarm = async || {
        let alarms = engine.alarms();
        alarms.into_iter().find(|(_, alarm)| *alarm == AlarmType::Corrupt).map(|(member, _)| member)
    };
    assert_eq!(eventually("CORRUPT is raised", alarm).await, Cluster::id(2));
    assert_eq!(engine.put(&client, put_request("key", "w")).await.unwrap_err(), Error::Corrupt);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_hold_the_same_raise_nothing_while_writes_go_on() {
    let cluster = compared(|_, options| options.corrupt_check_interval = Some(Duration::from_millis(20))).await;
    let client = Caller::client();
    let engine = cluster.node(1).engine.clone();
    let began = Instant::now();
    let mut written = 0;
    while began.elapsed() < Duration::from_secs(2) {
        asked("a put", || engine.put(&client, put_request(&format!("key-{}", written % 50), "v"))).await;
        written += 1;
    }
    assert_eq!(engine.alarms(), []);
    let revision = engine.revision();
    let mut hashes = Vec::new();
    for (_, node) in cluster.running() {
        hashes.push(eventually("a hash", async || node.engine.member_hash(revision).map(Result::unwrap)).await);
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    cluster.stop_all().await;
}

/// What the third node of the next test knows.
static THIRD_KNOWS: AtomicU32 = AtomicU32::new(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_version_rises_once_the_last_member_is_upgraded_and_keeps_older_nodes_out() {
    let mut cluster = Cluster::start_with(|nth, options| {
        options.command_version = if nth == 2 { THIRD_KNOWS.load(Ordering::SeqCst) } else { 2 };
    })
    .await;
    let engine = cluster.node(0).engine.clone();
    let said = async || {
        let mut versions: Vec<u32> = engine.members().iter().map(|info| info.member.command_version).collect();
        versions.sort_unstable();
        (versions == [1, 2, 2]).then_some(())
    };
    eventually("every member says what it knows", said).await;
    // Longer than the leader takes to look again.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(cluster.running().all(|(_, node)| node.engine.cluster_version() == 1), "one member is older");
    cluster.stop(2).await;
    THIRD_KNOWS.store(2, Ordering::SeqCst);
    cluster.launch(2).await;
    for (_, node) in cluster.running() {
        eventually("it rises", async || (node.engine.cluster_version() == 2).then_some(())).await;
    }
    let old = Member { name: "old".to_owned(), command_version: 1, ..Member::default() };
    let refused = engine.admit(4_711, old).await.unwrap_err();
    assert!(matches!(&refused, Error::Precondition(why) if why.contains("old knows version 1")), "{refused}");
    cluster.stop_all().await;
}
