//! A plugin's generation ready to run: compiled, linked, its exports found.
//!
//! **Invariant:** a program never changes; an upgrade is another program.

use wasmtime::Engine;
use wasmtime::component::{Component, Instance, InstancePre, Linker};

use crate::bindings::exports::kvasir::plugin::{reactor, task};
use crate::run::Run;

/// Code with its imports bound and its exports found.
pub(crate) struct Program {
    instance: InstancePre<Run>,
    reactor: Option<reactor::GuestIndices>,
    task: Option<task::GuestIndices>,
}

impl Program {
    /// Links a component.
    ///
    /// # Errors
    /// One sentence on the import or export whose type is not the contract's.
    pub(crate) fn link(linker: &Linker<Run>, component: &Component, reactor: bool, task: bool) -> Result<Self, String> {
        let instance = linker.instantiate_pre(component).map_err(|error| {
            format!("the component does not fit this node's kvasir:plugin@0.1.0: {error:#}; build it with a matching guest SDK")
        })?;
        let unfit = |what: &str, error: wasmtime::Error| {
            format!(
                "the component's export kvasir:plugin/{what} does not fit the contract: {error:#}; build it with a matching guest SDK"
            )
        };
        let reactor =
            reactor.then(|| reactor::GuestIndices::new(&instance)).transpose().map_err(|error| unfit("reactor", error))?;
        let task = task.then(|| task::GuestIndices::new(&instance)).transpose().map_err(|error| unfit("task", error))?;
        Ok(Self { instance, reactor, task })
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.instance.engine()
    }

    pub(crate) async fn instantiate(&self, store: &mut wasmtime::Store<Run>) -> wasmtime::Result<Instance> {
        self.instance.instantiate_async(store).await
    }

    pub(crate) fn reactor(&self, store: &mut wasmtime::Store<Run>, instance: &Instance) -> wasmtime::Result<reactor::Guest> {
        match &self.reactor {
            Some(indices) => indices.load(store, instance),
            None => Err(wasmtime::Error::msg("the component exports no reactor")),
        }
    }

    pub(crate) fn task(&self, store: &mut wasmtime::Store<Run>, instance: &Instance) -> wasmtime::Result<task::Guest> {
        match &self.task {
            Some(indices) => indices.load(store, instance),
            None => Err(wasmtime::Error::msg("the component exports no task")),
        }
    }
}
