//! `Revision`: one revision being written, and the puts and deletes in it. The only place where a key changes.
//!
//! **Invariant:** the store's revision moves if and only if something was written; each change has the next sub-revision.

use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::etcdserverpb::{DeleteRangeRequest, PutRequest};
use kvasir_api::limits;

use crate::mvcc::index::{Span, unbury};
use crate::reply::{DeleteRangeReply, Item, PutReply};
use crate::state::Mark;
use crate::{Change, Effects, Rev, Row, State, Table, quota, table};

/// One revision being written, by one writer, in one tenant.
pub(crate) struct Revision<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) effects: &'a mut Effects,
    tenant: u64,
    origin_plugin: Option<Arc<str>>,
    origin_depth: u32,
    command_bytes: usize,
    wants_reply: bool,
    next: Rev,
}

impl<'a> Revision<'a> {
    pub(crate) fn begin(state: &'a mut State, effects: &'a mut Effects, writer: &Writer) -> Self {
        let next = Rev::start_of(state.revision() + 1);
        Self {
            state,
            effects,
            tenant: writer.tenant,
            origin_plugin: writer.plugin.clone(),
            origin_depth: writer.depth,
            command_bytes: writer.command_bytes,
            wants_reply: writer.wants_reply,
            next,
        }
    }

    pub(crate) fn wants_reply(&self) -> bool {
        self.wants_reply
    }

    /// The revision that a read within it sees: its own once something is written.
    pub(crate) fn current(&self) -> u64 {
        if self.next.sub > 0 { self.next.main } else { self.next.main - 1 }
    }

    /// A checked put whose lease exists.
    pub(crate) fn put(&mut self, request: &PutRequest) -> PutReply {
        let space = self.state.spaces.entry(self.tenant).or_default();
        let record = space.live.get_mut(&request.key[..]);
        let prev = record.as_ref().and_then(|record| record.slot.row()).cloned();
        let (value, lease) = match &prev {
            Some(prev) => (
                if request.ignore_value { prev.value.clone() } else { own(&request.value, self.command_bytes) },
                if request.ignore_lease { prev.lease } else { request.lease },
            ),
            None => (own(&request.value, self.command_bytes), request.lease),
        };
        // A key is small: a copy of its own does not pin the frame that brought it. Versions share it.
        let (key, buried) = match &prev {
            Some(prev) => (prev.key.clone(), None),
            None => match unbury(&mut space.dead, &request.key) {
                Some((key, record)) => (key, Some(record)),
                None => (Bytes::copy_from_slice(&request.key), None),
            },
        };
        let row = Arc::new(Row {
            rev: self.next,
            prev: prev.as_ref().map(|prev| prev.rev),
            tenant: self.tenant,
            key,
            value,
            create_revision: prev.as_ref().map_or(self.next.main, |prev| prev.create_revision),
            version: prev.as_ref().map_or(1, |prev| prev.version + 1),
            lease,
            tombstone: false,
            origin_plugin: self.origin_plugin.clone(),
            origin_depth: self.origin_depth,
        });
        match record {
            Some(record) => record.push(Arc::clone(&row)),
            None => space.insert(buried, Arc::clone(&row)),
        }
        let cost = quota::key_cost(&row.key, &row.value);
        let cost_before = prev.as_ref().map_or(0, |prev| quota::key_cost(&prev.key, &prev.value));
        space.live_bytes = space.live_bytes + cost - cost_before;
        self.state.live_bytes = self.state.live_bytes + cost - cost_before;
        let lease_before = prev.as_ref().map_or(0, |prev| prev.lease);
        if lease != lease_before {
            self.state.leases.detach(lease_before, &row.key);
            self.state.leases.attach(lease, &row.key);
        }
        let replaced = (request.prev_kv && self.wants_reply).then(|| prev.as_deref().map(Item::of)).flatten();
        self.log(row, prev);
        PutReply { revision: self.next.main, prev: replaced }
    }

