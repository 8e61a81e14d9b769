//! Values that memory does not hold: fetched from the state file, on a blocking thread, after the state's lock is gone.
//!
//! **Invariant:** a row is looked for only once the store has everything up to the reply's revision; if it is not there then, it
//! was compacted meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::etcdserverpb::TxnRequest;
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::limits::RANGE_SLICE_KEYS;
use kvasir_consensus::blocking;
use kvasir_machine::{RangeReply, Reply, Rev, TxnReply};
use kvasir_storage::state::Store;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::engine::Engine;

/// Commands under way that read old revisions: their rows stay until their replies are filled, since what has been committed must
/// not be answered with a refusal.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    held: Mutex<Held>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// The lowest revision that each of them reads.
    revisions: BTreeMap<u64, u64>,
}

/// One command's hold; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Arc<Holds>,
    ticket: u64,
}

impl Holds {
    /// To be taken before the command is proposed.
    pub(crate) fn hold(self: &Arc<Self>, revision: u64) -> Hold {
        let mut held = self.held.lock();
        let ticket = held.next;
        held.next += 1;
        held.revisions.insert(ticket, revision);
        Hold { holds: Arc::clone(self), ticket }
    }

    /// Waits until none of those that are there now reads below `floor`. Those that come later are refused by apply if they do.
    pub(crate) async fn passed(&self, floor: u64) {
        let end = self.held.lock().next;
        loop {
            let ended = self.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable();
            if !self.held.lock().revisions.range(..end).any(|(_, revision)| *revision < floor) {
                return;
            }
            ended.await;
        }
    }
}

#[cfg(test)]
impl Holds {
    pub(crate) fn count(&self) -> usize {
        self.held.lock().revisions.len()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.held.lock().revisions.remove(&self.ticket);
        self.holds.ended.notify_waiters();
    }
}

/// The lowest revision that a command names to read, if it names one.
pub(crate) fn lowest_revision(body: &Body) -> Option<u64> {
    fn of(txn: &TxnRequest) -> Option<u64> {
        let ops = txn.success.iter().chain(&txn.failure).filter_map(|op| op.request.as_ref());
        ops.filter_map(|op| match op {
            Request::RequestRange(range) => u64::try_from(range.revision).ok().filter(|revision| *revision > 0),
            Request::RequestTxn(txn) => of(txn),
            Request::RequestPut(_) | Request::RequestDeleteRange(_) => None,
        })
        .min()
    }
    match body {
        Body::Txn(txn) => of(txn),
        _ => None,
    }
}

/// Why a row could not be fetched.
enum Unfetched {
    Compacted,
    Disk(io::Error),
}

fn fetch(store: &Store, rev: Rev) -> Result<Bytes, Unfetched> {
    match store.row(rev) {
        Ok(Some(row)) => Ok(row.value.clone()),
        Ok(None) => Err(Unfetched::Compacted),
        Err(error) => Err(Unfetched::Disk(error)),
    }
}

impl Engine {
    /// Waits until every row up to `revision` can be read.
    pub(crate) async fn stored(&self, revision: u64) -> Result<(), Error> {
        let mut revisions = self.revisions();
        revisions.wait_for(|stored| *stored >= revision).await.map(|_| ()).map_err(|_| Error::Stopped)
    }

    /// Runs something that blocks on the state file.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.consensus().store().clone();
        match blocking(store.is_driven(), move || work(&store)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.disk_fault(&error)),
            Err(error) => Err(Error::Internal(error.to_string())),
        }
    }

    fn disk_fault(&self, error: &io::Error) -> Error {
        let line = format!("state file: cannot read: {error}");
        self.consensus().raise(line.clone());
        Error::Internal(line)
    }

    async fn filled<T: Send + 'static>(
        &self,
        revision: u64,
        work: impl FnOnce(&mut dyn FnMut(Rev) -> Result<Bytes, Unfetched>) -> Result<T, Unfetched> + Send + 'static,
    ) -> Result<T, Error> {
        self.stored(revision).await?;
        let store = self.consensus().store().clone();
        let done = blocking(store.is_driven(), move || work(&mut |rev| fetch(&store, rev)));
        match done.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Unfetched::Compacted)) => Err(Error::Compacted),
            Ok(Err(Unfetched::Disk(error))) => Err(self.disk_fault(&error)),
            Err(error) => Err(Error::Internal(error.to_string())),
        }
    }

    /// A range with all its values.
    ///
    /// # Errors
    /// `Compacted` when an old value was deleted meanwhile; a disk fault.
    pub(crate) async fn fill_range(&self, mut range: RangeReply) -> Result<RangeReply, Error> {
        // An order by value that takes long goes where others do not wait for it.
        let is_long = range.by_value.is_some() && range.items.len() > RANGE_SLICE_KEYS;
        if !range.has_holes() && !is_long {
            // Only the order by value may be left to do, and that needs no disk.
            let _ = range.fill(&mut |_| Ok::<_, ()>(Bytes::new()));
            return Ok(range);
        }
        let revision = range.revision;
        self.filled(revision, move |mut fetch| {
            range.fill(&mut fetch)?;
            Ok(range)
        })
        .await
    }

    /// A transaction's reply with all its values.
    ///
    /// # Errors
    /// As [`Engine::fill_range`].
    pub(crate) async fn fill_txn(&self, mut txn: TxnReply) -> Result<TxnReply, Error> {
        if !txn.has_holes() {
            let _ = txn.fill(&mut |_| Ok::<_, ()>(Bytes::new()));
            return Ok(txn);
        }
        let revision = txn.revision;
        self.filled(revision, move |mut fetch| {
            txn.fill(&mut fetch)?;
            Ok(txn)
        })
        .await
    }

    /// A command's reply with all its values.
    ///
    /// # Errors
    /// As [`Engine::fill_range`].
    pub(crate) async fn fill_reply(&self, reply: Reply) -> Result<Reply, Error> {
        match reply {
            Reply::Txn(txn) => self.fill_txn(txn).await.map(Reply::Txn),
            reply => Ok(reply),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasir_api::etcdserverpb::{RangeRequest, RequestOp};

    #[tokio::test]
    async fn a_deleter_waits_for_those_below_its_floor_that_came_before_it() {
        let holds = Arc::new(Holds::default());
        let (below, above) = (holds.hold(3), holds.hold(10));
        let waits = tokio::spawn({
            let holds = Arc::clone(&holds);
            async move { holds.passed(5).await }
        });
        tokio::task::yield_now().await;
        // Whoever comes later is not waited for.
        let later = holds.hold(3);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(below);
        waits.await.expect("it passes");
        drop((above, later));
        assert!(holds.held.lock().revisions.is_empty());
    }

    #[test]
    fn the_lowest_revision_is_found_at_every_depth() {
        let op = |request| RequestOp { request: Some(request) };
        let range = |revision| op(Request::RequestRange(RangeRequest { revision, ..RangeRequest::default() }));
        let inner = TxnRequest { failure: vec![range(7)], ..TxnRequest::default() };
        let txn = |success| TxnRequest { success, ..TxnRequest::default() };
        assert_eq!(lowest_revision(&Body::Txn(txn(vec![range(0), range(-1)]))), None);
        assert_eq!(lowest_revision(&Body::Txn(txn(vec![range(9), op(Request::RequestTxn(inner))]))), Some(7));
    }
}
