//! What another cluster, founded on a snapshot's rows, begins with.
//!
//! Keys, history, compaction, leases, plugins with their cursors and dead letters, alarms and quotas go over as they are. What only meant
//! something to the members of the cluster that wrote them does not: its join tokens, and the authorities that it trusted.
//!
//! **Invariant:** what is left of the rows of a state restores to a state.

use bytes::Bytes;

use crate::Table;
use crate::codec::FormatError;
use crate::state::Meta;
use crate::table::{META_AUTHORITIES, META_STATE};

/// How a new cluster is founded on the rows of another.
#[derive(Debug, Clone, Copy, Default)]
pub struct Founding {
    /// Revisions to leave out, and to compact everything below what follows; `None` goes on where the rows end.
    pub bump: Option<u64>,
}

impl Founding {
    /// A small table's row as the new cluster has it; `None` is one that it has not.
    ///
    /// # Errors
    /// A malformed row; revisions that cannot be counted so far.
    pub fn table_row(&self, table: Table, key: &[u8], value: &Bytes) -> Result<Option<Bytes>, FormatError> {
        match (table, self.bump) {
            (Table::Token, _) => Ok(None),
            (Table::Meta, _) if key == META_AUTHORITIES => Ok(None),
            (Table::Meta, Some(bump)) if key == META_STATE => {
                let mut meta = Meta::decode(value)?;
                let bumped = meta.revision.checked_add(bump).filter(|revision| *revision <= i64::MAX as u64);
                meta.revision = bumped.ok_or(FormatError::Invalid { what: "state", why: "its revision cannot be so high" })?;
                meta.compacted = Some(meta.revision);
                meta.at_compaction = meta.total;
                Ok(Some(Bytes::from(meta.encode())))
            }
            _ => Ok(Some(value.clone())),
        }
    }
}
