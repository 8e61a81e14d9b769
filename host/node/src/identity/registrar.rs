//! Answers those who ask to join, and members that ask about certificates.
//!
//! **Invariant:** bytes from somebody without a certificate cost a member a look and, at most, a question to the leader; only a token
//! that is known to be good, on the leader, costs a log entry.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use kvasir_api::kvasir::peer::member_answer::Answer;
use kvasir_api::kvasir::peer::member_ask::Ask;
use kvasir_api::kvasir::peer::refused::Kind;
use kvasir_api::kvasir::peer::{
    AuthorityKey, HandedKey, HashAnswer, IdentityStanding, JoinAnswer, JoinRequest, Joined, Kept, MemberAnswer, MemberAsk,
    Refused, Signed, join_answer,
};
use kvasir_api::{Error, limits};
use kvasir_consensus::{Attendant, Member};
use kvasir_transport::BoxFuture;
use kvasir_transport::identity::{Authority, NodeName, fingerprint, key_hash};
use kvasir_transport::token::secret_hash;
use prost::Message;

use super::{Identity, Source, not_ours};
use crate::config::peers::url_of;

impl Attendant for Identity {
    fn join(&self, request: Bytes) -> BoxFuture<'static, Bytes> {
        let identity = self.clone();
        Box::pin(async move {
            let answer = match JoinRequest::decode(request) {
                Ok(request) => identity.joins(request, true).await,
                Err(error) => refuse(Kind::Request, format!("the request to join is malformed: {error}")),
            };
            Bytes::from(wire(answer).encode_to_vec())
        })
    }

    fn ask(&self, from: u64, request: Bytes) -> BoxFuture<'static, Bytes> {
        let identity = self.clone();
        Box::pin(async move {
            let answer = match MemberAsk::decode(request.clone()).map(|ask| ask.ask) {
                Ok(Some(Ask::Join(request))) => Answer::Join(wire(identity.joins(request, false).await)),
                Ok(Some(Ask::Sign(request))) => identity.sign_for(from, &request.csr),
                Ok(Some(Ask::Key(request))) => identity.key_for(from, &request.fingerprint),
                Ok(Some(Ask::Standing(_))) => Answer::Standing(identity.standing()),
                Ok(Some(Ask::Keep(handed))) => identity.keep_key(handed).await,
                Ok(Some(Ask::Hash(ask))) => match identity.inner.engine.member_hash(ask.revision) {
                    Some(Ok(hash)) => Answer::Hash(HashAnswer { hash }),
                    Some(Err(error)) => refused(Kind::Request, error.to_string()),
                    None => refused(Kind::TryAgain, "it is not known yet"),
                },
                // What is none of these may be the plugin host's: its questions have other fields.
                Ok(None) if identity.inner.plugins.get().is_some() => {
                    return identity.inner.plugins.get().map(|plugins| plugins.answer(&request)).unwrap_or_default();
                }
                Ok(None) | Err(_) => refused(Kind::Request, "a question that this kvasir does not know"),
            };
            Bytes::from(MemberAnswer { answer: Some(answer) }.encode_to_vec())
        })
    }

    fn prepare_voter(&self, node: u64) -> BoxFuture<'static, Result<(), String>> {
        let identity = self.clone();
        Box::pin(async move { identity.hand_keys(node).await })
    }
}

/// Why somebody may not join.
fn refuse<T>(kind: Kind, reason: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { kind: kind.into(), reason: reason.into() })
}

fn refused(kind: Kind, reason: impl Into<String>) -> Answer {
    Answer::Refused(Refused { kind: kind.into(), reason: reason.into() })
}

fn wire(answer: Result<Joined, Refused>) -> JoinAnswer {
    let answer = match answer {
        Ok(joined) => join_answer::Answer::Joined(joined),
        Err(refused) => join_answer::Answer::Refused(refused),
    };
    JoinAnswer { answer: Some(answer) }
}

/// What a token was refused with, or what stood in the way of using it.
fn of_token(error: Error) -> Refused {
    let kind = match error {
        Error::Missing(_) | Error::Precondition(_) | Error::Invalid(_) => Kind::Token,
        _ => Kind::TryAgain,
    };
    Refused { kind: kind.into(), reason: error.to_string() }
}

