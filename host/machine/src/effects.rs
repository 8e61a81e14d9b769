//! `Effects`: what apply changed, for those who store it and those who watch it. Pure data.

use std::sync::Arc;

use bytes::Bytes;

use crate::state::Meta;
use crate::{Row, Table, table};

/// One change of one key.
#[derive(Debug, Clone)]
pub struct Change {
    /// The new version.
    pub row: Arc<Row>,
    /// The live version that it replaced.
    pub prev: Option<Arc<Row>>,
}

/// One small replicated row to be written or, without a value, deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOp {
    /// Which table.
    pub table: Table,
    /// The key, as `table.rs` lays it out.
    pub key: Bytes,
    /// The value; `None` deletes.
    pub value: Option<Bytes>,
}

/// What a batch of commands changed. Apply appends; the caller hands one `Effects` to all commands of a batch.
#[derive(Debug, Default)]
pub struct Effects {
    /// Changes of keys, in order of history.
    pub changes: Vec<Change>,
    /// Changes of the small tables but for the scalars, in order.
    pub(crate) tables: Vec<TableOp>,
    /// The scalars after the last command.
    pub(crate) meta: Option<Meta>,
    /// The revision that clients can no longer read below, when a compaction was in the batch.
    pub compacted: Option<u64>,
    /// Bytes of history in `changes` ([`Row::history_bytes`]).
    pub history_bytes: u64,
    /// A plugin, a trigger, its owner or its state changed; a cursor alone does not count.
    pub registry_changed: bool,
    /// A lease was granted, renewed or revoked.
    pub leases_changed: bool,
}

impl Effects {
    /// Changes of the small tables, to be carried out in order, after or with `changes`, atomically with them. To be taken once,
    /// when the batch is through.
    pub fn take_tables(&mut self) -> Vec<TableOp> {
        let meta = self.meta.take().map(|meta| TableOp {
            table: Table::Meta,
            key: Bytes::from_static(table::META_STATE),
            value: Some(meta.encode().into()),
        });
        let mut ops = std::mem::take(&mut self.tables);
        ops.extend(meta);
        ops
    }

    pub(crate) fn set(&mut self, table: Table, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.tables.push(TableOp { table, key: key.into(), value: Some(value.into()) });
    }

    pub(crate) fn delete(&mut self, table: Table, key: impl Into<Bytes>) {
        self.tables.push(TableOp { table, key: key.into(), value: None });
    }
}
