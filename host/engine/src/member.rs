//! The cluster's members as etcd's clients see and change them, and who leads.
//!
//! **Invariant:** a change is answered once it is applied here, with the members as they are then.

use kvasir_api::Error;
use kvasir_api::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
    MoveLeaderRequest, MoveLeaderResponse,
};
use kvasir_consensus::MemberInfo;

use crate::authorise;
use crate::caller::Caller;
use crate::engine::Engine;

/// URLs of one member.
const URLS_MAX: usize = 16;
const URL_BYTES_MAX: usize = 1_024;

fn member(known: MemberInfo) -> Member {
    Member {
        id: known.id,
        name: known.member.name,
        peer_ur_ls: known.member.peer_urls,
        client_ur_ls: known.member.client_urls,
        is_learner: known.learner,
    }
}

/// Peer URLs as they are kept: at least one, each with a scheme, a host and a port.
fn peer_urls(urls: Vec<String>) -> Result<Vec<String>, Error> {
    let is_good = |url: &String| {
        let Some(rest) = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")) else { return false };
        let Some((host, port)) = rest.rsplit_once(':') else { return false };
        url.len() <= URL_BYTES_MAX && !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
    };
    if urls.is_empty() || urls.len() > URLS_MAX || !urls.iter().all(is_good) {
        return Err(Error::BadMemberUrls);
    }
    Ok(urls)
}

impl Engine {
    fn members_now(&self) -> Vec<Member> {
        self.consensus().members().into_iter().map(member).collect()
    }

    /// The peer URLs that this node was started with.
    pub fn advertised_peer_urls(&self) -> &[String] {
        &self.inner().options.peer_urls
    }

    /// Whether this node is a member that does not vote: it serves serializable reads, its status and snapshots, as etcd's learners do.
    pub fn is_learner(&self) -> bool {
        self.consensus().is_learner()
    }

    /// The cluster's members (etcd `Cluster.MemberList`).
    ///
    /// # Errors
    /// `PermissionDenied`; when linearizable, what a read can fail with.
    pub async fn member_list(&self, caller: &Caller, request: MemberListRequest) -> Result<MemberListResponse, Error> {
        authorise::allow_operator(caller)?;
        if request.linearizable {
            self.linearize().await?;
        }
        // Cluster responses leave the revision out.
        Ok(MemberListResponse { header: Some(self.header_at(0)), members: self.members_now() })
    }

    /// Adds a member that is still to be started (etcd `Cluster.MemberAdd`). It begins as a learner, and unless it is to stay one it
    /// votes as soon as it has caught up.
    ///
    /// # Errors
    /// `PermissionDenied`, `BadMemberUrls`, `PeerUrlExists`, `TooManyLearners`, `UnhealthyCluster`, `NoLeader`, `Timeout`.
    pub async fn member_add(&self, caller: &Caller, request: MemberAddRequest) -> Result<MemberAddResponse, Error> {
        authorise::allow_operator(caller)?;
        let peer_urls = peer_urls(request.peer_ur_ls)?;
        let added = kvasir_consensus::Member { peer_urls, promote: !request.is_learner, ..Default::default() };
        let id = self.consensus().add_member(None, added).await?;
        let members = self.members_now();
        let member = members.iter().find(|known| known.id == id).cloned();
        Ok(MemberAddResponse { header: Some(self.header_at(0)), member, members })
    }

    /// Removes a member for good (etcd `Cluster.MemberRemove`).
    ///
    /// # Errors
    /// `PermissionDenied`, `MemberNotFound`, `UnhealthyForReconfiguration`, `UnhealthyCluster`, `NoLeader`, `Timeout`.
    pub async fn member_remove(&self, caller: &Caller, request: MemberRemoveRequest) -> Result<MemberRemoveResponse, Error> {
        authorise::allow_operator(caller)?;
        self.consensus().remove_member(request.id).await?;
        Ok(MemberRemoveResponse { header: Some(self.header_at(0)), members: self.members_now() })
    }

    /// Changes where a member's peers reach it (etcd `Cluster.MemberUpdate`).
    ///
    /// # Errors
    /// `PermissionDenied`, `BadMemberUrls`, `MemberNotFound`, `PeerUrlExists`, `UnhealthyCluster`, `NoLeader`, `Timeout`.
    pub async fn member_update(&self, caller: &Caller, request: MemberUpdateRequest) -> Result<MemberUpdateResponse, Error> {
        authorise::allow_operator(caller)?;
        let peer_urls = peer_urls(request.peer_ur_ls)?;
        let known = self.consensus().members().into_iter().find(|known| known.id == request.id);
        let changed = kvasir_consensus::Member { peer_urls, ..known.ok_or(Error::MemberNotFound)?.member };
        self.consensus().update_member(request.id, changed).await?;
        Ok(MemberUpdateResponse { header: Some(self.header_at(0)), members: self.members_now() })
    }

    /// Makes a learner vote (etcd `Cluster.MemberPromote`).
    ///
    /// # Errors
    /// `PermissionDenied`, `MemberNotFound`, `NotLearner`, `LearnerNotReady`, `UnhealthyForReconfiguration`, `UnhealthyCluster`,
    /// `NoLeader`, `Timeout`.
    pub async fn member_promote(&self, caller: &Caller, request: MemberPromoteRequest) -> Result<MemberPromoteResponse, Error> {
        authorise::allow_operator(caller)?;
        self.consensus().promote_member(request.id).await?;
        Ok(MemberPromoteResponse { header: Some(self.header_at(0)), members: self.members_now() })
    }

    /// Lets another voter lead (etcd `Maintenance.MoveLeader`). As in etcd, only the leader is asked.
    ///
    /// # Errors
    /// `PermissionDenied`, `NotLeader`, `BadLeaderTransferee`, `Timeout`.
    pub async fn move_leader(&self, caller: &Caller, request: MoveLeaderRequest) -> Result<MoveLeaderResponse, Error> {
        authorise::allow_operator(caller)?;
        if !self.is_leader() {
            return Err(Error::NotLeader);
        }
        self.consensus().transfer_leader(request.target_id).await?;
        Ok(MoveLeaderResponse { header: Some(self.header()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_have_a_scheme_a_host_and_a_port() {
        let of = |url: &str| peer_urls(vec![url.to_owned()]);
        for good in ["http://a:1", "https://10.0.0.1:2380", "https://[::1]:2380"] {
            assert_eq!(of(good), Ok(vec![good.to_owned()]));
        }
        for bad in ["", "a:1", "ftp://a:1", "https://a", "https://:1", "https://a:99999", "https://a/b:1"] {
            assert_eq!(of(bad), Err(Error::BadMemberUrls), "{bad}");
        }
        assert_eq!(peer_urls(Vec::new()), Err(Error::BadMemberUrls));
    }
}
