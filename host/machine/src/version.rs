//! The cluster version: which commands may be proposed, since every member knows them.
//!
//! A member that meets a command it does not know must stop. During a rolling upgrade members of two versions apply one log, so a
//! command that only the newer know is proposed only when all are newer, which is agreed on in the log, once and for good.
//!
//! **Invariant:** the cluster version never falls, and no entry asks more than it: [`command_version`] says what a command asks.

use bytes::Bytes;
use kvasir_api::command::ClusterVersion;
use kvasir_api::command::command::Body;

use crate::codec::{FormatError, Reader, Writer};
use crate::table::{FORMAT, META_CLUSTER_VERSION};
use crate::{COMMAND_VERSION, Effects, Reply, State, Table};

/// The cluster version of a cluster that has agreed on none: what every kvasir knows.
pub const FIRST_CLUSTER_VERSION: u32 = 1;

/// The lowest cluster version at which a command may be proposed. A new kind of command, or a new meaning of an old one, asks for
/// the [`COMMAND_VERSION`] that it came with.
pub fn command_version(body: &Body) -> u32 {
    match body {
        Body::Tick(_)
        | Body::Put(_)
        | Body::DeleteRange(_)
        | Body::Txn(_)
        | Body::Compact(_)
        | Body::LeaseGrant(_)
        | Body::LeaseRevoke(_)
        | Body::LeaseRenew(_)
        | Body::Alarm(_)
        | Body::QuotaSet(_)
        | Body::BlobChunk(_)
        | Body::PluginSet(_)
        | Body::PluginRemove(_)
        | Body::PluginControl(_)
        | Body::Assign(_)
        | Body::EffectTxn(_)
        | Body::CursorAdvance(_)
        | Body::DeadLetterDrop(_)
        | Body::TokenCreate(_)
        | Body::TokenUse(_)
        | Body::TokenRemove(_)
        | Body::AuthoritySet(_)
        | Body::TriggerControl(_)
        | Body::TaskDone(_)
        | Body::ClusterVersion(_) => FIRST_CLUSTER_VERSION,
    }
}

impl State {
    /// The version of commands that every member knows, as the members have agreed.
    pub fn cluster_version(&self) -> u32 {
        self.cluster_version
    }

    pub(crate) fn apply_cluster_version(&mut self, request: &ClusterVersion, effects: &mut Effects) -> Reply {
        if request.version > self.cluster_version {
            self.cluster_version = request.version;
            effects.set(Table::Meta, META_CLUSTER_VERSION, encode(request.version));
        }
        Reply::ClusterVersion { revision: self.revision() }
    }
}

pub(crate) fn encode(version: u32) -> Vec<u8> {
    let mut out = Writer::new(FORMAT, 8);
    out.varint(u64::from(version));
    out.finish()
}

pub(crate) fn decode(value: &Bytes) -> Result<u32, FormatError> {
    let mut input = Reader::new("cluster version", FORMAT, value)?;
    let version = input.varint()?;
    if version <= u64::from(FIRST_CLUSTER_VERSION) {
        return Err(input.invalid("the first version has no row"));
    }
    input.end()?;
    match u32::try_from(version) {
        Ok(version) if version <= COMMAND_VERSION => Ok(version),
        _ => {
            Err(FormatError::UnknownVersion { what: "the cluster's commands", found: u8::try_from(version).unwrap_or(u8::MAX) })
        }
    }
}
