//! What befalls the simulated cluster: crashes, failing disks, cuts, bad weather; one after the other and at once, of the seed's choice.

use std::time::Duration;

use kvasir_storage::disk::{Fault, FaultPlan};
use kvasir_tests::Random;
use tokio_util::sync::CancellationToken;

use crate::clients::Crowd;
use crate::disks::Pace;
use crate::life::Tally;
use crate::network::{Links, Weather};
use crate::nodes::{Cluster, Crash};

/// A network on a good day.
pub(crate) const FAIR: Weather = Weather { usual_ms: 2, slow_ms: 10, slow_percent: 2, break_per_10_000: 0, idle_ms: 1_500 };
/// A disk on a good day.
pub(crate) const QUICK: Pace = Pace { usual_ms: 2, slow_ms: 20, slow_percent: 2 };

/// Longer than any leader's lease.
const USURPED: Duration = Duration::from_millis(1_500);

/// Draws how the network does for a while.
pub(crate) fn weather(random: &mut Random) -> Weather {
    Weather {
        usual_ms: 1 + random.below(8),
        slow_ms: 10 + random.below(300),
        slow_percent: random.below(15),
        break_per_10_000: if random.chance(50) { random.below(100) } else { 0 },
        idle_ms: 300 + random.below(3_000),
    }
}

/// Draws how quick the disks are.
pub(crate) fn pace(random: &mut Random) -> Pace {
    Pace { usual_ms: random.below(6), slow_ms: 10 + random.below(400), slow_percent: random.below(10) }
}

/// Lets things befall the cluster for a while.
pub(crate) async fn befall(
    cluster: &Cluster,
    links: &Links,
    crowd: &Crowd,
    random: &mut Random,
    span: Duration,
    tally: &mut Tally,
) {
    let end = tokio::time::Instant::now() + span;
    // Some lives are quiet, some are not.
    let pause_ms = 200 + random.below(3_000);
    let ids = cluster.ids();
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(random.below(pause_ms))).await;
        let id = *random.pick(&ids);
        match random.below(100) {
            0..12 => crash(cluster, id, Crash::PowerCut, random, tally),
            12..20 => crash(cluster, id, Crash::Kill, random, tally),
            20..23 => {
                for id in &ids {
                    crash(cluster, *id, Crash::PowerCut, random, tally);
                }
            }
            23..30 => cut_power(cluster, id, random, tally),
            30..38 => fail_disk(cluster, id, random, tally),
            38..42 => {
                let cluster = cluster.clone();
                tally.restarts += 1;
                tokio::spawn(async move { cluster.restart(id).await });
            }
            42..50 => {
                for other in ids.iter().filter(|other| **other != id) {
                    links.cut(id, *other);
                    links.cut(*other, id);
                }
                tally.cuts += 1;
            }
            50..58 => {
                let other = *random.pick(&ids);
                links.cut(id, other);
                tally.cuts += 1;
            }
            58..61 => usurp(cluster, links, crowd, &ids, random, tally),
            61..66 => {
                // It hears nobody, or nobody hears it.
                let deaf = random.chance(50);
                for other in ids.iter().filter(|other| **other != id) {
                    if deaf { links.cut(*other, id) } else { links.cut(id, *other) }
                }
                tally.cuts += 1;
            }
            66..82 => links.mend(),
            82..90 => links.set_weather(weather(random)),
            90..94 => links.set_weather(FAIR),
            _ => cluster.set_pace(pace(random)),
        }
        restart_some(cluster, random, 35);
    }
}

/// Starts some of the nodes that are down.
pub(crate) fn restart_some(cluster: &Cluster, random: &mut Random, percent: u64) {
    let running = cluster.running();
    for id in cluster.ids() {
        if !running.contains(&id) && random.chance(percent) {
            cluster.start(id);
        }
    }
}

/// The leader is cut off, and all others restart at that moment: inside of its lease, of which they know nothing any more. For a
/// while somebody keeps asking the leader, and somebody else the others.
fn usurp(cluster: &Cluster, links: &Links, crowd: &Crowd, ids: &[u64], random: &mut Random, tally: &mut Tally) {
    let serving = cluster.serving();
    let Some(leader) = serving.iter().find(|member| member.engine.is_leader()).map(|member| member.node) else { return };
    for other in ids.iter().filter(|other| **other != leader) {
        links.cut(leader, *other);
        links.cut(*other, leader);
        if cluster.running().contains(other) {
            cluster.crash(*other, Crash::PowerCut);
            tally.power_cuts += 1;
        }
        cluster.start(*other);
    }
    let stop = CancellationToken::new();
    let others = ids.iter().copied().filter(|other| *other != leader).collect();
    crowd.join(random.fork(), stop.clone(), 5, others, false);
    crowd.join(random.fork(), stop.clone(), 5, vec![leader], true);
    tokio::spawn(async move {
        tokio::time::sleep(USURPED).await;
        stop.cancel();
    });
    tally.cuts += 1;
}

fn crash(cluster: &Cluster, id: u64, crash: Crash, random: &mut Random, tally: &mut Tally) {
    if !cluster.running().contains(&id) {
        return;
    }
    cluster.crash(id, crash);
    match crash {
        Crash::PowerCut => tally.power_cuts += 1,
        Crash::Kill => tally.kills += 1,
    }
    // A quick restart, inside of every lease and every election timeout, or a later one.
    if random.chance(40) {
        cluster.start(id);
    }
}

/// The power goes between two operations of the disk, a few operations from now.
fn cut_power(cluster: &Cluster, id: u64, random: &mut Random, tally: &mut Tally) {
    if cluster.running().contains(&id) {
        cluster.disk_of(id).cut_power_after(random.below(60));
        tally.power_cuts += 1;
    }
}

fn fail_disk(cluster: &Cluster, id: u64, random: &mut Random, tally: &mut Tally) {
    if !cluster.running().contains(&id) {
        return;
    }
    let fault = if random.chance(50) { Fault::Eio } else { Fault::Enospc };
    let nth = Some((1 + random.below(20), fault));
    cluster.disk_of(id).set_faults(match random.below(3) {
        0 => FaultPlan { write_nth: nth, ..FaultPlan::default() },
        1 => FaultPlan { sync_nth: nth, ..FaultPlan::default() },
        _ => FaultPlan { name_nth: nth, ..FaultPlan::default() },
    });
    tally.disk_faults += 1;
}
