//! What a plugin's author declares: triggers, grants asked for, limits and what happens on failure. TOML in, typed or refused.
//!
//! **Invariant:** a [`Manifest`] that exists is valid, and its JSON parses to an equal one: the replicated form needs no second look.

mod units;

use std::collections::{BTreeMap, BTreeSet};

use kvasir_api::limits;
use kvasir_engine::KeyRange;
use serde::{Deserialize, Serialize};

pub(crate) use units::{Bytes, Name, Span, SpanRange, short};

/// Largest linear memory a manifest can ask for.
pub(crate) const MEMORY_BYTES_MAX: u64 = 256 << 20;
/// Largest staged bytes: with keys and guards the effect must fit a request.
const STAGED_BYTES_MAX: u64 = 1 << 20;
const STAGED_OPS_MAX: u32 = 4_096;
const HOST_CALLS_MAX: u32 = 1_000_000;
const BATCH_EVENTS_MAX: u32 = 4_096;
const BATCH_BYTES_MAX: u64 = 4 << 20;
const CPU_MS_MAX: u64 = 60_000;
const WALL_MS_MAX: u64 = 600_000;
const EVERY_MS_MIN: u64 = 100;
const EVERY_MS_MAX: u64 = 31 * 24 * 3_600_000;
const RETRIES_MAX: u32 = 100;
const CONFIG_ENTRIES_MAX: usize = 256;

/// A whole manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) plugin: About,
    #[serde(default)]
    pub(crate) trigger: Triggers,
    #[serde(default)]
    pub(crate) grants: Requested,
    #[serde(default)]
    pub(crate) limits: Limits,
    #[serde(default)]
    pub(crate) failure: Failure,
    #[serde(default)]
    pub(crate) config: BTreeMap<String, Setting>,
}

/// Who the plugin is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct About {
    pub(crate) name: Name,
    pub(crate) version: String,
    #[serde(default)]
    pub(crate) description: String,
}

/// What starts it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Triggers {
    #[serde(default)]
    pub(crate) watch: Vec<Watch>,
    #[serde(default)]
    pub(crate) schedule: Vec<Schedule>,
}

/// Runs the reactor when keys change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Watch {
    pub(crate) id: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    range: Option<(String, String)>,
    #[serde(default = "both_kinds")]
    pub(crate) events: Vec<EventKind>,
    #[serde(default)]
    pub(crate) mode: Mode,
    #[serde(default)]
    pub(crate) start: Start,
    #[serde(default)]
    pub(crate) prev: bool,
    #[serde(default)]
    pub(crate) self_events: bool,
    #[serde(default)]
    pub(crate) batch: Batch,
}

/// Runs the task again and again, under a lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Schedule {
    pub(crate) id: Name,
    pub(crate) every: Span,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lock: Option<String>,
}

/// Which changes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EventKind {
    Put,
    Delete,
}

/// Whether every change is delivered or the newest of each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    #[default]
    Every,
    Latest,
}

/// Where a new trigger's cursor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Start {
    #[default]
    Now,
    Beginning,
}

/// How much one call of the reactor gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Batch {
    pub(crate) max_events: u32,
    pub(crate) max_bytes: Bytes,
}

impl Default for Batch {
    fn default() -> Self {
        Self { max_events: 64, max_bytes: Bytes(256 << 10) }
    }
}

/// Grants the author asks for; the operator decides.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Requested {
    pub(crate) kv_read: Vec<String>,
    pub(crate) kv_write: Vec<String>,
    pub(crate) lock: Vec<String>,
    pub(crate) lease: bool,
}

/// What one run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Limits {
    /// Linear memory, all of the component's memories together.
    pub(crate) memory: Bytes,
    /// Processor time of the thread that runs the guest.
    pub(crate) cpu: Span,
    /// From the start of the run to its end, waits included.
    pub(crate) wall: Span,
    pub(crate) host_calls: u32,
    /// Staged writes; for a task between two commits.
    pub(crate) staged_ops: u32,
    pub(crate) staged_bytes: Bytes,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: Bytes(32 << 20),
            cpu: Span(std::time::Duration::from_millis(200)),
            wall: Span(std::time::Duration::from_secs(2)),
            host_calls: 4_096,
            staged_ops: 256,
            staged_bytes: Bytes(1 << 20),
        }
    }
}

