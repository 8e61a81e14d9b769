//! The manifest in the engine's terms. What it is and what it may say stands in its own crate, which the SDK's harness shares.

use kvasir_api::limits;
use kvasir_engine::KeyRange;
use kvasir_manifest::Keys;
#[cfg(test)]
pub(crate) use kvasir_manifest::Span;
pub(crate) use kvasir_manifest::{
    Bytes, EventKind, Failure, Limits, MEMORY_BYTES_MAX, Manifest, Mode, OnExhausted, Schedule, Start, Watch, short,
};

// The parser knows nothing of the node, so the two say the same twice.
const _: () = assert!(kvasir_manifest::MANIFEST_BYTES_MAX == limits::MANIFEST_BYTES_MAX);
const _: () = assert!(kvasir_manifest::TRIGGERS_MAX == limits::TRIGGERS_PER_PLUGIN_MAX);

/// The watched keys.
pub(crate) fn keys(watch: &Watch) -> KeyRange {
    match watch.keys() {
        Keys::Prefix(prefix) => KeyRange::prefix(prefix.to_owned().into_bytes()),
        Keys::Key(key) => KeyRange::single(key.to_owned().into_bytes()),
        Keys::Range(from, to) => KeyRange::new(from.to_owned().into_bytes(), to.to_owned().into_bytes()),
    }
}
