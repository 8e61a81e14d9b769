//! Plugins on three nodes: one runs each trigger, the next goes on exactly where it was, and any member tells how they do.

#[path = "../../../engine/tests/support/cluster.rs"]
mod nodes;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::command::{Assign, EffectTxn, Origin};
use kvasir_api::etcdserverpb::PutRequest;
use kvasir_api::kvasir::plugin::v1 as api;
use kvasir_consensus::Attendant;
use kvasir_engine::{Caller, Engine};
use kvasir_machine::{EffectReply, Rejection, Reply};
use kvasir_transport::BoxFuture;
use nodes::{Cluster, NODES, eventually};

use super::{COUNT, watching};
use crate::testing::{reactor, task};
use crate::{PluginHost, PluginHostOptions};

/// Three nodes with their plugin hosts.
struct Hosts {
    cluster: Cluster,
    caches: Vec<tempfile::TempDir>,
    hosts: Vec<Option<PluginHost>>,
}

/// Answers other members' questions with what the plugin host says.
struct Answers(PluginHost);

impl Attendant for Answers {
    fn join(&self, _: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { Bytes::new() })
    }

    fn ask(&self, _: u64, question: Bytes) -> BoxFuture<'static, Bytes> {
        let answer = self.0.answer(&question);
        Box::pin(async move { answer })
    }

    fn prepare_voter(&self, _: u64) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

impl Hosts {
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let caches = (0..NODES).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut hosts = Self { cluster, caches, hosts: vec![None, None, None] };
        for nth in 0..NODES {
            hosts.host(nth);
        }
        hosts
    }

    fn host(&mut self, nth: usize) {
        let options = PluginHostOptions { cache_dir: self.caches[nth].path().join("cache"), threads: 1 };
        let host = PluginHost::start(self.engine(nth), options).unwrap();
        self.cluster.attend(nth, Arc::new(Answers(host.clone())));
        self.hosts[nth] = Some(host);
    }

    async fn launch(&mut self, nth: usize) {
        self.cluster.launch(nth).await;
        self.host(nth);
    }

    /// Cuts a node off, as if it had died, and clears up behind it.
    async fn stop(&mut self, nth: usize) {
        self.cluster.stop(nth).await;
        self.hosts[nth].take().unwrap().shutdown().await;
    }

    async fn stop_all(mut self) {
        for nth in 0..NODES {
            if let Some(host) = self.hosts[nth].take() {
                host.shutdown().await;
            }
        }
        self.cluster.stop_all().await;
    }

    fn engine(&self, nth: usize) -> Engine {
        self.cluster.node(nth).engine.clone()
    }

    fn on(&self, nth: usize) -> &PluginHost {
        self.hosts[nth].as_ref().unwrap()
    }

    async fn install(&self, nth: usize, component: Vec<u8>, manifest: &str) {
        let header = api::install_request::Header {
            manifest_toml: manifest.to_owned(),
            accept_requested: true,
            ..api::install_request::Header::default()
        };
        self.on(nth).install(header, component.into()).await.unwrap();
    }

    /// Puts through a member until it is acknowledged; the keys are new each time, so that a put that landed unseen is one event.
    async fn put(&self, nth: usize, key: &str) {
        let put = || PutRequest { key: key.to_owned().into(), value: "1".into(), ..PutRequest::default() };
        let engine = self.engine(nth);
        let range = kvasir_api::etcdserverpb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
        let began = Instant::now();
        loop {
            let put = engine.put(&Caller::client(), put()).await;
            if put.is_ok() {
                return;
            }
            let found = loop {
                match engine.range(&Caller::client(), range.clone()).await {
                    Ok(found) => break found,
                    Err(error) => assert!(began.elapsed() < nodes::PATIENCE, "{key}: {error}"),
                }
            };
            if !found.kvs.is_empty() {
                return;
            }
        }
    }

    /// How often the guest has put `/out/count`, as applied on a node.
    async fn count(&self, nth: usize) -> i64 {
        let found = self.engine(nth).snapshot_get(&Caller::client(), "/out/count".into(), 0).await.unwrap();
        found.map_or(0, |kv| kv.version)
    }

    /// The node that runs a trigger, as applied on a node.
    fn owner(&self, nth: usize, trigger: &str) -> u64 {
        self.engine(nth).trigger("p", trigger, 0).map_or(0, |record| record.owner_node)
    }
}

