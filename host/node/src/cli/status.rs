//! `kvasir status`: every member on one screen, also while some are down.
//!
//! **Invariant:** each member is asked for itself, side by side, and for a short time; who does not answer is shown as such.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use kvasir_api::ETCD_VERSION;
use kvasir_api::kvasir::cluster::v1::{Member, NodeStatusRequest, NodeStatusResponse};
use serde_json::json;

use super::connect::Connection;
use super::maintain::size;
use super::out::{self, Out};
use crate::clock::utc;

/// How long one member is waited for.
const WAIT: Duration = Duration::from_secs(2);
/// Entries behind the leader that are nothing to speak of.
const LAG_UNREMARKABLE: u64 = 1_000;

/// A member, and what it says of itself.
struct Row {
    member: Member,
    answer: Result<NodeStatusResponse, String>,
    /// Log entries that the leader has and it has not applied; `None` when nobody knows.
    lag: Option<u64>,
}

/// `kvasir status`.
pub(super) async fn status(connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut here = connection.nodes().await?;
    let this = connection.answer(here.status(NodeStatusRequest {})).await?;
    let asked = this.members.clone().into_iter().map(|member| async {
        let answer = if member.id == this.node_id { Ok(this.clone()) } else { ask(connection, &member).await };
        (member, answer)
    });
    let rows = with_lag(join_all(asked).await);
    if out.json_wanted() {
        write_json(&rows, (this.node_id, connection.endpoint()), out)?
    } else {
        write_screen(&this, &rows, out)?
    }
    Ok(())
}

async fn ask(connection: &Connection, member: &Member) -> Result<NodeStatusResponse, String> {
    if member.client_urls.is_empty() {
        return Err("not started".to_owned());
    }
    let there = connection.elsewhere(member.client_urls.join(","));
    let asking = async {
        let mut nodes = there.nodes().await.map_err(|_| "no connection".to_owned())?;
        let answer = nodes.status(NodeStatusRequest {}).await.map_err(|status| status.message().to_owned())?.into_inner();
        // Another node may have its address by now.
        if answer.node_id == member.id { Ok(answer) } else { Err(format!("{:x} answers there", answer.node_id)) }
    };
    tokio::time::timeout(WAIT, asking).await.unwrap_or_else(|_| Err(format!("no answer within {WAIT:?}")))
}

fn with_lag(answers: Vec<(Member, Result<NodeStatusResponse, String>)>) -> Vec<Row> {
    // Several may take themselves for the leader for a moment; the one of the latest term is.
    let leader = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).filter(|answer| answer.leader == answer.node_id);
    let leader = leader.max_by_key(|answer| answer.term).cloned();
    let known: BTreeMap<u64, u64> = leader
        .iter()
        .flat_map(|leader| leader.progress.iter().filter(|progress| !progress.unknown))
        .map(|progress| (progress.node_id, progress.index))
        .collect();
    let head = leader.map(|leader| leader.last_index);
    let row = |(member, answer): (Member, Result<NodeStatusResponse, String>)| {
        let has = answer.as_ref().map(|answer| answer.applied_index).ok().or_else(|| known.get(&member.id).copied());
        let lag = head.zip(has).map(|(head, has)| head.saturating_sub(has));
        Row { member, answer, lag }
    };
    answers.into_iter().map(row).collect()
}

impl Row {
    fn role(&self) -> &'static str {
        match &self.answer {
            Ok(answer) if answer.learner => "learner",
            Ok(answer) if answer.leader == answer.node_id => "leader",
            Ok(_) => "follower",
            Err(_) if self.member.learner => "learner",
            Err(_) => "voter",
        }
    }

    fn health(&self) -> String {
        let answer = match &self.answer {
            Ok(answer) => answer,
            Err(why) => return format!("DOWN: {why}"),
        };
        let mut complaints = Vec::new();
        if answer.leader == 0 {
            complaints.push("no leader".to_owned());
        }
        if self.lag.is_some_and(|lag| lag > LAG_UNREMARKABLE) {
            complaints.push("behind".to_owned());
        }
        if answer.certificate_overdue {
            complaints.push("its certificate is not renewed".to_owned());
        }
        if complaints.is_empty() { "ok".to_owned() } else { complaints.join(", ") }
    }
}