/// What happens when the guest fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Failure {
    /// Further attempts after the first.
    pub(crate) retries: u32,
    pub(crate) backoff: SpanRange,
    pub(crate) on_exhausted: OnExhausted,
}

impl Default for Failure {
    fn default() -> Self {
        let (first, last) = (std::time::Duration::from_secs(1), std::time::Duration::from_secs(30));
        Self { retries: 6, backoff: SpanRange { first: Span(first), last: Span(last) }, on_exhausted: OnExhausted::Park }
    }
}

/// What becomes of an event that no retry helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnExhausted {
    /// Put it among the dead letters and go on.
    Park,
    /// Stop the plugin, visibly.
    Halt,
}

/// A configuration value; the guest sees text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a configuration value must be a string, a number or a boolean")]
pub(crate) enum Setting {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Integer(number) => number.fmt(f),
            Self::Float(number) => number.fmt(f),
            Self::Boolean(flag) => flag.fmt(f),
        }
    }
}

fn both_kinds() -> Vec<EventKind> {
    vec![EventKind::Put, EventKind::Delete]
}

impl Watch {
    /// The watched keys; validation made sure that exactly one of the three forms is there.
    pub(crate) fn keys(&self) -> KeyRange {
        match (&self.prefix, &self.key, &self.range) {
            (Some(prefix), _, _) => KeyRange::prefix(prefix.clone().into_bytes()),
            (None, Some(key), _) => KeyRange::single(key.clone().into_bytes()),
            (None, None, Some((from, to))) => KeyRange::new(from.clone().into_bytes(), to.clone().into_bytes()),
            (None, None, None) => KeyRange::default(),
        }
    }

    /// The prefix, if that is how the keys are named.
    pub(crate) fn prefix(&self) -> Option<&str> {
        self.prefix.as_deref()
    }

