//! Hashes of the key space, for comparing members (etcd `Maintenance.Hash`, `HashKV`).
//!
//! The numbers are kvasir's own: etcd hashes its backend's bytes, which nobody else has. They are equal on members that hold the
//! same keys at the same revision.
//!
//! **Invariant:** a hash is over the live keys of one revision, in order, each with its revisions, version, lease and value.

use kvasir_api::Error;
use kvasir_api::etcdserverpb::{HashKvRequest, HashKvResponse, HashRequest, HashResponse, RangeRequest};
use kvasir_consensus::blocking;

use crate::authorise;
use crate::caller::Caller;
use crate::engine::Engine;

/// 32-bit FNV-1a.
struct Fnv(u32);

impl Fnv {
    fn new() -> Self {
        Self(0x811c_9dc5)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

impl Engine {
    /// A hash of the live keys at a revision; 0 is the current one.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`, `PermissionDenied`.
    pub async fn hash_kv(&self, caller: &Caller, request: HashKvRequest) -> Result<HashKvResponse, Error> {
        authorise::allow_operator(caller)?;
        let (current, compacted) = {
            let state = self.consensus().state().read();
            (state.revision(), state.compact_revision())
        };
        let at = if request.revision == 0 { i64::try_from(current).unwrap_or(i64::MAX) } else { request.revision };
        let all = bytes::Bytes::from_static(b"\0");
        let range = RangeRequest { key: all.clone(), range_end: all, revision: at, ..RangeRequest::default() };
        let found = self.read(caller.tenant, &range).await?;
        let hash = blocking(self.consensus().store().is_driven(), move || {
            let mut hash = Fnv::new();
            for item in found.items {
                let kv = item.into_key_value();
                hash.bytes(&kv.key);
                for number in [kv.create_revision, kv.mod_revision, kv.version, kv.lease] {
                    hash.bytes(&number.to_le_bytes());
                }
                hash.bytes(&kv.value);
            }
            hash.0
        });
        Ok(HashKvResponse {
            header: Some(self.header_at(current)),
            hash: hash.await.map_err(|error| Error::Internal(error.to_string()))?,
            // etcd says -1 for "never compacted".
            compact_revision: if compacted == 0 { -1 } else { i64::try_from(compacted).unwrap_or(i64::MAX) },
            hash_revision: at,
        })
    }

    /// A hash of the live keys now.
    ///
    /// # Errors
    /// As [`Engine::hash_kv`].
    pub async fn hash(&self, caller: &Caller, _request: HashRequest) -> Result<HashResponse, Error> {
        let of_keys = self.hash_kv(caller, HashKvRequest { revision: 0 }).await?;
        Ok(HashResponse { header: of_keys.header, hash: of_keys.hash })
    }
}