fn left(not_after_ms: u64) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(not_after_ms).saturating_sub(now)
}

fn certificate(answer: &NodeStatusResponse) -> String {
    if answer.certificate_not_after_ms == 0 {
        return "-".to_owned();
    }
    let left = left(answer.certificate_not_after_ms).as_secs();
    match (left / 86_400, left / 3_600, left / 60) {
        (0, 0, 0) => format!("{left}s left"),
        (0, 0, minutes) => format!("{minutes}m left"),
        (0 | 1, hours, _) => format!("{hours}h left"),
        (days, _, _) => format!("{days}d left"),
    }
}

fn write_screen<W: std::io::Write>(this: &NodeStatusResponse, rows: &[Row], out: &mut Out<W>) -> anyhow::Result<()> {
    let heading = ["NAME", "ID", "ROLE", "TERM", "INDEX", "LAG", "SIZE", "CERTIFICATE", "HEALTH", "CLIENT URLS"];
    let mut table = vec![heading.map(str::to_owned).to_vec()];
    let none = || "-".to_owned();
    for row in rows {
        let said = |show: &dyn Fn(&NodeStatusResponse) -> String| row.answer.as_ref().map_or_else(|_| none(), show);
        table.push(vec![
            if row.member.name.is_empty() { none() } else { row.member.name.clone() },
            format!("{:x}", row.member.id),
            row.role().to_owned(),
            said(&|answer| answer.term.to_string()),
            said(&|answer| answer.applied_index.to_string()),
            row.lag.map_or_else(none, |lag| lag.to_string()),
            said(&|answer| size(i64::try_from(answer.logical_bytes).unwrap_or(i64::MAX))),
            said(&certificate),
            row.health(),
            row.member.client_urls.join(","),
        ]);
    }
    for line in out::table(&table) {
        out.line(line)?;
    }
    let up = rows.iter().filter(|row| row.answer.is_ok()).count();
    let quota = if this.quota_bytes > 0 {
        format!(" of {}", size(i64::try_from(this.quota_bytes).unwrap_or(i64::MAX)))
    } else {
        String::new()
    };
    out.line("")?;
    out.line(format!(
        "cluster {:x}: {up} of {} members answer, revision {}, {}{quota}",
        this.cluster_id,
        rows.len(),
        this.revision,
        size(i64::try_from(this.logical_bytes).unwrap_or(i64::MAX))
    ))?;
    let voters = rows.iter().filter(|row| !row.member.learner).count();
    let voters_up = rows.iter().filter(|row| !row.member.learner && row.answer.is_ok()).count();
    if voters_up <= voters / 2 {
        out.line(format!(
            "NO QUORUM: {voters_up} of {voters} voters answer; nothing can be written until {} do",
            voters / 2 + 1
        ))?;
    }
    // The leader knows whom a change waits for.
    let answers = || rows.iter().filter_map(|row| row.answer.as_ref().ok());
    if let Some(rotation) =
        answers().map(|answer| &answer.rotation).filter(|text| !text.is_empty()).max_by_key(|text| text.len())
    {
        out.line(format!("the certificate authority is being replaced: {rotation}"))?;
    }
    let mut alarms: Vec<&String> = answers().flat_map(|answer| &answer.alarms).collect();
    alarms.sort_unstable();
    alarms.dedup();
    for alarm in alarms {
        out.line(format!("ALARM {alarm}"))?;
    }
    Ok(())
}

