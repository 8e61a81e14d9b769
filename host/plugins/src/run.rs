//! One call of a guest: a fresh instance under its limits, from instantiation to its answer.
//!
//! **Invariant:** an instance that was stopped is dropped with its store and never entered again; nothing of a run outlives it but
//! its answer, its log lines and, if its caller commits them, its writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvasir_engine::Caller;
use tokio_util::sync::CancellationToken;
use wasmtime::component::ResourceTable;
use wasmtime::{PoolConcurrencyLimitError, ResourceLimiter, Store as WasmStore, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::bindings::exports::kvasir::plugin::reactor::{Batch, Resync};
use crate::bindings::kvasir::plugin::types::Fault;
use crate::imports::stdio::{LastWords, LogStream};
use crate::imports::task::Task;
use crate::logs::{PluginLog, Source};
use crate::manifest::Limits;
use crate::meter::{Meter, Metered};
use crate::program::Program;
use crate::stop::{HANDLES_MAX, HOST_CALL_BYTES_MAX, RESOURCES_MAX, Stop};
use crate::store::Store;
use crate::view::View;

/// Elements of all tables of a guest.
const TABLE_ELEMENTS_MAX: usize = 40_000;
/// A run that is starved of the processor ends after so many times its wall limit.
const STARVED_FACTOR: u32 = 16;
/// How long a run may go on after `context.cancelled` turned true for it.
const CANCEL_GRACE: Duration = Duration::from_secs(1);
/// Bytes of randomness in one call.
const RANDOM_BYTES_MAX: u64 = 64 << 10;

/// What a run is told and held to.
pub(crate) struct Facts {
    pub(crate) plugin: String,
    pub(crate) source: Source,
    pub(crate) config: Arc<BTreeMap<String, String>>,
    pub(crate) limits: Limits,
    /// Wall time at the start, in ms since 1970.
    pub(crate) now_ms: u64,
    pub(crate) caller: Caller,
    pub(crate) log: Arc<PluginLog>,
    pub(crate) store: Store,
    /// The run should end soon.
    pub(crate) cancel: CancellationToken,
}

/// The input of a run.
pub(crate) enum Input {
    Events(Batch),
    Resync(Resync),
    Task(Box<Task>),
}

/// How a run ended.
pub(crate) struct Ended {
    pub(crate) answer: Answer,
    /// What it staged and read; empty when it was stopped.
    pub(crate) view: View,
    /// A host call met a trouble of the node, not of the guest.
    pub(crate) trouble: Option<String>,
    pub(crate) cpu: Duration,
    pub(crate) took: Duration,
    pub(crate) task: Option<Box<Task>>,
}

/// What the guest answered, or why it could not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Ok,
    Retry(String),
    Reject(String),
    Stopped(Stop),
}

/// The store data of an instance: everything its host calls may touch.
pub(crate) struct Run {
    pub(crate) facts: Facts,
    pub(crate) view: View,
    pub(crate) table: ResourceTable,
    pub(crate) task: Option<Box<Task>>,
    pub(crate) trouble: Option<String>,
    calls: u32,
    wasi: WasiCtx,
    memory: Memory,
}

impl Run {
    /// Counts a call of the host.
    ///
    /// # Errors
    /// [`Stop::HostCalls`], which ends the run.
    pub(crate) fn charge(&mut self) -> wasmtime::Result<()> {
        self.calls += 1;
        if self.calls > self.facts.limits.host_calls {
            return Err(wasmtime::Error::new(Stop::HostCalls(self.facts.limits.host_calls)));
        }
        Ok(())
    }
}

