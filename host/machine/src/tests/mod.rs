//! Tests of the machine: named rules, and random commands against a naive model.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod blobs;
mod budget;
mod compaction;
mod control;
mod effects;
mod formats;
mod harness;
mod leases;
mod model;
mod ranges;
mod registry;
mod restoring;
mod revisions;
mod space;
mod tokens;
mod transactions;
