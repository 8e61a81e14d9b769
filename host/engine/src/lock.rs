//! Locks as clientv3's `concurrency.Mutex` takes them, on the server's side (etcd `server/etcdserver/api/v3lock`).
//!
//! The key is `<name>/<lease in hex>`; the owner is the key of the name with the lowest create revision. Plugins, v3lock and
//! clientv3's Mutex exclude each other because they write the same keys.
//!
//! **Invariant:** waiters are served in the order their keys were created; a caller that goes away leaves no key behind, and takes
//! none that another call holds or waits with.

mod line;

use std::time::Duration;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::response_op::Response;
use kvasir_api::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use kvasir_api::limits::{LOCK_LEASE_TTL_S, LOCK_WAITERS_MAX};
use kvasir_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tokio::time::Instant;

use crate::authorise::{Access, allow};
use crate::caller::{Caller, KeyRange};
use crate::engine::Engine;

pub(crate) use line::Lines;
use line::{Entered, GiveUp, Slot};

impl Engine {
    /// Takes a lock; returns once it is held (etcd `Lock.Lock`). Without a lease a fresh one of 60 s is granted. Dropping the
    /// future gives the place in the queue up.
    ///
    /// # Errors
    /// `LeaseNotFound`, `PermissionDenied`, `Unknown("mutex: session is expired")` when the lease ends while waiting, and what a
    /// proposal can fail with.
    pub async fn lock(&self, caller: &Caller, request: LockRequest) -> Result<LockResponse, Error> {
        self.lock_within(caller, request, Duration::MAX).await?.ok_or(Error::Timeout)
    }

    /// As [`Engine::lock`], but waits at most `patience` for those who were first in the queue; `None` when one of them is still
    /// there, and the place is given up. The time that taking the place takes is not counted.
    ///
    /// # Errors
    /// As [`Engine::lock`].
    pub async fn lock_within(
        &self,
        caller: &Caller,
        request: LockRequest,
        patience: Duration,
    ) -> Result<Option<LockResponse>, Error> {
        if request.name.is_empty() {
            return Err(Error::EmptyKey);
        }
        let prefix = Bytes::from([&request.name[..], b"/"].concat());
        allow(caller, Access::Lock, &KeyRange::prefix(prefix.clone()))?;
        // The right to the lock is the right to its keys and to a lease for them.
        let holder = Caller { grants: None, ..caller.clone() };
        let lease = match request.lease {
            0 => {
                self.inner().lines.lock().room(LOCK_WAITERS_MAX)?;
                let grant = LeaseGrantRequest { ttl: LOCK_LEASE_TTL_S, id: 0 };
                self.lease_grant(&holder, grant).await?.id
            }
            lease => lease,
        };
        let key = Bytes::from([&prefix[..], format!("{lease:x}").as_bytes()].concat());
        // From here on a key may stand in the queue; the last to leave early takes it back.
        let place = self.stand_in_line(&holder, key.clone()).await?;
        let created = place.answered(self.queue_up(&holder, &prefix, &key, lease).await)?;
        // None: longer than there is time.
        let deadline = Instant::now().checked_add(patience);
        while let Some(ahead) = self.ahead(&holder, &prefix, created).await? {
            let gone = self.until_deleted(holder.tenant, ahead);
            match deadline {
                None => gone.await?,
                Some(deadline) => match tokio::time::timeout_at(deadline, gone).await {
                    Ok(gone) => gone?,
                    Err(_) => return Ok(None),
                },
            }
        }
        let held = self.lock_key(&holder, &key).await?;
        if held.is_none_or(|held| held != created) {
            return Err(Error::Unknown("mutex: session is expired".to_owned()));
        }
        self.inner().lines.lock().held(&place.slot, created);
        Ok(Some(LockResponse { header: Some(self.header()), key }))
    }

    /// Gives a lock back (etcd `Lock.Unlock`).
    ///
    /// # Errors
    /// As [`Engine::delete_range`].
    pub async fn unlock(&self, caller: &Caller, request: UnlockRequest) -> Result<UnlockResponse, Error> {
        if request.key.is_empty() {
            return Err(Error::EmptyKey);
        }
        allow(caller, Access::Lock, &KeyRange::single(request.key.clone()))?;
        let holder = Caller { grants: None, ..caller.clone() };
        let delete = DeleteRangeRequest { key: request.key, ..DeleteRangeRequest::default() };
        let deleted = self.delete_range(&holder, delete).await?;
        Ok(UnlockResponse { header: deleted.header })
    }

    async fn stand_in_line(&self, caller: &Caller, key: Bytes) -> Result<Place, Error> {
        let slot = (caller.tenant, key);
        loop {
            let before = i64::try_from(self.revision()).unwrap_or(i64::MAX);
            let entered = self.inner().lines.lock().enter(&slot, before, LOCK_WAITERS_MAX)?;
            match entered {
                Entered::Yes => return Ok(Place { engine: self.clone(), caller: caller.clone(), slot }),
                Entered::Leaving(gone) => gone.cancelled().await,
            }
        }
    }

