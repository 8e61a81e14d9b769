//! Maintenance: alarms, status, the quota.
//!
//! **Invariant:** sizes reported to clients are logical bytes, the same that the quota counts, never file sizes.

use std::time::Duration;

use kvasir_api::command::command::Body;
use kvasir_api::command::{Alarm, QuotaSet};
use kvasir_api::etcdserverpb::alarm_request::AlarmAction;
use kvasir_api::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, StatusRequest, StatusResponse,
};
use kvasir_api::{ETCD_VERSION, Error};
use kvasir_machine::Reply;

use crate::authorise;
use crate::caller::Caller;
use crate::engine::Engine;
use crate::write::unexpected;

/// Between two tries to put the quota in force.
const QUOTA_RETRY: Duration = Duration::from_millis(200);

impl Engine {
    /// Raises, lifts or lists alarms (etcd `Maintenance.Alarm`).
    ///
    /// # Errors
    /// `PermissionDenied`, `Invalid` for an unknown action, and what a proposal or a read can fail with.
    pub async fn alarm(&self, caller: &Caller, request: AlarmRequest) -> Result<AlarmResponse, Error> {
        authorise::allow_operator(caller)?;
        let action = AlarmAction::try_from(request.action)
            .map_err(|_| Error::Invalid(format!("alarm action {} is not known", request.action)))?;
        let activate = match action {
            AlarmAction::Get => {
                self.linearize().await?;
                let state = self.consensus().state().read();
                let wanted = |alarm: AlarmType| request.alarm == 0 || request.alarm == alarm as i32;
                let alarms = state
                    .alarms()
                    .filter(|(_, alarm)| wanted(*alarm))
                    .map(|(member_id, alarm)| AlarmMember { member_id, alarm: alarm as i32 })
                    .collect();
                return Ok(AlarmResponse { header: Some(self.header_at(state.revision())), alarms });
            }
            AlarmAction::Activate => true,
            AlarmAction::Deactivate => false,
        };
        let alarm = Alarm { activate, member_id: request.member_id, alarm: request.alarm };
        match self.submit(caller, Body::Alarm(alarm)).await? {
            Reply::Alarm { revision, alarm } => Ok(AlarmResponse {
                header: Some(self.header_at(revision)),
                alarms: alarm.into_iter().map(|(member_id, alarm)| AlarmMember { member_id, alarm }).collect(),
            }),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Where this member stands (etcd `Maintenance.Status`); serializable.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub async fn status(&self, caller: &Caller, _request: StatusRequest) -> Result<StatusResponse, Error> {
        authorise::allow_operator(caller)?;
        let raft = self.raft_status();
        let state = self.consensus().state().read();
        let logical = i64::try_from(state.logical_bytes()).unwrap_or(i64::MAX);
        let mut errors: Vec<String> =
            state.alarms().map(|(member, alarm)| format!("memberID:{member} alarm:{} ", alarm.as_str_name())).collect();
        if raft.leader.is_none() {
            errors.push(Error::NoLeader.to_string());
        }
        Ok(StatusResponse {
            header: Some(self.header_at(state.revision())),
            version: ETCD_VERSION.to_owned(),
            db_size: logical,
            leader: raft.leader.unwrap_or(0),
            raft_index: raft.last_log_index,
            raft_term: raft.term,
            raft_applied_index: raft.applied_index,
            errors,
            db_size_in_use: logical,
            is_learner: self.is_learner(),
            storage_version: ETCD_VERSION.to_owned(),
            db_size_quota: i64::try_from(state.quota_bytes()).unwrap_or(i64::MAX),
            downgrade_info: None,
        })
    }

    /// Does nothing and says so (etcd `Maintenance.Defragment`): space is reused online.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub async fn defragment(&self, caller: &Caller, _request: DefragmentRequest) -> Result<DefragmentResponse, Error> {
        authorise::allow_operator(caller)?;
        Ok(DefragmentResponse { header: Some(self.header()) })
    }

    /// The alarms that this node knows to be raised, with the members that raised them; asks no other.
    pub fn alarms(&self) -> Vec<(u64, AlarmType)> {
        self.consensus().state().read().alarms().collect()
    }

    /// Puts the quota in force that the node was started with, when it is another one: as the leader of a term, or not at all.
    pub(crate) async fn set_quota(&self, term: u64) -> Result<(), Error> {
        let Some(bytes) = self.inner().options.quota_bytes else { return Ok(()) };
        // What an earlier leader has set may not be applied here yet.
        self.linearize().await?;
        if self.consensus().state().read().quota_bytes() == bytes {
            return Ok(());
        }
        self.propose_in_term(term, Body::QuotaSet(QuotaSet { bytes, of_tenant: false })).await.map(drop)
    }
}

/// The task that puts this node's quota in force whenever it begins to lead: what holds is the leader's, so that members that were
/// started with different ones do not overrule each other by turns.
pub(crate) async fn quota(engine: Engine) {
    let mut standings = engine.consensus().standings();
    let mut done_in = None;
    loop {
        standings.mark_unchanged();
        let term = engine.consensus().leading_term();
        let mut retry = false;
        if let Some(leading) = term.filter(|term| done_in != Some(*term)) {
            match engine.unless_stopped(engine.set_quota(leading)).await {
                None => return,
                Some(Ok(())) => done_in = term,
                Some(Err(error)) => {
                    tracing::debug!(%error, "the quota is not in force yet");
                    retry = true;
                }
            }
        }
        tokio::select! {
            () = engine.inner().stop.cancelled() => return,
            changed = standings.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(QUOTA_RETRY), if retry => {}
        }
    }
}
