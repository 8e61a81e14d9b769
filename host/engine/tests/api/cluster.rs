//! Three engines: what only a leader decides, through changes of who leads.
#[path = "../support/cluster.rs"]
mod nodes;

use std::time::{Duration, Instant};

use kvasir_api::Error;
use kvasir_api::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest, PutRequest};
use kvasir_engine::{Caller, Engine};

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
