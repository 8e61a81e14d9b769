//! History from the state file and its tail: what watchers and triggers read that are behind the ring.
//!
//! **Invariant:** what is returned is whole revisions, every wanted change of each.

use std::io;
use std::sync::Arc;

use kvasir_api::limits::{HISTORY_READ_BYTES_MAX, HISTORY_READ_ROWS_MAX};
use kvasir_machine::{Change, Rev, Row};
use kvasir_storage::state::Store;

/// What a reader wants of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Nothing,
    Row,
    /// The version it replaced as well, as far as it is still there.
    WithPrev,
}

/// Wanted changes, and the revision up to which there are no others.
pub(crate) struct Piece {
    pub(crate) changes: Vec<Change>,
    pub(crate) upto: u64,
}

/// Reads the changes of `from..=to`, as many whole revisions as one read may take. Blocking.
///
/// # Errors
/// The disk's.
pub(crate) fn read(store: &Store, from: u64, to: u64, mut want: impl FnMut(&Row) -> Want) -> io::Result<Piece> {
    let mut rows = store.rows(Rev { main: from, sub: 0 }, to, HISTORY_READ_ROWS_MAX, HISTORY_READ_BYTES_MAX)?;
    let Some(mut last) = rows.last().map(|row| row.rev) else {
        return Ok(Piece { changes: Vec::new(), upto: to });
    };
    // The read may have ended within a revision: a revision is delivered whole, however large it is.
    while let Some(sub) = last.sub.checked_add(1) {
        let after = Rev { main: last.main, sub };
        let more = store.rows(after, last.main, HISTORY_READ_ROWS_MAX, HISTORY_READ_BYTES_MAX)?;
        match more.last() {
            Some(row) => last = row.rev,
            None => break,
        }
        rows.extend(more);
    }
    let mut changes = Vec::new();
    for row in rows {
        match want(&row) {
            Want::Nothing => {}
            Want::Row => changes.push(Change { row, prev: None }),
            Want::WithPrev => changes.push(with_prev(store, row)?),
        }
    }
    Ok(Piece { changes, upto: last.main })
}

/// The change with the version it replaced, if that is still there.
///
/// # Errors
/// The disk's.
pub(crate) fn with_prev(store: &Store, row: Arc<Row>) -> io::Result<Change> {
    let prev = match row.prev {
        Some(prev) => store.row(prev)?,
        None => None,
    };
    Ok(Change { row, prev })
}
