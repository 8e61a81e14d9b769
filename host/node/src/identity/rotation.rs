//! Replaces the cluster's authority while the cluster serves, in steps that the leader takes when every member has followed:
//!
//! 1. A voter makes a new authority. The members learn its certificate from the log and trust old and new; voters get its key.
//! 2. Once they all do, the new one signs: members renew their certificates.
//! 3. Once they all have, the old one is trusted no more.
//!
//! A member that is down holds the change up, and nothing else: it goes on when the member is back, or was removed.
//!
//! **Invariant:** at every step each member trusts the certificate of every other.

use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::kvasir::peer::member_answer::Answer;
use kvasir_api::kvasir::peer::member_ask::Ask;
use kvasir_api::kvasir::peer::{IdentityStanding, MemberAnswer, MemberAsk, StandingRequest};
use kvasir_engine::Authorities;
use kvasir_transport::identity::{Authority, CertificateDer, fingerprint};

use super::{Identity, Source, not_ours};

impl Identity {
    /// Begins to replace the authority; the leader's keeper does the rest. Answers with the new one's fingerprint.
    ///
    /// # Errors
    /// When certificates are the operator's own, this node does not vote, or a change is past its first step.
    pub(crate) async fn rotate(&self) -> Result<[u8; 32], Error> {
        let Source::Cluster(folder) = &self.inner.source else { return Err(not_ours()) };
        let engine = &self.inner.engine;
        if !self.is_voter(engine.node_id()) {
            return Err(Error::Precondition("this member does not vote and has no authority's key: ask a voter".to_owned()));
        }
        let _one_at_a_time = self.inner.changes.lock().await;
        engine.linearize().await?;
        let agreed = engine.authorities();
        if agreed.as_ref().is_some_and(|agreed| agreed.roots.len() > 1 && agreed.signing > 0) {
            let reason = format!("the authority is being replaced: {}", self.rotation());
            return Err(Error::Precondition(reason));
        }
        let internal = |error: String| Error::Internal(error);
        let fresh = Authority::create(engine.cluster_id(), SystemTime::now()).map_err(|error| internal(error.to_string()))?;
        let print = fingerprint(fresh.certificate());
        let root = Bytes::from(fresh.certificate().to_vec());
        let current = match &agreed {
            Some(agreed) => agreed.roots[agreed.signing].clone(),
            None => Bytes::from(self.held().credentials.roots()[0].to_vec()),
        };
        // The key first: what the members are told to trust must not be lost with this process.
        self.add_authority(folder, Arc::new(fresh)).await.map_err(internal)?;
        engine.set_authorities(agreed.map_or(0, |agreed| agreed.epoch), vec![current, root], 0).await?;
        Ok(print)
    }

    /// The change under way, in words; empty when there is none.
    pub(crate) fn rotation(&self) -> String {
        let Some(agreed) = self.inner.engine.authorities().filter(|agreed| agreed.roots.len() > 1) else {
            return String::new();
        };
        let step = match agreed.signing {
            0 => "members learn to trust the new authority",
            _ => "members renew their certificates",
        };
        let waiting = self.inner.waiting_for.read().unwrap_or_else(PoisonError::into_inner).clone();
        if waiting.is_empty() { step.to_owned() } else { format!("{step}; waiting for {waiting}") }
    }

    /// Takes the next step if every member is ready for it.
    pub(super) async fn advance_rotation(&self) {
        let agreed = self.inner.engine.authorities().filter(|agreed| agreed.roots.len() > 1);
        let mut waiting = Vec::new();
        if let Some(agreed) = agreed {
            for info in self.inner.engine.members() {
                let standing = self.standing_of(info.id).await;
                if !standing.is_some_and(|standing| has_followed(&standing, &agreed, info.learner)) {
                    waiting.push(format!("{} ({:x})", info.member.name, info.id));
                }
            }
            if waiting.is_empty() {
                let next = match agreed.signing {
                    0 => self.inner.engine.set_authorities(agreed.epoch, agreed.roots, 1).await,
                    signing => self.inner.engine.set_authorities(agreed.epoch, vec![agreed.roots[signing].clone()], 0).await,
                };
                match next {
                    Ok(_) => tracing::info!("the replacement of the cluster's authority goes on: every member has followed"),
                    Err(error) => tracing::warn!(%error, "the replacement of the cluster's authority does not go on yet"),
                }
            }
        }
        *self.inner.waiting_for.write().unwrap_or_else(PoisonError::into_inner) = waiting.join(", ");
    }

    async fn standing_of(&self, node: u64) -> Option<IdentityStanding> {
        if node == self.inner.engine.node_id() {
            return Some(self.standing());
        }
        let request = MemberAsk { ask: Some(Ask::Standing(StandingRequest {})) };
        match self.ask::<MemberAnswer>(node, request).await.ok()?.answer? {
            Answer::Standing(standing) => Some(standing),
            _ => None,
        }
    }
}

/// Whether a member is ready for the step after this one.
fn has_followed(standing: &IdentityStanding, agreed: &Authorities, learner: bool) -> bool {
    let prints: Vec<Bytes> =
        agreed.roots.iter().map(|root| Bytes::from(fingerprint(&CertificateDer::from(root.to_vec())).to_vec())).collect();
    let trusts = prints.iter().all(|print| standing.trusted.contains(print));
    match agreed.signing {
        // The key of the one that goes may be lost: this is how to do without it.
        0 => trusts && (learner || prints[1..].iter().all(|print| standing.keys.contains(print))),
        signing => trusts && standing.issuer == prints[signing],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_waits_for_trust_then_keys_of_voters_then_certificates() {
        let roots = [Bytes::from_static(b"old"), Bytes::from_static(b"new")];
        let print = |root: &Bytes| Bytes::from(fingerprint(&CertificateDer::from(root.to_vec())).to_vec());
        let [old, new] = [print(&roots[0]), print(&roots[1])];
        let first = Authorities { epoch: 1, roots: roots.to_vec(), signing: 0 };
        let mut standing = IdentityStanding { trusted: vec![old.clone()], issuer: old.clone(), keys: vec![old] };
        assert!(!has_followed(&standing, &first, true));
        standing.trusted.push(new.clone());
        assert!(has_followed(&standing, &first, true) && !has_followed(&standing, &first, false));
        standing.keys = vec![new.clone()];
        assert!(has_followed(&standing, &first, false));
        let second = Authorities { signing: 1, ..first };
        assert!(!has_followed(&standing, &second, false));
        standing.issuer = new;
        assert!(has_followed(&standing, &second, false));
    }
}
