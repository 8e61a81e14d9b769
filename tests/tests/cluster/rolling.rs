//! Members are restarted and replaced one after the other, while a Go program on clientv3 writes through all of them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kvasir_tests::{Cluster, eventually};

use crate::clients::client;
use crate::{number, turn};

const PREFIX: &str = "/rolling/";

/// The writing program. It ends when its standard input does, which it does with this process at the latest.
struct Program {
    child: Child,
    lines: std::thread::JoinHandle<Vec<String>>,
}

impl Program {
    fn start(program: &Path, endpoints: &str) -> Self {
        let mut child = Command::new(program)
            .args(["-endpoint", endpoints, "-prefix", PREFIX, "-limit", "24h", "rolling"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // clientv3 logs each retry; what matters is among what the program itself says.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let lines = std::thread::spawn(move || stdout.lines().map_while(Result::ok).collect());
        Self { child, lines }
    }

    /// Lets it finish what it is at; answers with all it said.
    fn finish(mut self) -> Vec<String> {
        drop(self.child.stdin.take());
        let status = self.child.wait().unwrap();
        let lines = self.lines.join().unwrap();
        assert!(status.success(), "the program ended with {status}: {:?}", lines.last());
        lines
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_hardly_notice_that_every_member_is_restarted_and_replaced() {
    let Some(program) = client("clientv3 while members are restarted", "KVASIR_GO_CLIENT", "clientv3") else { return };
    let _turn = turn().await;
    let rolls = number("KVASIR_ROLLS", 1);
    let mut cluster = Cluster::builder(3).same_client_ports().start().await;
    let program = Program::start(&program, &cluster.addresses().joined());
    let client = cluster.client(0).await;
    eventually("the program writes", kvasir_tests::DEADLINE, || async {
        match client.revision().await {
            Ok(revision) if revision > 50 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for _ in 0..rolls {
        for slot in 0..cluster.len() {
            assert!(cluster.terminate(slot).success(), "a node that is asked to stop ends with success");
            cluster.restart(slot);
            cluster.wait_whole().await;
        }
        for slot in 0..cluster.len() {
            cluster.replace(slot).await;
            cluster.wait_whole().await;
        }
    }
    let lines = tokio::task::block_in_place(|| program.finish());
    let errors: Vec<&String> = lines.iter().filter(|line| line.starts_with("error ")).collect();
    assert!(errors.is_empty(), "clients see errors of the class Unavailable only: {errors:#?}");

    let client = cluster.client(cluster.wait_leader().await).await;
    let there = client.prefix(PREFIX).await.unwrap();
    let there: BTreeMap<String, _> = there.into_iter().map(|kv| (String::from_utf8(kv.key.to_vec()).unwrap(), kv)).collect();
    let (mut acknowledged, mut unknown, mut happened) = (0, 0, 0);
    let mut told = std::collections::BTreeSet::new();
    for line in lines.iter().filter(|line| *line != "ok") {
        let mut words = line.split(' ');
        let (what, key) = (words.next().unwrap(), words.next().unwrap_or_default());
        told.insert(key);
        let kept = there.get(key);
        match what {
            "ack" => {
                assert!(kept.is_some(), "{key} was acknowledged, and is not there");
                acknowledged += 1;
            }
            "unknown" => {
                unknown += 1;
                happened += usize::from(kept.is_some());
            }
            _ => panic!("a line that says nothing: {line}"),
        }
        if let Some(kv) = kept {
            assert_eq!((kv.version, kv.value.as_ref()), (1, key.as_bytes()), "{key} was written once");
        }
    }
    let nobodys: Vec<&String> = there.keys().filter(|key| !told.contains(key.as_str())).collect();
    assert!(nobodys.is_empty(), "nobody wrote {nobodys:?}");
    assert!(acknowledged > 0, "the program has written");
    eprintln!("{acknowledged} writes acknowledged, {unknown} of unknown fate, of which {happened} happened");
}
