//! Hashes of the key space, for comparing members (etcd `Maintenance.Hash`, `HashKV`).
//!
//! The numbers are kvasir's own: etcd hashes its backend's bytes, which nobody else has. They are equal on members that hold the
//! same keys at the same revision.
//!
//! **Invariant:** a hash is over the live keys of one revision, in order, each with its revisions, version, lease and value.

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::etcdserverpb::{HashKvRequest, HashKvResponse, HashRequest, HashResponse};
use kvasir_api::limits::{RANGE_RESTARTS_MAX, RANGE_SLICE_KEYS};
use kvasir_consensus::blocking;
use kvasir_machine::{Item, RangeReply};

use crate::authorise;
use crate::caller::Caller;
use crate::engine::Engine;

/// etcd's way to say "all keys", as a key and as its range's end.
const EVERYTHING: &[u8] = b"\0";

/// CRC-32C of all that it is given, each with its length.
struct Crc(u32);

impl Crc {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, &(bytes.len() as u64).to_le_bytes());
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    fn item(&mut self, item: Item) {
        let kv = item.into_key_value();
        self.bytes(&kv.key);
        for number in [kv.create_revision, kv.mod_revision, kv.version, kv.lease] {
            self.0 = crc32c::crc32c_append(self.0, &number.to_le_bytes());
        }
        self.bytes(&kv.value);
    }
}

impl Engine {
    /// A hash of the live keys at a revision; 0 is the current one.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`, `PermissionDenied`.
    pub async fn hash_kv(&self, caller: &Caller, request: HashKvRequest) -> Result<HashKvResponse, Error> {
        authorise::allow_operator(caller)?;
        let mut tries = RANGE_RESTARTS_MAX;
        let (current, compacted, at, hash) = loop {
            let (current, compacted) = {
                let state = self.consensus().state().read();
                (state.revision(), state.compact_revision())
            };
            let named = u64::try_from(request.revision).ok().filter(|revision| *revision > 0);
            let at = named.unwrap_or(current);
            match self.hash_at(vec![caller.tenant], at).await {
                // Whoever asks for the present named no revision that could go.
                Err(Error::Compacted) if named.is_none() && tries > 0 => tries -= 1,
                hash => break (current, compacted, at, hash?),
            }
        };
        Ok(HashKvResponse {
            header: Some(self.header_at(current)),
            hash,
            // etcd says -1 for "never compacted".
            compact_revision: if compacted == 0 { -1 } else { i64::try_from(compacted).unwrap_or(i64::MAX) },
            hash_revision: i64::try_from(at).unwrap_or(i64::MAX),
        })
    }

    /// A hash of what was live at a revision, read in slices of which one is in memory at a time.
    pub(crate) async fn hash_at(&self, tenants: Vec<u64>, at: u64) -> Result<u32, Error> {
        let mut hash = Crc(0);
        for tenant in tenants {
            let mut after: Option<Bytes> = None;
            loop {
                // The lock is gone before what was found is looked at.
                let slice = self.consensus().state().read().range_slice(
                    tenant,
                    EVERYTHING,
                    EVERYTHING,
                    at,
                    after.as_deref(),
                    RANGE_SLICE_KEYS,
                )?;
                let found = RangeReply { revision: at, items: slice.items, ..RangeReply::default() };
                let found = self.fill_range(found).await?;
                let hashed = blocking(self.consensus().store().is_driven(), move || {
                    found.items.into_iter().for_each(|item| hash.item(item));
                    hash
                });
                hash = hashed.await.map_err(|error| Error::Internal(error.to_string()))?;
                after = slice.more;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(hash.0)
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
