//! `lock`: further locks for tasks, on the same keys as etcd's lock service.

use std::time::Duration;

use kvasir_engine::{Access, KeyRange};
use wasmtime::component::Resource;

use super::types::{key, refusal};
use crate::bindings::kvasir::plugin::lock::{Host, HostHandle};
use crate::bindings::kvasir::plugin::types as wit;
use crate::held::Held;
use crate::imports::task::LOCKS_MAX;
use crate::run::Run;

/// The host's side of a guest's lock: its place among the task's held locks, which a commit is guarded by.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Handle {
    pub(crate) slot: u32,
}

type Answer<T> = wasmtime::Result<Result<T, wit::Error>>;

impl Host for Run {
    async fn acquire(&mut self, name: Vec<u8>, wait_ms: u64) -> Answer<Resource<Handle>> {
        self.charge()?;
        let held = match self.acquire_lock(name, wait_ms).await {
            Ok(held) => held,
            Err(error) => return Ok(self.noting(Err(error))),
        };
        let Some(task) = self.task.as_mut() else {
            return Ok(Err(wit::Error::Unsupported("locks are for tasks".to_owned())));
        };
        let slot = task.add_lock(held);
        let handle = self.table.push(Handle { slot })?;
        Ok(Ok(handle))
    }
}

impl HostHandle for Run {
    async fn fencing_token(&mut self, handle: Resource<Handle>) -> wasmtime::Result<u64> {
        self.charge()?;
        let slot = self.table.get(&handle)?.slot;
        Ok(self.task.as_ref().and_then(|task| task.lock(slot)).map_or(0, Held::create_revision))
    }

    async fn key(&mut self, handle: Resource<Handle>) -> wasmtime::Result<Vec<u8>> {
        self.charge()?;
        let slot = self.table.get(&handle)?.slot;
        Ok(self.task.as_ref().and_then(|task| task.lock(slot)).map_or_else(Vec::new, |held| held.key().to_vec()))
    }

    async fn drop(&mut self, handle: Resource<Handle>) -> wasmtime::Result<()> {
        let handle = self.table.delete(handle)?;
        if let Some(held) = self.task.as_mut().and_then(|task| task.remove_lock(handle.slot)) {
            held.release().await;
        }
        Ok(())
    }
}

impl Run {
    async fn acquire_lock(&mut self, name: Vec<u8>, wait_ms: u64) -> Result<Held, wit::Error> {
        let Some(task) = &self.task else {
            return Err(wit::Error::Unsupported(
                "locks are for tasks: a reactor's effect is guarded by what it read".to_owned(),
            ));
        };
        if task.locks_held() >= LOCKS_MAX {
            return Err(wit::Error::Limit(format!(
                "a run holds at most {LOCKS_MAX} locks besides its own; drop a handle first"
            )));
        }
        let name = key(name)?;
        self.allow(Access::Lock, &KeyRange::single(name.clone()))?;
        let wait = Duration::from_millis(wait_ms);
        match Held::acquire_within(&self.facts.store, &self.facts.caller, &name, wait).await {
            Ok(Some(held)) => Ok(held),
            Err(error) => Err(refusal(&error, "the lock", 0)),
            Ok(None) => Err(wit::Error::Conflict(format!("the lock is still held by another after {wait_ms} ms"))),
        }
    }
}
