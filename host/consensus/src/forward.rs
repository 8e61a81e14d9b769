//! Proposals on their way from a follower to the leader, and reads that ask it how far to wait.
//!
//! A follower passes a command on, unstamped, and waits for its own apply to meet it again: the reply is computed here, and what was
//! written is read here at once. Only refusals come back. A stream is for one term of one leader, who takes what comes on it in that
//! term alone: once an entry of a later term is applied here, a command that has not been met is in no log that counts, and whoever
//! waits is told so.
//!
//! **Invariants:** a command carries a number that no other command of this node ever had; whoever waits is answered once, and told
//! that a command was not taken only when it never will be.

mod follower;
mod leader;
mod waiting;

pub(crate) use follower::{Forward, Outgoing};
pub(crate) use leader::serve;
pub(crate) use waiting::Waiting;
