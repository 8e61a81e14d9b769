//! What the layer above is told about each applied batch.

use kvasir_machine::Change;

/// What one applied batch changed.
#[derive(Debug, Default)]
pub struct Published {
    /// Changed rows in order of revision.
    pub changes: Vec<Change>,
    /// The store's revision after the batch.
    pub revision: u64,
    /// Raft's index of the batch's last entry.
    pub index: u64,
    /// Compacted up to this revision in this batch.
    pub compacted: Option<u64>,
    /// Whether plugins, triggers, cursors or blobs changed.
    pub registry_changed: bool,
    /// Whether leases were granted, renewed or revoked.
    pub leases_changed: bool,
}

/// Who is told.
pub trait Publish: Send + Sync + 'static {
    /// Called once per applied batch, in order, without the state's lock and before the batch's replies. It must not block:
    /// every reply of the batch waits for it.
    fn publish(&self, batch: Published);
}