impl Identity {
    /// Lets somebody with a token in: here, on the leader, or by the leader if it may be passed on.
    async fn joins(&self, request: JoinRequest, pass_on: bool) -> Result<Joined, Refused> {
        let engine = &self.inner.engine;
        if engine.is_leader() {
            return self.admit(request).await;
        }
        let Some(leader) = engine.leader().filter(|_| pass_on) else {
            return refuse(Kind::TryAgain, "the cluster has no leader at the moment");
        };
        let passed_on = self.ask::<MemberAnswer>(leader, MemberAsk { ask: Some(Ask::Join(request)) }).await;
        match passed_on.map(|answer| answer.answer) {
            Ok(Some(Answer::Join(JoinAnswer { answer: Some(join_answer::Answer::Joined(joined)) }))) => Ok(joined),
            Ok(Some(Answer::Join(JoinAnswer { answer: Some(join_answer::Answer::Refused(refused)) }))) => Err(refused),
            Ok(_) => refuse(Kind::TryAgain, "the leader is not ready"),
            Err(why) => refuse(Kind::TryAgain, format!("the leader cannot be asked: {why}")),
        }
    }

    /// Lets somebody with a token in, as the leader.
    async fn admit(&self, request: JoinRequest) -> Result<Joined, Refused> {
        let engine = &self.inner.engine;
        if let Source::Operator(_) = self.inner.source {
            return refuse(Kind::OtherAuthority, not_ours().to_string());
        }
        let key = key_hash(&request.csr).or_else(|error| refuse(Kind::Request, error.to_string()))?;
        let (id, secret) = (request.token_id, secret_hash(&request.secret));
        let member = checked(&request).or_else(|why| refuse(Kind::Request, why))?;

        let _one_at_a_time = self.inner.joins.lock().await;
        engine.token_check(id, secret, key).map_err(of_token)?;
        let Some(authority) = self.signing_authority() else {
            return refuse(
                Kind::TryAgain,
                "the leader has not got the key of the cluster's authority; if no voter has it, make another authority with \
                 `kvasir cert rotate-authority`",
            );
        };
        // Before the token is used up, and again after a lost answer, when the member with that name is the asker itself.
        self.is_free(&member, engine.token_node(id))?;
        let (node_id, joined) = engine.token_use(id, secret, key, false).await.map_err(of_token)?;
        let is_member = engine.members().iter().any(|info| info.id == node_id);
        if joined && !is_member {
            return refuse(
                Kind::Token,
                format!(
                    "node {node_id:x} has joined with this token and was removed; make another with `kvasir token create`, and give an empty --data-dir"
                ),
            );
        }
        if !is_member {
            engine.admit(node_id, member).await.or_else(|error| refuse(Kind::TryAgain, error.to_string()))?;
            tracing::info!(node = format_args!("{node_id:x}"), name = request.name, "a node joins");
        }
        if !joined {
            engine.token_use(id, secret, key, true).await.map_err(of_token)?;
        }
        let name = NodeName { cluster: engine.cluster_id(), node: node_id };
        let certificate = authority
            .sign(&request.csr, name, SystemTime::now(), self.inner.certificate_life)
            .or_else(|error| refuse(Kind::Request, error.to_string()))?;
        let roots = self.agreed_roots().unwrap_or_else(|| self.held().credentials.roots().to_vec());
        Ok(Joined {
            node_id,
            cluster_id: name.cluster,
            certificate: certificate.to_vec().into(),
            roots: roots.iter().map(|root| root.to_vec().into()).collect(),
        })
    }

    /// Whether no other member has this name or one of these addresses.
    fn is_free(&self, wanted: &Member, asker: Option<u64>) -> Result<(), Refused> {
        for info in self.inner.engine.members().into_iter().filter(|info| Some(info.id) != asker) {
            let (id, name) = (info.id, &info.member.name);
            if *name == wanted.name {
                return refuse(
                    Kind::Request,
                    format!(
                        "member {id:x} is named {name:?} already: give another --name, or remove it with `kvasir member remove {id:x}`"
                    ),
                );
            }
            if let Some(url) = wanted.peer_urls.iter().find(|url| info.member.peer_urls.contains(url)) {
                return refuse(
                    Kind::Request,
                    format!("member {id:x} ({name}) is at {url} already: give another --initial-advertise-peer-urls"),
                );
            }
        }
        Ok(())
    }

    /// A new certificate for a member, for the id that its connection has proved.
    fn sign_for(&self, node: u64, csr: &[u8]) -> Answer {
        if !self.inner.engine.members().iter().any(|info| info.id == node) {
            return refused(Kind::Request, format!("node {node:x} is not a member"));
        }
        let Some(authority) = self.signing_authority() else {
            return refused(Kind::TryAgain, "this member has not got the authority's key");
        };
        let name = NodeName { cluster: self.inner.engine.cluster_id(), node };
        match authority.sign(csr, name, SystemTime::now(), self.inner.certificate_life) {
            Ok(certificate) => Answer::Signed(Signed { certificate: certificate.to_vec().into() }),
            Err(error) => refused(Kind::Request, error.to_string()),
        }
    }

