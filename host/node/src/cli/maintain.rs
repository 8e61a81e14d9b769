//! `kvasir status`, `compaction`, `member` and `alarm`: what keeps a node in order.
//!
//! **Invariant:** each changes one thing; only `alarm disarm` asks first what there is to change.

use kvasir_api::etcdserverpb::alarm_request::AlarmAction;
use kvasir_api::etcdserverpb::{AlarmRequest, CompactionRequest, MemberListRequest, StatusRequest};
use serde_json::json;

use super::connect::Connection;
use super::out::{self, Out};

/// `kvasir status`.
pub(super) async fn status(connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut maintenance = connection.maintenance().await?;
    let status = connection.answer(maintenance.status(StatusRequest {})).await?;
    let header = status.header.unwrap_or_default();
    if out.json_wanted() {
        out.json(&json!([{
            "Endpoint": connection.endpoint(),
            "Status": {
                "header": out::header(Some(&header)),
                "version": status.version,
                "dbSize": status.db_size,
                "dbSizeInUse": status.db_size_in_use,
                "dbSizeQuota": status.db_size_quota,
                "leader": status.leader,
                "raftIndex": status.raft_index,
                "raftTerm": status.raft_term,
                "raftAppliedIndex": status.raft_applied_index,
                "isLearner": status.is_learner,
                "errors": status.errors,
                "storageVersion": status.storage_version,
            },
        }]))?;
        return Ok(());
    }
    let role = match (status.leader == header.member_id, status.leader) {
        (_, 0) => "no leader",
        (true, _) => "leader",
        (false, _) => "follower",
    };
    let quota = if status.db_size_quota > 0 { format!(" of {}", size(status.db_size_quota)) } else { String::new() };
    let mut rows = vec![
        vec!["endpoint".to_owned(), connection.endpoint().to_owned()],
        vec!["version".to_owned(), format!("serves etcd's API {}", status.version)],
        vec!["member".to_owned(), format!("{:x} in cluster {:x} ({role})", header.member_id, header.cluster_id)],
        vec!["revision".to_owned(), header.revision.to_string()],
        vec!["size".to_owned(), format!("{}{quota}", size(status.db_size_in_use))],
        vec![
            "raft".to_owned(),
            format!("term {}, index {}, applied {}", status.raft_term, status.raft_index, status.raft_applied_index),
        ],
    ];
    rows.extend(status.errors.iter().map(|error| vec!["ALARM".to_owned(), error.clone()]));
    for line in out::table(&rows) {
        out.line(line)?;
    }
    Ok(())
}

/// Bytes as a person reads them.
pub(super) fn size(bytes: i64) -> String {
    let (mut whole, mut unit) = (bytes, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if whole < 10_240 {
            break;
        }
        (whole, unit) = (whole / 1_024, larger);
    }
    format!("{whole} {unit}")
}

/// `kvasir compaction`.
#[derive(Debug, clap::Args)]
pub(crate) struct Compaction {
    /// History before this revision is forgotten
    revision: i64,
    /// Answer only once it is deleted from the disk as well
    #[arg(long)]
    physical: bool,
}

impl Compaction {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let mut kv = connection.kv().await?;
        let request = CompactionRequest { revision: self.revision, physical: self.physical };
        let response = connection.answer(kv.compact(request)).await?;
        if out.json_wanted() {
            out.json(&json!({ "header": out::header(response.header.as_ref()) }))?;
        } else {
            out.line(format!("compacted revision {}", self.revision))?;
        }
        Ok(())
    }
}

/// `kvasir member`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Member {
    /// Prints the members
    List,
}

impl Member {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let Member::List = self;
        let mut cluster = connection.cluster().await?;
        let response = connection.answer(cluster.member_list(MemberListRequest { linearizable: true })).await?;
        if out.json_wanted() {
            let member = |member: &kvasir_api::etcdserverpb::Member| {
                json!({
                    "ID": member.id,
                    "name": member.name,
                    "peerURLs": member.peer_ur_ls,
                    "clientURLs": member.client_ur_ls,
                    "isLearner": member.is_learner,
                })
            };
            let members: Vec<_> = response.members.iter().map(member).collect();
            out.json(&json!({ "header": out::header(response.header.as_ref()), "members": members }))?;
            return Ok(());
        }
        for member in &response.members {
            let state = if member.name.is_empty() { "unstarted" } else { "started" };
            let (peers, clients) = (member.peer_ur_ls.join(","), member.client_ur_ls.join(","));
            out.line(format!("{:x}, {state}, {}, {peers}, {clients}, {}", member.id, member.name, member.is_learner))?;
        }
        Ok(())
    }
}

/// `kvasir alarm`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Alarm {
    /// Prints the alarms that are raised
    List,
    /// Lowers every alarm
    Disarm,
}

impl Alarm {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let mut maintenance = connection.maintenance().await?;
        let get = AlarmRequest { action: AlarmAction::Get.into(), ..AlarmRequest::default() };
        let mut raised = connection.answer(maintenance.alarm(get)).await?;
        if let Alarm::Disarm = self {
            // Each by its name, as clientv3 does; what was lowered is printed.
            for alarm in &raised.alarms {
                let action = AlarmAction::Deactivate.into();
                let lower = AlarmRequest { action, member_id: alarm.member_id, alarm: alarm.alarm };
                raised.header = connection.answer(maintenance.alarm(lower)).await?.header;
            }
        }
        if out.json_wanted() {
            let alarms: Vec<_> = raised.alarms.iter().map(|a| json!({ "memberID": a.member_id, "alarm": a.alarm })).collect();
            out.json(&json!({ "header": out::header(raised.header.as_ref()), "alarms": alarms }))?;
            return Ok(());
        }
        for alarm in &raised.alarms {
            out.line(format!("memberID:{} alarm:{}", alarm.member_id, alarm.alarm().as_str_name()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(20_480), "20 KiB");
        assert_eq!(size(2_147_483_648), "2048 MiB");
    }
}
