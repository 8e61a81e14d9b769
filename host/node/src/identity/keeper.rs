//! Looks after the node's own certificate while it runs: renews it in time, follows a change of authorities, gets the authorities'
//! keys once the node votes, reads the operator's files again when they change, and cuts off who was removed.
//!
//! **Invariant:** what cannot be had is tried again after a pause and never ends the node; what is held was on disk before.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kvasir_api::kvasir::peer::member_answer::Answer;
use kvasir_api::kvasir::peer::member_ask::Ask;
use kvasir_api::kvasir::peer::{KeyRequest, MemberAnswer, MemberAsk, SignRequest};
use kvasir_api::limits;
use kvasir_transport::identity::{Authority, CertificateDer, Credentials, Folder, OperatorFiles, fingerprint};
use tokio::sync::watch as flag;
use tokio::time::Instant;

use super::{Identity, Source, blocking};
use crate::doors::stopped;

/// After something failed, and between two looks at how far the others are.
const PAUSE: Duration = Duration::from_secs(2);

/// What was seen last.
#[derive(Default)]
struct Seen {
    members: BTreeSet<u64>,
    marks: Option<[Option<(SystemTime, u64)>; 3]>,
    /// Not before this is a failed attempt made again.
    again: Option<Instant>,
    rotation_looked: Option<Instant>,
    complaint: String,
}

impl Seen {
    fn may_try(&self) -> bool {
        self.again.is_none_or(|again| Instant::now() >= again)
    }

    /// Notes how an attempt went; the same complaint is logged once.
    fn note(&mut self, what: &str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.again = None;
                self.complaint.clear();
            }
            Err(why) => {
                self.again = Some(Instant::now() + PAUSE);
                let complaint = format!("{what}: {why}");
                if complaint != self.complaint {
                    tracing::warn!("{complaint}");
                    self.complaint = complaint;
                }
            }
        }
    }
}

