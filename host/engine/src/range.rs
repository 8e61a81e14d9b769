//! Reads: linearizable by a shared ReadIndex round, serializable at once, and long ones in slices.
//!
//! **Invariant:** one hold of the state's lock reads at most [`RANGE_SLICE_KEYS`] keys; the slices are of one revision, which the
//! first one pins. Only a range of the present that was overtaken by compactions [`RANGE_RESTARTS_MAX`] times holds it for the whole.

use kvasir_api::Error;
use kvasir_api::etcdserverpb::{RangeRequest, RangeResponse};
use kvasir_api::limits::{RANGE_RESTARTS_MAX, RANGE_SLICE_KEYS};
use kvasir_consensus::blocking;
use kvasir_machine::{Item, RangeReply, check_range};

use crate::authorise;
use crate::caller::Caller;
use crate::collect::Collect;
use crate::engine::Engine;
use crate::metrics::Executed;

impl Engine {
    /// Reads a key or a range (etcd `KV.Range`).
    ///
    /// # Errors
    /// etcd's: `EmptyKey`, `Compacted`, `FutureRevision`, `PermissionDenied`, `NoLeader`, `Timeout`.
    pub async fn range(&self, caller: &Caller, request: RangeRequest) -> Result<RangeResponse, Error> {
        check_range(&request)?;
        authorise::allow_range(caller, &request)?;
        if !request.serializable {
            self.linearize().await?;
        }
        let reply = self.read(caller.tenant, &request).await?;
        self.inner().counters.executed(&Executed { ranges: 1, ..Executed::default() });
        Ok(self.range_response(reply))
    }

    /// Waits until a read of the applied state is linearizable. All who wait share one round.
    ///
    /// # Errors
    /// `NoLeader`, `LeaderChanged`, `Timeout`, `TooManyRequests`, `Stopped`.
    pub async fn linearize(&self) -> Result<(), Error> {
        self.consensus().read_index().await
    }

    /// Reads the applied state.
    pub(crate) async fn read(&self, tenant: u64, request: &RangeRequest) -> Result<RangeReply, Error> {
        for _ in 0..RANGE_RESTARTS_MAX {
            match self.read_slices(tenant, request).await {
                // A reader of the present named no revision that could go: it reads a later present.
                Err(Error::Compacted) if request.revision <= 0 => {}
                done => return done,
            }
        }
        let whole = self.consensus().state().read().range(tenant, request)?;
        self.fill_range(whole).await
    }

    async fn read_slices(&self, tenant: u64, request: &RangeRequest) -> Result<RangeReply, Error> {
        let mut collect = Collect::new(tenant, request.clone());
        loop {
            // The lock is gone before what was found is looked at.
            let sliced = collect.slice(&self.consensus().state().read(), RANGE_SLICE_KEYS)?;
            if !collect.take(sliced) {
                break;
            }
            tokio::task::yield_now().await;
        }
        let reply = if collect.is_long() {
            let ordered = blocking(self.consensus().store().is_driven(), move || collect.finish()).await;
            ordered.map_err(|error| Error::Internal(error.to_string()))?
        } else {
            collect.finish()
        };
        self.fill_range(reply).await
    }

    pub(crate) fn range_response(&self, reply: RangeReply) -> RangeResponse {
        RangeResponse {
            header: Some(self.header_at(reply.revision)),
            kvs: reply.items.into_iter().map(Item::into_key_value).collect(),
            more: reply.more,
            count: i64::try_from(reply.count).unwrap_or(i64::MAX),
        }
    }
}
