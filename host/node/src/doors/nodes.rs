//! kvasir's own service of the cluster: join tokens, how this node stands, and the authority's replacement.
//!
//! **Invariant:** a token's secret leaves this process in the answer to whoever asked for the token, and in no other way.

use kvasir_api::kvasir::cluster::v1::nodes_server::Nodes;
use kvasir_api::kvasir::cluster::v1::{
    CreateTokenRequest, CreateTokenResponse, ListTokensRequest, ListTokensResponse, Member, NodeStatusRequest,
    NodeStatusResponse, Progress, RemoveTokenRequest, RemoveTokenResponse, RotateAuthorityRequest, RotateAuthorityResponse,
    Token,
};
use kvasir_api::{Error, limits};
use kvasir_engine::TokenUsed;
use kvasir_transport::token::JoinToken;
use tonic::{Request, Response, Status};

use super::Door;
use crate::identity::Identity;

impl Door {
    fn identity(&self) -> Result<&Identity, Error> {
        let none = || Error::Precondition("this node has no identity: no other can reach it".to_owned());
        self.identity.as_ref().ok_or_else(none)
    }
}

#[tonic::async_trait]
impl Nodes for Door {
    async fn create_token(&self, request: Request<CreateTokenRequest>) -> Result<Response<CreateTokenResponse>, Status> {
        let ttl_s = match request.into_inner().ttl_s {
            0 => limits::JOIN_TOKEN_TTL_S_DEFAULT,
            ttl_s @ 1..=limits::JOIN_TOKEN_TTL_S_MAX => ttl_s,
            _ => {
                let most = limits::JOIN_TOKEN_TTL_S_MAX / 3_600;
                return Err(Error::Invalid(format!("ttl: a join token is good for at most {most}h")).into());
            }
        };
        let identity = self.identity()?;
        let made = JoinToken::create(identity.pin()?, identity.addresses());
        let token = made.map_err(|error| Error::Internal(format!("the system has no randomness: {error}")))?;
        let text = token.encode().map_err(|error| Error::Precondition(error.to_string()))?;
        let expires_wall_ms = self.engine.token_create(&self.caller, token.id, token.secret_hash(), ttl_s * 1_000).await?;
        Ok(Response::new(CreateTokenResponse { id: token.id, token: text, expires_wall_ms }))
    }

    async fn list_tokens(&self, _: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        let now = self.engine.wall_ms();
        let tokens = self.engine.tokens(&self.caller).await?.into_iter().map(|token| Token {
            id: token.id,
            expires_wall_ms: token.expires_wall_ms,
            node_id: match token.used {
                TokenUsed::No => 0,
                TokenUsed::By { node_id, .. } => node_id,
            },
            expired: token.expires_wall_ms <= now,
        });
        Ok(Response::new(ListTokensResponse { tokens: tokens.collect() }))
    }

    async fn remove_token(&self, request: Request<RemoveTokenRequest>) -> Result<Response<RemoveTokenResponse>, Status> {
        self.engine.token_remove(&self.caller, request.into_inner().id).await?;
        Ok(Response::new(RemoveTokenResponse {}))
    }

    async fn status(&self, _: Request<NodeStatusRequest>) -> Result<Response<NodeStatusResponse>, Status> {
        let raft = self.engine.raft_status();
        let metrics = self.engine.metrics();
        let me = self.engine.node_id();
        let member = |info: kvasir_consensus::MemberInfo| Member {
            id: info.id,
            name: info.member.name,
            peer_urls: info.member.peer_urls,
            client_urls: info.member.client_urls,
            learner: info.learner,
        };
        let members: Vec<Member> = self.engine.members().into_iter().map(member).collect();
        let this = members.iter().find(|member| member.id == me);
        let progress =
            |(node_id, index): (u64, Option<u64>)| Progress { node_id, index: index.unwrap_or(0), unknown: index.is_none() };
        Ok(Response::new(NodeStatusResponse {
            node_id: me,
            cluster_id: self.engine.cluster_id(),
            name: this.map_or_else(String::new, |this| this.name.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            leader: raft.leader.unwrap_or(0),
            term: raft.term,
            last_index: raft.last_log_index,
            applied_index: raft.applied_index,
            revision: self.engine.revision(),
            logical_bytes: metrics.logical_bytes,
            quota_bytes: metrics.quota_bytes,
            learner: this.is_some_and(|this| this.learner),
            certificate_not_after_ms: self.identity.as_ref().map_or(0, Identity::certificate_not_after_ms),
            certificate_overdue: self.identity.as_ref().is_some_and(Identity::is_overdue),
            authorities: self.identity.iter().flat_map(Identity::trusted).map(|print| print.to_vec().into()).collect(),
            rotation: self.identity.as_ref().map_or_else(String::new, Identity::rotation),
            alarms: self
                .engine
                .alarms()
                .into_iter()
                .map(|(member, alarm)| format!("{} ({member:x})", alarm.as_str_name()))
                .collect(),
            progress: if raft.is_leader { self.engine.progress().into_iter().map(progress).collect() } else { Vec::new() },
            members,
        }))
    }

    async fn rotate_authority(&self, _: Request<RotateAuthorityRequest>) -> Result<Response<RotateAuthorityResponse>, Status> {
        let fingerprint = self.identity()?.rotate().await?.to_vec().into();
        Ok(Response::new(RotateAuthorityResponse { fingerprint }))
    }
}
