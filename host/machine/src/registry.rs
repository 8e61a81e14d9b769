//! The plugin registry: what is installed, in which generation and state, and its triggers.
//!
//! **Invariant:** a generation and an owner epoch are never given out twice, not even to a plugin that was removed and comes back,
//! so that nothing an earlier run did can land later.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kvasir_api::command::plugin_control::Action;
use kvasir_api::command::{
    Assign, PluginControl, PluginRemove, PluginSet, TaskDone, Trigger, TriggerControl, trigger, trigger_control,
};
use kvasir_api::{Error, limits};

use crate::blob::Digest;
use crate::table::{read_digest, trigger_key};
use crate::{Effects, Reply, Rev, State, Table, table};

/// Whether a plugin may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginState {
    /// It runs.
    Active,
    /// Its operator stopped it.
    Paused,
    /// It failed too often.
    Quarantined,
}

/// An installed plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginRecord {
    /// Its name, `[a-z0-9-]{1,63}`.
    pub name: String,
    /// Its component.
    pub digest: Digest,
    /// Its manifest, as the plugin host wrote it.
    pub manifest: Bytes,
    /// Grows with every installation and upgrade.
    pub generation: u64,
    /// Whether it may run.
    pub state: PluginState,
    /// Why it is in this state, for its operator.
    pub reason: String,
    /// Ids of its triggers, in order.
    pub triggers: Vec<String>,
}

/// What starts a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TriggerKind {
    /// Changes of keys in a range.
    Watch,
    /// Time.
    Schedule,
}

/// How a trigger stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TriggerState {
    /// It delivers from its cursor on.
    Active,
    /// Changes that it has not delivered are compacted away: it must resync. It is active again once an effect moves its cursor to
    /// the compact revision or past it.
    Lost,
    /// It waits for its operator: its dead letters are full, or its manifest says so of an event that cannot be handled.
    Halted,
    /// It waits for its operator, and is lost besides: it resyncs once it may go on.
    HaltedLost,
}

impl TriggerState {
    /// It runs nothing until its operator lets it go on.
    pub fn is_halted(self) -> bool {
        matches!(self, Self::Halted | Self::HaltedLost)
    }

    /// Changes that it has not delivered are compacted away.
    pub fn is_lost(self) -> bool {
        matches!(self, Self::Lost | Self::HaltedLost)
    }

    /// The same, lost.
    pub(crate) fn losing(self) -> Self {
        if self.is_halted() { Self::HaltedLost } else { Self::Lost }
    }

    /// The same, halted.
    pub(crate) fn halting(self) -> Self {
        if self.is_lost() { Self::HaltedLost } else { Self::Halted }
    }

    /// The same, let go on.
    pub(crate) fn resuming(self) -> Self {
        if self.is_lost() { Self::Lost } else { Self::Active }
    }
}

/// One partition of a trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerRecord {
    /// The plugin.
    pub plugin: String,
    /// The trigger's id in the plugin's manifest.
    pub id: String,
    /// The partition; 0 while there is only one.
    pub partition: u32,
    /// What starts a run.
    pub kind: TriggerKind,
    /// The watched range.
    pub key: Bytes,
    /// Its end, as etcd writes it.
    pub range_end: Bytes,
    /// Deliver what this plugin wrote itself.
    pub self_events: bool,
    /// The next change to deliver; all before are done with. Zero for a schedule.
    pub cursor: Rev,
    /// The node that runs it, 0 before the first assignment.
    pub owner_node: u64,
    /// Grows with every assignment, pause, resume, upgrade and loss; a run that began under another cannot land.
    pub owner_epoch: u64,
    /// How it stands.
    pub state: TriggerState,
    /// Effects that landed: each names how many were before it, so that none lands twice.
    pub sequence: u64,
    /// Parked events.
    pub dead_letters: u64,
    /// Why it is halted, for its operator.
    pub reason: String,
    /// A schedule: when the last run began that came to its end, in ms since 1970; 0 before the first.
    pub last_run_wall_ms: u64,
}

