//! What `wit/kvasir-plugin.wit` means in Rust: generated, never edited.

// The generated code documents what the contract documents; its lints are not ours to fix.
#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "everything",
    imports: { default: async | trappable },
    exports: { default: async },
    with: {
        "kvasir:plugin/watch.cursor": crate::imports::watch::Cursor,
        "kvasir:plugin/lock.handle": crate::imports::lock::Handle,
    },
});
