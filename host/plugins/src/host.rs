//! The door to the plugins for the node's services and command line.

mod letters;
mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::command::plugin_control::Action;
use kvasir_api::command::{PluginControl, TriggerControl, trigger_control};
use kvasir_api::kvasir::plugin::v1 as api;
use kvasir_engine::Engine;
use kvasir_machine::PluginRecord;
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::board::Counters;
use crate::compile::Compiler;
use crate::install;
use crate::linker::linker;
use crate::logs::LogTail;
use crate::manifest::short;
use crate::store::Store;
use crate::supervisor::Shared;
use crate::wasm;

/// How long [`PluginHost::shutdown`] waits for runs to end.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// How the host runs.
#[derive(Debug, Clone)]
pub struct PluginHostOptions {
    /// Where compiled code is kept. Made with mode 0700; only files that this host wrote are ever loaded from it.
    pub cache_dir: PathBuf,
    /// Threads that guests run on, besides one that compiles and one that ticks. At least 1.
    pub threads: usize,
}

/// Why the host did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder for compiled code cannot be used.
    #[error("plugin cache {path}: {source}; make the folder writable for this user")]
    Cache {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The WebAssembly engine or its threads did not come up.
    #[error("the WebAssembly engine cannot start: {0}")]
    Engine(String),
}

/// Runs the plugins of one node. Clones share the same host.
#[derive(Clone)]
pub struct PluginHost {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    wasm: wasmtime::Engine,
    runtime: Mutex<Option<Runtime>>,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
    _ticker: wasm::Ticker,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
        if let Some(runtime) = self.runtime.lock().take() {
            // Never waits: the last clone may be dropped on an async thread.
            runtime.shutdown_background();
        }
    }
}

kvasir_api::metrics! {
    /// Counters since the host started, and gauges.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct PluginMetrics {
        plugins: u64 = Gauge "kvasir_plugins", "Installed plugins.";
        plugins_quarantined: u64 = Gauge "kvasir_plugins_quarantined", "Plugins that are quarantined.";
        plugins_failed: u64 = Gauge "kvasir_plugins_failed", "Plugins whose code cannot run here.";
        running: u64 = Gauge "kvasir_plugins_running", "Runs going on now.";
        runs_total: u64 = Counter "kvasir_plugins_runs_total", "Runs ended.";
        faults_total: u64 = Counter "kvasir_plugins_faults_total", "Runs that failed by the guest's fault.";
        stopped_total: u64 = Counter "kvasir_plugins_stopped_total", "Runs that trapped or were stopped by a limit.";
        conflicts_total: u64 = Counter "kvasir_plugins_conflicts_total", "Runs repeated because what they read had changed.";
        effects_total: u64 = Counter "kvasir_plugins_effects_total", "Effects committed.";
        parked_total: u64 = Counter "kvasir_plugins_parked_total", "Events parked as dead letters.";
        quarantines_total: u64 = Counter "kvasir_plugins_quarantines_total", "Times a plugin was quarantined.";
        cpu_us_total: u64 = Counter "kvasir_plugins_cpu_microseconds_total", "Processor time of guests, in microseconds.";
        run_us_total: u64 = Counter "kvasir_plugins_run_microseconds_total", "Time from start to end of runs, in microseconds.";
        lag_revisions_max: u64 = Gauge "kvasir_plugins_lag_revisions_max", "Largest distance of a watch trigger from the store.";
        pool_memories: u64 = Gauge "kvasir_plugins_pool_memories", "Linear memories in use and kept warm; 0 without pooling.";
    }
}