impl Identity {
    /// Looks after the identity until the node stops.
    pub(crate) async fn keep(self, mut stopping: flag::Receiver<bool>) {
        let mut seen = Seen::default();
        loop {
            self.look(&mut seen).await;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(limits::IDENTITY_LOOK_INTERVAL_MS)) => {}
                () = stopped(&mut stopping) => return,
            }
        }
    }

    async fn look(&self, seen: &mut Seen) {
        self.cut_off_removed(seen);
        match self.inner.source.clone() {
            Source::Operator(files) => self.read_again(&files, seen).await,
            Source::Cluster(folder) => {
                if seen.may_try() {
                    let kept = self.keep_fresh(&folder).await;
                    seen.note("the node's identity could not be brought up to date", kept);
                }
                let looked = seen.rotation_looked.is_some_and(|at| at.elapsed() < PAUSE);
                if self.inner.engine.is_leader() && !looked {
                    seen.rotation_looked = Some(Instant::now());
                    self.advance_rotation().await;
                }
            }
        }
    }

    /// Ends the connections of nodes that are members no more; at the door they are refused from then on.
    fn cut_off_removed(&self, seen: &mut Seen) {
        let members: BTreeSet<u64> = self.inner.engine.members().iter().map(|info| info.id).collect();
        for removed in seen.members.difference(&members) {
            tracing::info!(node = format_args!("{removed:x}"), "a member was removed");
            self.inner.quic.expel(*removed, &format!("node {removed:016x} was removed from the cluster"));
        }
        seen.members = members;
    }

    async fn read_again(&self, files: &OperatorFiles, seen: &mut Seen) {
        let marks = files.marks();
        let first = seen.marks.is_none();
        if seen.marks.as_ref() == Some(&marks) || !seen.may_try() {
            return;
        }
        if first {
            seen.marks = Some(marks);
            return;
        }
        let read = files.clone();
        let before = self.held().credentials;
        let taken = blocking(move || read.read()).await.and_then(|credentials| self.hold(credentials));
        if taken.is_ok() {
            seen.marks = Some(marks);
            tracing::info!("the node's certificate was read again");
            let roots = self.held().credentials.roots().to_vec();
            if before.roots().iter().any(|root| !roots.contains(root)) {
                // Whoever is connected by it must show another certificate.
                self.inner.quic.reconnect("an authority is trusted no more");
            }
        }
        seen.note(
            "the changed --peer-cert-file, --peer-key-file and --peer-trusted-ca-file cannot be used, the old stay in use",
            taken,
        );
    }

    /// Follows the authorities, gets their keys, renews the certificate: whichever is due.
    async fn keep_fresh(&self, folder: &Folder) -> Result<(), String> {
        let _one_at_a_time = self.inner.changes.lock().await;
        if let Some(roots) = self.agreed_roots()
            && roots != self.held().credentials.roots()
        {
            self.trust(folder, roots).await?;
        }
        // A key that cannot be had does not keep the certificate from being renewed.
        let fetched = if self.is_voter(self.inner.engine.node_id()) { self.fetch_keys(folder).await } else { Ok(()) };
        let held = self.held().credentials;
        let signed_by_current = self.signing_root().is_none_or(|root| *held.issuer() == root);
        if held.is_due(SystemTime::now()) || !signed_by_current {
            self.renew(folder, &held).await?;
        }
        fetched
    }

    async fn store(&self, folder: &Folder, credentials: &Credentials) -> Result<(), String> {
        let copy = credentials.trusting(credentials.roots().to_vec()).map_err(|error| error.to_string())?;
        let folder = folder.clone();
        blocking(move || folder.store(&copy)).await
    }

    /// Trusts these authorities from now on, and no others.
    async fn trust(&self, folder: &Folder, roots: Vec<CertificateDer<'static>>) -> Result<(), String> {
        let held = self.held().credentials;
        let dropped = held.roots().iter().any(|root| !roots.contains(root));
        let credentials = match held.trusting(roots.clone()) {
            Ok(credentials) => credentials,
            // It is of one that is trusted no more: the change went on without this node.
            Err(_) => self.certified(&held, roots).await?,
        };
        self.store(folder, &credentials).await?;
        self.hold(credentials)?;
        // A key of this node's own making lies in the folder from before its certificate was trusted.
        let files = folder.clone();
        let authorities = blocking(move || {
            let authorities = files.authorities()?;
            if dropped && !authorities.is_empty() {
                files.store_authorities(&authorities)?;
            }
            Ok(authorities)
        });
        self.hold_authorities(authorities.await?.into_iter().map(Arc::new).collect());
        if dropped {
            self.inner.quic.reconnect("an authority is trusted no more");
        }
        Ok(())
    }

    /// Gets the keys of the authorities that this voter has not got: of those that were made since it votes.
    async fn fetch_keys(&self, folder: &Folder) -> Result<(), String> {
        let mut missing = Ok(());
        let roots = self.held().credentials.roots().to_vec();
        for root in roots {
            if self.authority_of(&root).is_some() {
                continue;
            }
            let wanted = fingerprint(&root).to_vec();
            let mut last = "there is no other voter".to_owned();
            for voter in self.other_voters() {
                let request = MemberAsk { ask: Some(Ask::Key(KeyRequest { fingerprint: wanted.clone().into() })) };
                match self.ask::<MemberAnswer>(voter, request).await.map(|answer| answer.answer) {
                    Ok(Some(Answer::Key(key))) => match Authority::load(root.clone(), &key.key) {
                        Ok(authority) => {
                            self.add_authority(folder, Arc::new(authority)).await?;
                            tracing::info!("this voter has the key of the cluster's authority");
                            break;
                        }
                        Err(error) => last = error.to_string(),
                    },
                    Ok(Some(Answer::Refused(refused))) => last = refused.reason,
                    Ok(_) => last = "it is not ready".to_owned(),
                    Err(why) => last = why,
                }
            }
            if self.authority_of(&root).is_none() {
                missing = Err(format!("the authority's key cannot be had: {last}"));
            }
        }
        missing
    }

    /// Keeps one more authority's key: on disk, then in hand.
    pub(super) async fn add_authority(&self, folder: &Folder, authority: Arc<Authority>) -> Result<(), String> {
        let mut authorities = self.held().authorities;
        authorities.push(authority);
        let (files, all) = (folder.clone(), authorities.clone());
        blocking(move || files.store_authorities(all.iter().map(|authority| &**authority))).await?;
        self.hold_authorities(authorities);
        Ok(())
    }

    async fn renew(&self, folder: &Folder, held: &Credentials) -> Result<(), String> {
        let credentials = self.certified(held, held.roots().to_vec()).await?;
        self.store(folder, &credentials).await?;
        let until = credentials.not_after();
        self.hold(credentials)?;
        let until = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        tracing::info!(
            "the node's certificate is renewed until {}",
            crate::clock::utc(u64::try_from(until).unwrap_or(u64::MAX))
        );
        Ok(())
    }

    /// A new certificate for the node's key: signed here, by a voter that has the key, or by one that is asked.
    async fn certified(&self, held: &Credentials, roots: Vec<CertificateDer<'static>>) -> Result<Credentials, String> {
        let csr = held.key().request().map_err(|error| error.to_string())?;
        if let Some(authority) = self.signing_authority() {
            let certificate = authority
                .sign(&csr, held.name(), SystemTime::now(), self.inner.certificate_life)
                .map_err(|error| error.to_string())?;
            return held.certified(certificate, roots).map_err(|error| error.to_string());
        }
        let mut last = "there is no voter to ask".to_owned();
        for voter in self.other_voters() {
            let request = MemberAsk { ask: Some(Ask::Sign(SignRequest { csr: csr.clone().into() })) };
            match self.ask::<MemberAnswer>(voter, request).await.map(|answer| answer.answer) {
                Ok(Some(Answer::Signed(signed))) => {
                    let certificate = CertificateDer::from(signed.certificate.to_vec());
                    match held.certified(certificate, roots.clone()) {
                        Ok(credentials) if credentials.name() == held.name() => return Ok(credentials),
                        Ok(_) => last = "the certificate is for another node".to_owned(),
                        Err(error) => last = error.to_string(),
                    }
                }
                Ok(Some(Answer::Refused(refused))) => last = refused.reason,
                Ok(_) => last = "it is not ready".to_owned(),
                Err(why) => last = why,
            }
        }
        Err(format!("no voter has signed a certificate: {last}"))
    }
}
