//! etcd's own clients against a real node: `etcdctl`, and Go programs on both import paths of clientv3.
//!
//! Nothing here knows kvasir: commands, flags and expected lines are etcd's. With `KVASIR_CLIENT_TESTS_ENDPOINT=HOST:PORT` the
//! same tests run against that server instead of a node of their own, so that a real etcd can be asked whether the tests are
//! right; only what needs a plugin is skipped then.
//!
//! The clients come from `cargo xtask test --only clients` (`target/clients/`), or from the places that `KVASIR_ETCDCTL`,
//! `KVASIR_GO_CLIENT` and `KVASIR_GO_CLIENT_OLD` name. A missing one skips its tests out loud; with
//! `KVASIR_REQUIRE_CLIENTS=1` it fails them.
//!
//! **Invariant:** a test never passes in silence because a client was missing.

// A failed expectation is a failed test.
#![allow(clippy::unwrap_used)]

mod etcdctl;
mod etcdctl_leases;
mod go_clients;
mod plugin_lock;
mod process;
mod server;