impl PluginHost {
    /// Starts the host on threads of its own; returns at once, plugins come up in the background.
    ///
    /// # Errors
    /// [`StartError`] when the cache folder or the WebAssembly engine cannot be used.
    pub fn start(engine: Engine, options: PluginHostOptions) -> Result<Self, StartError> {
        let wasm = wasm::engine().map_err(|error| StartError::Engine(format!("{error:#}")))?;
        let threads = |error: std::io::Error| StartError::Engine(error.to_string());
        let ticker = wasm::tick(&wasm).map_err(threads)?;
        let linker = linker(&wasm).map_err(|error| StartError::Engine(format!("{error:#}")))?;
        let compiler = Compiler::start(wasm.clone(), &options.cache_dir)
            .map_err(|source| StartError::Cache { path: options.cache_dir.clone(), source })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads.max(1))
            .thread_name(format!("{}run", wasm::THREAD_NAME_PREFIX))
            .on_thread_start(wasm::lower_run_priority)
            .enable_all()
            .build()
            .map_err(threads)?;
        let shared = Shared::new(Store::new(engine), compiler, linker);
        let (done, ended) = oneshot::channel();
        let supervised = shared.clone();
        runtime.spawn(async move {
            supervised.supervise().await;
            let _ = done.send(());
        });
        let inner = Inner { shared, wasm, runtime: Mutex::new(Some(runtime)), ended: Mutex::new(Some(ended)), _ticker: ticker };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn store(&self) -> &Store {
        &self.inner.shared.store
    }

    fn record(&self, name: &str) -> Result<PluginRecord, Error> {
        self.store()
            .plugin(name)
            .ok_or_else(|| Error::Missing(format!("no plugin is called {}; see `kvasir plugin ls`", short(name))))
    }

    /// A plugin that this node knows, or may have to hear of first.
    async fn find(&self, name: &str) -> Result<PluginRecord, Error> {
        if self.store().plugin(name).is_none() {
            self.store().linearize().await?;
        }
        self.record(name)
    }

    /// Installs or upgrades a plugin, or with `dry_run` says what would be installed. `component` is the whole component.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the field, grant or part of the component that is wrong, and the remedy;
    /// [`Error::Precondition`] when the plugin exists and `upgrade` is not set; else why it was not committed.
    pub async fn install(&self, header: api::install_request::Header, component: Bytes) -> Result<api::InstallResponse, Error> {
        let (dry_run, upgrade) = (header.dry_run, header.upgrade);
        let inspected = component.clone();
        // Validation reads every byte of up to 32 MiB: not on a thread that answers requests.
        let checked = self
            .apart(move || install::check(&header, &inspected))
            .await?
            .ok_or_else(|| Error::Invalid("the component makes the validator fail; build it again".to_owned()))??;
        if dry_run {
            return Ok(checked.response(0));
        }
        checked.replicate(self.store(), &component, upgrade).await
    }

    /// Does blocking work on a thread of the plugins', where a panic ends the work and not the node; `None` says that it panicked.
    async fn apart<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<Option<T>, Error> {
        let working = self.inner.runtime.lock().as_ref().map(|runtime| runtime.spawn_blocking(work));
        match working.ok_or(Error::Stopped)?.await {
            Ok(done) => Ok(Some(done)),
            Err(error) if error.is_panic() => Ok(None),
            Err(_) => Err(Error::Stopped),
        }
    }

    /// Answers a question that another member's host asked ([`kvasir_engine::Engine::ask`]).
    pub fn answer(&self, question: &[u8]) -> Bytes {
        self.inner.shared.answer(question).into()
    }

    /// The last `tail` log lines (0: all that are kept) of all members, by their clocks, and a stream of those that follow; with
    /// `follow`, of all members too.
    ///
    /// # Errors
    /// [`Error::Missing`] when no plugin has the name.
    pub async fn logs(&self, name: &str, tail: u32, follow: bool) -> Result<LogTail, Error> {
        let record = self.find(name).await?;
        Ok(self.inner.shared.logs(&record.name, tail, follow).await)
    }

    #[cfg(test)]
    pub(crate) fn log_here(&self, name: &str) -> Vec<api::LogLine> {
        self.inner.shared.board(name).log.tail(0).lines
    }

