//! Leases: grant, renew, revoke, ask; and their expiry.
//!
//! A renewal is answered after it was replicated: every keepalive that waits shares the next `LeaseRenew` entry, and there is no
//! timer, so that one entry serves as many as came while the last one was under way. The answer is at once the proof of
//! leadership, and the deadline stands in the state of every member; a lease is therefore neither early nor late across a change
//! of leader, where etcd refreshes every lease in full (etcd issues 9395, 13294).
//!
//! Any member answers: its proposals reach the leader, and what the leader decided is applied here before the answer. Only the
//! leader ends leases, in its term.
//!
//! A deadline counts from the stamp of the entry, a client counts from the reply; [`crate::slack`] is what lies between them. It is
//! in the entry, so that a lease that a member was slow to answer for is not ended early by a leader that does not know.
//!
//! **Invariant:** a lease that has expired is not renewed here: its keepalive waits for the revocation and is answered 0.

use std::time::{Duration, Instant};

use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::command::{LeaseGrant, LeaseRenew, LeaseRevoke, Tick};
use kvasir_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use kvasir_api::limits::{LEASE_RENEW_BATCH_MAX, LEASE_RENEW_QUEUE_MAX, LEASE_REVOKE_BATCH_MAX, LEASE_TTL_MAX_S};
use kvasir_consensus::Mutant;
use kvasir_machine::Reply;
use tokio::sync::{mpsc, oneshot};

use crate::authorise;
use crate::caller::Caller;
use crate::engine::Engine;
use crate::write::unexpected;

/// How long a revocation that failed waits for its next try, in milliseconds.
const RETRY_MS: u64 = 50;
/// How often what was answered too late is tried with more slack.
const ANSWER_TRIES: usize = 4;

/// A keepalive that waits for its renewal.
pub(crate) struct Renewal {
    id: i64,
    /// Its TTL in seconds, 0 when there is no such lease.
    renewed: oneshot::Sender<Result<i64, Error>>,
}

pub(crate) type Renewals = mpsc::Sender<Renewal>;

pub(crate) fn renewals() -> (Renewals, mpsc::Receiver<Renewal>) {
    mpsc::channel(LEASE_RENEW_QUEUE_MAX)
}

/// Where a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Missing,
    Alive { ttl_s: i64, left_ms: u64 },
    Expired,
}

impl Engine {
    fn lease_standing(&self, caller: &Caller, id: i64) -> Standing {
        let now_ms = self.cluster_ms();
        let state = self.consensus().state().read();
        match state.lease(id).filter(|lease| lease.tenant == caller.tenant) {
            None => Standing::Missing,
            Some(lease) if lease.deadline_ms <= now_ms => Standing::Expired,
            Some(lease) => {
                // The slack is not promised to anybody.
                let ttl_ms = u64::try_from(lease.ttl_s).unwrap_or(0).saturating_mul(1_000);
                Standing::Alive { ttl_s: lease.ttl_s, left_ms: lease.deadline_ms.saturating_sub(now_ms).min(ttl_ms) }
            }
        }
    }

