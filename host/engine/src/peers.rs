//! The other members, for the node's identity: who they are, how to ask them, and how one that has proved itself is let in.
//!
//! **Invariant:** nothing here is reached by a client; what clients may ask about members goes through `member`.

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_consensus::{Member, MemberInfo};

use crate::engine::Engine;

impl Engine {
    /// The members, as far as this node has applied.
    pub fn members(&self) -> Vec<MemberInfo> {
        self.consensus().members()
    }

    /// On the leader: the last log entry that each member is known to have.
    pub fn progress(&self) -> Vec<(u64, Option<u64>)> {
        self.consensus().progress()
    }

    /// Asks a member's `Attendant`.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ask(&self, node: u64, request: Bytes) -> Result<Bytes, Error> {
        self.consensus().ask(node, request).await
    }

    /// Makes a node a member, as a learner, under the id that its token gave it.
    ///
    /// # Errors
    /// What a change of members is refused with, and what a proposal can fail with.
    pub async fn admit(&self, id: u64, member: Member) -> Result<(), Error> {
        self.consensus().add_member(Some(id), member).await.map(|_| ())
    }
}