/// `here` is the member that was asked first, and its endpoint as it was given.
fn write_json(rows: &[Row], here: (u64, &str), out: &mut Out) -> anyhow::Result<()> {
    let row = |row: &Row| {
        let status = row.answer.as_ref().ok().map(|answer| {
            json!({
                "header": {
                    "cluster_id": answer.cluster_id,
                    "member_id": answer.node_id,
                    "revision": answer.revision,
                    "raft_term": answer.term,
                },
                "version": ETCD_VERSION,
                "kvasir": answer.version,
                "dbSize": answer.logical_bytes,
                "dbSizeInUse": answer.logical_bytes,
                "dbSizeQuota": answer.quota_bytes,
                "leader": answer.leader,
                "raftIndex": answer.last_index,
                "raftTerm": answer.term,
                "raftAppliedIndex": answer.applied_index,
                "isLearner": answer.learner,
                "errors": answer.alarms,
                "storageVersion": ETCD_VERSION,
                "certificateNotAfter": (answer.certificate_not_after_ms != 0).then(|| utc(answer.certificate_not_after_ms)),
                "authorities": answer.authorities.iter().map(|print| hex(print)).collect::<Vec<_>>(),
                "authorityChange": answer.rotation,
            })
        });
        json!({
            "Endpoint": if row.member.id == here.0 { Some(here.1) } else { row.member.client_urls.first().map(String::as_str) },
            "ID": row.member.id,
            "Name": row.member.name,
            "Role": row.role(),
            "Lag": row.lag,
            "Health": row.health(),
            "Status": status,
        })
    };
    out.json(&json!(rows.iter().map(row).collect::<Vec<_>>()))?;
    Ok(())
}

/// Bytes as digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use kvasir_api::kvasir::cluster::v1::Progress;

    use super::*;

    fn member(id: u64) -> Member {
        Member { id, name: format!("m{id}"), client_urls: vec!["http://h:1".to_owned()], ..Member::default() }
    }

    fn answer(node_id: u64, leader: u64, applied_index: u64) -> NodeStatusResponse {
        NodeStatusResponse {
            node_id,
            leader,
            applied_index,
            last_index: applied_index,
            term: 3,
            ..NodeStatusResponse::default()
        }
    }

    #[test]
    fn lag_is_behind_the_leader_and_of_who_is_down_what_the_leader_knows() {
        let mut leader = answer(1, 1, 2_000);
        leader.progress = vec![Progress { node_id: 3, index: 500, unknown: false }];
        let gone = Err("no connection".to_owned());
        let rows = with_lag(vec![(member(1), Ok(leader)), (member(2), Ok(answer(2, 1, 990))), (member(3), gone)]);
        let seen: Vec<_> = rows.iter().map(|row| (row.role(), row.lag, row.health())).collect();
        assert_eq!(seen[0], ("leader", Some(0), "ok".to_owned()));
        assert_eq!(seen[1], ("follower", Some(1_010), "behind".to_owned()));
        assert_eq!(seen[2], ("voter", Some(1_500), "DOWN: no connection".to_owned()));
    }

    #[test]
    fn without_a_leader_nobody_knows_the_lag() {
        let rows = with_lag(vec![(member(1), Ok(answer(1, 0, 7)))]);
        assert_eq!((rows[0].lag, rows[0].health().as_str()), (None, "no leader"));
    }

    #[test]
    fn the_screen_has_a_line_for_each_and_says_when_there_is_no_quorum() {
        let mut written = Vec::new();
        let mut out = Out::to(out::Format::Simple, &mut written);
        let rows = with_lag(vec![(member(1), Ok(answer(1, 0, 7))), (member(2), Err("no connection".to_owned()))]);
        write_screen(&answer(1, 0, 7), &rows, &mut out).expect("a vector takes it");
        let text = String::from_utf8(written).expect("text");
        assert!(text.lines().count() >= 5 && text.contains("NO QUORUM: 1 of 2 voters") && text.contains("m2"), "{text}");
    }
}
