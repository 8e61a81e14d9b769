//! Keeps the runners of this node in step with the replicated registry: brings generations up, and takes them down.
//!
//! **Invariant:** at most one generation of a plugin has a live cancellation here; the one before it starts no further run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvasir_machine::{PluginRecord, PluginState};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wasmtime::component::Linker;

use crate::active::Active;
use crate::advance::Advancer;
use crate::board::{Code, Counters, PluginBoard};
use crate::compile::Compiler;
use crate::installed::Installed;
use crate::logs::Source;
use crate::placement::place;
use crate::program::Program;
use crate::run::Run;
use crate::slots::Slots;
use crate::store::Store;
use crate::tenure::follow;

/// Wait before a component that could not be read is asked for again.
const BLOB_WAIT: Duration = Duration::from_secs(1);
/// How long runs may take to end when the host stops.
const DRAIN: Duration = Duration::from_secs(3);

/// What all plugins of the node share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker<Run>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) boards: Mutex<BTreeMap<String, Arc<PluginBoard>>>,
    pub(crate) advancer: Advancer,
    pub(crate) slots: Slots,
    pub(crate) cancel: CancellationToken,
    /// Held while a component's bytes are in memory.
    reading: tokio::sync::Mutex<()>,
}

struct Running {
    generation: u64,
    cancel: CancellationToken,
}

impl Shared {
    pub(crate) fn new(store: Store, compiler: Compiler, linker: Linker<Run>) -> Arc<Self> {
        Arc::new(Self {
            store,
            compiler,
            linker,
            counters: Arc::default(),
            boards: Mutex::default(),
            advancer: Advancer::default(),
            slots: Slots::new(),
            cancel: CancellationToken::new(),
            reading: tokio::sync::Mutex::default(),
        })
    }

    /// A plugin's board, made when it is first asked for.
    pub(crate) fn board(&self, name: &str) -> Arc<PluginBoard> {
        self.boards.lock().entry(name.to_owned()).or_insert_with(PluginBoard::new).clone()
    }

    /// Follows the registry until the host stops.
    pub(crate) async fn supervise(self: Arc<Self>) {
        let mut changes = self.store.registry_changes();
        let mut running: BTreeMap<String, Running> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(self.advancer.clone().run(self.store.clone(), self.cancel.clone()));
        tasks.spawn(place(self.store.clone(), self.cancel.clone()));
        tasks.spawn(self.clone().forget_removed());
        loop {
            changes.mark_unchanged();
            self.reconcile(&mut running, &mut tasks);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { break },
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                () = self.cancel.cancelled() => break,
            }
        }
        self.cancel.cancel();
        let drained = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("plugin runs did not end in time and are dropped; nothing of them was committed");
            tasks.shutdown().await;
        }
    }

    fn reconcile(self: &Arc<Self>, running: &mut BTreeMap<String, Running>, tasks: &mut JoinSet<()>) {
        let records = self.store.plugins();
        let wanted: BTreeMap<&str, &PluginRecord> = records.iter().map(|record| (record.name.as_str(), record)).collect();
        running.retain(|name, current| {
            let keep = wanted
                .get(name.as_str())
                .is_some_and(|record| record.generation == current.generation && record.state == PluginState::Active)
                && !current.cancel.is_cancelled();
            if !keep {
                current.cancel.cancel();
            }
            keep
        });
        self.boards.lock().retain(|name, _| wanted.contains_key(name.as_str()));
        for record in records.iter().filter(|record| record.state == PluginState::Active) {
            if !running.contains_key(&record.name) {
                let cancel = self.cancel.child_token();
                running.insert(record.name.clone(), Running { generation: record.generation, cancel: cancel.clone() });
                let board = self.board(&record.name);
                let generation = record.generation;
                tasks.spawn(contain(board, generation, self.clone().bring_up(record.clone(), cancel)));
            }
        }
    }

    /// Drops compiled code that no plugin needs, once the registry is known to be up to date.
    async fn forget_removed(self: Arc<Self>) {
        while self.store.linearize().await.is_err() {
            tokio::select! {
                () = tokio::time::sleep(BLOB_WAIT) => {}
                () = self.cancel.cancelled() => return,
            }
        }
        self.compiler.keep_only(self.store.plugins().iter().map(|record| record.digest).collect());
    }

    /// Compiles, links and runs one generation until it is cancelled.
    async fn bring_up(self: Arc<Self>, record: PluginRecord, cancel: CancellationToken) {
        let board = self.board(&record.name);
        board.set_code(record.generation, Code::Compiling);
        let source = Source { generation: record.generation, ..Source::default() };
        let ready = tokio::select! {
            ready = self.prepare(&record) => ready,
            () = cancel.cancelled() => return,
        };
        let (installed, program) = match ready {
            Ok(ready) => ready,
            Err(why) => {
                tracing::warn!(plugin = record.name, why, "plugin cannot run");
                board.log.host(&source, "error", &why);
                board.set_code(record.generation, Code::Failed(why));
                return;
            }
        };
        board.set_code(record.generation, Code::Ready);
        board.log.host(&source, "info", &format!("generation {} is ready", record.generation));
        let active = Arc::new(Active {
            name: record.name,
            generation: record.generation,
            config: Arc::new(installed.config.clone()),
            grants: installed.grants_at_run_time(),
            program,
            board,
            counters: self.counters.clone(),
            store: self.store.clone(),
            advancer: self.advancer.clone(),
            slots: self.slots.of_plugin(),
            cancel,
            installed,
        });
        follow(active).await;
    }

    async fn prepare(&self, record: &PluginRecord) -> Result<(Installed, Program), String> {
        let installed = Installed::decode(&record.manifest)?;
        let code = match self.compiler.cached(record.digest).await? {
            Some(code) => code,
            None => {
                // A component may be large, and only one is compiled at a time.
                let _one = self.reading.lock().await;
                let component = self.component(record).await?;
                self.compiler.compile(record.digest, component).await?
            }
        };
        let program = Program::link(&self.linker, &code, installed.reactor, installed.task)?;
        Ok((installed, program))
    }

    async fn component(&self, record: &PluginRecord) -> Result<Bytes, String> {
        loop {
            match self.store.blob(&record.digest).await {
                Ok(Some(component)) => return Ok(component),
                Ok(None) => return Err("the component is not stored whole; install it again".to_owned()),
                Err(error) => tracing::warn!(plugin = record.name, %error, "the component cannot be read yet"),
            }
            tokio::time::sleep(BLOB_WAIT).await;
        }
    }
}

/// Sees to it that a generation whose host code panics says so, instead of looking as if it were still coming up.
async fn contain(board: Arc<PluginBoard>, generation: u64, work: impl Future<Output = ()> + Send + 'static) {
    // Aborted with this one when the host stops.
    let mut inner = JoinSet::new();
    inner.spawn(work);
    if let Some(Err(error)) = inner.join_next().await
        && error.is_panic()
    {
        let why = "the host failed while bringing it up; this is a defect of kvasir".to_owned();
        board.log.host(&Source { generation, ..Source::default() }, "error", &why);
        board.set_code(generation, Code::Failed(why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_while_a_plugin_comes_up_leaves_it_failed_with_a_reason() {
        let board = PluginBoard::new();
        board.set_code(3, Code::Compiling);
        contain(board.clone(), 3, async { panic!("on purpose") }).await;
        assert!(matches!(board.code(3), Code::Failed(why) if why.contains("defect")));
    }
}