    /// An authority's key, for a voter.
    fn key_for(&self, node: u64, wanted: &[u8]) -> Answer {
        if !self.is_voter(node) {
            return refused(Kind::Request, format!("node {node:x} is not a voter as far as this member knows"));
        }
        let held: Vec<Arc<_>> = self.held().authorities;
        match held.iter().find(|authority| fingerprint(authority.certificate())[..] == *wanted) {
            Some(authority) => Answer::Key(AuthorityKey { key: authority.key_pem() }),
            None => refused(Kind::TryAgain, "this member has not got that key"),
        }
    }

    /// Has a learner keep the keys of the authorities, as the leader that is about to make it a voter.
    async fn hand_keys(&self, node: u64) -> Result<(), String> {
        if let Source::Operator(_) = self.inner.source {
            return Ok(());
        }
        if self.signing_authority().is_none() {
            return Err("this leader has not got the key of the cluster's authority".to_owned());
        }
        let held = self.held();
        // One that was made and never came to be trusted is nobody's.
        let trusted = held.authorities.iter().filter(|authority| held.credentials.roots().contains(authority.certificate()));
        for authority in trusted {
            let fingerprint = Bytes::from(fingerprint(authority.certificate()).to_vec());
            let handed = HandedKey { fingerprint, key: authority.key_pem() };
            let request = MemberAsk { ask: Some(Ask::Keep(handed)) };
            match self.ask::<MemberAnswer>(node, request).await?.answer {
                Some(Answer::Kept(_)) => {}
                Some(Answer::Refused(refused)) => return Err(refused.reason),
                _ => return Err("it is not ready".to_owned()),
            }
        }
        Ok(())
    }

    /// Keeps a key that a member hands on, if it is that of an authority this node trusts.
    async fn keep_key(&self, handed: HandedKey) -> Answer {
        let Source::Cluster(folder) = &self.inner.source else {
            return refused(Kind::OtherAuthority, not_ours().to_string());
        };
        let _one_at_a_time = self.inner.changes.lock().await;
        let credentials = self.held().credentials;
        let Some(root) = credentials.roots().iter().find(|root| fingerprint(root)[..] == *handed.fingerprint) else {
            return refused(Kind::TryAgain, "it does not trust the authority yet whose key it is given");
        };
        if self.authority_of(root).is_some() {
            return Answer::Kept(Kept {});
        }
        let authority = match Authority::load(root.clone(), &handed.key) {
            Ok(authority) => authority,
            Err(error) => return refused(Kind::Request, format!("the key is not that of the authority: {error}")),
        };
        match self.add_authority(folder, Arc::new(authority)).await {
            Ok(()) => Answer::Kept(Kept {}),
            Err(error) => refused(Kind::TryAgain, error),
        }
    }

    /// How far this node has followed a change of authorities.
    pub(super) fn standing(&self) -> IdentityStanding {
        let held = self.held();
        let print = |certificate: &_| Bytes::from(fingerprint(certificate).to_vec());
        IdentityStanding {
            trusted: held.credentials.roots().iter().map(print).collect(),
            issuer: print(held.credentials.issuer()),
            keys: held.authorities.iter().map(|authority| print(authority.certificate())).collect(),
        }
    }
}

/// The member that somebody says to be.
fn checked(request: &JoinRequest) -> Result<Member, String> {
    let JoinRequest { name, peer_urls, client_urls, learner, command_version, .. } = request;
    if name.is_empty() || name.len() > limits::MEMBER_NAME_BYTES_MAX {
        return Err("a member has a name: give --name".to_owned());
    }
    let too_many = |urls: &Vec<String>| urls.len() > limits::MEMBER_URLS_MAX;
    let too_long = |url: &String| url.len() > limits::MEMBER_URL_BYTES_MAX;
    if too_many(peer_urls) || too_many(client_urls) || client_urls.iter().any(too_long) {
        let most = limits::MEMBER_URLS_MAX;
        return Err(format!("a member has at most {most} URLs for peers and as many for clients: give fewer, or shorter ones"));
    }
    if peer_urls.is_empty() {
        return Err("a member has a URL for peers: give --initial-advertise-peer-urls".to_owned());
    }
    let peer_urls = peer_urls
        .iter()
        .map(|url| url_of(url).map_err(|error| format!("--initial-advertise-peer-urls {url:?} {error}")))
        .collect::<Result<_, _>>()?;
    Ok(Member {
        name: name.clone(),
        peer_urls,
        client_urls: client_urls.clone(),
        promote: !learner,
        command_version: *command_version,
    })
}
