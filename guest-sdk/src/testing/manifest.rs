//! `plugin.toml` as the host reads it, by the host's own parser.
//!
//! Invariant: a manifest that the host would refuse ends the test, with the host's reason.

use kvasir_manifest::Keys;
pub(crate) use kvasir_manifest::{EventKind, Manifest, Mode, OnExhausted, Watch};

use crate::Selection;

/// Reads a manifest and adds what is granted without being asked for.
pub(crate) fn parse(text: &str) -> Manifest {
    let mut manifest = match Manifest::parse(text) {
        Ok(manifest) => manifest,
        Err(error) => panic!("plugin.toml: {error}"),
    };
    // What a watch delivers it reads, and a schedule takes its lock.
    let watched = manifest.trigger.watch.iter().filter_map(Watch::prefix).map(str::to_owned);
    manifest.grants.kv_read.extend(watched);
    let name = &manifest.plugin.name;
    manifest.grants.lock.extend(manifest.trigger.schedule.iter().map(|schedule| schedule.lock(name)));
    manifest
}

/// The keys that are watched.
pub(crate) fn selection(watch: &Watch) -> Selection {
    match watch.keys() {
        Keys::Prefix(prefix) => Selection::prefix(prefix),
        Keys::Key(key) => Selection::key(key),
        Keys::Range(from, to) => Selection::span(from, to),
    }
}
