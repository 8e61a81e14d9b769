//! A lock that the host holds for a task: the same keys as etcd's lock service, under a lease that the host keeps alive.
//!
//! **Invariant:** a lock that is dropped is released, and one whose lease may have ended is never believed to be held: `is_lost` turns
//! true first. What counts in the end is the fencing token, which apply checks.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::command::{Guard, LockGuard, Origin, guard};
use kvasir_engine::Caller;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// TTL of the lease behind a lock: how long others wait after a node died.
const LEASE_TTL_S: i64 = 10;
/// Renewals in one TTL.
const RENEWALS_PER_TTL: u32 = 4;

/// A held lock.
pub(crate) struct Held {
    store: Store,
    /// The plugin without its grants: the host's own calls for it were authorised before.
    caller: Caller,
    key: Bytes,
    create_revision: u64,
    lease: i64,
    lost: CancellationToken,
    keeper: JoinHandle<()>,
    released: bool,
}

impl Held {
    /// Waits for the lock `name` for as long as the returned future lives. The caller has authorised the name.
    ///
    /// # Errors
    /// What the engine said to the lease or the lock.
    pub(crate) async fn acquire(store: &Store, caller: &Caller, name: &Bytes) -> Result<Self, Error> {
        Self::acquire_within(store, caller, name, Duration::MAX).await?.ok_or(Error::Timeout)
    }

    /// As [`Held::acquire`], but waits at most `patience` for those who were first; none at all takes a lock that is free. `None`
    /// when it is still another's then.
    ///
    /// # Errors
    /// As [`Held::acquire`].
    pub(crate) async fn acquire_within(
        store: &Store,
        caller: &Caller,
        name: &Bytes,
        patience: Duration,
    ) -> Result<Option<Self>, Error> {
        let caller = Caller { grants: None, ..caller.clone() };
        // The host's and not the plugin's, which handles its own leases.
        let lease = store.lease_grant(&Caller { origin: Origin::default(), ..caller.clone() }, LEASE_TTL_S).await?;
        let lost = CancellationToken::new();
        let keeper = tokio::spawn(keep_alive(store.clone(), caller.clone(), lease, lost.clone()));
        // From here on dropping this value, which an abandoned wait does too, ends the lease and with it the place in the queue.
        let mut held =
            Self { store: store.clone(), caller, key: Bytes::new(), create_revision: 0, lease, lost, keeper, released: false };
        let Some(key) = store.lock_within(&held.caller, name, lease, patience).await? else { return Ok(None) };
        let entry = store.get(&held.caller, &key, store.revision()).await?;
        held.create_revision = entry.map_or(0, |entry| entry.create_revision);
        held.key = key;
        if held.create_revision == 0 {
            return Err(Error::Unknown("the lock was lost as soon as it was won".to_owned()));
        }
        Ok(Some(held))
    }

    pub(crate) fn key(&self) -> &Bytes {
        &self.key
    }

    /// The fencing token: grows from holder to holder.
    pub(crate) fn create_revision(&self) -> u64 {
        self.create_revision
    }

    /// Its lease ended, or may have.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Holds in apply only while this lock is held.
    pub(crate) fn guard(&self) -> Guard {
        Guard { guard: Some(guard::Guard::Lock(LockGuard { key: self.key.clone(), create_revision: self.create_revision })) }
    }

    /// Gives the lock back and waits until others can have it.
    pub(crate) async fn release(mut self) {
        self.released = true;
        self.keeper.abort();
        if let Err(error) = self.store.lease_revoke(&self.caller, self.lease).await {
            tracing::debug!(%error, lease = self.lease, "a plugin's lock is released by the end of its lease");
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keeper.abort();
        self.lost.cancel();
        if self.released {
            return;
        }
        let (store, caller, lease) = (self.store.clone(), self.caller.clone(), self.lease);
        // Without a runtime the node is ending, and the lease with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { store.lease_revoke(&caller, lease).await });
        }
    }
}

/// Renews until the lease is gone or, for want of an answer, may be.
async fn keep_alive(store: Store, caller: Caller, lease: i64, lost: CancellationToken) {
    let ttl = Duration::from_secs(LEASE_TTL_S as u64);
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(ttl / RENEWALS_PER_TTL).await;
        let asked = Instant::now();
        match tokio::time::timeout(ttl / 2, store.lease_keep_alive(&caller, lease)).await {
            Ok(Ok(Some(_))) => renewed = asked,
            Ok(Ok(None)) => break,
            Ok(Err(_)) | Err(_) if renewed.elapsed() < ttl => {}
            Ok(Err(_)) | Err(_) => break,
        }
    }
    lost.cancel();
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvasir_engine::{Engine, EngineOptions};
    use kvasir_storage::disk::RealDisk;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_try_takes_a_free_lock_and_no_other_and_a_wait_is_for_the_queue_only() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::start(EngineOptions::new(dir.path().join("data"), Arc::new(RealDisk))).await.unwrap();
        let (store, caller, name) = (Store::new(engine.clone()), Caller::client(), Bytes::from_static(b"/jobs"));
        let within = |patience| Held::acquire_within(&store, &caller, &name, patience);
        // Nobody is before it: that taking a lock takes a few commits does not count against the wait.
        let first = within(Duration::ZERO).await.unwrap().unwrap();
        assert!(within(Duration::ZERO).await.unwrap().is_none(), "it is held");
        assert!(within(Duration::from_millis(20)).await.unwrap().is_none());
        let (second, ()) = tokio::join!(within(Duration::MAX), first.release());
        let second = second.unwrap().unwrap();
        assert!(second.create_revision() > 0);
        second.release().await;
        engine.shutdown().await;
    }
}
