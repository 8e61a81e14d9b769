//! Who this node is: its id and its cluster's, made at bootstrap and read from the data folder ever after.
//!
//! The id is a hash of the cluster's token and the node's name, so that a static bootstrap needs no coordination; it is written
//! down because a node that is renamed later is still the same voter, and an id must never be used by two nodes.
//!
//! **Invariant:** the identity is durable before the node votes or appends anything.

use bytes::Bytes;
use kvasir_storage::state::Store;
use sha2::{Digest, Sha256};

use crate::options::StartError;

/// The state file's row of this node alone.
pub(crate) const ROW: &str = "identity";

/// No log comes to this index; ids below it are indexes of entries.
pub(crate) const INDEX_END: u64 = 1 << 48;

/// A node's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node_id: u64,
    pub(crate) cluster_id: u64,
}

impl Identity {
    /// Node id, then cluster id, big-endian.
    fn encode(self) -> Bytes {
        Bytes::from([self.node_id.to_be_bytes(), self.cluster_id.to_be_bytes()].concat())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (node_id, cluster_id) = bytes.split_first_chunk::<8>()?;
        let node_id = u64::from_be_bytes(*node_id);
        let cluster_id = u64::from_be_bytes(cluster_id.try_into().ok()?);
        (node_id != 0).then_some(Self { node_id, cluster_id })
    }
}

fn hash(parts: &[&str]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let digest = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    // 0 means "no node" in etcd's messages.
    u64::from_le_bytes(first).max(1)
}

/// The id that a static bootstrap gives to the member of this name: none that an entry of the log can have for its index.
pub fn node_id(cluster_token: &str, name: &str) -> u64 {
    let id = hash(&["node", cluster_token, name]);
    if id < INDEX_END { id | (1 << 63) } else { id }
}

/// The id of the cluster that is bootstrapped with this token.
pub fn cluster_id(cluster_token: &str) -> u64 {
    hash(&["cluster", cluster_token])
}

/// Reads the identity, or writes the one that was given by the cluster that this node joins, or else makes one. Blocking.
///
/// # Errors
/// The state file's, a row that is not an identity, or one that is not the given.
pub(crate) fn load_or_create(store: &Store, token: &str, name: &str, given: Option<Identity>) -> Result<Identity, StartError> {
    if let Some(row) = store.local_get(ROW)? {
        let identity = Identity::decode(&row).ok_or_else(|| {
            StartError::Identity("the state file's row of this node's identity is damaged; restore a backup".to_owned())
        })?;
        return match given {
            Some(given) if given != identity => Err(StartError::Identity(format!(
                "the data folder is of node {:016x} of cluster {:016x}, not of node {:016x} of cluster {:016x}; start it with its own \
                 identity, or join with an empty folder",
                identity.node_id, identity.cluster_id, given.node_id, given.cluster_id
            ))),
            _ => Ok(identity),
        };
    }
    let identity = given.unwrap_or_else(|| Identity { node_id: node_id(token, name), cluster_id: cluster_id(token) });
    store.local_put(ROW, identity.encode())?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_and_anything_else_is_refused() {
        let identity = Identity { node_id: 7, cluster_id: u64::MAX };
        assert_eq!(Identity::decode(&identity.encode()), Some(identity));
        assert_eq!(Identity::decode(&[]), None);
        assert_eq!(Identity::decode(&[0; 16]), None);
        assert_eq!(Identity::decode(&[1; 17]), None);
    }

    #[test]
    fn names_and_tokens_make_different_ids() {
        assert_ne!(hash(&["node", "ab", "c"]), hash(&["node", "a", "bc"]));
    }
}
