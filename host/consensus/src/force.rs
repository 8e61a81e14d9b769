//! Disaster recovery: a member whose cluster is lost for good goes on alone, and so does a node that begins with a snapshot of one.
//!
//! **Invariant:** every entry that this member has is kept, those too that were never committed; only who is a member changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc;

use kvasir_storage::log::{Done, EntryKind, Log, LogEntry, LogId, Vote};
use kvasir_storage::state::Applied;

use crate::machine::applied_from;
use crate::membership::{self, Member, Membership};
use crate::options::StartError;

/// Entries looked through at once.
const READ_ENTRIES: u64 = 1_024;

/// Appends a membership of this node alone to its log, unless that is what it has. Blocking; before raft runs.
///
/// # Errors
/// A node that never was a member of a cluster; whatever the log says.
pub(crate) fn alone(log: &Log, applied: &Applied, node: u64, member: &Member) -> Result<(), StartError> {
    let state = log.state();
    let Some(last) = state.last.into_iter().chain(applied.log_id).max_by_key(|id| id.index) else {
        return Err(StartError::Identity(
            "--force-new-cluster: this node has no data to go on with; start it without the flag".to_owned(),
        ));
    };
    let failed = |error: io::Error| StartError::Raft(format!("cannot force a new cluster: {error}"));
    let members = last_membership(log, applied).map_err(failed)?;
    if members.nodes().map(|(id, _)| *id).eq([node]) {
        return Ok(());
    }
    let gone: Vec<String> =
        members.nodes().filter(|(id, _)| **id != node).map(|(id, member)| format!("{} ({id:016x})", member.name)).collect();
    if state.last.is_none_or(|end| end.index < last.index) {
        // The power failed between a snapshot's installation and the log's going on from it.
        written(|done| log.purge(last, done)).map_err(failed)?;
    }
    appoint(log, last, node, member).map_err(failed)?;
    tracing::warn!("--force-new-cluster: this node goes on alone; never start these again: {}", gone.join(", "));
    Ok(())
}

/// Appends a membership of this node alone behind `last`, the log's end, in a term of its own. Blocking; before raft runs.
///
/// # Errors
/// Whatever the log says.
pub(crate) fn appoint(log: &Log, last: LogId, node: u64, member: &Member) -> io::Result<()> {
    let term = log.state().vote.map_or(0, |vote| vote.term).max(last.term) + 1;
    let nodes = BTreeMap::from([(node, Member { promote: false, ..member.clone() })]);
    let alone = Membership::new(vec![BTreeSet::from([node])], nodes).map_err(io::Error::other)?;
    let entry = LogEntry {
        id: LogId { term, node, index: last.index + 1 },
        kind: EntryKind::Membership,
        payload: membership::encode(&alone),
    };
    written(|done| log.save_vote(Vote { term, node, committed: false }, done))?;
    written(|done| log.append(vec![entry], done))
}

/// Waits for one of the log's callbacks.
pub(crate) fn written(write: impl FnOnce(Done)) -> io::Result<()> {
    let (done, written) = mpsc::channel();
    write(Box::new(move |result| {
        // Whoever waits is right below.
        let _ = done.send(result);
    }));
    written.recv().unwrap_or_else(|_| Err(io::Error::other("the log's writer has stopped")))
}

/// The membership in force at the log's end.
fn last_membership(log: &Log, applied: &Applied) -> io::Result<Membership> {
    let (covered, stored) = applied_from(applied)?;
    let mut found = stored.membership().clone();
    let state = log.state();
    let mut next = covered.map_or(0, |id| id.index + 1).max(state.last_purged.map_or(0, |id| id.index + 1));
    let end = state.last.map_or(0, |id| id.index + 1);
    while next < end {
        let entries = log.read(next..end.min(next + READ_ENTRIES))?;
        let Some(last) = entries.last() else { break };
        next = last.id.index + 1;
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Membership) {
            found = membership::decode(&entry.payload)?;
        }
    }
    Ok(found)
}