    /// Puts the lock's key unless it is there (clientv3 `Mutex.tryAcquire`).
    async fn queue_up(&self, caller: &Caller, prefix: &Bytes, key: &Bytes, lease: i64) -> Result<Queued, Error> {
        let absent = created(key, CompareResult::Equal, 0);
        let op = |request| RequestOp { request: Some(request) };
        let put = PutRequest { key: key.clone(), lease, ..PutRequest::default() };
        let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let txn = TxnRequest {
            compare: vec![absent],
            success: vec![op(Request::RequestPut(put))],
            failure: vec![op(Request::RequestRange(get))],
        };
        tracing::trace!(?prefix, lease, "waiting for a lock");
        let done = self.txn(caller, txn).await?;
        if done.succeeded {
            return Ok(Queued { created: done.header.map_or(0, |header| header.revision), made: true });
        }
        match done.responses.into_iter().next().and_then(|op| op.response) {
            Some(Response::ResponseRange(range)) if !range.kvs.is_empty() => {
                Ok(Queued { created: range.kvs[0].create_revision, made: false })
            }
            _ => Err(Error::Internal("a key that exists was not found in the same transaction".to_owned())),
        }
    }

    /// The key right before ours in the queue.
    async fn ahead(&self, caller: &Caller, prefix: &Bytes, created: i64) -> Result<Option<Bytes>, Error> {
        let range = KeyRange::prefix(prefix.clone());
        let request = RangeRequest {
            key: range.key,
            range_end: range.range_end,
            limit: 1,
            sort_order: SortOrder::Descend as i32,
            sort_target: SortTarget::Create as i32,
            max_create_revision: created - 1,
            keys_only: true,
            ..RangeRequest::default()
        };
        // What was applied with our own key is enough: whoever is ahead was there before it.
        let found = self.read(caller.tenant, &request).await?;
        Ok(found.items.into_iter().next().map(|item| item.key))
    }

    /// The key's create revision, as of now.
    async fn lock_key(&self, caller: &Caller, key: &Bytes) -> Result<Option<i64>, Error> {
        self.linearize().await?;
        let request = RangeRequest { key: key.clone(), keys_only: true, ..RangeRequest::default() };
        let found = self.read(caller.tenant, &request).await?;
        Ok(found.items.first().map(|item| i64::try_from(item.create_revision).unwrap_or(i64::MAX)))
    }

    async fn until_deleted(&self, tenant: u64, key: Bytes) -> Result<(), Error> {
        let hub = &self.inner().feed.hub;
        loop {
            // Dropped after the wait itself, so that it finds it closed.
            let _forget = Forget { engine: self, tenant, key: &key };
            let fired = hub.deleted(tenant, key.clone());
            let request = RangeRequest { key: key.clone(), keys_only: true, ..RangeRequest::default() };
            if self.read(tenant, &request).await?.items.is_empty() {
                return Ok(());
            }
            tokio::select! {
                // A closed hub drops the other end; the loop then ends with the stop.
                _ = fired => {}
                () = self.inner().stop.cancelled() => return Err(Error::Stopped),
            }
        }
    }
}

/// The key that a call waits with.
struct Queued {
    created: i64,
    /// It was not there before.
    made: bool,
}

/// Compares a key's create revision, which is 0 when it is not there.
fn created(key: &Bytes, result: CompareResult, revision: i64) -> Compare {
    Compare {
        result: result as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        range_end: Bytes::new(),
    }
}

/// Forgets a wait for a deletion that nobody waits for any more.
struct Forget<'a> {
    engine: &'a Engine,
    tenant: u64,
    key: &'a Bytes,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.engine.inner().feed.hub.forget_deleted(self.tenant, self.key);
    }
}

/// A call's place in line; leaving it gives the key up if nobody else has it.
struct Place {
    engine: Engine,
    caller: Caller,
    slot: Slot,
}

impl Place {
    /// Notes what came of queueing up; returns the key's create revision.
    fn answered(&self, queued: Result<Queued, Error>) -> Result<i64, Error> {
        let made = match &queued {
            Ok(queued) => queued.made.then_some(queued.created),
            // It may have landed, or may still.
            Err(Error::Timeout | Error::LeaderChanged | Error::Stopped) => return queued.map(|queued| queued.created),
            Err(_) => None,
        };
        self.engine.inner().lines.lock().answered(&self.slot, made);
        queued.map(|queued| queued.created)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(given_up) = self.engine.inner().lines.lock().leave(&self.slot) else { return };
        let (engine, caller, slot) = (self.engine.clone(), self.caller.clone(), self.slot.clone());
        if engine.inner().stop.is_cancelled() {
            // Left to its lease; whoever waits for the line is told of the stop.
            engine.inner().lines.lock().gone(&slot);
            return;
        }
        self.engine.inner().tasks.spawn(async move {
            let key = slot.1.clone();
            let unchanged = match given_up {
                GiveUp::CreatedAt(revision) => created(&key, CompareResult::Equal, revision),
                GiveUp::CreatedAfter(revision) => created(&key, CompareResult::Greater, revision),
            };
            let delete = Request::RequestDeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() });
            let success = vec![RequestOp { request: Some(delete) }];
            let txn = TxnRequest { compare: vec![unchanged], success, failure: Vec::new() };
            if let Err(error) = engine.propose_as(Body::Txn(txn), caller.origin, caller.tenant).await {
                tracing::debug!(%error, "a lock's key is left to its lease");
            }
            engine.inner().lines.lock().gone(&slot);
        });
    }
}
