//! Watch: every event once, in order, to everyone who asked.
//!
//! [`Hub`] keeps the ring of recent changes and knows every watcher. A watcher that has had everything up to the ring's head is
//! *synced*: the hub's task matches new changes against the index of synced watchers and queues responses. A watcher that is
//! behind, because it starts in the past or its stream is slow, is served by its stream's own task, from the ring or from
//! history, until it meets the head (etcd's synced, unsynced and victim watchers, `server/storage/mvcc/watchable_store.go`).
//!
//! **Invariant:** a watcher's events are delivered in order of revision, each exactly once, no revision split over two responses
//! unless it asked for fragments; a slow stream costs itself only.

mod catch_up;
mod event;
mod frame;
pub(crate) mod history;
mod hub;
mod index;
mod queue;
mod ring;
mod stream;
mod watcher;

pub use frame::WatchFrame;
pub(crate) use hub::Hub;
pub use stream::{WatchFrames, WatchRequests, WatchStream};
