//! The kvasir binary: the doors through which clients come (gRPC and HTTP on one port), config, the process's life and the CLI.
//!
//! It may touch the network, the environment, signals and standard streams; keys it reaches through the engine only, and
//! the CLI through a door like any other client.
//!
//! **Invariant:** nothing imports this crate, and no rule about keys, leases or plugins is decided here.

mod args;
mod cli;
mod clock;
mod config;
mod doors;
mod identity;
mod logging;
mod memory;
mod peers;
mod serve;
mod wall;

pub use args::run;
