//! What is replicated of a plugin besides its component: the manifest as installed, the grants given, what inspection found.
//!
//! **Invariant:** read back on any node, now or after a restore, it says exactly what its installer was told.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvasir_api::command::{Trigger, trigger};
use kvasir_api::limits;
use kvasir_engine::Grants;
use serde::{Deserialize, Serialize};

use crate::grants::{Grant, at_run_time, words};
use crate::inspect::Inspected;
use crate::manifest::{Manifest, Start, Watch};

/// Version of the JSON form.
const FORMAT: u32 = 1;

/// The replicated record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Installed {
    format: u32,
    pub(crate) manifest: Manifest,
    /// The manifest as its author wrote it, for people.
    pub(crate) toml: String,
    pub(crate) grants: Vec<Grant>,
    /// The manifest's configuration with the operator's values over it.
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
    pub(crate) reactor: bool,
    pub(crate) task: bool,
    pub(crate) component_bytes: u64,
}

impl Installed {
    /// Puts together what an installer asked for.
    ///
    /// # Errors
    /// One sentence when a configuration value is unknown or a trigger has no export that could run it.
    pub(crate) fn new(
        manifest: Manifest,
        toml: String,
        grants: Vec<Grant>,
        overrides: BTreeMap<String, String>,
        found: Inspected,
        component_bytes: u64,
    ) -> Result<Self, String> {
        if let Some(watch) = manifest.trigger.watch.first().filter(|_| !found.reactor) {
            return Err(format!(
                "trigger.watch `{}` needs the export kvasir:plugin/reactor, which the component has not; implement it or remove the trigger",
                watch.id
            ));
        }
        if let Some(schedule) = manifest.trigger.schedule.first().filter(|_| !found.task) {
            return Err(format!(
                "trigger.schedule `{}` needs the export kvasir:plugin/task, which the component has not; implement it or remove the trigger",
                schedule.id
            ));
        }
        let mut config: BTreeMap<String, String> =
            manifest.config.iter().map(|(name, value)| (name.clone(), value.to_string())).collect();
        for (name, value) in overrides {
            if !config.contains_key(&name) {
                let known = config.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(format!("the manifest has no configuration `{name}` to override; it has: {known}"));
            }
            config.insert(name, value);
        }
        let Inspected { imports, exports, reactor, task, .. } = found;
        Ok(Self { format: FORMAT, manifest, toml, grants, config, imports, exports, reactor, task, component_bytes })
    }

    /// The replicated form.
    ///
    /// # Errors
    /// One sentence when it is larger than a record may be.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        let bytes = serde_json::to_vec(self).map_err(|error| format!("the manifest cannot be stored: {error}"))?;
        if bytes.len() > limits::MANIFEST_BYTES_MAX {
            return Err(format!(
                "the manifest with its configuration is {} bytes as stored; at most {} are allowed: shorten it",
                bytes.len(),
                limits::MANIFEST_BYTES_MAX
            ));
        }
        Ok(bytes)
    }

    /// Reads the replicated form.
    ///
    /// # Errors
    /// One sentence on what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let record: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("the installed manifest cannot be read: {error}"))?;
        if record.format != FORMAT {
            return Err(format!(
                "the installed manifest has format {}, this node reads {FORMAT}; run a newer kvasir",
                record.format
            ));
        }
        Ok(record)
    }

    /// What the state machine needs of each trigger.
    pub(crate) fn triggers(&self) -> Vec<Trigger> {
        let watch = |watch: &Watch| {
            let keys = crate::manifest::keys(watch);
            Trigger {
                id: watch.id.to_string(),
                kind: trigger::Kind::Watch.into(),
                key: keys.key,
                range_end: keys.range_end,
                start_revision: if watch.start == Start::Beginning { 1 } else { 0 },
                self_events: watch.self_events,
            }
        };
        let schedules = self.manifest.trigger.schedule.iter().map(|schedule| Trigger {
            id: schedule.id.to_string(),
            kind: trigger::Kind::Schedule.into(),
            ..Trigger::default()
        });
        self.manifest.trigger.watch.iter().map(watch).chain(schedules).collect()
    }

    /// What the engine checks for this plugin.
    pub(crate) fn grants_at_run_time(&self) -> Arc<Grants> {
        let name = &self.manifest.plugin.name;
        let own: Vec<String> = self
            .manifest
            .trigger
            .schedule
            .iter()
            .filter(|schedule| schedule.chosen_lock().is_none())
            .map(|schedule| schedule.lock(name))
            .collect();
        at_run_time(&self.grants, &own)
    }

    /// What the plugin may do, one sentence each.
    pub(crate) fn permissions(&self) -> Vec<String> {
        words(&self.manifest, &self.grants)
    }
}
