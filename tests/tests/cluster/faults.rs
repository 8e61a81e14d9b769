//! What happens to clusters. Each fault is struck, lasts a while, and is healed.
//!
//! **Invariant:** after a fault is healed every node runs, nothing is cut or full, and every clock is right.

use std::time::Duration;

use kvasir_api::etcdserverpb::alarm_request::AlarmAction;
use kvasir_api::etcdserverpb::{AlarmMember, AlarmRequest};
use kvasir_tests::{Client, Cluster, Mount, Random, Rule, eventually};

/// How long a member may take to answer about alarms.
const PATIENCE: Duration = Duration::from_secs(2);

/// One kind of thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Two nodes do not reach each other.
    Cut,
    /// A node reaches another that does not reach it.
    OneWay,
    /// The leader reaches nobody.
    LeaderAlone,
    /// Two nodes reach each other only by way of a third.
    Bridge,
    /// Packets take long.
    Delay,
    /// Packets are lost.
    Drop,
    /// Packets overtake each other.
    Reorder,
    /// kill -9 of one, sometimes of all.
    Kill,
    /// A node stands still for a while.
    Freeze,
    /// A node's disk is full.
    FullDisk,
    /// Wall clocks step.
    ClockStep,
    /// One node after the other is stopped in order and started again.
    RollingRestart,
    /// A member is removed, and another joins in its place.
    Replace,
}

impl Fault {
    pub(crate) const ALL: [Fault; 13] = [
        Fault::Cut,
        Fault::OneWay,
        Fault::LeaderAlone,
        Fault::Bridge,
        Fault::Delay,
        Fault::Drop,
        Fault::Reorder,
        Fault::Kill,
        Fault::Freeze,
        Fault::FullDisk,
        Fault::ClockStep,
        Fault::RollingRestart,
        Fault::Replace,
    ];

    /// Strikes, waits and heals. `small_disk` is the slot whose data stand on a small disk.
    pub(crate) async fn strike(self, cluster: &mut Cluster, random: &mut Random, small_disk: Option<(usize, &Mount)>) {
        let nodes = cluster.len();
        let one = random.below(nodes as u64) as usize;
        let other = (one + 1 + random.below(nodes as u64 - 1) as usize) % nodes;
        let span = Duration::from_millis(1_500 + random.below(3_500));
        match self {
            Fault::Cut => cluster.relay().set_both(one, other, Rule::CUT),
            Fault::OneWay => cluster.relay().set(one, other, Rule::CUT),
            Fault::LeaderAlone => cluster.relay().isolate(cluster.leader().await.unwrap_or(one)),
            Fault::Bridge => {
                let leader = cluster.leader().await.unwrap_or(one);
                let cut_off = if leader == one { other } else { one };
                cluster.relay().set_both(leader, cut_off, Rule::CUT);
            }
            Fault::Delay => {
                let delay = Duration::from_millis(5 + random.below(80));
                let jitter = Duration::from_millis(random.below(60));
                cluster.relay().set_all(Rule { delay, jitter, ..Rule::default() });
            }
            Fault::Drop => {
                let drop_percent = 2 + random.below(25) as u8;
                cluster.relay().set_all(Rule { drop_percent, ..Rule::default() });
            }
            Fault::Reorder => {
                let reorder_percent = 5 + random.below(40) as u8;
                cluster.relay().set_all(Rule { reorder_percent, delay: Duration::from_millis(2), ..Rule::default() });
            }
            Fault::Kill => return kill(cluster, random, one).await,
            Fault::Freeze => {
                let frozen = if random.chance(50) { cluster.leader().await.unwrap_or(one) } else { one };
                cluster.freeze(frozen);
                tokio::time::sleep(span).await;
                return cluster.thaw(frozen);
            }
            Fault::FullDisk => {
                if let Some((slot, disk)) = small_disk {
                    fill(cluster, random, slot, disk).await;
                }
                return;
            }
            Fault::ClockStep => {
                let hour_ms = 3_600_000;
                cluster.step_clock(one, hour_ms * (1 + random.below(48) as i64));
                cluster.step_clock(other, -hour_ms * (1 + random.below(48) as i64));
                tokio::time::sleep(span).await;
                return (0..nodes).for_each(|slot| cluster.step_clock(slot, 0));
            }
            Fault::RollingRestart => {
                for slot in 0..nodes {
                    assert!(cluster.terminate(slot).success(), "a node that is asked to stop ends with success");
                    cluster.restart(slot);
                    cluster.wait_whole().await;
                }
                return;
            }
            Fault::Replace => return cluster.replace(one).await,
        }
        tokio::time::sleep(span).await;
        cluster.relay().heal();
    }
}

/// kill -9 of one node, mostly the leader, now and then of all at once.
async fn kill(cluster: &mut Cluster, random: &mut Random, one: usize) {
    let killed: Vec<usize> = match random.below(4) {
        0 => (0..cluster.len()).collect(),
        1 => vec![one],
        _ => vec![cluster.leader().await.unwrap_or(one)],
    };
    killed.iter().for_each(|slot| cluster.kill(*slot));
    tokio::time::sleep(Duration::from_millis(random.below(3_000))).await;
    // A node of several that were killed cannot serve alone: all of them are started before one is waited for.
    cluster.restart_all(&killed);
}

/// Fills the disk of a node until it says so or ends, then makes room.
async fn fill(cluster: &mut Cluster, random: &mut Random, slot: usize, disk: &Mount) {
    // So little that the node sees it coming, or nothing at all.
    let leave_bytes = if random.chance(50) { 24 << 20 } else { 0 };
    tokio::task::block_in_place(|| disk.fill(leave_bytes));
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while cluster.is_running(slot)
        && alarms(cluster).await.is_ok_and(|raised| raised.is_empty())
        && tokio::time::Instant::now() < end
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let seen = !cluster.is_running(slot) || alarms(cluster).await.is_ok_and(|raised| !raised.is_empty());
    disk.empty();
    assert!(seen, "a full disk is seen");
    if !cluster.is_running(slot) {
        cluster.kill(slot);
        let log = cluster.node(slot).log();
        let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && !log.contains("panicked"), "one line says why the node has ended: {log}");
        cluster.restart(slot);
    }
    eventually("the alarm can be disarmed", Duration::from_secs(60), || async {
        for raised in alarms(cluster).await? {
            alarm(cluster, AlarmAction::Deactivate, raised).await?;
        }
        match alarms(cluster).await?.len() {
            0 => Ok(()),
            count => Err(format!("{count} alarms")),
        }
    })
    .await;
}

/// The alarms that are raised.
async fn alarms(cluster: &Cluster) -> Result<Vec<AlarmMember>, String> {
    alarm(cluster, AlarmAction::Get, AlarmMember::default()).await
}

async fn alarm(cluster: &Cluster, action: AlarmAction, of: AlarmMember) -> Result<Vec<AlarmMember>, String> {
    let leader = cluster.leader().await?;
    let client = Client::try_connect(&cluster.addresses().endpoint(leader), PATIENCE).await?;
    let request = AlarmRequest { action: action.into(), member_id: of.member_id, alarm: of.alarm };
    match tokio::time::timeout(PATIENCE, async { client.maintenance.clone().alarm(request).await }).await {
        Ok(Ok(answer)) => Ok(answer.into_inner().alarms),
        Ok(Err(status)) => Err(status.to_string()),
        Err(_) => Err("no answer about alarms".to_owned()),
    }
}
