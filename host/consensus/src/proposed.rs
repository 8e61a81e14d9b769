//! A command on its way through raft, and what became of it.
//!
//! **Invariant:** the bytes are encoded once; the log, the wire and `apply` read the same bytes, so every node applies the same
//! thing, and what the machine keeps of a command holds on to these bytes only, never to a client's receive buffer.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use kvasir_api::command::command::Body;
use kvasir_api::command::{ClusterVersion, Command};
use kvasir_api::{Error, limits};
use kvasir_machine::{Reply, check_version};
use prost::Message;

/// An encoded command.
#[derive(Clone)]
pub(crate) struct Proposed(Bytes);

impl Proposed {
    /// Encodes a command, in a buffer of exactly its size.
    pub(crate) fn encode(command: &Command) -> Self {
        Self(Bytes::from(command.encode_to_vec()))
    }

    /// The bytes of an entry's payload.
    pub(crate) fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The command, for a node that knows commands up to a version.
    ///
    /// # Errors
    /// A line for the operator, when the bytes are no command or one that only a newer kvasir understands.
    pub(crate) fn command(&self, index: u64, known: u32) -> Result<Command, Arc<str>> {
        let command = Command::decode(self.0.clone()).map_err(|error| {
            Arc::from(format!("log entry {index} is not a command ({error}); restore this node from a backup"))
        })?;
        check_version(&command).map_err(|error| Arc::from(format!("log entry {index}: {error}")))?;
        if let Some(Body::ClusterVersion(ClusterVersion { version })) = command.body
            && version > known
        {
            return Err(Arc::from(format!(
                "log entry {index} raises the cluster to version {version}, and this kvasir knows up to {known}: start a newer one"
            )));
        }
        Ok(command)
    }
}

impl fmt::Debug for Proposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command({} B)", self.0.len())
    }
}

impl fmt::Display for Proposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl PartialEq for Proposed {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// What applying an entry gave; `None` for entries that carry no command.
#[derive(Debug)]
pub(crate) struct Outcome(pub(crate) Option<Reply>);

/// Whether a command fits in the log, with the stamp that it may still get.
pub(crate) fn check_length(bytes: usize) -> Result<(), Error> {
    if bytes <= limits::COMMAND_BYTES_MAX { Ok(()) } else { Err(Error::RequestTooLarge) }
}
