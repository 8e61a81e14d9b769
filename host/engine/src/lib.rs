//! kvasir as one async API: range, txn, watch, lease, lock, compaction and what plugins need, for every door alike.
//!
//! Entry points: [`Engine`] and its methods; [`Caller`] says on whose behalf. A request is checked as etcd checks it (`kvasir_machine::check_txn` and its like), goes through
//! `authorise` (the one place where a range is authorised, and from which a command is proposed) and then either to consensus or,
//! for reads, straight to the state in memory.
//!
//! **Invariant:** nothing here holds a lock across an `await`, and every queue has its bound in [`kvasir_api::limits`].

mod authorise;
mod caller;
mod collect;
mod compact;
mod corruption;
mod engine;
mod fill;
mod hash;
mod leader;
mod lease;
mod lock;
mod maintenance;
mod member;
mod metrics;
mod options;
mod peers;
mod plugin;
mod range;
mod slack;
mod snapshot;
mod space;
mod token;
mod version;
mod watch;
mod write;

pub use authorise::Access;
pub use caller::{Caller, Grants, KeyRange};
pub use engine::Engine;
pub use kvasir_machine::{Authorities, COMMAND_VERSION, TokenRecord, TokenUsed};
pub use metrics::EngineMetrics;
pub use options::{EngineOptions, StartError};
pub use plugin::{DeadLetterView, HistoryBatch, Page};
pub use snapshot::Saving;
pub use watch::{WatchFrame, WatchFrames, WatchRequests, WatchStream};
