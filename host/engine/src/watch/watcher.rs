//! One watcher: what it wants and how far it has come.

use std::sync::Arc;

use crate::caller::KeyRange;

use super::event::Event;
use super::frame::Shape;

#[derive(Debug, Clone)]
pub(super) struct Watcher {
    /// The stream it is on.
    pub(super) stream: u64,
    pub(super) tenant: u64,
    pub(super) range: KeyRange,
    pub(super) shape: Shape,
    pub(super) no_puts: bool,
    pub(super) no_deletes: bool,
    pub(super) progress_notify: bool,
    /// The lowest revision it has not been given; for a synced watcher everything dispatched counts as given besides.
    pub(super) next: u64,
    pub(super) synced: bool,
    /// Something was sent since the last progress tick.
    pub(super) sent: bool,
    /// Events of the batch being dispatched.
    pub(super) pending: Vec<u32>,
}

impl Watcher {
    /// Whether the event is for this watcher, apart from what it was given already.
    pub(super) fn wants(&self, event: &Event) -> bool {
        let row = event.row();
        !(if row.tombstone { self.no_deletes } else { self.no_puts })
            && row.tenant == self.tenant
            && self.range.contains_key(&row.key)
    }

    /// What of `events` it is to be given.
    pub(super) fn select(&self, events: &[Arc<Event>]) -> Vec<Arc<Event>> {
        events.iter().filter(|event| event.main() >= self.next && self.wants(event)).cloned().collect()
    }
}