    /// A checked delete.
    pub(crate) fn delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeReply {
        let span = Span::new(&request.key, &request.range_end);
        let space = self.state.spaces.get(&self.tenant);
        let live = space.into_iter().flat_map(|space| space.scan_live(span, false));
        let doomed: Vec<Arc<Row>> = live.filter_map(|(_, record)| record.slot.row()).cloned().collect();
        let deleted = doomed.len() as u64;
        let prevs =
            if request.prev_kv && self.wants_reply { doomed.iter().map(|row| Item::of(row)).collect() } else { Vec::new() };
        for row in doomed {
            self.delete(row);
        }
        DeleteRangeReply { revision: self.current(), deleted, prevs }
    }

    /// Deletes a key that is live as `prev`.
    pub(crate) fn delete(&mut self, prev: Arc<Row>) {
        let row = Arc::new(Row {
            rev: self.next,
            prev: Some(prev.rev),
            tenant: prev.tenant,
            key: prev.key.clone(),
            value: Bytes::new(),
            create_revision: 0,
            version: 0,
            lease: 0,
            tombstone: true,
            origin_plugin: self.origin_plugin.clone(),
            origin_depth: self.origin_depth,
        });
        let space = self.state.spaces.entry(prev.tenant).or_default();
        space.bury(Arc::clone(&row));
        let cost = quota::key_cost(&prev.key, &prev.value);
        space.live_bytes -= cost;
        self.state.live_bytes -= cost;
        self.state.leases.detach(prev.lease, &prev.key);
        self.log(row, Some(prev));
    }

    fn log(&mut self, row: Arc<Row>, prev: Option<Arc<Row>>) {
        let bytes = row.history_bytes();
        let total = &mut self.state.meta.total;
        total.history_bytes += bytes;
        total.old_versions += u64::from(prev.is_some()) + u64::from(row.tombstone);
        self.effects.history_bytes += bytes;
        self.state.trim.note(&row);
        self.effects.changes.push(Change { row, prev });
        self.next.sub += 1;
    }

    /// Makes the revision the store's, if anything was written. Returns the store's revision.
    pub(crate) fn end(self) -> u64 {
        if self.next.sub > 0 {
            self.state.meta.revision = self.next.main;
            self.state.mark(self.effects);
        }
        self.state.revision()
    }
}

/// Who writes, where, and in which entry.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writer {
    pub(crate) tenant: u64,
    pub(crate) plugin: Option<Arc<str>>,
    pub(crate) depth: u32,
    /// The node that proposed the entry.
    pub(crate) leader: u64,
    /// What the buffer has at least that the values share.
    pub(crate) command_bytes: usize,
    /// Somebody waits for the reply.
    pub(crate) wants_reply: bool,
}

/// A value to keep: copied when it is small, or less than half of the command that it came with and would keep in memory.
fn own(value: &Bytes, command_bytes: usize) -> Bytes {
    let copied = value.len() <= limits::VALUE_COPY_BYTES_MAX || value.len() < command_bytes / 2;
    if copied { Bytes::copy_from_slice(value) } else { value.clone() }
}

impl State {
    /// Notes the totals after the current revision, now and then.
    fn mark(&mut self, effects: &mut Effects) {
        let last = self.marks.last_key_value().map_or(0, |(_, mark)| mark.history_bytes);
        let total: Mark = self.meta.total;
        if total.history_bytes - last >= limits::HISTORY_MARK_BYTES {
            self.marks.insert(self.revision(), total);
            effects.set(Table::Meta, table::numbered_key(table::META_MARK, self.revision()), total.encode());
        }
    }

    /// Totals after `revision`, at most one mark's distance too low.
    pub(crate) fn totals_at(&self, revision: u64) -> Mark {
        if revision >= self.revision() {
            return self.meta.total;
        }
        self.marks.range(..=revision).next_back().map_or(Mark::default(), |(_, mark)| *mark)
    }
}