/// A trigger's partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TriggerKey {
    pub(crate) plugin: String,
    pub(crate) trigger: String,
    pub(crate) partition: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct TriggerEntry {
    pub(crate) record: TriggerRecord,
    /// Parked events and what each counts in logical bytes.
    pub(crate) letters: BTreeMap<Rev, u64>,
}

impl TriggerEntry {
    /// Its cursor keeps history from being trimmed.
    pub(crate) fn holds_history(&self) -> bool {
        self.record.kind == TriggerKind::Watch && !self.record.state.is_lost()
    }
}

/// All plugins and triggers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    pub(crate) plugins: BTreeMap<String, PluginRecord>,
    pub(crate) triggers: BTreeMap<TriggerKey, TriggerEntry>,
    pub(crate) dead_letter_bytes: u64,
}

impl Registry {
    pub(crate) fn holding_cursors(&self) -> impl Iterator<Item = Rev> {
        self.triggers.values().filter(|trigger| trigger.holds_history()).map(|trigger| trigger.record.cursor)
    }

    /// Triggers of one plugin.
    pub(crate) fn keys_of(&self, plugin: &str) -> Vec<TriggerKey> {
        let first = TriggerKey { plugin: plugin.to_owned(), trigger: String::new(), partition: 0 };
        self.triggers.range(first..).map(|(key, _)| key).take_while(|key| key.plugin == plugin).cloned().collect()
    }
}

/// Whether a name is `[a-z0-9-]{1,63}`.
pub(crate) fn valid_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(known)
}

impl State {
    /// Installed plugins, in order of name.
    pub fn plugins(&self) -> impl Iterator<Item = &PluginRecord> {
        self.registry.plugins.values()
    }

    /// An installed plugin.
    pub fn plugin(&self, name: &str) -> Option<&PluginRecord> {
        self.registry.plugins.get(name)
    }

    /// One partition of a trigger.
    pub fn trigger(&self, plugin: &str, trigger: &str, partition: u32) -> Option<&TriggerRecord> {
        let key = TriggerKey { plugin: plugin.to_owned(), trigger: trigger.to_owned(), partition };
        self.registry.triggers.get(&key).map(|entry| &entry.record)
    }

    /// Every partition of every trigger, in order of plugin, trigger and partition.
    pub fn triggers(&self) -> impl Iterator<Item = &TriggerRecord> {
        self.registry.triggers.values().map(|entry| &entry.record)
    }

    /// Changes a trigger, giving the change a fresh epoch to use, and stores it.
    pub(crate) fn change_trigger(
        &mut self,
        key: &TriggerKey,
        effects: &mut Effects,
        change: impl FnOnce(&mut TriggerRecord, u64),
    ) {
        let Some(entry) = self.registry.triggers.get_mut(key) else { return };
        let record = &mut entry.record;
        let epoch = self.meta.epoch + 1;
        change(record, epoch);
        if record.owner_epoch == epoch {
            self.meta.epoch = epoch;
            effects.registry_changed = true;
        }
        effects.set(Table::Trigger, trigger_key(&key.plugin, &key.trigger, key.partition), record.encode());
    }