    /// Removes a plugin, its cursors and its dead letters. Keys that it wrote stay.
    ///
    /// # Errors
    /// [`Error::Missing`] when no plugin has the name; else why the command was not committed.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        self.find(name).await?;
        self.store().remove(name).await
    }

    /// Stops a plugin's triggers until it is resumed; cursors stay where they are.
    ///
    /// # Errors
    /// As [`PluginHost::remove`].
    pub async fn pause(&self, name: &str) -> Result<(), Error> {
        self.control(name, Action::Pause, "paused by the operator").await
    }

    /// Lets a paused or quarantined plugin go on, and all its triggers that are halted.
    ///
    /// # Errors
    /// As [`PluginHost::remove`].
    pub async fn resume(&self, name: &str) -> Result<(), Error> {
        self.control(name, Action::Resume, "").await
    }

    /// Lets one halted trigger go on.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is no such plugin or trigger; else why the command was not committed.
    pub async fn resume_trigger(&self, name: &str, trigger: &str) -> Result<(), Error> {
        self.find(name).await?;
        let control = TriggerControl {
            plugin: name.to_owned(),
            trigger: trigger.to_owned(),
            action: trigger_control::Action::Resume.into(),
            ..TriggerControl::default()
        };
        self.store().control_trigger(control).await
    }

    async fn control(&self, name: &str, action: Action, reason: &str) -> Result<(), Error> {
        self.find(name).await?;
        let (name, reason) = (name.to_owned(), reason.to_owned());
        self.store().control(PluginControl { name, action: action.into(), reason, expect_generation: 0 }).await
    }

    /// Counters and gauges for `/metrics`.
    pub fn metrics(&self) -> PluginMetrics {
        let counters = &self.inner.shared.counters;
        let statuses = self.list_here().plugins;
        let in_state = |state: &str| statuses.iter().filter(|plugin| plugin.state == state).count() as u64;
        let triggers = statuses.iter().flat_map(|plugin| &plugin.triggers);
        PluginMetrics {
            plugins: statuses.len() as u64,
            plugins_quarantined: in_state("quarantined"),
            plugins_failed: in_state("failed"),
            running: Counters::get(&counters.running),
            runs_total: Counters::get(&counters.runs),
            faults_total: Counters::get(&counters.faults),
            stopped_total: Counters::get(&counters.stopped),
            conflicts_total: Counters::get(&counters.conflicts),
            effects_total: Counters::get(&counters.effects),
            parked_total: Counters::get(&counters.parked),
            quarantines_total: Counters::get(&counters.quarantined),
            cpu_us_total: Counters::get(&counters.cpu_us),
            run_us_total: Counters::get(&counters.run_us),
            lag_revisions_max: triggers.map(|trigger| trigger.lag_revisions).max().unwrap_or(0),
            pool_memories: self.inner.wasm.pooling_allocator_metrics().map_or(0, |pool| pool.memories() as u64),
        }
    }

    /// Stops all runs and waits for them, at most a few seconds. What a run had not committed is as if it had not run.
    pub async fn shutdown(&self) {
        self.inner.shared.cancel.cancel();
        let ended = self.inner.ended.lock().take();
        if let Some(ended) = ended {
            let _ = tokio::time::timeout(STOP_WAIT, ended).await;
        }
        if let Some(runtime) = self.inner.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use kvasir_engine::EngineOptions;
    use kvasir_storage::disk::RealDisk;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn blocking_work_for_plugins_runs_on_their_threads_and_its_panic_stays_there() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::start(EngineOptions::new(dir.path().join("data"), Arc::new(RealDisk))).await.unwrap();
        let options = PluginHostOptions { cache_dir: dir.path().join("cache"), threads: 1 };
        let host = PluginHost::start(engine.clone(), options).unwrap();
        let name = host.apart(|| std::thread::current().name().map(str::to_owned)).await.unwrap().unwrap().unwrap();
        assert!(name.starts_with(wasm::THREAD_NAME_PREFIX), "a panic on {name} would end the node");
        assert_eq!(host.apart(|| -> () { panic!("on purpose") }).await.unwrap(), None);
        host.shutdown().await;
        assert!(matches!(host.apart(|| ()).await, Err(Error::Stopped)));
        engine.shutdown().await;
    }
}
