//! The side of the node that joins: asks with its token until the cluster answers.
//!
//! **Invariant:** the key is on disk before it is shown, so that whoever asks again after a lost answer is the same node.

use std::time::Duration;

use bytes::Bytes;
use kvasir_api::kvasir::peer::join_answer::Answer;
use kvasir_api::kvasir::peer::refused::Kind;
use kvasir_api::kvasir::peer::{JoinAnswer, JoinRequest, Joined};
use kvasir_api::limits;
use kvasir_consensus::Member;
use kvasir_transport::identity::{CertificateDer, Credentials, Folder, NodeKey, NodeName, fingerprint};
use kvasir_transport::quic::{JoinFailed, QuicOptions, join as ask};
use kvasir_transport::token::JoinToken;
use prost::Message;

use super::blocking;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Joins, and stores what the cluster gives.
///
/// # Errors
/// One line: who refused, why, and what to do.
pub(super) async fn join(folder: &Folder, token: &JoinToken, learner: bool, me: &Member) -> Result<Credentials, String> {
    let files = folder.clone();
    let key = blocking(move || files.key()).await?;
    let request = JoinRequest {
        csr: key.request().map_err(|error| error.to_string())?.into(),
        token_id: token.id,
        secret: token.secret.to_vec().into(),
        name: me.name.clone(),
        peer_urls: me.peer_urls.clone(),
        client_urls: me.client_urls.clone(),
        learner,
        command_version: me.command_version,
    };
    let request = Bytes::from(request.encode_to_vec());
    let deadline = tokio::time::Instant::now() + Duration::from_millis(limits::JOIN_TIMEOUT_MS);
    let mut said = String::new();
    let joined = loop {
        let why = match ask(&token.addresses, token.fingerprint, request.clone(), &QuicOptions::default()).await {
            Ok(answer) => match read(answer)? {
                Ok(joined) => break joined,
                Err(try_again) => try_again,
            },
            Err(JoinFailed::Unreachable { addresses, why }) => {
                format!("no member of the cluster can be reached at {addresses}: {why}")
            }
            Err(error @ JoinFailed::OtherCluster { .. }) => {
                return Err(format!(
                    "cannot join: {error}; use a token of that cluster, made since its authority was last replaced"
                ));
            }
        };
        if tokio::time::Instant::now() >= deadline {
            return Err(format!("cannot join: {why}; start it again with the same token and folder to go on"));
        }
        if why != said {
            tracing::warn!("cannot join yet: {why}");
            said = why;
        }
        tokio::time::sleep(PAUSE).await;
    };
    let credentials = credentials(key, joined, token)?;
    let (files, stored) = (folder.clone(), credentials.trusting(credentials.roots().to_vec()));
    let stored = stored.map_err(|error| error.to_string())?;
    blocking(move || files.store(&stored)).await?;
    tracing::info!(node = %credentials.name(), "joined the cluster");
    Ok(credentials)
}

/// What the cluster gave, or why to ask again.
fn read(answer: Bytes) -> Result<Result<Joined, String>, String> {
    let answer = JoinAnswer::decode(answer).ok().and_then(|answer| answer.answer);
    match answer {
        Some(Answer::Joined(joined)) => Ok(Ok(joined)),
        Some(Answer::Refused(refused)) => match refused.kind() {
            Kind::TryAgain => Ok(Err(refused.reason)),
            Kind::Token | Kind::Request | Kind::OtherAuthority => Err(format!("cannot join: {}", refused.reason)),
        },
        // A member that has only just started has nobody behind its door yet.
        None => Ok(Err("the member that was asked is not ready".to_owned())),
    }
}

fn credentials(key: NodeKey, joined: Joined, token: &JoinToken) -> Result<Credentials, String> {
    let wrong = |why: &str| format!("cannot join: the cluster's answer is not valid: {why}");
    let roots: Vec<_> = joined.roots.iter().map(|root| CertificateDer::from(root.to_vec())).collect();
    if !roots.iter().any(|root| fingerprint(root) == token.fingerprint) {
        return Err(wrong("the authority that the token names is not in it"));
    }
    let certificate = CertificateDer::from(joined.certificate.to_vec());
    let credentials = Credentials::new(key, certificate, roots).map_err(|error| wrong(&error.to_string()))?;
    if credentials.name() != (NodeName { cluster: joined.cluster_id, node: joined.node_id }) {
        return Err(wrong("the certificate is for another node"));
    }
    Ok(credentials)
}
