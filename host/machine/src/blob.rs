//! Components of plugins: their pieces arrive in order, one an entry, and are kept by digest while a plugin uses them.
//!
//! The machine counts pieces and does not hold or hash them: whoever loads a component checks its digest.
//!
//! **Invariant:** a component is complete if and only if every piece was received, in order, and they add up to its size.

use std::collections::BTreeMap;

use kvasir_api::command::BlobChunk;
use kvasir_api::{Error, limits};

use crate::mvcc::write::Writer;
use crate::table::{blob_chunk_key, read_digest};
use crate::{Effects, Reply, State, Table};

/// SHA-256 of a component.
pub type Digest = [u8; 32];

/// What is known of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobRecord {
    /// Its size.
    pub total_bytes: u64,
    /// Its pieces, all of [`limits::BLOB_CHUNK_BYTES`] but the last.
    pub chunks: u32,
    /// Pieces received so far.
    pub received: u32,
    /// Bytes received so far.
    pub received_bytes: u64,
    /// All pieces are there.
    pub complete: bool,
    /// Index of the entry with its first piece: its age.
    pub began_at: u64,
}

/// All components.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blobs {
    records: BTreeMap<Digest, BlobRecord>,
    bytes: u64,
}

impl Blobs {
    /// Bytes received, of all.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn insert(&mut self, digest: Digest, record: BlobRecord) {
        let before = self.records.insert(digest, record).map_or(0, |before| before.received_bytes);
        self.bytes = self.bytes - before + record.received_bytes;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Digest, &BlobRecord)> {
        self.records.iter()
    }
}

impl State {
    /// What is known of a component; `None` when no piece of it was received.
    pub fn blob(&self, digest: &[u8]) -> Option<BlobRecord> {
        self.blobs.records.get(digest).copied()
    }

    pub(crate) fn apply_blob_chunk(
        &mut self,
        index: u64,
        writer: &Writer,
        chunk: &BlobChunk,
        effects: &mut Effects,
    ) -> Result<Reply, Error> {
        let digest = read_digest("component", &chunk.digest).map_err(|error| Error::Invalid(error.to_string()))?;
        let size = chunk.total_bytes;
        let chunks = size.div_ceil(limits::BLOB_CHUNK_BYTES as u64);
        if size == 0 || size > limits::COMPONENT_BYTES_MAX || u64::from(chunk.chunks) != chunks {
            return Err(Error::Invalid(format!(
                "a component has 1 to {} bytes, in pieces of {}",
                limits::COMPONENT_BYTES_MAX,
                limits::BLOB_CHUNK_BYTES
            )));
        }
        let before = self.blob(&digest);
        let mut record = before.unwrap_or(BlobRecord {
            total_bytes: size,
            chunks: chunk.chunks,
            received: 0,
            received_bytes: 0,
            complete: false,
            began_at: index,
        });
        if record.total_bytes != size {
            return Err(Error::Invalid("this component was begun with another size".into()));
        }
        if chunk.index > record.received {
            return Err(Error::Precondition(format!("piece {} of this component is next", record.received)));
        }
        // A piece sent again changes nothing.
        if chunk.index == record.received && !record.complete {
            let left = size - record.received_bytes;
            if chunk.data.len() as u64 != left.min(limits::BLOB_CHUNK_BYTES as u64) {
                return Err(Error::Invalid("this piece of a component has the wrong size".into()));
            }
            self.check_space(chunk.data.len() as u64, writer, effects)?;
            if before.is_none() {
                self.drop_unused_blobs(limits::BLOBS_UNUSED_MAX - 1, effects);
            }
            record.received += 1;
            record.received_bytes += chunk.data.len() as u64;
            record.complete = record.received == record.chunks;
            self.blobs.insert(digest, record);
            effects.set(Table::BlobChunk, blob_chunk_key(&digest, chunk.index), chunk.data.clone());
            effects.set(Table::Blob, digest.to_vec(), record.encode());
        }
        Ok(Reply::BlobChunk { revision: self.revision(), received: record.received, complete: record.complete })
    }

    /// Forgets the oldest components that no plugin uses, but for `kept` of them.
    fn drop_unused_blobs(&mut self, kept: usize, effects: &mut Effects) {
        let mut unused: Vec<(u64, Digest)> =
            self.blobs.iter().filter(|(digest, _)| !self.uses(digest)).map(|(d, record)| (record.began_at, *d)).collect();
        unused.sort_unstable();
        let too_many = unused.len().saturating_sub(kept);
        for (_, digest) in unused.drain(..too_many) {
            self.drop_blob(&digest, effects);
        }
    }

    /// Forgets a component unless a plugin uses it.
    pub(crate) fn drop_blob_if_unused(&mut self, digest: &Digest, effects: &mut Effects) {
        if !self.uses(digest) {
            self.drop_blob(digest, effects);
        }
    }

    fn uses(&self, digest: &Digest) -> bool {
        self.registry.plugins.values().any(|plugin| plugin.digest == *digest)
    }

    fn drop_blob(&mut self, digest: &Digest, effects: &mut Effects) {
        let Some(record) = self.blobs.records.remove(digest) else { return };
        self.blobs.bytes -= record.received_bytes;
        for chunk in 0..record.received {
            effects.delete(Table::BlobChunk, blob_chunk_key(digest, chunk));
        }
        effects.delete(Table::Blob, digest.to_vec());
    }
}