    pub(crate) fn apply_plugin_set(&mut self, request: &PluginSet, effects: &mut Effects) -> Result<Reply, Error> {
        let digest = self.check_plugin_set(request)?;
        let before = self.registry.plugins.remove(&request.name);
        self.meta.generation += 1;
        let mut record = PluginRecord {
            name: request.name.clone(),
            digest,
            manifest: Bytes::copy_from_slice(&request.manifest),
            generation: self.meta.generation,
            state: PluginState::Active,
            reason: String::new(),
            triggers: request.triggers.iter().map(|trigger| trigger.id.clone()).collect(),
        };
        record.triggers.sort_unstable();
        if let Some(before) = before.as_ref().filter(|before| before.state == PluginState::Paused) {
            // New code ends a quarantine; what the operator paused stays paused.
            record.state = before.state;
            record.reason = before.reason.clone();
        }
        effects.set(Table::Plugin, request.name.clone(), record.encode());
        self.registry.plugins.insert(request.name.clone(), record);
        for key in self.registry.keys_of(&request.name) {
            let stays = |new: &&Trigger| new.id == key.trigger && kind_of(new) == self.registry.triggers[&key].record.kind;
            if !request.triggers.iter().any(|new| stays(&new)) {
                self.drop_trigger(&key, effects);
            }
        }
        for trigger in &request.triggers {
            self.set_trigger(&request.name, trigger, effects);
        }
        if let Some(before) = before {
            self.drop_blob_if_unused(&before.digest, effects);
        }
        effects.registry_changed = true;
        Ok(Reply::Plugin { revision: self.revision(), generation: self.meta.generation })
    }

    fn check_plugin_set(&self, request: &PluginSet) -> Result<Digest, Error> {
        let invalid = |why: String| Err(Error::Invalid(why));
        let name = &request.name;
        if !valid_name(name) {
            return invalid(format!("plugin name {name:?} is not [a-z0-9-]{{1,63}}"));
        }
        if request.manifest.len() > limits::MANIFEST_BYTES_MAX {
            return invalid(format!("the manifest is larger than {} bytes", limits::MANIFEST_BYTES_MAX));
        }
        if request.triggers.len() > limits::TRIGGERS_PER_PLUGIN_MAX {
            return invalid(format!("a plugin has at most {} triggers", limits::TRIGGERS_PER_PLUGIN_MAX));
        }
        let mut ids = BTreeSet::new();
        for trigger in &request.triggers {
            if !valid_name(&trigger.id) || !ids.insert(&trigger.id) {
                return invalid(format!("trigger id {:?} is not [a-z0-9-]{{1,63}}, or is given twice", trigger.id));
            }
            if trigger::Kind::try_from(trigger.kind).is_err() {
                return invalid(format!("trigger {:?} is of no known kind", trigger.id));
            }
            if kind_of(trigger) == TriggerKind::Watch && trigger.key.is_empty() {
                return invalid(format!("trigger {:?} watches no key", trigger.id));
            }
            if trigger.start_revision > self.revision() + 1 {
                return Err(Error::FutureRevision);
            }
        }
        let installed = self.plugin(name);
        if request.exclusive_create && installed.is_some() {
            return Err(Error::Precondition(format!("plugin {name:?} is installed already: upgrade it instead")));
        }
        check_generation(name, installed, request.expect_generation)?;
        if installed.is_none() && self.registry.plugins.len() >= limits::PLUGINS_MAX {
            return Err(Error::Exhausted(format!("at most {} plugins can be installed", limits::PLUGINS_MAX)));
        }
        let digest = read_digest("component", &request.digest).map_err(|error| Error::Invalid(error.to_string()))?;
        if !self.blob(&digest).is_some_and(|blob| blob.complete) {
            return Err(Error::Precondition(format!("the component of plugin {name:?} is not here whole: send it again")));
        }
        Ok(digest)
    }

