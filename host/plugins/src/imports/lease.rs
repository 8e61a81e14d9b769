//! `lease`: for tasks. A plugin handles only leases that it granted: revoking another's would delete keys it has no right to.

use super::types::refusal;
use crate::bindings::kvasir::plugin::lease::{Host, Status};
use crate::bindings::kvasir::plugin::types as wit;
use crate::run::Run;

type Answer<T> = wasmtime::Result<Result<T, wit::Error>>;

impl Host for Run {
    async fn grant(&mut self, ttl_s: u64) -> Answer<u64> {
        self.charge()?;
        if let Err(error) = self.leases_allowed() {
            return Ok(Err(error));
        }
        let Ok(ttl_s) = i64::try_from(ttl_s) else {
            return Ok(Err(wit::Error::Invalid("the time to live is too long".to_owned())));
        };
        let granted =
            self.facts.store.lease_grant(&self.facts.caller, ttl_s).await.map_err(|error| refusal(&error, "leases", 0));
        Ok(self.noting(granted).map(|id| id as u64))
    }

    async fn keep_alive(&mut self, id: u64) -> Answer<Status> {
        self.charge()?;
        let id = match self.own_lease(id) {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        let kept = match self.facts.store.lease_keep_alive(&self.facts.caller, id).await {
            Ok(Some(_)) => self.facts.store.lease_time_to_live(&self.facts.caller, id).await,
            Ok(None) => Err(kvasir_api::Error::LeaseNotFound),
            Err(error) => Err(error),
        };
        Ok(self.status(kept))
    }

    async fn revoke(&mut self, id: u64) -> Answer<()> {
        self.charge()?;
        let id = match self.own_lease(id) {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        let revoked = self.facts.store.lease_revoke(&self.facts.caller, id).await.map_err(|error| refusal(&error, "leases", 0));
        Ok(self.noting(revoked))
    }

    async fn time_to_live(&mut self, id: u64) -> Answer<Status> {
        self.charge()?;
        let id = match self.own_lease(id) {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        let found = self.facts.store.lease_time_to_live(&self.facts.caller, id).await;
        Ok(self.status(found))
    }
}

impl Run {
    fn leases_allowed(&self) -> Result<(), wit::Error> {
        if self.task.is_none() {
            return Err(wit::Error::Unsupported(
                "leases are for tasks: a reactor's run is over before a lease would be".to_owned(),
            ));
        }
        if !self.may_lease() {
            return Err(wit::Error::Denied(
                "no grant covers leases; ask for `lease = true` in the manifest's grants".to_owned(),
            ));
        }
        Ok(())
    }

    fn own_lease(&self, id: u64) -> Result<i64, wit::Error> {
        self.leases_allowed()?;
        let own = i64::try_from(id).ok().filter(|id| self.facts.store.lease_is_of(*id, &self.facts.plugin));
        own.ok_or_else(|| wit::Error::NotFound(format!("{id} is not a lease that this plugin granted")))
    }

    fn status(&mut self, found: Result<(i64, i64), kvasir_api::Error>) -> Result<Status, wit::Error> {
        let status = found
            .map(|(left, granted)| Status { ttl_s: left.max(0) as u64, granted_ttl_s: granted.max(0) as u64 })
            .map_err(|error| refusal(&error, "leases", 0));
        self.noting(status)
    }
}
