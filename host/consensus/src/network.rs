//! The way to peers.
//!
//! There are none yet: every call answers "unreachable", which openraft treats as a peer that is down. `pre_vote` does so too;
//! openraft's default would grant it, and an isolated node would then raise its term for nothing.
//!
//! **Invariant:** nothing is ever reported as delivered to a peer.

use std::future::Future;

use openraft::OptionalSend;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::storage::Snapshot;

use crate::kinds::{Kinds, Vote};
use crate::membership::Member;
use crate::snapshot::SnapshotData;

/// Makes the connections to peers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peers;

/// The connection to one peer.
#[derive(Debug)]
pub(crate) struct Peer {
    id: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("node {0} cannot be reached: this kvasir serves single-node clusters only")]
struct NoTransport(u64);

impl Peer {
    fn unreachable(&self) -> Unreachable<Kinds> {
        Unreachable::new(&NoTransport(self.id))
    }
}

impl RaftNetworkFactory<Kinds> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &Member) -> Peer {
        Peer { id: target }
    }
}

impl RaftNetworkV2<Kinds> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<Kinds>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Kinds>, RPCError<Kinds>> {
        Err(RPCError::Unreachable(self.unreachable()))
    }

    async fn vote(&mut self, _rpc: VoteRequest<Kinds>, _option: RPCOption) -> Result<VoteResponse<Kinds>, RPCError<Kinds>> {
        Err(RPCError::Unreachable(self.unreachable()))
    }

    async fn pre_vote(&mut self, _rpc: VoteRequest<Kinds>, _option: RPCOption) -> Result<VoteResponse<Kinds>, RPCError<Kinds>> {
        Err(RPCError::Unreachable(self.unreachable()))
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: Snapshot<openraft::impls::leader_id_adv::LeaderId<u64, u64>, u64, Member, SnapshotData>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Kinds>, StreamingError<Kinds>> {
        Err(StreamingError::Unreachable(self.unreachable()))
    }
}
