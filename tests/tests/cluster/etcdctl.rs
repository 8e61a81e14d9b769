//! etcd's own clients on a cluster: `etcdctl member ...`, `endpoint ... --cluster`, `move-leader`, and Go programs on clientv3 with
//! three endpoints; also while a member is down.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kvasir_tests::{Cluster, DEADLINE, Node, eventually};
use serde_json::Value;

use crate::clients::client;
use crate::process::{Ended, run};
use crate::turn;

/// How long a scenario of the Go program may take.
const SCENARIO_LIMIT: Duration = Duration::from_secs(60);
/// Scenarios that talk to whichever member answers.
const SCENARIOS: [&str; 4] = ["put-get", "watch", "lease-expiry", "mutex"];

struct Ctl {
    program: PathBuf,
    endpoints: String,
}

impl Ctl {
    fn run(&self, arguments: &[&str]) -> Ended {
        let endpoints = format!("--endpoints={}", self.endpoints);
        let all: Vec<&str> = std::iter::once(endpoints.as_str()).chain(arguments.iter().copied()).collect();
        tokio::task::block_in_place(|| run(&self.program, &all, "", DEADLINE))
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert!(ended.success, "etcdctl {arguments:?}\nstdout: {}\nstderr: {}", ended.stdout, ended.stderr);
        ended.stdout
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert!(!ended.success, "etcdctl {arguments:?} succeeded: {}", ended.stdout);
        ended.stderr
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["-w", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}"))
    }

