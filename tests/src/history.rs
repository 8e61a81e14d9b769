//! What many clients did at once, and whether a store that keeps etcd's promises can have answered so.
//!
//! A test records an [`Operation`] for each request of each client: when it was sent, what was asked, what came back and when. After
//! the run it reads the store's whole history of events, by a watch from revision 1 on, into a [`Timeline`], and asks:
//!
//! * [`Timeline::new`]: revisions are dense, and each event is what etcd's rules make of the events before it;
//! * [`explain()`]: each revision is one request, whole, or the end of a lease; each answer is the one that the request gets at its
//!   revision; and revisions follow real time. It says which of the requests of unknown fate happened;
//! * [`linearizable()`]: a Wing-Gong-Lowe search per key, which knows nothing of revisions across keys: a second opinion;
//! * [`watched()`]: watches are ordered, unique, complete, atomic per revision, resumable, with the right previous values;
//! * [`leases_keep_their_time()`]: no lease ended before its time.
//!
//! [`check()`] asks all of it.
//!
//! Times are nanoseconds of one clock, whichever; an operation that begins in the moment another ends is concurrent with it.
//!
//! **Invariant:** nothing here talks to a store: histories in, [`Violation`]s out. The same checks judge real processes and the
//! simulation.

mod explain;
mod leases;
mod linearizable;
mod model;
#[cfg(test)]
mod tests;
mod timeline;
mod watched;

use bytes::Bytes;
use kvasir_api::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest,
    TxnResponse,
};

pub use explain::{Explained, explain};
pub use leases::leases_keep_their_time;
pub use linearizable::linearizable;
pub use model::Keys;
pub use timeline::Timeline;
pub use watched::{Batch, Watched, watched};

/// What a client asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// A range; without limits on revisions and unsorted.
    Range(RangeRequest),
    /// A put.
    Put(PutRequest),
    /// A delete.
    Delete(DeleteRangeRequest),
    /// A transaction; not of nested ones.
    Txn(TxnRequest),
    /// A lease of this id is to live so many seconds.
    Grant {
        /// Not 0: the client chooses.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// A lease is to live its whole time once more.
    KeepAlive {
        /// Which.
        id: i64,
    },
    /// A lease is to end now, with its keys.
    Revoke {
        /// Which.
        id: i64,
    },
}

/// What the store answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// To [`Request::Range`].
    Range(RangeResponse),
    /// To [`Request::Put`].
    Put(PutResponse),
    /// To [`Request::Delete`].
    Delete(DeleteRangeResponse),
    /// To [`Request::Txn`].
    Txn(TxnResponse),
    /// To [`Request::Grant`], [`Request::KeepAlive`] and [`Request::Revoke`].
    Lease {
        /// The response's header, where its revision is of the moment at which the request took effect; `None` for a keepalive,
        /// which the leader answers from what it knows.
        header: Option<ResponseHeader>,
        /// Seconds it lives from now on; 0 or less: there is no such lease.
        ttl: i64,
    },
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It was answered.
    Answered {
        /// When.
        at: u64,
        /// What.
        response: Response,
    },
    /// It was refused, and certainly never takes effect.
    Refused,
    /// Nobody knows: it may have taken effect, may still, or never will.
    Unknown,
}

/// One request of one client.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// Whose, for messages.
    pub client: u32,
    /// When it was sent.
    pub called: u64,
    /// What was asked.
    pub request: Request,
    /// What became of it.
    pub outcome: Outcome,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub promise: &'static str,
    /// How.
    pub how: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.promise, self.how)
    }
}

impl std::error::Error for Violation {}

/// Everything above of one run. `complete_to` is the revision that every watch has certainly come to; `foreign` says which revisions
/// may be somebody else's writes than the recorded clients': of those only the rules of a timeline are checked.
///
/// # Errors
/// The first broken promise.
pub fn check(
    operations: &[Operation],
    timeline: &Timeline,
    watches: &[Watched],
    complete_to: Option<i64>,
    foreign: impl Fn(&[kvasir_api::mvccpb::Event]) -> bool,
) -> Result<Explained, Violation> {
    let explained = explain(operations, timeline, foreign)?;
    linearizable(operations, Some(&explained))?;
    leases_keep_their_time(operations, &explained)?;
    for watch in watches {
        watched(watch, timeline, complete_to)?;
    }
    Ok(explained)
}

impl Operation {
    /// When it was answered.
    pub fn answered_at(&self) -> Option<u64> {
        match &self.outcome {
            Outcome::Answered { at, .. } => Some(*at),
            _ => None,
        }
    }

    /// Whether it may be served by any member from what it has applied.
    pub fn is_serializable(&self) -> bool {
        matches!(&self.request, Request::Range(range) if range.serializable)
    }
}

impl Response {
    /// The revision in its header; 0 if there is none.
    pub fn revision(&self) -> i64 {
        let header = match self {
            Self::Range(it) => &it.header,
            Self::Put(it) => &it.header,
            Self::Delete(it) => &it.header,
            Self::Txn(it) => &it.header,
            Self::Lease { header, .. } => header,
        };
        header.as_ref().map_or(0, |header| header.revision)
    }
}

/// Whether etcd's range of these two bounds holds a key.
fn covers(key: &[u8], range_end: &[u8], it: &[u8]) -> bool {
    match range_end {
        [] => it == key,
        [0] => it >= key,
        end => it >= key && it < end,
    }
}

/// How a key stands in a message.
fn shown(key: &Bytes) -> String {
    String::from_utf8_lossy(key).into_owned()
}
