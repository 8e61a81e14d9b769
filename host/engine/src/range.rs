//! Reads: linearizable by a shared ReadIndex round, serializable at once, and long ones in slices.
//!
//! **Invariant:** one hold of the state's lock reads at most [`RANGE_SLICE_KEYS`] keys of a plain range; the slices are of one
//! revision, which the first one pins.

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use kvasir_api::etcdserverpb::{RangeRequest, RangeResponse};
use kvasir_api::limits::RANGE_SLICE_KEYS;
use kvasir_machine::{Item, RangeReply, check_range};

use crate::authorise;
use crate::caller::Caller;
use crate::engine::Engine;

impl Engine {
    /// Reads a key or a range (etcd `KV.Range`).
    ///
    /// # Errors
    /// etcd's: `EmptyKey`, `Compacted`, `FutureRevision`, `PermissionDenied`, `NoLeader`, `Timeout`.
    pub async fn range(&self, caller: &Caller, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.inner().counters.ranges.add(1);
        check_range(&request)?;
        authorise::allow_range(caller, &request)?;
        if !request.serializable {
            self.linearize().await?;
        }
        let reply = self.read(caller.tenant, &request).await?;
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
        let reply = if is_plain(request) {
            self.read_slices(tenant, request).await?
        } else {
            self.consensus().state().read().range(tenant, request)?
        };
        self.fill_range(reply).await
    }

    async fn read_slices(&self, tenant: u64, request: &RangeRequest) -> Result<RangeReply, Error> {
        let mut revision = u64::try_from(request.revision.max(0)).unwrap_or(0);
        let mut seen_at = 0;
        let mut items: Vec<Item> = Vec::new();
        let mut after: Option<Bytes> = None;
        loop {
            let slice = {
                let state = self.consensus().state().read();
                if seen_at == 0 {
                    seen_at = state.revision();
                    if revision == 0 {
                        revision = seen_at;
                    }
                }
                state.range_slice(tenant, &request.key, &request.range_end, revision, after.as_deref(), RANGE_SLICE_KEYS)?
            };
            items.extend(slice.items);
            after = slice.more;
            if after.is_none() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let count = items.len() as u64;
        Ok(RangeReply { revision: seen_at, items, more: false, count, by_value: None })
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

/// A whole range in key order with values: what slices can serve. Everything else needs the range as a whole, for its count, its
/// order or its filters.
fn is_plain(request: &RangeRequest) -> bool {
    !request.range_end.is_empty()
        && request.limit == 0
        && !request.keys_only
        && !request.count_only
        && request.revision >= 0
        && request.sort_target == SortTarget::Key as i32
        && request.sort_order != SortOrder::Descend as i32
        && request.min_mod_revision == 0
        && request.max_mod_revision == 0
        && request.min_create_revision == 0
        && request.max_create_revision == 0
}
