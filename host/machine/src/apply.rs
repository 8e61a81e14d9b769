//! Apply: one command in, a reply and effects out. The only way in which replicated state changes.
//!
//! **Invariant:** the same commands in the same order make the same state and the same replies on every node.

use std::fmt;

use kvasir_api::command::{Command, command::Body};
use kvasir_api::etcdserverpb::{AlarmType, DeleteRangeRequest, PutRequest, TxnRequest};
use kvasir_api::{Error, limits};
use prost::Message;

use crate::mvcc::budget::Budget;
use crate::mvcc::check::{check_delete_range, check_put, check_txn};
use crate::mvcc::txn;
use crate::mvcc::write::{Revision, Writer};
use crate::{Effects, Reply, State, quota};

/// The highest [`Command::version`] that this machine knows.
pub const COMMAND_VERSION: u32 = 1;

/// A command that this machine does not know, so that the node must stop instead of guessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnsupportedCommand {
    /// Its version is not known.
    Version(u32),
    /// Its version is, and its kind is not.
    Kind,
}

/// What the log says of an entry. The same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryId {
    /// Its place.
    pub index: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// The node that proposed it: that term's leader.
    pub leader: u64,
}

impl fmt::Display for UnsupportedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remedy = "start the version that wrote it";
        match self {
            Self::Version(version) => write!(
                f,
                "the log has a command of version {version}, and this version of kvasir knows up to {COMMAND_VERSION}: {remedy}"
            ),
            Self::Kind => write!(f, "the log has a command of a kind that this version of kvasir does not know: {remedy}"),
        }
    }
}

impl std::error::Error for UnsupportedCommand {}

/// Whether a command is of a version and kind that [`State::apply`] knows. To be asked before every apply.
///
/// # Errors
/// It is not: the node must stop.
pub fn check_version(command: &Command) -> Result<(), UnsupportedCommand> {
    if !(1..=COMMAND_VERSION).contains(&command.version) {
        return Err(UnsupportedCommand::Version(command.version));
    }
    if command.body.is_some() { Ok(()) } else { Err(UnsupportedCommand::Kind) }
}

impl State {
    /// Applies the command of a committed entry. Refusals are replies; effects are added to `effects`, which the commands of a batch
    /// share. Where nobody waits for the reply, on a follower or in a replay, `wants_reply` is false: then what changes is the same,
    /// and the reply lacks what was read.
    ///
    /// # Panics
    /// When called again for an index, or with a command that [`check_version`] refuses: going on would make replicas differ.
    pub fn apply(&mut self, entry: EntryId, command: &Command, wants_reply: bool, effects: &mut Effects) -> Reply {
        let index = entry.index;
        assert!(index > self.meta.applied_index, "entry {index} is applied after {}", self.meta.applied_index);
        assert!(check_version(command).is_ok(), "entry {index} has an unsupported command");
        self.meta.applied_index = index;
        if let Some(stamp) = &command.stamp {
            self.meta.cluster_ms = self.meta.cluster_ms.max(stamp.cluster_ms);
            if stamp.wall_ms != 0 {
                self.meta.wall_ms = stamp.wall_ms;
            }
        }
        let revision_before = self.revision();
        let reply = self.dispatch(entry, command, wants_reply, effects);
        let reply = reply.unwrap_or_else(|error| Reply::Error { revision: self.revision(), error });
        assert!(self.revision() >= revision_before, "revisions never go back");
        effects.meta = Some(self.meta.clone());
        reply
    }

