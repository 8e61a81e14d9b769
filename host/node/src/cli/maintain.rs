//! `kvasir compaction` and `alarm`: what keeps a node in order.
//!
//! **Invariant:** each changes one thing; only `alarm disarm` asks first what there is to change.

use kvasir_api::etcdserverpb::alarm_request::AlarmAction;
use kvasir_api::etcdserverpb::{AlarmRequest, CompactionRequest};
use serde_json::json;

use super::connect::Connection;
use super::out::{self, Out};

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
