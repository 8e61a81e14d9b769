//! Values that memory does not hold: fetched from the state file, on a blocking thread, after the state's lock is gone.
//!
//! **Invariant:** a row is looked for only once the store has everything up to the reply's revision; if it is not there then, it
//! was compacted meanwhile.

use std::io;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_machine::{RangeReply, Reply, Rev, TxnReply};
use kvasir_storage::state::Store;

use crate::engine::Engine;

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
        match tokio::task::spawn_blocking(move || work(&store)).await {
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
        let done = tokio::task::spawn_blocking(move || work(&mut |rev| fetch(&store, rev)));
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
        if !range.has_holes() {
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
