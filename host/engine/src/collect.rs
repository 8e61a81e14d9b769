//! A range put together from slices of one revision: filtered, counted and cut while it is read, ordered when it is whole.
//!
//! **Invariant:** one step looks at so many keys and no more, and what is kept between steps is no more than the reply needs: no
//! item for a count, the first or last `limit` for an order by key.

use std::cmp::Ordering;
use std::collections::VecDeque;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::etcdserverpb::RangeRequest;
use kvasir_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use kvasir_api::limits::RANGE_SLICE_KEYS;
use kvasir_machine::{ByValue, Item, RangeReply, State, ValueSlot};

/// A range being read.
pub(crate) struct Collect {
    tenant: u64,
    request: RangeRequest,
    order: SortOrder,
    target: SortTarget,
    limit: usize,
    /// The revision that is read, and the store's when the reading began: 0 before the first step.
    at: u64,
    seen_at: u64,
    after: Option<Bytes>,
    items: VecDeque<Item>,
    count: u64,
    more: bool,
}

impl Collect {
    /// A request that `check_range` has passed.
    pub(crate) fn new(tenant: u64, request: RangeRequest) -> Self {
        Self {
            tenant,
            order: SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None),
            target: SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key),
            limit: usize::try_from(request.limit).unwrap_or(0),
            at: 0,
            seen_at: 0,
            after: None,
            items: VecDeque::new(),
            count: 0,
            more: false,
            request,
        }
    }

    /// Whether ordering it takes so long that others should not wait for it.
    pub(crate) fn is_long(&self) -> bool {
        self.items.len() > RANGE_SLICE_KEYS
    }

    /// Looks at up to `keys_max` more keys; whether the range goes on behind them. What came of them is for [`Collect::take`], so
    /// that the state's lock is held for the looking only.
    ///
    /// # Errors
    /// The revision is compacted, meanwhile or from the start, or not there yet.
    pub(crate) fn slice(&mut self, state: &State, keys_max: usize) -> Result<Sliced, Error> {
        if self.seen_at == 0 {
            // Checked with its sign: a revision below 0 is the current one.
            state.check_revision(self.request.revision)?;
            self.seen_at = state.revision();
            self.at = u64::try_from(self.request.revision).ok().filter(|at| *at > 0).unwrap_or(self.seen_at);
            if self.request.count_only && self.is_everything() && self.at == self.seen_at {
                return Ok(Sliced::Counted(state.live_keys(self.tenant)));
            }
        }
        let (key, end) = (&self.request.key, &self.request.range_end);
        let slice = state.range_slice(self.tenant, key, end, self.at, self.after.as_deref(), keys_max)?;
        Ok(Sliced::Items(slice.items, slice.more))
    }

    /// Takes what a slice has; `true` when there is more to look at.
    pub(crate) fn take(&mut self, sliced: Sliced) -> bool {
        match sliced {
            Sliced::Counted(count) => {
                self.count = count;
                false
            }
            Sliced::Items(items, more) => {
                items.into_iter().for_each(|item| self.take_item(item));
                self.after = more;
                self.after.is_some()
            }
        }
    }

    fn is_everything(&self) -> bool {
        self.request.key.as_ref() == [0] && self.request.range_end.as_ref() == [0]
    }

    fn take_item(&mut self, mut item: Item) {
        self.count += 1;
        if self.request.count_only || !passes(&self.request, &item) {
            return;
        }
        if self.request.keys_only && self.target != SortTarget::Value {
            item.value = ValueSlot::Memory(Bytes::new());
        }
        match (self.target, self.order) {
            (SortTarget::Key, SortOrder::Descend) => {
                self.items.push_back(item);
                if self.limit > 0 && self.items.len() > self.limit {
                    self.items.pop_front();
                    self.more = true;
                }
            }
            (SortTarget::Key, _) if self.limit > 0 && self.items.len() >= self.limit => self.more = true,
            (SortTarget::Key, _) => self.items.push_back(item),
            _ => {
                self.items.push_back(item);
                let beyond = self.items.len().saturating_sub(self.limit);
                // Values may not be here to be compared.
                if self.limit > 0 && self.target != SortTarget::Value && beyond > self.limit.max(RANGE_SLICE_KEYS) {
                    self.sort();
                }
            }
        }
    }

    /// Orders what there is by a target other than key and value, and cuts it. Equal ones stay in order of key, so that to go on
    /// after a cut gives what ordering the whole gives.
    fn sort(&mut self) {
        let (target, descend) = (self.target, self.order == SortOrder::Descend);
        self.items.make_contiguous().sort_by(|a, b| if descend { compare(target, b, a) } else { compare(target, a, b) });
        if self.limit > 0 && self.items.len() > self.limit {
            self.items.truncate(self.limit);
            self.more = true;
        }
    }

    /// The range, in its order, but for an order by value, which [`RangeReply::fill`] sees to.
    pub(crate) fn finish(mut self) -> RangeReply {
        let mut by_value = None;
        match self.target {
            SortTarget::Key if self.order == SortOrder::Descend => self.items.make_contiguous().reverse(),
            SortTarget::Key => {}
            SortTarget::Value => {
                let descend = self.order == SortOrder::Descend;
                by_value = Some(ByValue { descend, limit: self.limit, keys_only: self.request.keys_only });
            }
            SortTarget::Version | SortTarget::Create | SortTarget::Mod => self.sort(),
        }
        RangeReply { revision: self.seen_at, items: self.items.into(), more: self.more, count: self.count, by_value }
    }
}

/// What a slice has.
pub(crate) enum Sliced {
    /// The whole range's count; it was not gone through.
    Counted(u64),
    /// Items, and the key after which the range goes on.
    Items(Vec<Item>, Option<Bytes>),
}

/// etcd filters by a bound only when it is not 0.
fn passes(request: &RangeRequest, item: &Item) -> bool {
    let signed = |revision: u64| i64::try_from(revision).unwrap_or(i64::MAX);
    let (modified, created) = (signed(item.mod_revision.main), signed(item.create_revision));
    (request.max_mod_revision == 0 || modified <= request.max_mod_revision)
        && (request.min_mod_revision == 0 || modified >= request.min_mod_revision)
        && (request.max_create_revision == 0 || created <= request.max_create_revision)
        && (request.min_create_revision == 0 || created >= request.min_create_revision)
}

fn compare(target: SortTarget, a: &Item, b: &Item) -> Ordering {
    let by = |item: &Item| match target {
        SortTarget::Version => item.version,
        SortTarget::Create => item.create_revision,
        SortTarget::Mod => item.mod_revision.main,
        // In order of key as they came.
        SortTarget::Key | SortTarget::Value => 0,
    };
    by(a).cmp(&by(b))
}

#[cfg(test)]
mod tests;