impl WasiView for Run {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Runs `input` in a fresh instance of `program`, reading at `revision`.
pub(crate) async fn run(program: &Program, facts: Facts, revision: u64, input: Input) -> Ended {
    let started = Instant::now();
    let limits = facts.limits;
    let (log, source) = (facts.log.clone(), facts.source.clone());
    let words = LastWords::default();
    let meter = Meter::new(limits);
    let cancelled = {
        let cancel = facts.cancel.clone();
        async move {
            cancel.cancelled().await;
            tokio::time::sleep(CANCEL_GRACE).await;
        }
    };
    let mut store = WasmStore::new(program.engine(), data(facts, revision, words.clone()));
    configure(&mut store, meter.clone());
    let call = Metered::new(call(program, &mut store, input), meter.clone());
    let result = tokio::select! {
        result = call => result,
        // However little of the processor a run gets, it ends.
        () = tokio::time::sleep(limits.wall.0 * STARVED_FACTOR) => Err(wasmtime::Error::new(meter.wall())),
        // A guest that computes gives its thread away on every tick, so this is seen then.
        () = cancelled => Err(wasmtime::Error::new(Stop::Cancelled)),
    };
    let mut no_room = None;
    let answer = match result {
        Ok(Ok(())) => Answer::Ok,
        Ok(Err(Fault::Retry(why))) => Answer::Retry(why),
        Ok(Err(Fault::Reject(why))) => Answer::Reject(why),
        // Others have what it needs: no limit of this plugin.
        Err(error) if error.is::<PoolConcurrencyLimitError>() => {
            no_room = Some(format!("the node has no room for another instance: {error}"));
            Answer::Retry(error.to_string())
        }
        Err(error) => {
            if error.downcast_ref::<Stop>().is_none() {
                log.host(&source, "debug", &format!("{error:?}"));
            }
            Answer::Stopped(Stop::of(&error, &limits).with_last_words(&words.text()))
        }
    };
    let data = store.into_data();
    let view = if answer == Answer::Ok { data.view } else { View::at(revision) };
    Ended { answer, view, trouble: no_room.or(data.trouble), cpu: meter.cpu(), took: started.elapsed(), task: data.task }
}

fn data(facts: Facts, revision: u64, words: LastWords) -> Run {
    let stdout = LogStream::new(facts.log.clone(), facts.source.clone(), "info", "stdout", LastWords::default());
    let stderr = LogStream::new(facts.log.clone(), facts.source.clone(), "warn", "stderr", words);
    let wasi = WasiCtx::builder().stdout(stdout).stderr(stderr).max_random_size(RANDOM_BYTES_MAX).build();
    let mut table = ResourceTable::new();
    table.set_max_capacity(RESOURCES_MAX);
    let memory = Memory { limit: facts.limits.memory.0, used: 0, elements: 0 };
    Run { facts, view: View::at(revision), table, task: None, trouble: None, calls: 0, wasi, memory }
}

fn configure(store: &mut WasmStore<Run>, meter: Arc<Meter>) {
    store.limiter(|run| &mut run.memory);
    store.set_hostcall_fuel(HOST_CALL_BYTES_MAX);
    store.set_max_component_handles(HANDLES_MAX);
    // The deadline is always one tick ahead: a sum with the current epoch must not overflow.
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |_| {
        meter.tick().map_err(wasmtime::Error::new)?;
        Ok(UpdateDeadline::Yield(1))
    });
}

async fn call(program: &Program, store: &mut WasmStore<Run>, input: Input) -> wasmtime::Result<Result<(), Fault>> {
    match input {
        Input::Events(batch) => {
            let instance = program.instantiate(&mut *store).await?;
            let reactor = program.reactor(&mut *store, &instance)?;
            reactor.call_on_events(store, &batch).await
        }
        Input::Resync(page) => {
            let instance = program.instantiate(&mut *store).await?;
            let reactor = program.reactor(&mut *store, &instance)?;
            reactor.call_on_resync(store, &page).await
        }
        Input::Task(task) => {
            store.data_mut().task = Some(task);
            let instance = program.instantiate(&mut *store).await?;
            let task = program.task(&mut *store, &instance)?;
            task.call_run(store).await
        }
    }
}

/// Linear memory and tables of one instance, all together.
struct Memory {
    limit: u64,
    used: u64,
    elements: usize,
}

impl ResourceLimiter for Memory {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let asked = self.used + desired.saturating_sub(current) as u64;
        if asked > self.limit {
            return Err(wasmtime::Error::new(Stop::Memory { asked, limit: crate::manifest::Bytes(self.limit) }));
        }
        self.used = asked;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let elements = self.elements + desired.saturating_sub(current);
        if elements > TABLE_ELEMENTS_MAX {
            return Err(wasmtime::Error::new(Stop::Table(elements)));
        }
        self.elements = elements;
        Ok(true)
    }

    fn instances(&self) -> usize {
        64
    }

    fn memories(&self) -> usize {
        4
    }

    fn tables(&self) -> usize {
        16
    }
}
