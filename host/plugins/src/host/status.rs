//! How plugins do, for their operator: put together from what is replicated and what each member says of its own runs.
//!
//! **Invariant:** whichever member is asked, the answer is the same as far as nothing changes meanwhile: what is replicated is read
//! linearizably, and the rest is asked of all.

use kvasir_api::Error;
use kvasir_api::kvasir::plugin::v1 as api;
use kvasir_machine::{PluginRecord, PluginState, Rev, TriggerKind, TriggerRecord, TriggerState};

use super::PluginHost;
use crate::compile::hex;
use crate::installed::Installed;
use crate::members::Told;

impl PluginHost {
    /// All plugins in the cluster with the state of their triggers, in order of name.
    ///
    /// # Errors
    /// What a linearizable read can fail with.
    pub async fn list(&self) -> Result<api::ListResponse, Error> {
        self.store().linearize().await?;
        let told = self.inner.shared.told("").await;
        Ok(self.list_of(&told))
    }

    /// The same as far as this node knows, without asking another.
    pub fn list_here(&self) -> api::ListResponse {
        self.list_of(&[self.inner.shared.told_here("")])
    }

    fn list_of(&self, told: &[Told]) -> api::ListResponse {
        api::ListResponse { plugins: self.store().plugins().iter().map(|record| self.status(record, told)).collect() }
    }

    /// One plugin in full.
    ///
    /// # Errors
    /// [`Error::Missing`] when no plugin has the name; what a linearizable read can fail with.
    pub async fn inspect(&self, name: &str) -> Result<api::InspectResponse, Error> {
        self.store().linearize().await?;
        let record = self.record(name)?;
        let told = self.inner.shared.told(name).await;
        let installed = Installed::decode(&record.manifest).map_err(Error::Internal)?;
        Ok(api::InspectResponse {
            status: Some(self.status(&record, &told)),
            permissions: installed.permissions(),
            manifest_toml: installed.toml,
            imports: installed.imports,
            exports: installed.exports,
            component_bytes: installed.component_bytes,
        })
    }

    fn status(&self, record: &PluginRecord, told: &[Told]) -> api::PluginStatus {
        let triggers: Vec<TriggerRecord> =
            record.triggers.iter().filter_map(|id| self.store().trigger(&record.name, id)).collect();
        // Of the node that runs it; one without triggers, or whose node does not answer, is as it is here.
        let runs_on = triggers.first().map(|trigger| trigger.owner_node);
        let of = |node: u64| told.iter().find(|told| told.node == node)?.plugin(&record.name, record.generation);
        let code = runs_on.and_then(of).or_else(|| of(self.store().node_id()));
        let (state, reason) = match (record.state, code) {
            (PluginState::Quarantined, _) => ("quarantined", record.reason.clone()),
            (PluginState::Paused, _) => ("paused", record.reason.clone()),
            (PluginState::Active, Some(code)) => (code.code.as_str(), code.reason.clone()),
            (PluginState::Active, None) => ("compiling", String::new()),
        };
        let state = state.to_owned();
        let installed = Installed::decode(&record.manifest).ok();
        let triggers = triggers.iter().map(|trigger| self.trigger_status(record, installed.as_ref(), trigger, told)).collect();
        let nodes = told.iter().map(|told| node_status(record, told)).collect();
        api::PluginStatus {
            name: record.name.clone(),
            version: installed.map(|installed| installed.manifest.plugin.version).unwrap_or_default(),
            generation: record.generation,
            digest: hex(&record.digest),
            state,
            reason,
            triggers,
            nodes,
        }
    }

    fn trigger_status(
        &self,
        record: &PluginRecord,
        installed: Option<&Installed>,
        trigger: &TriggerRecord,
        told: &[Told],
    ) -> api::TriggerStatus {
        let of = |told: &Told| {
            let plugin = told.plugins.as_ref()?.get(&record.name)?;
            plugin.triggers.iter().find(|found| found.id == trigger.id).cloned()
        };
        let owner = told.iter().find(|told| told.node == trigger.owner_node);
        let numbers = owner.and_then(of);
        let answers = owner.is_none_or(|owner| owner.plugins.is_some());
        let sum = |number: fn(&api::MemberTrigger) -> u64| told.iter().filter_map(of).map(|numbers| number(&numbers)).sum();
        let (runs, faults) = (sum(|numbers| numbers.runs), sum(|numbers| numbers.faults));
        let numbers = numbers.unwrap_or_default();
        let watch = trigger.kind == TriggerKind::Watch;
        let position = Rev { main: numbers.position_main, sub: numbers.position_sub };
        let cursor = if watch { trigger.cursor.max(position) } else { Rev::default() };
        let state = match (record.state, trigger.state) {
            (PluginState::Quarantined, _) => "quarantined",
            (PluginState::Paused, _) => "paused",
            (_, state) if state.is_halted() => "halted",
            (_, TriggerState::Lost) => "lost",
            _ if trigger.owner_node == 0 => "unassigned",
            _ if !answers => "unreachable",
            _ if numbers.state.is_empty() => "idle",
            _ => &numbers.state,
        };
        api::TriggerStatus {
            id: trigger.id.clone(),
            kind: if watch { "watch" } else { "schedule" }.to_owned(),
            detail: installed.map(|installed| detail(installed, &trigger.id)).unwrap_or_default(),
            cursor_main: cursor.main,
            cursor_sub: cursor.sub,
            lag_revisions: if watch { (self.store().revision() + 1).saturating_sub(cursor.main) } else { 0 },
            node: trigger.owner_node,
            owner_epoch: trigger.owner_epoch,
            runs,
            faults,
            dead_letters: trigger.dead_letters,
            state: state.to_owned(),
            last_error: numbers.last_error,
            last_run_us: numbers.last_run_us,
            node_name: owner.map(|owner| owner.name.clone()).unwrap_or_default(),
            reason: trigger.reason.clone(),
            last_run_wall_ms: trigger.last_run_wall_ms,
        }
    }
}

fn node_status(record: &PluginRecord, told: &Told) -> api::NodeStatus {
    let (state, reason) = match (&told.plugins, told.plugin(&record.name, record.generation)) {
        (None, _) => ("unreachable".to_owned(), "it does not answer".to_owned()),
        // What does not run is compiled when it may.
        (Some(_), plugin) if record.state != PluginState::Active && plugin.is_none_or(|plugin| plugin.code == "compiling") => {
            ("stopped".to_owned(), String::new())
        }
        // It has not applied this generation yet.
        (Some(_), None) => ("compiling".to_owned(), String::new()),
        (Some(_), Some(plugin)) => (plugin.code.clone(), plugin.reason.clone()),
    };
    api::NodeStatus { node: told.node, name: told.name.clone(), state, reason }
}

/// What a trigger watches or when it runs, in words.
fn detail(installed: &Installed, id: &str) -> String {
    let manifest = &installed.manifest;
    if let Some(watch) = manifest.trigger.watch.iter().find(|watch| watch.id.as_str() == id) {
        return watch.words();
    }
    match manifest.trigger.schedule.iter().find(|schedule| schedule.id.as_str() == id) {
        Some(schedule) => format!("every {} under the lock {}", schedule.every, schedule.lock(&manifest.plugin.name)),
        None => String::new(),
    }
}