    /// The watched keys in words.
    pub(crate) fn words(&self) -> String {
        match (&self.prefix, &self.key, &self.range) {
            (Some(prefix), _, _) if prefix.is_empty() => "every key".to_owned(),
            (Some(prefix), _, _) => format!("keys under {prefix}"),
            (None, Some(key), _) => format!("the key {key}"),
            (None, None, Some((from, to))) => format!("keys from {from} up to {to}"),
            (None, None, None) => "nothing".to_owned(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let at = format!("trigger.watch `{}`", self.id);
        match (&self.prefix, &self.key, &self.range) {
            (Some(_), None, None) => {}
            (None, Some(key), None) if !key.is_empty() => {}
            (None, Some(_), None) => {
                return Err(format!("{at}: `key` is empty; name the key, or use prefix = \"\" for every key"));
            }
            (None, None, Some((from, to))) if !from.is_empty() && from < to => {}
            (None, None, Some(_)) => return Err(format!("{at}: `range` is empty; write [\"first\", \"after the last\"]")),
            _ => return Err(format!("{at}: give exactly one of `prefix`, `key` and `range`")),
        }
        if self.events.is_empty() {
            return Err(format!("{at}: `events` is empty; leave it out for both, or list \"put\" or \"delete\""));
        }
        within(&at, "batch.max-events", u64::from(self.batch.max_events), 1, u64::from(BATCH_EVENTS_MAX))?;
        within(&at, "batch.max-bytes", self.batch.max_bytes.0, 1, BATCH_BYTES_MAX)
    }
}

impl Schedule {
    /// The lock that the task runs under.
    pub(crate) fn lock(&self, plugin: &Name) -> String {
        self.lock.clone().unwrap_or_else(|| format!("/kvasir/locks/{plugin}/{}", self.id))
    }

    /// A lock that the author chose, which needs a grant; the default lock is the plugin's own.
    pub(crate) fn chosen_lock(&self) -> Option<&str> {
        self.lock.as_deref()
    }

    fn check(&self) -> Result<(), String> {
        let at = format!("trigger.schedule `{}`", self.id);
        if self.lock.as_deref() == Some("") {
            return Err(format!("{at}: `lock` is empty; name the lock or leave it out"));
        }
        within(&at, "every (ms)", self.every.0.as_millis() as u64, EVERY_MS_MIN, EVERY_MS_MAX)
    }
}

impl Manifest {
    /// Parses the author's TOML.
    ///
    /// # Errors
    /// One sentence that names the line or the field, and the remedy.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > limits::MANIFEST_BYTES_MAX {
            return Err(format!("the manifest has {} bytes; at most {} are allowed", text.len(), limits::MANIFEST_BYTES_MAX));
        }
        let manifest: Self = toml::from_str(text).map_err(|error| explain(text, &error))?;
        manifest.check().map_err(|error| format!("manifest: {error}"))?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        let version = &self.plugin.version;
        if version.is_empty() || version.len() > 64 || version.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("plugin.version: give a version without spaces, like \"0.1.0\"".to_owned());
        }
        let count = self.trigger.watch.len() + self.trigger.schedule.len();
        if count == 0 {
            return Err("no trigger; add [[trigger.watch]] or [[trigger.schedule]], or nothing would ever run".to_owned());
        }
        if count > limits::TRIGGERS_PER_PLUGIN_MAX {
            return Err(format!("{count} triggers; at most {} are allowed", limits::TRIGGERS_PER_PLUGIN_MAX));
        }
        let mut ids = BTreeSet::new();
        for id in self.trigger.watch.iter().map(|t| &t.id).chain(self.trigger.schedule.iter().map(|t| &t.id)) {
            if !ids.insert(id) {
                return Err(format!("two triggers have the id `{id}`; give each its own"));
            }
        }
        self.trigger.watch.iter().try_for_each(Watch::check)?;
        self.trigger.schedule.iter().try_for_each(Schedule::check)?;
        for (field, keys) in [("lock", &self.grants.lock)] {
            if keys.iter().any(String::is_empty) {
                return Err(format!("grants.{field}: an empty name would be every lock; name them"));
            }
        }
        self.limits.check()?;
        within("failure", "retries", u64::from(self.failure.retries), 0, u64::from(RETRIES_MAX))?;
        within("failure", "backoff (ms)", self.failure.backoff.first.0.as_millis() as u64, 1, 3_600_000)?;
        within("failure", "backoff (ms)", self.failure.backoff.last.0.as_millis() as u64, 1, 3_600_000)?;
        if self.config.len() > CONFIG_ENTRIES_MAX {
            return Err(format!("config has {} entries; at most {CONFIG_ENTRIES_MAX} are allowed", self.config.len()));
        }
        Ok(())
    }
}

impl Limits {
    fn check(&self) -> Result<(), String> {
        within("limits", "memory (bytes)", self.memory.0, 64 << 10, MEMORY_BYTES_MAX)?;
        within("limits", "cpu (ms)", self.cpu.0.as_millis() as u64, 1, CPU_MS_MAX)?;
        within("limits", "wall (ms)", self.wall.0.as_millis() as u64, 1, WALL_MS_MAX)?;
        within("limits", "host-calls", u64::from(self.host_calls), 1, u64::from(HOST_CALLS_MAX))?;
        within("limits", "staged-ops", u64::from(self.staged_ops), 1, u64::from(STAGED_OPS_MAX))?;
        within("limits", "staged-bytes", self.staged_bytes.0, 1, STAGED_BYTES_MAX)
    }
}

fn within(at: &str, field: &str, value: u64, min: u64, max: u64) -> Result<(), String> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(format!("{at}: `{field}` is {value}; it must be from {min} to {max}"))
    }
}

/// toml's message on one line, with the line of the manifest and what to do.
fn explain(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| 1 + text.as_bytes().iter().take(span.start).filter(|b| **b == b'\n').count());
    let message = error.message().lines().collect::<Vec<_>>().join(" ");
    let remedy = if message.contains("unknown field") {
        "; remove it or correct its name"
    } else if message.contains("missing field") {
        "; add it"
    } else {
        ""
    };
    match line {
        Some(line) => format!("manifest line {line}: {message}{remedy}"),
        None => format!("manifest: {message}{remedy}"),
    }
}

#[cfg(test)]
mod tests;
