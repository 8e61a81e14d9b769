//! `plugin.toml`: what a plugin's author declares. Triggers, grants asked for, limits and what happens on failure; TOML in, typed
//! or refused.
//!
//! The host reads it when a plugin is installed, the SDK's harness when one is tested: by the same code, so that a test refuses what
//! the host would refuse. `docs/plugins.md` has the format.
//!
//! **Invariant:** a [`Manifest`] that exists is valid, and its JSON parses to an equal one: the replicated form needs no second look.

mod units;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use units::{Bytes, Name, Span, SpanRange, short};

/// Longest manifest.
pub const MANIFEST_BYTES_MAX: usize = 64 << 10;
/// Triggers of one plugin.
pub const TRIGGERS_MAX: usize = 16;

/// Largest linear memory a manifest can ask for.
pub const MEMORY_BYTES_MAX: u64 = 256 << 20;
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
pub struct Manifest {
    /// Who the plugin is.
    pub plugin: About,
    /// What starts it.
    #[serde(default)]
    pub trigger: Triggers,
    /// What it asks for.
    #[serde(default)]
    pub grants: Requested,
    /// What one run may use.
    #[serde(default)]
    pub limits: Limits,
    /// What happens when it fails.
    #[serde(default)]
    pub failure: Failure,
    /// Values that the plugin reads and the operator may override.
    #[serde(default)]
    pub config: BTreeMap<String, Setting>,
}

/// Who the plugin is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Unique on a cluster.
    pub name: Name,
    /// For people; any text without spaces.
    pub version: String,
    /// For people.
    #[serde(default)]
    pub description: String,
}

/// What starts it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Triggers {
    /// Changes of keys.
    #[serde(default)]
    pub watch: Vec<Watch>,
    /// Time.
    #[serde(default)]
    pub schedule: Vec<Schedule>,
}

/// Runs the reactor when keys change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Watch {
    /// Unique in the plugin.
    pub id: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    range: Option<(String, String)>,
    /// Which changes are delivered.
    #[serde(default = "both_kinds")]
    pub events: Vec<EventKind>,
    /// Every one of them, or the newest of each key.
    #[serde(default)]
    pub mode: Mode,
    /// Where a new trigger begins.
    #[serde(default)]
    pub start: Start,
    /// Each event comes with the version it replaced.
    #[serde(default)]
    pub prev: bool,
    /// The plugin's own writes count too.
    #[serde(default)]
    pub self_events: bool,
    /// How much one call gets.
    #[serde(default)]
    pub batch: Batch,
}

/// Runs the task again and again, under a lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Unique in the plugin.
    pub id: Name,
    /// From the start of one run to the start of the next.
    pub every: Span,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lock: Option<String>,
}

/// Which changes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A key was put.
    Put,
    /// A key was deleted, by a client or with its lease.
    Delete,
}

/// Whether every change is delivered or the newest of each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every change.
    #[default]
    Every,
    /// The newest change of each key.
    Latest,
}

/// Where a new trigger's cursor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With what changes after the installation.
    #[default]
    Now,
    /// With the oldest change there is.
    Beginning,
}

/// How much one call of the reactor gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Batch {
    /// Changes.
    pub max_events: u32,
    /// Bytes of keys and values.
    pub max_bytes: Bytes,
}

impl Default for Batch {
    fn default() -> Self {
        Self { max_events: 64, max_bytes: Bytes(256 << 10) }
    }
}

/// Grants the author asks for; the operator decides.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Requested {
    /// Prefixes of keys to read.
    pub kv_read: Vec<String>,
    /// Prefixes of keys to put and delete.
    pub kv_write: Vec<String>,
    /// Prefixes of locks' names.
    pub lock: Vec<String>,
    /// Leases.
    pub lease: bool,
}

/// What one run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// Linear memory, all of the component's memories together.
    pub memory: Bytes,
    /// Processor time of the thread that runs the guest.
    pub cpu: Span,
    /// From the start of the run to its end, waits included.
    pub wall: Span,
    /// Calls of the contract's functions.
    pub host_calls: u32,
    /// Staged writes; for a task between two commits.
    pub staged_ops: u32,
    /// Keys, values and 32 bytes each.
    pub staged_bytes: Bytes,
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
pub struct Failure {
    /// Further attempts after the first.
    pub retries: u32,
    /// The first wait and the longest.
    pub backoff: SpanRange,
    /// What becomes of the event then.
    pub on_exhausted: OnExhausted,
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
pub enum OnExhausted {
    /// Put it among the dead letters and go on.
    Park,
    /// Stop the plugin, visibly.
    Halt,
}

/// A configuration value; the guest sees text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a configuration value must be a string, a number or a boolean")]
pub enum Setting {
    /// `"text"`
    Text(String),
    /// `1`
    Integer(i64),
    /// `1.5`
    Float(f64),
    /// `true`
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

/// The keys of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys<'a> {
    /// Every key that starts so.
    Prefix(&'a str),
    /// This key.
    Key(&'a str),
    /// From the first, included, to the second, excluded.
    Range(&'a str, &'a str),
}

impl Watch {
    /// The watched keys; validation made sure that exactly one of the three forms is there.
    pub fn keys(&self) -> Keys<'_> {
        match (&self.prefix, &self.key, &self.range) {
            (Some(prefix), _, _) => Keys::Prefix(prefix),
            (None, Some(key), _) => Keys::Key(key),
            (None, None, Some((from, to))) => Keys::Range(from, to),
            (None, None, None) => Keys::Range("", ""),
        }
    }

    /// The prefix, if that is how the keys are named.
    pub fn prefix(&self) -> Option<&str> {
        self.prefix.as_deref()
    }

    /// The watched keys in words.
    pub fn words(&self) -> String {
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
    pub fn lock(&self, plugin: &Name) -> String {
        self.lock.clone().unwrap_or_else(|| format!("/kvasir/locks/{plugin}/{}", self.id))
    }

    /// A lock that the author chose, which needs a grant; the default lock is the plugin's own.
    pub fn chosen_lock(&self) -> Option<&str> {
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
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(format!("the manifest has {} bytes; at most {MANIFEST_BYTES_MAX} are allowed", text.len()));
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
        if count > TRIGGERS_MAX {
            return Err(format!("{count} triggers; at most {TRIGGERS_MAX} are allowed"));
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