    /// Creates a trigger, or gives one that stays a new epoch; its cursor goes on where it is.
    fn set_trigger(&mut self, plugin: &str, request: &Trigger, effects: &mut Effects) {
        let key = TriggerKey { plugin: plugin.to_owned(), trigger: request.id.clone(), partition: 0 };
        let kind = kind_of(request);
        if !self.registry.triggers.contains_key(&key) {
            let cursor = match (kind, request.start_revision) {
                (TriggerKind::Schedule, _) => Rev::default(),
                (TriggerKind::Watch, 0) => Rev::start_of(self.revision() + 1),
                (TriggerKind::Watch, start) => Rev::start_of(start),
            };
            let lost = kind == TriggerKind::Watch && cursor.main < self.compact_revision();
            let record = TriggerRecord {
                plugin: plugin.to_owned(),
                id: request.id.clone(),
                partition: 0,
                kind,
                key: Bytes::new(),
                range_end: Bytes::new(),
                self_events: false,
                cursor,
                owner_node: 0,
                owner_epoch: 0,
                state: if lost { TriggerState::Lost } else { TriggerState::Active },
                sequence: 0,
                dead_letters: 0,
                reason: String::new(),
                last_run_wall_ms: 0,
            };
            self.registry.triggers.insert(key.clone(), TriggerEntry { record, letters: BTreeMap::new() });
        }
        self.change_trigger(&key, effects, |trigger, epoch| {
            trigger.key = Bytes::copy_from_slice(&request.key);
            trigger.range_end = Bytes::copy_from_slice(&request.range_end);
            trigger.self_events = request.self_events;
            trigger.owner_epoch = epoch;
        });
    }

    fn drop_trigger(&mut self, key: &TriggerKey, effects: &mut Effects) {
        let Some(entry) = self.registry.triggers.remove(key) else { return };
        for (at, bytes) in entry.letters {
            self.registry.dead_letter_bytes -= bytes;
            effects.delete(Table::DeadLetter, table::dead_letter_key(&key.plugin, &key.trigger, key.partition, at));
        }
        effects.delete(Table::Trigger, trigger_key(&key.plugin, &key.trigger, key.partition));
    }

    pub(crate) fn apply_plugin_remove(&mut self, request: &PluginRemove, effects: &mut Effects) -> Result<Reply, Error> {
        let record = self.registry.plugins.remove(&request.name).ok_or_else(|| missing(&request.name))?;
        for key in self.registry.keys_of(&request.name) {
            self.drop_trigger(&key, effects);
        }
        effects.delete(Table::Plugin, request.name.clone());
        self.drop_blob_if_unused(&record.digest, effects);
        effects.registry_changed = true;
        Ok(Reply::Plugin { revision: self.revision(), generation: record.generation })
    }

    pub(crate) fn apply_plugin_control(&mut self, request: &PluginControl, effects: &mut Effects) -> Result<Reply, Error> {
        let unknown = || Error::Invalid("action: a plugin can be resumed, paused or quarantined".into());
        let action = Action::try_from(request.action).map_err(|_| unknown())?;
        let record = self.registry.plugins.get_mut(&request.name).ok_or_else(|| missing(&request.name))?;
        check_generation(&request.name, Some(record), request.expect_generation)?;
        let state = match action {
            // What its operator stopped does not run, so nothing is left to stop; and only its operator lets it go on.
            Action::Quarantine if record.state == PluginState::Paused => {
                return Ok(Reply::Plugin { revision: self.meta.revision, generation: record.generation });
            }
            Action::Resume => PluginState::Active,
            Action::Pause => PluginState::Paused,
            Action::Quarantine => PluginState::Quarantined,
            Action::Unspecified => return Err(unknown()),
        };
        record.state = state;
        record.reason = truncated(&request.reason, limits::DEAD_LETTER_ERROR_BYTES_MAX).to_owned();
        let generation = record.generation;
        effects.set(Table::Plugin, request.name.clone(), record.encode());
        effects.registry_changed = true;
        for key in self.registry.keys_of(&request.name) {
            self.change_trigger(&key, effects, |trigger, epoch| {
                trigger.owner_epoch = epoch;
                if action == Action::Resume {
                    trigger.state = trigger.state.resuming();
                    trigger.reason.clear();
                }
            });
        }
        Ok(Reply::Plugin { revision: self.revision(), generation })
    }

