//! Why the host refused a call: the `error` variant of the contract as a Rust error.
//!
//! Invariant: every message is for a person; it names the key, the grant or the limit.

/// What a host call can answer instead of its result. The text names the key, grant or limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No grant covers the keys.
    #[error("denied: {0}")]
    Denied(String),
    /// An argument is not valid.
    #[error("invalid: {0}")]
    Invalid(String),
    /// Somebody else changed what this run relies on, or holds what it asked for.
    #[error("conflict: {0}")]
    Conflict(String),
    /// A limit of the plugin is used up.
    #[error("limit: {0}")]
    Limit(String),
    /// The thing named does not exist.
    #[error("not found: {0}")]
    NotFound(String),
    /// The required revision has been compacted; the field is the compaction's revision.
    #[error("required revision has been compacted, the oldest one kept is {0}")]
    Compacted(u64),
    /// The node cannot answer now; trying again later may succeed.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The call is not offered to what runs here.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// Another reason, of a host that is newer than this crate.
    #[error("{0}")]
    Other(String),
    /// A value is not the JSON that the plugin expects.
    #[error("the value of {key} does not decode: {reason}")]
    Decode {
        /// The key, printable.
        key: String,
        /// What is wrong with the value and where.
        reason: String,
    },
    /// A value of the plugin's own cannot be written as JSON.
    #[error("the value for {key} does not encode: {reason}")]
    Encode {
        /// The key, printable.
        key: String,
        /// What is wrong with the value.
        reason: String,
    },
}
