//! `context`: what the run knows of itself.

use crate::bindings::kvasir::plugin::context::Host;
use crate::run::Run;

impl Host for Run {
    async fn plugin(&mut self) -> wasmtime::Result<String> {
        self.charge()?;
        Ok(self.facts.plugin.clone())
    }

    async fn trigger(&mut self) -> wasmtime::Result<String> {
        self.charge()?;
        Ok(self.facts.source.trigger.clone())
    }

    async fn config(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        self.charge()?;
        Ok(self.facts.config.get(&name).cloned())
    }

    async fn attempt(&mut self) -> wasmtime::Result<u32> {
        self.charge()?;
        Ok(self.facts.source.attempt)
    }

    async fn now_ms(&mut self) -> wasmtime::Result<u64> {
        self.charge()?;
        Ok(self.facts.now_ms)
    }

    async fn fencing_token(&mut self) -> wasmtime::Result<Option<u64>> {
        self.charge()?;
        Ok(self.task.as_ref().map(|task| task.fencing_token()))
    }

    async fn cancelled(&mut self) -> wasmtime::Result<bool> {
        self.charge()?;
        Ok(self.facts.cancel.is_cancelled() || self.task.as_ref().is_some_and(|task| task.lock_is_lost()))
    }
}