    /// Grants a lease (etcd `Lease.LeaseGrant`); with id 0 the id is chosen here.
    ///
    /// # Errors
    /// `LeaseTtlTooLarge`, `LeaseExists`, `NoSpace`, `PermissionDenied`, and what a proposal can fail with.
    pub async fn lease_grant(&self, caller: &Caller, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Error> {
        if request.ttl > LEASE_TTL_MAX_S {
            return Err(Error::LeaseTtlTooLarge);
        }
        let id = if request.id == 0 { self.fresh_lease_id()? } else { request.id };
        for _ in 0..ANSWER_TRIES {
            let (slack_ms, began) = (self.inner().slack.ask_ms(), Instant::now());
            match self.submit(caller, Body::LeaseGrant(LeaseGrant { id, ttl_s: request.ttl, slack_ms })).await? {
                Reply::LeaseGrant { revision, id, ttl_s } => {
                    // It may have ended before anybody was told of it: then it is granted anew.
                    if !self.inner().slack.covers(slack_ms, began.elapsed()) && self.renewed(id).await? == 0 {
                        continue;
                    }
                    self.inner().counters.leases_granted.add(1);
                    let header = Some(self.header_at(revision));
                    return Ok(LeaseGrantResponse { header, id, ttl: ttl_s, error: String::new() });
                }
                reply => return Err(unexpected(&reply)),
            }
        }
        Err(Error::Timeout)
    }

    /// A random positive id that no lease has.
    fn fresh_lease_id(&self) -> Result<i64, Error> {
        let state = self.consensus().state().read();
        loop {
            let random = getrandom::u64().map_err(|error| Error::Internal(format!("no random numbers: {error}")))?;
            let id = i64::try_from(random >> 1).unwrap_or(0);
            if id != 0 && state.lease(id).is_none() {
                return Ok(id);
            }
        }
    }

    /// Revokes a lease and deletes its keys (etcd `Lease.LeaseRevoke`).
    ///
    /// # Errors
    /// `LeaseNotFound`, `PermissionDenied`, and what a proposal can fail with.
    pub async fn lease_revoke(&self, caller: &Caller, request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Error> {
        let revoke = LeaseRevoke { ids: vec![request.id], expiry_term: 0 };
        match self.submit(caller, Body::LeaseRevoke(revoke)).await? {
            Reply::LeaseRevoke { revision, .. } => {
                self.inner().counters.leases_revoked.add(1);
                Ok(LeaseRevokeResponse { header: Some(self.header_at(revision)) })
            }
            reply => Err(unexpected(&reply)),
        }
    }

    /// Renews a lease (one request of etcd's `Lease.LeaseKeepAlive`); TTL 0 says that there is no such lease.
    ///
    /// # Errors
    /// `PermissionDenied`, `NoLeader`, `LeaderChanged`, `Timeout`, `TooManyRequests`.
    pub async fn lease_keep_alive(&self, caller: &Caller, id: i64) -> Result<LeaseKeepAliveResponse, Error> {
        authorise::allow_leases(caller)?;
        // etcd takes the header before the renewal.
        let header = Some(self.header());
        let answer = |ttl| Ok(LeaseKeepAliveResponse { header, id, ttl });
        if self.lease_standing(caller, id) == Standing::Missing {
            // Only a leader that still is one may say that there is none.
            self.linearize().await?;
        }
        // What has expired by what this member knows may have been renewed through another.
        if self.lease_settled(caller, id).await? == Standing::Missing {
            return answer(0);
        }
        let ttl = self.renewed(id).await?;
        self.inner().counters.leases_renewed.add(1);
        answer(ttl)
    }

    /// Has a lease renewed with the next entry; its TTL, 0 when there is none.
    async fn renewed(&self, id: i64) -> Result<i64, Error> {
        let (renewed, answered) = oneshot::channel();
        self.inner().renewals.try_send(Renewal { id, renewed }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => Error::Stopped,
        })?;
        answered.await.unwrap_or(Err(Error::Stopped))
    }

    /// Where a lease stands once it is revoked or renewed, should it have expired.
    async fn lease_settled(&self, caller: &Caller, id: i64) -> Result<Standing, Error> {
        let timeout = Duration::from_millis(self.inner().options.request_timeout_ms);
        let settled = async {
            loop {
                let changed = self.inner().feed.leases.notified();
                let mut changed = std::pin::pin!(changed);
                changed.as_mut().enable();
                let standing = self.lease_standing(caller, id);
                if standing != Standing::Expired {
                    return standing;
                }
                changed.await;
            }
        };
        tokio::time::timeout(timeout, settled).await.map_err(|_| Error::Timeout)
    }

    /// What is left of a lease (etcd `Lease.LeaseTimeToLive`); TTL -1 says that there is no such lease.
    ///
    /// # Errors
    /// `PermissionDenied`, `NoLeader`, `LeaderChanged`, `Timeout`.
    pub async fn lease_time_to_live(
        &self,
        caller: &Caller,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Error> {
        authorise::allow_leases(caller)?;
        self.linearize().await?;
        let header = Some(self.header());
        let keys = if request.keys {
            let state = self.consensus().state().read();
            state
                .lease(request.id)
                .filter(|lease| lease.tenant == caller.tenant)
                .map_or_else(Vec::new, |lease| lease.keys.iter().cloned().collect())
        } else {
            Vec::new()
        };
        Ok(match self.lease_standing(caller, request.id) {
            Standing::Alive { ttl_s, left_ms } => LeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: i64::try_from(left_ms / 1_000).unwrap_or(i64::MAX),
                granted_ttl: ttl_s,
                keys,
            },
            // An expired lease is as good as gone (etcd `lease.NewExpired`).
            Standing::Missing | Standing::Expired => {
                LeaseTimeToLiveResponse { header, id: request.id, ttl: -1, granted_ttl: 0, keys: Vec::new() }
            }
        })
    }

    /// Every lease (etcd `Lease.LeaseLeases`).
    ///
    /// # Errors
    /// `PermissionDenied`, `NoLeader`, `LeaderChanged`, `Timeout`.
    pub async fn lease_leases(&self, caller: &Caller, _request: LeaseLeasesRequest) -> Result<LeaseLeasesResponse, Error> {
        authorise::allow_operator(caller)?;
        self.linearize().await?;
        let header = Some(self.header());
        let state = self.consensus().state().read();
        let leases =
            state.leases().filter(|lease| lease.tenant == caller.tenant).map(|lease| LeaseStatus { id: lease.id }).collect();
        Ok(LeaseLeasesResponse { header, leases })
    }
}

/// The task that renews: one entry for all that wait.
pub(crate) async fn renew(engine: Engine, mut queue: mpsc::Receiver<Renewal>) {
    let mut waiting: Vec<Renewal> = Vec::new();
    loop {
        tokio::select! {
            () = engine.inner().stop.cancelled() => return,
            count = queue.recv_many(&mut waiting, LEASE_RENEW_BATCH_MAX) => if count == 0 { return },
        }
        let mut ids: Vec<i64> = waiting.iter().map(|renewal| renewal.id).collect();
        ids.sort_unstable();
        ids.dedup();
        let Some(result) = engine.unless_stopped(renew_all(&engine, ids)).await else { return };
        for renewal in waiting.drain(..) {
            let ttl = result
                .as_ref()
                .map_err(Clone::clone)
                .map(|leases| leases.binary_search_by_key(&renewal.id, |(id, _)| *id).map_or(0, |at| leases[at].1));
            // Whoever waited may have given up.
            let _ = renewal.renewed.send(ttl);
        }
    }
}

/// Renews leases; each with its TTL, 0 when there is none.
async fn renew_all(engine: &Engine, ids: Vec<i64>) -> Result<Vec<(i64, i64)>, Error> {
    let caller = Caller::client();
    let slack = &engine.inner().slack;
    for _ in 0..ANSWER_TRIES {
        let (slack_ms, began) = (slack.ask_ms(), Instant::now());
        let renew = Body::LeaseRenew(LeaseRenew { ids: ids.clone(), slack_ms });
        match engine.propose_as(renew, caller.origin.clone(), caller.tenant).await? {
            Reply::LeaseRenew { leases, .. } if slack.covers(slack_ms, began.elapsed()) => return Ok(leases),
            // Whoever is answered now would count on more than there is.
            Reply::LeaseRenew { .. } => {}
            reply => return Err(unexpected(&reply)),
        }
    }
    Err(Error::Timeout)
}

/// The task that proposes the end of leases whose deadline has come.
pub(crate) async fn expire(engine: Engine) {
    let interval_ms = engine.inner().options.lease_scan_interval_ms.max(1);
    loop {
        // Not later than the next deadline, not more often than there is something to do; what is due and could not be revoked
        // is tried again after a pause.
        let now_ms = engine.cluster_ms();
        let wait_ms = match engine.consensus().state().read().next_deadline_ms() {
            Some(at) if at > now_ms => interval_ms.min(at - now_ms),
            Some(_) => interval_ms.min(RETRY_MS),
            None => interval_ms,
        };
        tokio::select! {
            () = engine.inner().stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
        }
        while engine.unless_stopped(expire_some(&engine)).await == Some(true) {}
    }
}

/// Proposes one entry of expiries; `true` when there may be more.
async fn expire_some(engine: &Engine) -> bool {
    let for_ever = engine.inner().options.mutant == Mutant::RevokeByDeposed;
    let leading = engine.consensus().leading_term();
    let Some(term) = (if for_ever { Some(0) } else { leading }) else { return false };
    let ids = engine.consensus().state().read().expired(engine.cluster_ms(), LEASE_REVOKE_BATCH_MAX);
    if ids.is_empty() {
        return false;
    }
    let revoke = Body::LeaseRevoke(LeaseRevoke { ids, expiry_term: term });
    let caller = Caller::client();
    let proposed = match for_ever {
        false => engine.propose_in_term(term, revoke).await,
        true => engine.propose_as(revoke, caller.origin, caller.tenant).await,
    };
    match proposed {
        Ok(Reply::LeaseRevoke { revoked, .. }) => {
            engine.inner().counters.leases_expired.add(revoked.len() as u64);
            // etcd's counter of revocations has both.
            engine.inner().counters.leases_revoked.add(revoked.len() as u64);
            !revoked.is_empty()
        }
        Ok(_) => false,
        Err(error) => {
            tracing::debug!(%error, "expired leases were not revoked and will be proposed again");
            false
        }
    }
}

/// The task that replicates a stamp now and then while leases are outstanding, so that a new leader's clock goes on near where
/// the old one's was.
pub(crate) async fn stamp(engine: Engine) {
    let interval_ms = engine.inner().options.lease_stamp_interval_ms.max(1);
    let mut wait_ms = interval_ms;
    loop {
        tokio::select! {
            () = engine.inner().stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
        }
        let stamped_ms = {
            let state = engine.consensus().state().read();
            state.next_deadline_ms().map(|_| state.cluster_ms())
        };
        wait_ms = until_stamp(stamped_ms, engine.cluster_ms(), interval_ms);
        if wait_ms > 0 {
            continue;
        }
        // Another one leads, or the next try is as good.
        wait_ms = interval_ms.min(RETRY_MS);
        let Some(term) = engine.consensus().leading_term() else { continue };
        match engine.unless_stopped(engine.propose_in_term(term, Body::Tick(Tick {}))).await {
            None => return,
            Some(Ok(_)) => wait_ms = interval_ms,
            Some(Err(error)) => tracing::debug!(%error, "a stamp was not replicated"),
        }
    }
}

/// How long until a stamp is due, 0 when it is; `stamped_ms` is the last one's time while there are leases. Without leases the next
/// look is due early enough for one that is granted right after this one.
fn until_stamp(stamped_ms: Option<u64>, now_ms: u64, interval_ms: u64) -> u64 {
    stamped_ms.map_or(interval_ms, |stamped_ms| stamped_ms.saturating_add(interval_ms).saturating_sub(now_ms))
}

#[cfg(test)]
mod tests {
    use super::until_stamp;

    #[test]
    fn a_stamp_is_due_one_interval_after_the_last_however_often_was_looked() {
        assert_eq!(until_stamp(None, 5_000, 2_000), 2_000);
        // A look shortly before it is due comes back when it is, not an interval later.
        assert_eq!(until_stamp(Some(4_000), 5_900, 2_000), 100);
        assert_eq!(until_stamp(Some(4_000), 6_000, 2_000), 0);
        assert_eq!(until_stamp(Some(4_000), 9_000, 2_000), 0);
    }
}
