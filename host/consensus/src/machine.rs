//! openraft's state machine over [`kvasir_machine::State`] and [`kvasir_storage::state::Store`].
//!
//! What is committed is applied in batches: decode, take the state's lock once, apply every entry, let go; then the rows go to the
//! state file's tail, the layer above is told once, and only then are the replies sent. Nothing here waits for a disk.
//!
//! **Invariant:** a batch's rows are in the store and published before any of its replies is sent; a reader that is told a
//! revision by either finds its rows.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kvasir_api::command::Command;
use kvasir_machine::{Effects, EntryId, State};
use kvasir_storage::log::Log;
use kvasir_storage::state::{Applied, AppliedBatch, Store};
use kvasir_transport::NetworkError;
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine, Snapshot};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::blocking::blocking;
use crate::clock::Clock;
use crate::fatal::Fatal;
use crate::forward::Waiting;
use crate::kinds::{Entry, Kinds, LogId, Payload, SnapshotMeta, StoredMembership, log_id_from, log_id_into};
use crate::membership::{self, Member, Membership};
use crate::mutant::Mutant;
use crate::proposed::Outcome;
use crate::publish::{Publish, Published};
use crate::snapshot::{Builder, SnapshotData, Snapshots, meta};
use crate::standing::Standing;

/// Entries applied under one hold of the state's lock.
const APPLY_BATCH_MAX: usize = 1_024;
/// How often a full tail is looked at again.
const TAIL_LOOK: Duration = Duration::from_millis(1);

/// What the state machine shares with the rest of the node.
pub(crate) struct Shared {
    pub(crate) state: Arc<RwLock<State>>,
    pub(crate) store: Store,
    pub(crate) log: Log,
    pub(crate) clock: Arc<Clock>,
    pub(crate) fatal: Fatal,
    pub(crate) standing: Standing,
    /// Index of the last applied entry.
    pub(crate) applied_index: watch::Sender<u64>,
    /// Last applied entry and membership.
    pub(crate) applied: Mutex<(Option<LogId>, StoredMembership)>,
    /// Whether this node is a member without a vote, by that membership.
    pub(crate) learner: AtomicBool,
    /// The last durable checkpoint that openraft knows as a snapshot.
    pub(crate) snapshot: Mutex<Option<SnapshotMeta>>,
    /// Where snapshots are exported to.
    pub(crate) snapshots: Arc<Snapshots>,
    /// This node's id, and who waits for which of the commands that it passed on to the leader.
    pub(crate) node_id: u64,
    pub(crate) waiting: Waiting,
    /// Applying waits while more is applied than the state file has taken in.
    pub(crate) tail_bytes_max: usize,
    pub(crate) mutant: Mutant,
    /// The version of commands that this node knows.
    pub(crate) command_version: u32,
}

/// Reads what the state file says it covers.
///
/// # Errors
/// `InvalidData` when its membership does not decode.
pub(crate) fn applied_from(applied: &Applied) -> io::Result<(Option<LogId>, StoredMembership)> {
    let membership = match &applied.membership {
        None => StoredMembership::default(),
        Some((log_id, bytes)) => StoredMembership::new(log_id.map(log_id_from), membership::decode(bytes)?),
    };
    Ok((applied.log_id.map(log_id_from), membership))
}

impl Shared {
    /// Makes what is applied durable; returns what that covers.
    ///
    /// # Errors
    /// The storage's error, which has been raised as fatal.
    pub(crate) async fn checkpoint(&self) -> io::Result<SnapshotMeta> {
        let store = self.store.clone();
        let made = blocking(store.is_driven(), move || store.checkpoint().map_err(io::Error::from));
        let applied = made.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let covered = applied.and_then(|applied| applied_from(&applied));
        match covered {
            Ok((log_id, membership)) => Ok(meta(log_id, membership)),
            Err(error) => {
                self.fatal.raise(format!("state file: cannot make a checkpoint: {error}"));
                Err(error)
            }
        }
    }

    /// Takes note of why a stream with a peer ended, if it was the peer who said so: one that was not reached has not proved who it is.
    pub(crate) fn note_end(&self, error: &NetworkError) {
        if let NetworkError::Ended(said) = error {
            self.note_refusal(said);
        }
    }

    /// Takes note of what a peer refused this node for: that it is no member any more ends it.
    pub(crate) fn note_refusal(&self, said: &str) {
        let Some(as_of) = membership::said_not_a_member(self.node_id, said) else { return };
        let applied = self.applied.lock();
        // A peer that is behind has not met this node yet.
        let known = applied.1.log_id().map_or(0, |id| id.index);
        if as_of > known && applied.1.membership().get_node(&self.node_id).is_some() {
            self.fatal.raise(removed(self.node_id, as_of));
        }
    }