/// Waits for an answer: a leader may be on its way.
async fn answered<T, F: Future<Output = Result<T, Error>>>(mut ask: impl FnMut() -> F) -> T {
    eventually("an answer", async || ask().await.ok()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_counted_once_whoever_leads_and_any_member_tells_the_same() {
    let mut hosts = Hosts::start().await;
    let first = hosts.cluster.leader().await;
    hosts.install((first + 1) % NODES, reactor(COUNT), &watching("")).await;
    let mut events = 0;
    for round in 0..2 {
        let leader = hosts.cluster.leader().await;
        for event in 0..10 {
            // Through every member in turn, and some of them while the leader goes.
            let through = (leader + 1 + event % 2) % NODES;
            hosts.put(through, &format!("/in/{round}/{event}")).await;
            events += 1;
            if event == 5 {
                hosts.stop(leader).await;
            }
        }
        let stays = (leader + 1) % NODES;
        eventually("all events are counted", async || (hosts.count(stays).await == events).then_some(())).await;
        let leads = hosts.cluster.leader().await;
        assert_eq!(hosts.owner(stays, "w"), Cluster::id(leads), "it runs where the leader is");
        hosts.launch(leader).await;
        eventually("the one that came back has it all", async || (hosts.count(leader).await == events).then_some(())).await;
    }
    // Every member has the code ready, and says the same of all.
    let told = |nth: usize| {
        let host = hosts.on(nth).clone();
        answered(move || {
            let host = host.clone();
            async move { host.list().await }
        })
    };
    let settled = async || {
        let answers = [told(0).await, told(1).await, told(2).await];
        let [plugin] = &answers[0].plugins[..] else { return None };
        let ready = plugin.nodes.len() == NODES && plugin.nodes.iter().all(|node| node.state == "ready");
        let idle = plugin.triggers[0].lag_revisions == 0 && plugin.triggers[0].state == "idle";
        (ready && idle && answers[1] == answers[0] && answers[2] == answers[0]).then(|| plugin.clone())
    };
    let plugin = eventually("every member tells the same", settled).await;
    let leader = hosts.cluster.leader().await;
    assert_eq!((plugin.state.as_str(), plugin.triggers[0].node_name.as_str()), ("ready", Cluster::name(leader)));
    assert_eq!((plugin.triggers[0].node, plugin.triggers[0].faults), (Cluster::id(leader), 0));
    // Lines of the log are told everywhere, each with whose it is.
    let other = (leader + 1) % NODES;
    let lines = hosts.on(other).logs("p", 0, false).await.unwrap().lines;
    for nth in 0..NODES {
        let ready = |line: &&api::LogLine| line.node == Cluster::name(nth) && line.message.contains("is ready");
        assert!(lines.iter().any(|line| ready(&line)), "{nth}: {lines:#?}");
    }
    assert_eq!(hosts.count(other).await, events);
    hosts.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_deposed_owner_lands_and_it_assigns_nothing() {
    let mut hosts = Hosts::start().await;
    let deposed = hosts.cluster.leader().await;
    hosts.install(deposed, reactor(COUNT), &watching("")).await;
    hosts.put(deposed, "/in/a").await;
    eventually("it is counted", async || (hosts.count(deposed).await == 1).then_some(())).await;
    let term = hosts.engine(deposed).leading_term().unwrap();
    let before = hosts.engine(deposed).trigger("p", "w", 0).unwrap();
    let generation = hosts.engine(deposed).plugin("p").unwrap().generation;
    hosts.stop(deposed).await;
    let next = hosts.cluster.leader().await;
    let moved = async || (hosts.owner(next, "w") == Cluster::id(next)).then_some(());
    eventually("another node has the trigger", moved).await;
    hosts.launch(deposed).await;
    let engine = hosts.engine(deposed);
    let effect = EffectTxn {
        plugin: "p".into(),
        trigger: "w".into(),
        generation,
        owner_epoch: before.owner_epoch,
        expect_cursor: Some(before.cursor.into()),
        new_cursor: Some(before.cursor.into()),
        sequence: before.sequence,
        ..EffectTxn::default()
    };
    let origin = || Origin { plugin: "p".into(), depth: 1 };
    let reply = answered(|| engine.propose(Body::EffectTxn(effect.clone()), origin(), 0)).await;
    assert!(
        matches!(&reply, Reply::Effect { reply: EffectReply::Rejected { reason: Rejection::Stale(why) }, .. } if why.contains("epoch")),
        "{reply:?}"
    );
    let expect_epoch = hosts.engine(next).trigger("p", "w", 0).unwrap().owner_epoch;
    let node = Cluster::id(deposed);
    let back = Assign { plugin: "p".into(), trigger: "w".into(), partition: 0, node, expect_epoch };
    assert_eq!(engine.assign(term, back).await, Err(Error::NotLeader));
    assert_eq!(hosts.count(next).await, 1);
    hosts.stop_all().await;
}

const UNDER_A_LOCK: &str = r#"
    [plugin]
    name = "p"
    version = "1"
    [[trigger.schedule]]
    id = "s"
    every = "1s"
    lock = "/jobs/p"
    [grants]
    kv-write = ["/out/"]
    [failure]
    retries = 1
    backoff = "1ms..2ms"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_goes_on_where_the_leader_is_and_only_one_node_runs_it() {
    let mut hosts = Hosts::start().await;
    let leader = hosts.cluster.leader().await;
    let other = (leader + 1) % NODES;
    hosts.install(other, task(COUNT), UNDER_A_LOCK).await;
    eventually("it ran twice", async || (hosts.count(other).await >= 2).then_some(())).await;
    let record = hosts.engine(other).trigger("p", "s", 0).unwrap();
    assert_eq!(record.owner_node, Cluster::id(leader));
    let noted = async || hosts.engine(other).trigger("p", "s", 0).filter(|record| record.last_run_wall_ms > 0).map(|_| ());
    eventually("when it ran is known everywhere", noted).await;
    for nth in (0..NODES).filter(|nth| *nth != leader) {
        assert_eq!(hosts.on(nth).metrics().runs_total, 0, "only its owner runs it");
    }
    let before = hosts.count(other).await;
    hosts.stop(leader).await;
    // The lock that the gone node may have held ends with its lease.
    eventually("it runs on another node", async || (hosts.count(other).await > before + 1).then_some(())).await;
    let next = hosts.cluster.leader().await;
    let (owner, runs) = (hosts.owner(other, "s"), hosts.on(next).metrics().runs_total);
    assert!(owner == Cluster::id(next) && runs > 0, "{owner:x}: {runs} runs");
    hosts.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_does_not_answer_is_shown_as_such_and_holds_nobody_up_for_long() {
    let mut hosts = Hosts::start().await;
    let leader = hosts.cluster.leader().await;
    hosts.install(leader, reactor(COUNT), &watching("")).await;
    let gone = (leader + 1) % NODES;
    hosts.stop(gone).await;
    let asked = (leader + 2) % NODES;
    let ready = async || {
        let listed = hosts.on(asked).list().await.ok()?;
        let nodes = listed.plugins.into_iter().next()?.nodes;
        (nodes.iter().filter(|node| node.state == "ready").count() == 2).then_some(nodes)
    };
    let nodes = eventually("the two others are ready", ready).await;
    let silent: Vec<_> = nodes.iter().filter(|node| node.state == "unreachable").map(|node| node.name.as_str()).collect();
    assert_eq!(silent, [Cluster::name(gone)]);
    assert!(tokio::time::timeout(Duration::from_secs(30), hosts.on(asked).logs("p", 1, false)).await.is_ok());
    hosts.stop_all().await;
}