    pub(crate) fn apply_assign(&mut self, request: &Assign, effects: &mut Effects) -> Result<Reply, Error> {
        let (plugin, trigger) = (request.plugin.clone(), request.trigger.clone());
        let key = TriggerKey { plugin, trigger, partition: request.partition };
        let entry = self.registry.triggers.get(&key);
        let record = entry.map(|entry| &entry.record).ok_or_else(|| missing_trigger(&key))?;
        if record.owner_epoch != request.expect_epoch {
            return Err(stale_epoch(&key, record.owner_epoch, request.expect_epoch));
        }
        self.change_trigger(&key, effects, |trigger, epoch| {
            trigger.owner_node = request.node;
            trigger.owner_epoch = epoch;
        });
        Ok(Reply::Assign { revision: self.revision(), owner_epoch: self.meta.epoch })
    }
}

impl State {
    pub(crate) fn apply_trigger_control(&mut self, request: &TriggerControl, effects: &mut Effects) -> Result<Reply, Error> {
        let key = TriggerKey { plugin: request.plugin.clone(), trigger: request.trigger.clone(), partition: request.partition };
        let record = self.registry.triggers.get(&key).map(|entry| &entry.record).ok_or_else(|| missing_trigger(&key))?;
        if request.expect_epoch != 0 && request.expect_epoch != record.owner_epoch {
            return Err(stale_epoch(&key, record.owner_epoch, request.expect_epoch));
        }
        let (state, reason) = match trigger_control::Action::try_from(request.action) {
            Ok(trigger_control::Action::Halt) => {
                (record.state.halting(), truncated(&request.reason, limits::DEAD_LETTER_ERROR_BYTES_MAX))
            }
            Ok(trigger_control::Action::Resume) => (record.state.resuming(), ""),
            Ok(trigger_control::Action::Unspecified) | Err(_) => {
                return Err(Error::Invalid("action: a trigger can be halted or resumed".into()));
            }
        };
        self.change_trigger(&key, effects, |trigger, epoch| {
            trigger.state = state;
            trigger.reason = reason.to_owned();
            trigger.owner_epoch = epoch;
        });
        Ok(Reply::TriggerControl { revision: self.revision(), owner_epoch: self.meta.epoch })
    }

    /// Notes a run that is over; from an owner that has lost the trigger it changes nothing.
    pub(crate) fn apply_task_done(&mut self, request: &TaskDone, effects: &mut Effects) -> Reply {
        let key = TriggerKey { plugin: request.plugin.clone(), trigger: request.trigger.clone(), partition: request.partition };
        let record = self.registry.triggers.get(&key).map(|entry| &entry.record);
        let current =
            record.is_some_and(|record| record.kind == TriggerKind::Schedule && record.owner_epoch == request.owner_epoch);
        if current {
            self.change_trigger(&key, effects, |trigger, _| trigger.last_run_wall_ms = request.started_wall_ms);
        }
        Reply::TaskDone { revision: self.revision() }
    }
}

fn stale_epoch(key: &TriggerKey, found: u64, expected: u64) -> Error {
    let TriggerKey { plugin, trigger, .. } = key;
    Error::Precondition(format!("trigger {trigger:?} of plugin {plugin:?} is at owner epoch {found}, not {expected}"))
}

fn kind_of(request: &Trigger) -> TriggerKind {
    if request.kind == trigger::Kind::Schedule as i32 { TriggerKind::Schedule } else { TriggerKind::Watch }
}

/// 0 expects any, and none.
fn check_generation(name: &str, installed: Option<&PluginRecord>, wanted: u64) -> Result<(), Error> {
    let found = installed.map_or(0, |plugin| plugin.generation);
    if wanted == 0 || wanted == found {
        return Ok(());
    }
    Err(Error::Precondition(format!("plugin {name:?} is at generation {found}, not {wanted}")))
}

fn missing(plugin: &str) -> Error {
    Error::Missing(format!("no plugin {plugin:?} is installed"))
}

pub(crate) fn missing_trigger(key: &TriggerKey) -> Error {
    Error::Missing(format!("plugin {:?} has no trigger {:?} with partition {}", key.plugin, key.trigger, key.partition))
}

/// The longest start of `text` of at most `bytes_max` bytes that ends between characters.
pub(crate) fn truncated(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max.min(text.len()))]
}