    /// Notes a durable checkpoint that raft was told of. An older one, told later, changes nothing.
    pub(crate) fn note_snapshot(&self, meta: &SnapshotMeta) {
        let mut known = self.snapshot.lock();
        if known.as_ref().is_none_or(|known| known.last_log_id < meta.last_log_id) {
            *known = Some(meta.clone());
        }
    }

    /// Waits until the state file has taken in enough of what was applied; nothing else bounds a follower or a replay.
    async fn room(&self) -> io::Result<()> {
        while self.store.tail_bytes() > self.tail_bytes_max {
            if self.fatal.is_raised() {
                return Err(io::Error::other("the state file takes nothing in any more"));
            }
            tokio::time::sleep(TAIL_LOOK).await;
        }
        Ok(())
    }

    /// Says what is wrong with a batch that does not follow what was applied.
    fn check_order(&self, batch: &[(Entry, Option<ApplyResponder<Kinds>>)]) -> io::Result<()> {
        let mut last = self.applied.lock().0.map(|id| id.index);
        for (entry, _) in batch {
            if last.is_some_and(|last| last + 1 != entry.index()) {
                let line = format!("raft: entry {} is to be applied after entry {}", entry.index(), last.unwrap_or(0));
                self.fatal.raise(&*line);
                return Err(io::Error::new(io::ErrorKind::InvalidData, line));
            }
            last = Some(entry.index());
        }
        Ok(())
    }

