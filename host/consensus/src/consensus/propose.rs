//! A command's way to its reply.
//!
//! It is stamped, encoded once and put on raft's own queue; raft's core takes all that wait there in one append, so that one sync
//! serves them, and nothing waits for the batch before. Where another member leads, it is passed on unstamped, and its reply is
//! that of this node's own apply.
//!
//! **Invariant:** a write whose fate is unknown is reported as such and never sent again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::command::{Command, Forwarded, Stamp};
use kvasir_api::limits;
use kvasir_machine::{FIRST_CLUSTER_VERSION, Reply, command_version};
use openraft::errors::ClientWriteError;
use prost::Message;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Consensus;
use crate::forward::{Forward, Outgoing};
use crate::kinds::Waiter;
use crate::proposed::{Proposed, check_length};

/// How long a proposal that was not taken waits before it looks again for a leader.
const LEADER_PAUSE: Duration = Duration::from_millis(20);

impl Consensus {
    /// Takes a command to its reply: stamps it, replicates it, applies it. The command's version and stamp are set here.
    ///
    /// # Errors
    /// `TooManyRequests` when too much waits, `NotLeader`/`NoLeader` when it was certainly not taken, `Timeout` or `LeaderChanged`
    /// when its fate is unknown, `Stopped`. What apply refuses is a [`Reply::Error`], not an error here.
    pub async fn propose(&self, mut command: Command) -> Result<Reply, Error> {
        let inner = &*self.inner;
        if inner.closing.load(Ordering::Relaxed) || inner.shared.fatal.is_raised() {
            return Err(Error::Stopped);
        }
        if inner.shared.store.tail_bytes() > limits::TAIL_BYTES_MAX {
            inner.gauge.refuse();
            return Err(Error::TooManyRequests);
        }
        if let Some(body) = &command.body {
            command.version = command_version(body);
            let agreed =
                if command.version > FIRST_CLUSTER_VERSION { self.state().read().cluster_version() } else { command.version };
            if command.version > agreed {
                return Err(Error::Precondition(format!(
                    "this asks for version {} of the cluster, which is at version {agreed} until every member runs a newer kvasir",
                    command.version
                )));
            }
        }
        let deadline = Instant::now() + inner.request_timeout;
        loop {
            let (_, leader) = inner.shared.standing.now();
            let proposed = match (&inner.forward, leader) {
                // What this node decided as the leader that it was then is decided no more.
                (Some(_), Some(leader)) if leader != inner.identity.node_id && command.term != 0 => {
                    return Err(Error::NotLeader);
                }
                (Some(forward), Some(leader)) if leader != inner.identity.node_id => {
                    self.propose_there(forward, &mut command, deadline).await
                }
                _ => self.propose_here(&mut command, deadline).await,
            };
            match proposed {
                // It was not taken and never will be: somebody else may lead now.
                Err(Error::NotLeader | Error::NoLeader)
                    if inner.forward.is_some() && Instant::now() + LEADER_PAUSE < deadline =>
                {
                    tokio::time::sleep(LEADER_PAUSE).await;
                }
                proposed => return proposed,
            }
        }
    }

    /// Proposes as the leader that this node may be.
    async fn propose_here(&self, command: &mut Command, deadline: Instant) -> Result<Reply, Error> {
        let inner = &*self.inner;
        command.forwarded = None;
        command.stamp = Some(Stamp { cluster_ms: inner.shared.clock.now_ms(), wall_ms: inner.shared.clock.wall_ms() });
        let proposed = Proposed::encode(command);
        check_length(proposed.bytes().len())?;
        let ticket = inner.gauge.enter(proposed.bytes().len()).ok_or(Error::TooManyRequests)?;
        let (reply, answer) = oneshot::channel();
        let waiter = Waiter { reply, _ticket: ticket };
        inner.raft.client_write_ff(proposed, Some(waiter)).await.map_err(|_| Error::Stopped)?;
        let answer = match tokio::time::timeout_at(deadline, answer).await {
            Err(_) => return Err(Error::Timeout),
            // Raft went away with the command in its hands.
            Ok(Err(_)) => return Err(Error::Stopped),
            Ok(Ok(answer)) => answer,
        };
        match answer {
            Ok(response) => response.data.0.ok_or_else(|| Error::Internal("a command was applied without a reply".to_owned())),
            Err(ClientWriteError::ForwardToLeader(forward)) => {
                Err(if forward.leader_id.is_some() { Error::NotLeader } else { Error::NoLeader })
            }
            Err(ClientWriteError::LogEntryDiscarded(_)) => Err(Error::LeaderChanged),
            Err(error) => Err(Error::Internal(error.to_string())),
        }
    }

    /// Passes a command on to the leader, and waits until it is applied here.
    async fn propose_there(&self, forward: &Forward, command: &mut Command, deadline: Instant) -> Result<Reply, Error> {
        let inner = &*self.inner;
        let ticket = inner.gauge.enter(command.encoded_len()).ok_or(Error::TooManyRequests)?;
        let mut wait = inner.shared.waiting.enter(ticket);
        command.stamp = None;
        command.forwarded = Some(Forwarded { node: inner.identity.node_id, number: wait.number });
        let bytes = Bytes::from(command.encode_to_vec());
        check_length(bytes.len())?;
        forward.send(Outgoing { number: wait.number, bytes })?;
        tokio::time::timeout_at(deadline, wait.answer()).await.unwrap_or(Err(Error::Timeout))
    }
}
