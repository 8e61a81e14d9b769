//! Why a run was stopped, told apart once: every limit has its own words, which reach `plugin ls` and `plugin logs`.
//!
//! **Invariant:** whatever a guest does ends in exactly one [`Stop`] or in its own answer.

use std::collections::BTreeSet;

use wasmtime::component::ResourceTableError;
use wasmtime::{Trap, WasmBacktrace};

use crate::manifest::{Bytes, Limits, short};
use crate::wasm::STACK_BYTES;

/// Why the host ended a run, or the guest broke down. All of these but `Cancelled` are the guest's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    #[error("stopped by the limit `memory`: it asked for {asked} bytes in all, {limit} are allowed")]
    Memory { asked: u64, limit: Bytes },
    #[error("stopped by the limit `memory`: a table of {0} elements is more than the host allows")]
    Table(usize),
    #[error("stopped by the limit `cpu`: it used more than {0} of processor time")]
    Cpu(String),
    #[error("stopped by the limit `wall`: it ran for more than {0}")]
    Wall(String),
    #[error("stopped by the limit `host-calls`: it made more than {0} calls of the host")]
    HostCalls(u32),
    #[error("stopped by the limit on host-call bytes: one call of the host carried more than {0}")]
    HostCallBytes(Bytes),
    #[error("stopped by the limit on handles: more than {0} were open at once")]
    Handles(usize),
    #[error("stopped by the limit on stack: it recursed past {0}")]
    Stack(Bytes),
    #[error("stopped by its own stack: it recursed until the stack in its memory was full")]
    OwnStack,
    #[error("stopped by the limit `{limit}`: {what}")]
    Staged { limit: &'static str, what: String },
    #[error("it trapped: {0}")]
    Trap(String),
    #[error("the host failed while running it: {0}")]
    Panic(String),
    #[error("it called exit({0}) instead of returning")]
    Exit(i32),
    #[error("ended by the host: the plugin was stopped, replaced or removed")]
    Cancelled,
}

/// Bytes that one call of the host may carry from the guest.
pub(crate) const HOST_CALL_BYTES_MAX: usize = 4 << 20;
/// Handles that a guest may hold, of the host's resources and of its own.
pub(crate) const HANDLES_MAX: usize = 1_024;
/// Host resources behind those handles.
pub(crate) const RESOURCES_MAX: usize = 256;

impl Stop {
    /// Reads what wasmtime reports after a run that did not return.
    pub(crate) fn of(error: &wasmtime::Error, limits: &Limits) -> Self {
        if let Some(stop) = error.downcast_ref::<Self>() {
            return stop.clone();
        }
        if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
            return Self::Exit(exit.0);
        }
        if let Some(ResourceTableError::Full) = error.downcast_ref::<ResourceTableError>() {
            return Self::Handles(RESOURCES_MAX);
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::StackOverflow) => return Self::Stack(Bytes(STACK_BYTES as u64)),
            // Toolchains keep a second stack in linear memory, which grows down past address 0.
            Some(Trap::MemoryOutOfBounds) if recursed(error) => return Self::OwnStack,
            Some(Trap::Interrupt) => return Self::Cpu(limits.cpu.to_string()),
            _ => {}
        }
        // These two have no type of their own.
        let text = format!("{error:#}");
        if text.contains("fuel allocated for hostcalls has been exhausted") {
            return Self::HostCallBytes(Bytes(HOST_CALL_BYTES_MAX as u64));
        }
        if text.contains("store handle limit exceeded") {
            return Self::Handles(HANDLES_MAX);
        }
        let cause = error.root_cause().to_string();
        Self::Trap(short(cause.strip_prefix("wasm trap: ").unwrap_or(&cause)))
    }

    /// Adds to a trap what the guest said before it, a panic's message usually.
    pub(crate) fn with_last_words(self, words: &str) -> Self {
        match self {
            Self::Trap(cause) if !words.is_empty() => Self::Trap(format!("{cause}; its last words: {words}")),
            other => other,
        }
    }
}

/// The innermost frames are the same few functions again and again.
fn recursed(error: &wasmtime::Error) -> bool {
    const FRAMES_MIN: usize = 12;
    const FUNCTIONS_MAX: usize = 4;
    error.downcast_ref::<WasmBacktrace>().is_some_and(|backtrace| {
        let functions: BTreeSet<u32> = backtrace.frames().iter().take(FRAMES_MIN).map(|frame| frame.func_index()).collect();
        backtrace.frames().len() >= FRAMES_MIN && functions.len() <= FUNCTIONS_MAX
    })
}