    /// Puts a snapshot in place of everything; `Err` before anything was changed if it does not cover what `meta` says. Blocking.
    fn install(&self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<u64> {
        let prepared = snapshot.prepared(&self.store)?;
        if applied_from(prepared.applied())? != (meta.last_log_id, meta.last_membership.clone()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot does not cover what it was said to cover"));
        }
        // Raft may have truncated entries that contradict the snapshot: they must not be found beside it after a power cut.
        self.log.sync()?;
        let (revision, old) = {
            // Held until memory and file are of one moment again.
            let mut state = self.state.write();
            let (installed, applied) = self.store.install(prepared)?;
            let revision = installed.revision();
            self.clock.observe(installed.cluster_ms(), false);
            let applied = applied_from(&applied)?;
            self.learner.store(is_learner(applied.1.membership(), self.node_id), Ordering::Relaxed);
            *self.applied.lock() = applied;
            (revision, std::mem::replace(&mut *state, installed))
        };
        self.note_snapshot(meta);
        self.waiting.lost_sight();
        // Large, and nobody should wait for its end.
        drop(old);
        Ok(revision)
    }

    /// Applies a batch whose entries are in order.
    fn apply(&self, publish: &dyn Publish, batch: &mut Vec<(Entry, Option<ApplyResponder<Kinds>>)>) -> io::Result<()> {
        let Some(last) = batch.last().map(|(entry, _)| entry.log_id()) else { return Ok(()) };
        self.check_order(batch)?;
        // Decoding needs no lock.
        let mut commands: Vec<Option<Command>> = Vec::with_capacity(batch.len());
        let mut new_membership = None;
        for (entry, _) in batch.iter() {
            commands.push(match &entry.payload {
                Payload::Blank => None,
                Payload::Membership(membership) => {
                    new_membership = Some((entry.log_id(), membership.clone()));
                    None
                }
                Payload::Normal(proposed) => match proposed.command(entry.index(), self.command_version) {
                    Ok(command) => Some(self.mutant.applied(command)),
                    Err(line) => {
                        self.fatal.raise(&*line);
                        return Err(io::Error::new(io::ErrorKind::InvalidData, line.to_string()));
                    }
                },
            });
        }
        let mut effects = Effects::default();
        let mut replies = Vec::with_capacity(batch.len());
        let (revision, cluster_ms) = {
            let mut state = self.state.write();
            for ((entry, responder), command) in batch.iter().zip(&commands) {
                let log_id = entry.log_id();
                let leader = log_id.leader_id;
                let id = EntryId { index: log_id.index, term: leader.term, leader: leader.node_id };
                let wants_reply = |command| responder.is_some() || self.passed_on(command).is_some();
                replies.push(command.as_ref().map(|command| state.apply(id, command, wants_reply(command), &mut effects)));
            }
            (state.revision(), state.cluster_ms())
        };
        self.clock.observe(cluster_ms, self.standing.leading().is_some());
        let stored_membership = {
            let mut applied = self.applied.lock();
            applied.0 = Some(last);
            if let Some((log_id, membership)) = new_membership.take() {
                let was_in = applied.1.membership().get_node(&self.node_id).is_some();
                if was_in && membership.get_node(&self.node_id).is_none() {
                    self.fatal.raise(removed(self.node_id, log_id.index));
                }
                self.learner.store(is_learner(&membership, self.node_id), Ordering::Relaxed);
                applied.1 = StoredMembership::new(Some(log_id), membership.clone());
                Some((Some(log_id_into(log_id)), membership::encode(&membership)))
            } else {
                None
            }
        };
        self.store.push(AppliedBatch {
            log_id: log_id_into(last),
            membership: stored_membership,
            changes: effects.changes.clone(),
            tables: effects.take_tables(),
        });
        publish.publish(Published {
            changes: effects.changes,
            revision,
            index: last.index,
            compacted: effects.compacted,
            registry_changed: effects.registry_changed,
            leases_changed: effects.leases_changed,
        });
        self.applied_index.send_replace(last.index);
        for (((_, responder), reply), command) in batch.drain(..).zip(replies).zip(&commands) {
            if let Some(responder) = responder {
                responder.send(Outcome(reply));
            } else if let Some(number) = command.as_ref().and_then(|command| self.passed_on(command))
                && let Some(reply) = reply
            {
                self.waiting.answer(number, Ok(reply));
            }
        }
        self.waiting.applied_term(last.leader_id.term);
        Ok(())
    }

    /// The number of a command that this node passed on to the leader, if somebody still waits for it.
    fn passed_on(&self, command: &Command) -> Option<u64> {
        let forwarded = command.forwarded.filter(|forwarded| forwarded.node == self.node_id)?;
        self.waiting.waits_for(forwarded.number).then_some(forwarded.number)
    }
}

pub(crate) fn is_learner(membership: &Membership, node: u64) -> bool {
    membership.get_node(&node).is_some() && membership.voter_ids().all(|voter| voter != node)
}

/// Why a node stops that was removed.
fn removed(node: u64, index: u64) -> String {
    format!(
        "this node ({node:016x}) was removed from its cluster by entry {index}; to have it back, empty its data folder and let it \
         join with a new token"
    )
}

/// The state machine as openraft drives it.
pub(crate) struct Machine {
    pub(crate) shared: Arc<Shared>,
    // Here and not in `Shared`: whoever is told holds on to the node, and lets go of it when raft has stopped.
    pub(crate) publish: Arc<dyn Publish>,
}

impl RaftStateMachine<Kinds> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.shared.applied.lock().clone())
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Kinds>, io::Error>> + Unpin + OptionalSend,
    {
        let mut entries = entries.fuse();
        let mut batch = Vec::new();
        while let Some(first) = entries.next().await {
            batch.push(first?);
            // All that is ready, and no waiting for more.
            while batch.len() < APPLY_BATCH_MAX {
                match futures_util::poll!(entries.next()) {
                    Poll::Ready(Some(entry)) => batch.push(entry?),
                    Poll::Ready(None) | Poll::Pending => break,
                }
            }
            self.shared.room().await?;
            self.shared.apply(&*self.publish, &mut batch)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { shared: Arc::clone(&self.shared) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let (shared, said) = (Arc::clone(&self.shared), meta.clone());
        let installed = blocking(self.shared.store.is_driven(), move || shared.install(&said, snapshot)).await;
        let revision = installed.unwrap_or_else(|error| Err(io::Error::other(error))).inspect_err(|error| {
            self.shared.fatal.raise(format!("state file: cannot install a snapshot: {error}"));
        })?;
        let index = meta.last_log_id.map_or(0, |id| id.index);
        self.publish.publish(Published {
            revision,
            index,
            registry_changed: true,
            leases_changed: true,
            ..Published::default()
        });
        self.shared.applied_index.send_replace(index);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<Snapshot<openraft::impls::leader_id_adv::LeaderId<u64, u64>, u64, Member, SnapshotData>>, io::Error>
    {
        // One that is being sent is gone on with: it is as good as the latest, with the log that is kept for it.
        let purged = self.shared.log.state().last_purged.map(|id| id.index);
        let meta = self.shared.snapshots.sending(purged).or_else(|| self.shared.snapshot.lock().clone());
        Ok(meta.map(|meta| Snapshot { meta, snapshot: SnapshotData::of_store(Arc::clone(&self.shared.snapshots)) }))
    }
}
