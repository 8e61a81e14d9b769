//! The follower's side: one stream to the leader, many commands in flight.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kvasir_api::Error;
use kvasir_api::limits::PROPOSAL_QUEUE_MAX;
use kvasir_transport::{Class, FrameSink, Network, NetworkError, Peer};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::Waiting;
use crate::machine::Shared;

/// How long connecting to the leader may take before those who wait are told that there is none.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands put into one write.
const BATCH_MAX: usize = 256;

/// A command that is to be sent.
pub(crate) struct Outgoing {
    pub(crate) number: u64,
    pub(crate) bytes: Bytes,
}

/// The way to whoever leads.
#[derive(Clone)]
pub(crate) struct Forward {
    queue: mpsc::Sender<Outgoing>,
}

impl Forward {
    /// Starts the task that sends; it ends when the last `Forward` is dropped.
    pub(crate) fn start(network: Arc<dyn Network>, shared: Arc<Shared>) -> Self {
        let (queue, outgoing) = mpsc::channel(PROPOSAL_QUEUE_MAX);
        tokio::spawn(run(network, shared, outgoing));
        Self { queue }
    }

    /// Hands a command over.
    ///
    /// # Errors
    /// `TooManyRequests`, `Stopped`; it was not sent.
    pub(crate) fn send(&self, outgoing: Outgoing) -> Result<(), Error> {
        self.queue.try_send(outgoing).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => Error::Stopped,
        })
    }
}

/// A stream to the leader of a term.
struct Link {
    leader: u64,
    term: u64,
    sink: Box<dyn FrameSink>,
    refusals: AbortHandle,
}

impl Link {
    fn is_for(&self, leader: u64, term: u64) -> bool {
        self.leader == leader && self.term == term && !self.refusals.is_finished()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.refusals.abort();
    }
}

async fn run(network: Arc<dyn Network>, shared: Arc<Shared>, mut outgoing: mpsc::Receiver<Outgoing>) {
    let mut link: Option<Link> = None;
    let mut batch = Vec::new();
    let mut frames = Vec::new();
    let mut standings = shared.standing.changes();
    while outgoing.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let (term, leader) = *standings.borrow_and_update();
        link = link.filter(|link| leader.is_some_and(|leader| link.is_for(leader, term)));
        if link.is_none()
            && let Some(leader) = leader
        {
            // Whoever leads next is not kept waiting for one that is gone.
            link = tokio::select! {
                opened = connect(&*network, &shared, leader, term) => opened,
                _ = standings.changed() => None,
            };
        }
        let Some(open) = &mut link else {
            for command in batch.drain(..) {
                shared.waiting.answer(command.number, Err(Error::NoLeader));
            }
            continue;
        };
        for command in batch.drain(..) {
            if !shared.waiting.sent(command.number, open.term) {
                continue;
            }
            frames.push(vec![Bytes::copy_from_slice(&command.number.to_le_bytes()), command.bytes]);
        }
        if frames.is_empty() {
            continue;
        }
        let sent = tokio::select! {
            sent = open.sink.send(&mut frames) => sent.is_ok(),
            _ = standings.changed() => false,
        };
        if !sent {
            // Some may have arrived: those who wait learn it from what is applied.
            frames.clear();
            link = None;
        }
    }
}

async fn connect(network: &dyn Network, shared: &Arc<Shared>, leader: u64, term: u64) -> Option<Link> {
    let addresses = shared.applied.lock().1.membership().get_node(&leader)?.peer_addresses();
    let peer = Peer { id: leader, addresses };
    let opened = timeout(CONNECT_TIMEOUT, network.open(&peer, Class::Forward)).await;
    let mut stream = match opened {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "the leader is not reached");
            return None;
        }
        Err(_) => return None,
    };
    let mut hello = BytesMut::with_capacity(8);
    hello.put_u64_le(term);
    stream.sink.send(&mut vec![vec![hello.freeze()]]).await.ok()?;
    let (shared, mut source) = (Arc::clone(shared), stream.source);
    let refusals = tokio::spawn(async move {
        while let Ok(Some(frame)) = source.next().await {
            if let Err(error) = refused(&shared.waiting, frame) {
                tracing::warn!(%error, "the leader's stream of refusals is given up");
                return;
            }
        }
    });
    Some(Link { leader, term, sink: stream.sink, refusals: refusals.abort_handle() })
}

/// A refusal: the command's number, and why.
fn refused(waiting: &Waiting, mut frame: Bytes) -> Result<(), NetworkError> {
    let broken = || NetworkError::Protocol("a refusal of another length".to_owned());
    let number = frame.try_get_u64_le().map_err(|_| broken())?;
    let error = match frame.try_get_u8().map_err(|_| broken())? {
        super::leader::TOO_MANY => Error::TooManyRequests,
        super::leader::NOT_LEADER => Error::NotLeader,
        code => Error::Internal(format!("the leader refused a command with the unknown code {code}")),
    };
    waiting.answer(number, Err(error));
    Ok(())
}
