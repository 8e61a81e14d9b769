//! The WebAssembly engine: its configuration, its epoch ticker and the priority of everything that works for plugins.
//!
//! **Invariant:** the engine's epoch advances for as long as the engine lives, so that no guest runs without being interrupted.

use std::sync::mpsc;
use std::time::Duration;

use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::manifest::MEMORY_BYTES_MAX;

/// Time between two interruptions of a running guest: it yields its thread and its limits are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(5);
/// Stack of a guest.
pub(crate) const STACK_BYTES: usize = 512 << 10;
/// Runs at the same time, over all plugins.
pub(crate) const RUNS_MAX: u32 = 32;
/// What one component may consist of. The pool has room for as many of each as all runs may have, so that none waits for another.
const CORE_INSTANCES_PER_COMPONENT_MAX: u32 = 32;
const MEMORIES_PER_COMPONENT_MAX: u32 = 4;
const TABLES_PER_COMPONENT_MAX: u32 = 8;
/// Every thread that works for plugins has a name that starts so: a panic there is a plugin's fault, not the node's.
pub const THREAD_NAME_PREFIX: &str = "plugin-";
/// How far below the server's priority guests and compilation run.
const RUN_NICE: i32 = 5;
const COMPILE_NICE: i32 = 10;

/// Makes the engine: pooled instances where the address space allows them, instances on demand elsewhere.
///
/// # Errors
/// What the engine said about the configuration without pooling.
pub(crate) fn engine() -> wasmtime::Result<Engine> {
    match Engine::new(&config(true)) {
        Ok(engine) => Ok(engine),
        Err(error) => {
            tracing::info!(%error, "address space is too small for pooled plugin instances; they are made on demand");
            Engine::new(&config(false))
        }
    }
}

fn config(pooling: bool) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .concurrency_support(false)
        .memory_init_cow(true)
        .max_wasm_stack(STACK_BYTES)
        .async_stack_size(STACK_BYTES * 2)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        // One thread at low priority compiles; more would take the server's processors.
        .parallel_compilation(false);
    if pooling {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(RUNS_MAX)
            .total_core_instances(RUNS_MAX * CORE_INSTANCES_PER_COMPONENT_MAX)
            .total_memories(RUNS_MAX * MEMORIES_PER_COMPONENT_MAX)
            .total_tables(RUNS_MAX * TABLES_PER_COMPONENT_MAX)
            .total_stacks(RUNS_MAX)
            .max_component_instance_size(8 << 20)
            .max_core_instance_size(8 << 20)
            .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT_MAX)
            .max_memories_per_component(MEMORIES_PER_COMPONENT_MAX)
            .max_tables_per_component(TABLES_PER_COMPONENT_MAX)
            .table_elements(50_000)
            .max_memory_size(MEMORY_BYTES_MAX as usize)
            .max_unused_warm_slots(16)
            .linear_memory_keep_resident(1 << 20)
            .table_keep_resident(64 << 10);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    } else {
        config.memory_reservation(64 << 20);
    }
    config
}

/// Advances the epoch every [`TICK`] until the last clone of the engine or the returned guard is gone.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn tick(engine: &Engine) -> std::io::Result<Ticker> {
    let (stop, stopped) = mpsc::channel::<()>();
    let weak = engine.weak();
    std::thread::Builder::new().name(format!("{THREAD_NAME_PREFIX}epoch")).spawn(move || {
        // The channel is a sleep that the guard's drop ends early.
        while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(TICK) {
            match weak.upgrade() {
                Some(engine) => engine.increment_epoch(),
                None => break,
            }
        }
    })?;
    Ok(Ticker { _stop: stop })
}

/// Keeps the epoch advancing.
pub(crate) struct Ticker {
    _stop: mpsc::Sender<()>,
}

/// Puts the calling thread, which runs guests, below the server's.
pub(crate) fn lower_run_priority() {
    lower(RUN_NICE);
}

/// Puts the calling thread, which compiles, below the guests'.
pub(crate) fn lower_compile_priority() {
    lower(COMPILE_NICE);
}

fn lower(nice: i32) {
    // On Linux the nice value is each thread's own, and "this process" means the calling thread. Set, not added to: a thread starts
    // with its maker's. Without it plugins still run, only less politely.
    if let Err(error) = rustix::process::setpriority_process(None, nice) {
        tracing::debug!(%error, "cannot lower a plugin thread's priority");
    }
}
