//! Rounds of a follower: it asks the leader, over one stream, one question at a time.
//!
//! A question is a number; its answer the number and the index to wait for, or the number alone when there is none. All little-endian.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kvasir_api::Error;
use kvasir_transport::{Class, Network, NetworkError, Peer, Stream};
use tokio::time::timeout;

use super::{Raft, read_index};
use crate::machine::Shared;
use crate::peer::invalid;

/// How long the leader may take to answer: it waits for a quorum itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The leader as a follower sees it.
pub(super) struct Leader {
    network: Arc<dyn Network>,
    shared: Arc<Shared>,
    link: Option<(u64, Stream)>,
    next: u64,
}

impl Leader {
    pub(super) fn new(network: Arc<dyn Network>, shared: Arc<Shared>) -> Self {
        Self { network, shared, link: None, next: 0 }
    }

    /// The index that a linearizable read has to see, by a round that the leader makes for this question.
    pub(super) async fn read_index(&mut self) -> Result<u64, Error> {
        let (_, Some(leader)) = self.shared.standing.now() else { return Err(Error::NoLeader) };
        // What is taken out comes back only after a whole exchange: an answer that came late is never read.
        let kept = self.link.take().filter(|(to, _)| *to == leader);
        self.next += 1;
        let exchange = async {
            let mut stream = match kept {
                Some((_, stream)) => stream,
                None => self.open(leader).await?,
            };
            let index = ask(&mut stream, self.next).await?;
            Ok::<_, NetworkError>((stream, index))
        };
        match timeout(ANSWER_TIMEOUT, exchange).await {
            Ok(Ok((stream, index))) => {
                self.link = Some((leader, stream));
                index.ok_or(Error::LeaderChanged)
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "the leader gave no read index");
                Err(Error::LeaderChanged)
            }
            Err(_) => Err(Error::LeaderChanged),
        }
    }

    async fn open(&self, leader: u64) -> Result<Stream, NetworkError> {
        let addresses = self.shared.applied.lock().1.membership().get_node(&leader).map(|member| member.peer_addresses());
        let peer = Peer { id: leader, addresses: addresses.unwrap_or_default() };
        self.network.open(&peer, Class::Read).await
    }
}

async fn ask(stream: &mut Stream, number: u64) -> Result<Option<u64>, NetworkError> {
    let broken = || NetworkError::Protocol("an answer to another question".to_owned());
    stream.sink.send(&mut vec![vec![Bytes::copy_from_slice(&number.to_le_bytes())]]).await?;
    let mut answer = stream.source.next().await?.ok_or_else(|| NetworkError::Ended("no answer".to_owned()))?;
    if answer.try_get_u64_le() != Ok(number) {
        return Err(broken());
    }
    match answer.len() {
        0 => Ok(None),
        8 => Ok(Some(answer.get_u64_le())),
        _ => Err(broken()),
    }
}

/// Answers a follower's questions until its stream ends.
///
/// # Errors
/// What the peer sent that is no question.
pub(crate) async fn serve(raft: &Raft, shared: &Shared, stream: Stream) -> io::Result<()> {
    let Stream { mut sink, mut source } = stream;
    while let Ok(Some(mut question)) = source.next().await {
        let number = question.try_get_u64_le().map_err(invalid)?;
        let mut answer = BytesMut::with_capacity(16);
        answer.put_u64_le(number);
        if let Ok(index) = read_index(raft, shared.mutant.read_policy()).await {
            answer.put_u64_le(index);
        }
        if sink.send(&mut vec![vec![answer.freeze()]]).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
