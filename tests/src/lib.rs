//! The harness of the end-to-end tests: real `kvasir` processes, clients on their wire, and the oracle that says whether what
//! they were told is still true.
//!
//! A test starts a [`Node`] (a real `kvasir serve` on a free port and a scratch folder), talks to it through [`Client`] (etcd's
//! gRPC services) or [`Node::cli`] (the binary's own verbs), kills or stops it, starts it again on the same folder, and waits
//! for conditions with [`eventually()`]. [`artefacts`] finds the binaries under test and builds them when they are missing or
//! older than their sources.
//!
//! ```no_run
//! # async fn example() {
//! use kvasir_tests::Node;
//! let mut node = Node::start();
//! let client = node.client().await;
//! client.put("a", "1").await.expect("the node takes writes");
//! node.kill();
//! node.restart();
//! let client = node.client().await;
//! assert_eq!(client.get("a").await.expect("and serves reads").as_deref(), Some(&b"1"[..]));
//! # }
//! ```
//!
//! **Invariant:** nothing here reaches into the product: the harness sees what an operator and a client see. No process outlives
//! the test that started it, whatever way the test ends.

// A failed expectation is a failed test, and what the tests have to tell goes to the terminal.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

pub mod artefacts;
mod client;
mod eventually;
pub mod history;
mod mount;
pub mod oracle;
mod process;
mod random;
mod relay;
mod skip;
pub mod traffic;

pub use client::{Client, Install, Watching};
pub use eventually::{DEADLINE, eventually};
pub use mount::Mount;
pub use process::{Addresses, Cli, Cluster, ClusterBuilder, Failure, Node, NodeBuilder, anonymous_bytes, run};
pub use random::Random;
pub use relay::{Counts, Relay, Rule};
pub use skip::skip;