    fn dispatch(
        &mut self,
        entry: EntryId,
        command: &Command,
        wants_reply: bool,
        effects: &mut Effects,
    ) -> Result<Reply, Error> {
        let tenant = command.tenant;
        let origin = command.origin.as_ref().filter(|origin| !origin.plugin.is_empty());
        let writer = Writer {
            tenant,
            plugin: origin.map(|origin| origin.plugin.as_str().into()),
            depth: origin.map_or(0, |origin| origin.depth),
            leader: entry.leader,
            command_bytes: command_bytes(command),
            wants_reply,
        };
        let Some(body) = &command.body else {
            return Err(Error::Invalid("the command is empty".into()));
        };
        if command.term != 0 && command.term != entry.term {
            return Err(Error::NotLeader);
        }
        // What etcd's `applierV3Corrupt` refuses.
        let of_keys = matches!(
            body,
            Body::Put(_)
                | Body::DeleteRange(_)
                | Body::Txn(_)
                | Body::Compact(_)
                | Body::LeaseGrant(_)
                | Body::LeaseRevoke(_)
                | Body::EffectTxn(_)
        );
        if of_keys && self.has_alarm(AlarmType::Corrupt) {
            return Err(Error::Corrupt);
        }
        if writer.depth > limits::CAUSALITY_DEPTH_MAX && !matches!(body, Body::EffectTxn(_)) {
            let max = limits::CAUSALITY_DEPTH_MAX;
            return Err(Error::Exhausted(format!("more than {max} plugins write because of each other's writes")));
        }
        match body {
            Body::Tick(_) => Ok(Reply::Tick { revision: self.revision() }),
            Body::Put(request) => self.apply_put(&writer, request, effects),
            Body::DeleteRange(request) => self.apply_delete_range(&writer, request, effects),
            Body::Txn(request) => self.apply_txn(&writer, request, effects),
            Body::Compact(request) => self.apply_compact(request.revision, effects),
            Body::LeaseGrant(request) => self.apply_lease_grant(&writer, request, effects),
            Body::LeaseRevoke(request) => self.apply_lease_revoke(entry.term, &writer, request, effects),
            Body::LeaseRenew(request) => Ok(self.apply_lease_renew(request, effects)),
            Body::Alarm(request) => self.apply_alarm(request, effects),
            Body::QuotaSet(request) => Ok(self.apply_quota_set(tenant, request, effects)),
            Body::BlobChunk(request) => self.apply_blob_chunk(entry.index, &writer, request, effects),
            Body::PluginSet(request) => self.apply_plugin_set(request, effects),
            Body::PluginRemove(request) => self.apply_plugin_remove(request, effects),
            Body::PluginControl(request) => self.apply_plugin_control(request, effects),
            Body::Assign(request) => self.apply_assign(request, effects),
            Body::EffectTxn(request) => Ok(self.apply_effect(&writer, request, effects)),
            Body::CursorAdvance(request) => Ok(self.apply_cursor_advance(request, effects)),
            Body::DeadLetterDrop(request) => self.apply_dead_letter_drop(request, effects),
            Body::TokenCreate(request) => self.apply_token_create(request, effects),
            Body::TokenUse(request) => self.apply_token_use(entry.index, request, effects),
            Body::TokenRemove(request) => self.apply_token_remove(request, effects),
            Body::AuthoritySet(request) => self.apply_authority_set(request, effects),
            Body::TriggerControl(request) => self.apply_trigger_control(request, effects),
            Body::TaskDone(request) => Ok(self.apply_task_done(request, effects)),
            Body::ClusterVersion(request) => Ok(self.apply_cluster_version(request, effects)),
        }
    }

    fn apply_put(&mut self, writer: &Writer, request: &PutRequest, effects: &mut Effects) -> Result<Reply, Error> {
        check_put(request)?;
        self.check_space(quota::key_cost(&request.key, &request.value), writer, effects)?;
        self.check_put(writer.tenant, request)?;
        let mut revision = Revision::begin(self, effects, writer);
        let reply = revision.put(request);
        revision.end();
        Ok(Reply::Put(reply))
    }

    fn apply_delete_range(
        &mut self,
        writer: &Writer,
        request: &DeleteRangeRequest,
        effects: &mut Effects,
    ) -> Result<Reply, Error> {
        check_delete_range(request)?;
        let mut revision = Revision::begin(self, effects, writer);
        let reply = revision.delete_range(request);
        revision.end();
        Ok(Reply::DeleteRange(reply))
    }

    fn apply_txn(&mut self, writer: &Writer, request: &TxnRequest, effects: &mut Effects) -> Result<Reply, Error> {
        let puts = txn::may_put(request);
        if puts && self.is_out_of_space() {
            return Err(Error::NoSpace);
        }
        check_txn(request)?;
        let mut path = Vec::new();
        let mut budget = Budget::new();
        self.choose(writer.tenant, request, &mut path, &mut budget)?;
        self.check_path(writer.tenant, request, &mut path.iter(), &mut budget)?;
        let (succeeded, nested) = path.split_first().map_or((false, &[][..]), |(succeeded, nested)| (*succeeded, nested));
        let cost = txn::cost(txn::branch(request, succeeded), &mut nested.iter());
        if cost > 0 {
            self.check_space(cost, writer, effects)?;
        }
        let mut revision = Revision::begin(self, effects, writer);
        let mut reply = txn::run(&mut revision, writer.tenant, request, &mut path.iter());
        reply.revision = revision.end();
        Ok(Reply::Txn(reply))
    }
}

/// What the buffer has at least that the command's values share.
fn command_bytes(command: &Command) -> usize {
    match &command.body {
        Some(Body::Put(put)) => put.key.len() + put.value.len(),
        Some(Body::Txn(_) | Body::EffectTxn(_)) => command.encoded_len(),
        _ => 0,
    }
}