    /// Name, id as `etcdctl` takes it, peer URL, and whether a learner, of each member.
    fn members(&self) -> Vec<(String, String, String, bool)> {
        let list = self.json(&["member", "list"]);
        let member = |member: &Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let id = format!("{:x}", member["ID"].as_u64().unwrap());
            (text(&member["name"]), id, text(&member["peerURLs"][0]), member["isLearner"] == true)
        };
        list["members"].as_array().unwrap().iter().map(member).collect()
    }

    fn member(&self, name: &str) -> Option<(String, String, bool)> {
        self.members().into_iter().find(|(its, ..)| its == name).map(|(_, id, url, learner)| (id, url, learner))
    }

    /// The id that the endpoints agree is the leader's.
    fn leader(&self) -> u64 {
        // It says what it knows of the others, and fails, when one does not answer.
        let text = self.run(&["endpoint", "status", "-w", "json"]).stdout;
        let status: Value = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}"));
        let leaders: Vec<u64> = status.as_array().unwrap().iter().filter_map(|it| it["Status"]["leader"].as_u64()).collect();
        assert!(!leaders.is_empty() && leaders.iter().all(|leader| *leader == leaders[0]), "{status}");
        leaders[0]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_manages_a_cluster_also_while_a_member_is_down() {
    let Some(program) = client("etcdctl on a cluster", "KVASIR_ETCDCTL", "etcdctl") else { return };
    let _turn = turn().await;
    let mut cluster = Cluster::builder(3).same_client_ports().start().await;
    let ctl = Ctl { program, endpoints: cluster.addresses().joined() };
    assert_eq!(ctl.members().len(), 3);
    let all_healthy = ctl.run(&["endpoint", "health", "--cluster"]);
    let said = format!("{}{}", all_healthy.stdout, all_healthy.stderr);
    assert!(all_healthy.success && said.matches("is healthy").count() == 3, "{said}");
    let status = ctl.json(&["endpoint", "status", "--cluster"]);
    assert_eq!(status.as_array().unwrap().len(), 3, "{status}");

    move_leader(&ctl);
    learner_by_hand(&ctl);
    learner_that_joins(&ctl, &cluster).await;

    let down = (cluster.wait_leader().await + 1) % 3;
    cluster.kill(down);
    let health = ctl.run(&["endpoint", "health", "--cluster"]);
    let said = format!("{}{}", health.stdout, health.stderr);
    assert!(!health.success && said.matches("is healthy").count() == 2, "{said}");
    assert_eq!(ctl.members().len(), 3);
    assert_eq!(ctl.ok(&["put", "down", "1"]), "OK\n");
    assert_eq!(ctl.ok(&["get", "down", "--print-value-only"]), "1\n");
    let other = ["n0", "n1", "n2"].into_iter().find(|name| *name != format!("n{down}") && !is_leader(&ctl, name)).unwrap();
    let (to, ..) = ctl.member(other).unwrap();
    assert!(ctl.ok(&["move-leader", &to]).contains("Leadership transferred"));
    let scenarios = client("clientv3 with three endpoints", "KVASIR_GO_CLIENT", "clientv3");
    if let Some(program) = scenarios {
        run_scenarios(&program, &ctl.endpoints, "down");
    }
    // What is down can be removed; the two that are left are a quorum of two.
    let (dead, ..) = ctl.member(&format!("n{down}")).unwrap();
    assert!(ctl.ok(&["member", "remove", &dead]).contains("removed from cluster"));
    assert_eq!(ctl.members().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clientv3_works_with_three_endpoints() {
    let Some(program) = client("clientv3 with three endpoints", "KVASIR_GO_CLIENT", "clientv3") else { return };
    let _turn = turn().await;
    let cluster = Cluster::builder(3).same_client_ports().start().await;
    tokio::task::block_in_place(|| run_scenarios(&program, &cluster.addresses().joined(), "whole"));
}

fn is_leader(ctl: &Ctl, name: &str) -> bool {
    ctl.member(name).is_some_and(|(id, ..)| id == format!("{:x}", ctl.leader()))
}

fn move_leader(ctl: &Ctl) {
    let before = ctl.leader();
    let (_, to, ..) = ctl.members().into_iter().find(|(_, id, ..)| *id != format!("{before:x}")).unwrap();
    let said = ctl.ok(&["move-leader", &to]);
    assert!(said.contains(&format!("Leadership transferred from {before:x} to {to}")), "{said}");
    assert_eq!(format!("{:x}", ctl.leader()), to);
    let nobody = ctl.refused(&["move-leader", "4711"]);
    assert!(nobody.contains("bad leader transferee"), "{nobody}");
}

/// A learner that is announced and never starts.
fn learner_by_hand(ctl: &Ctl) {
    let added = ctl.ok(&["member", "add", "ghost", "--learner", "--peer-urls=https://127.0.0.1:1"]);
    assert!(added.contains("added as learner to cluster"), "{added}");
    // Its name is its own to say, when it starts.
    let ghost = ctl.members().into_iter().find(|(.., url, _)| url == "https://127.0.0.1:1").unwrap();
    let (_, id, _, learner) = ghost;
    assert!(learner);
    let twice = ctl.refused(&["member", "add", "other", "--learner", "--peer-urls=https://127.0.0.1:1"]);
    assert!(twice.contains("Peer URLs already exists"), "{twice}");
    let early = ctl.refused(&["member", "promote", &id]);
    assert!(early.contains("can only promote a learner member which is in sync with leader"), "{early}");
    ctl.ok(&["member", "update", &id, "--peer-urls=https://127.0.0.1:2"]);
    assert!(ctl.members().iter().any(|(_, its, url, _)| *its == id && url == "https://127.0.0.1:2"));
    let removed = ctl.ok(&["member", "remove", &id]);
    assert!(removed.contains(&format!("Member {id:>16} removed from cluster")), "{removed}");
    let again = ctl.refused(&["member", "remove", &id]);
    assert!(again.contains("member not found"), "{again}");
    assert_eq!(ctl.members().len(), 3);
}

/// A learner that runs: promoted by hand, and removed; then it stops and says why.
async fn learner_that_joins(ctl: &Ctl, cluster: &Cluster) {
    let token = cluster.token().await;
    let builder = Node::builder()
        .arg("--name=learner")
        .arg("--learner")
        .arg("--listen-peer-urls=https://127.0.0.1:0")
        .arg("--heartbeat-interval=50")
        .arg("--election-timeout=500")
        .arg(format!("--join={token}"));
    let mut node = tokio::task::block_in_place(|| builder.start());
    let (id, _, learner) = ctl.member("learner").expect("it has joined");
    assert!(learner, "it stays a learner until it is promoted");
    eventually("the learner is promoted", DEADLINE, || async {
        let ended = ctl.run(&["member", "promote", &id]);
        if ended.success { Ok(()) } else { Err(ended.stderr) }
    })
    .await;
    assert!(ctl.member("learner").is_some_and(|(.., learner)| !learner));
    let again = ctl.refused(&["member", "promote", &id]);
    assert!(again.contains("can only promote a learner member"), "{again}");
    ctl.ok(&["member", "remove", &id]);
    assert_eq!(ctl.members().len(), 3);
    let status = tokio::task::block_in_place(|| node.wait());
    let log = node.log();
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(!status.success() && errors.len() == 1 && errors[0].contains("removed"), "{status}: {log}");
}

fn run_scenarios(program: &Path, endpoints: &str, what: &str) {
    let ended: Vec<Ended> = std::thread::scope(|scope| {
        let running = SCENARIOS.map(|scenario| {
            scope.spawn(move || {
                let prefix = format!("/{what}/{scenario}/");
                let lock = format!("/lock-{what}/");
                let arguments = ["-endpoint", endpoints, "-prefix", &prefix, "-lock", &lock, scenario];
                run(program, &arguments, "", SCENARIO_LIMIT)
            })
        });
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (scenario, ended) in SCENARIOS.iter().zip(ended) {
        assert!(ended.success && ended.stdout.ends_with("ok\n"), "{scenario}\n{}{}", ended.stdout, ended.stderr);
    }
}
