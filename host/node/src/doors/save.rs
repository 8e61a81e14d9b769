//! A snapshot towards the client that saves it.
//!
//! **Invariant:** a client that takes nothing for long, or goes away, ends its snapshot, and no stream ends as if it were whole that
//! is not.

use std::time::Duration;

use futures_util::stream::{self, Stream};
use kvasir_api::etcdserverpb::SnapshotResponse;
use kvasir_api::{Error, limits};
use kvasir_engine::Saving;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;

use super::Door;

/// Messages read ahead of the client.
const AHEAD: usize = 2;

/// The messages of a snapshot. Read by a task of their own, so that a client's pace is seen.
pub(super) fn messages(door: Door, saving: Saving) -> impl Stream<Item = Result<SnapshotResponse, Status>> + Send {
    let (to, from) = mpsc::channel(AHEAD);
    let pump = tokio::spawn(pump(door, saving, to, Duration::from_millis(limits::SNAPSHOT_PIECE_TIMEOUT_MS)));
    stream::unfold(Some((from, pump)), next)
}

type Half = (mpsc::Receiver<SnapshotResponse>, JoinHandle<Result<(), Status>>);

async fn next(half: Option<Half>) -> Option<(Result<SnapshotResponse, Status>, Option<Half>)> {
    let (mut from, mut pump) = half?;
    if let Some(message) = from.recv().await {
        return Some((Ok(message), Some((from, pump))));
    }
    match (&mut pump).await {
        Ok(Ok(())) => None,
        Ok(Err(status)) => Some((Err(status), None)),
        Err(error) => Some((Err(Status::internal(error.to_string())), None)),
    }
}

async fn pump(
    mut door: Door,
    mut saving: Saving,
    to: mpsc::Sender<SnapshotResponse>,
    patience: Duration,
) -> Result<(), Status> {
    while let Some(message) = saving.next().await? {
        tokio::select! {
            sent = tokio::time::timeout(patience, to.send(message)) => match sent {
                Ok(Ok(())) => {}
                // The client has gone.
                Ok(Err(_)) => return Ok(()),
                Err(_) => {
                    let reason = format!("the snapshot's client took nothing for {patience:?}; save it again");
                    return Err(Status::deadline_exceeded(reason));
                }
            },
            () = door.stopped() => return Err(Error::Stopped.into()),
        }
    }
    Ok(())
}
