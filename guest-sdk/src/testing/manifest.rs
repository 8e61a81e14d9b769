//! The parts of `plugin.toml` that a plugin can observe.
//!
//! Invariant: unknown fields are refused, as the host refuses them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::Selection;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) plugin: Identity,
    #[serde(default)]
    pub(crate) trigger: Triggers,
    #[serde(default)]
    pub(crate) grants: Grants,
    #[serde(default)]
    pub(crate) limits: Limits,
    #[serde(default)]
    pub(crate) failure: Failure,
    #[serde(default)]
    pub(crate) config: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) name: String,
    #[serde(rename = "version")]
    _version: String,
    #[serde(default, rename = "description")]
    _description: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Triggers {
    #[serde(default)]
    pub(crate) watch: Vec<WatchTrigger>,
    #[serde(default)]
    pub(crate) schedule: Vec<ScheduleTrigger>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct WatchTrigger {
    pub(crate) id: String,
    key: Option<String>,
    prefix: Option<String>,
    range: Option<(String, String)>,
    #[serde(default = "both")]
    pub(crate) events: Vec<Kind>,
    #[serde(default)]
    pub(crate) mode: Mode,
    // Where a trigger starts is decided at installation; here it is there before the first write.
    #[serde(default, rename = "start")]
    _start: Start,
    #[serde(default)]
    pub(crate) prev: bool,
    #[serde(default)]
    pub(crate) self_events: bool,
    #[serde(default)]
    pub(crate) batch: BatchLimits,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Put,
    Delete,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    #[default]
    Every,
    Latest,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Start {
    #[default]
    Now,
    Beginning,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct BatchLimits {
    pub(crate) max_events: usize,
    pub(crate) max_bytes: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScheduleTrigger {
    pub(crate) id: String,
    #[serde(rename = "every")]
    _every: String,
    lock: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Grants {
    pub(crate) kv_read: Vec<String>,
    pub(crate) kv_write: Vec<String>,
    pub(crate) lock: Vec<String>,
    pub(crate) lease: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Limits {
    #[serde(rename = "memory")]
    _memory: String,
    #[serde(rename = "cpu")]
    _cpu: String,
    #[serde(rename = "wall")]
    _wall: String,
    pub(crate) host_calls: u64,
    pub(crate) staged_ops: usize,
    pub(crate) staged_bytes: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Failure {
    pub(crate) retries: u32,
    #[serde(rename = "backoff")]
    _backoff: String,
    pub(crate) on_exhausted: Exhausted,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Exhausted {
    Park,
    Halt,
}

fn both() -> Vec<Kind> {
    vec![Kind::Put, Kind::Delete]
}

impl Default for BatchLimits {
    fn default() -> Self {
        BatchLimits { max_events: 64, max_bytes: "256KiB".to_owned() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            _memory: String::new(),
            _cpu: String::new(),
            _wall: String::new(),
            host_calls: 4096,
            staged_ops: 256,
            staged_bytes: "1MiB".to_owned(),
        }
    }
}

impl Default for Failure {
    fn default() -> Self {
        Failure { retries: 6, _backoff: String::new(), on_exhausted: Exhausted::Park }
    }
}

impl Manifest {
    /// Reads a manifest; a test with a bad one ends here, with the reason.
    pub(crate) fn parse(text: &str) -> Manifest {
        match toml::from_str::<Manifest>(text) {
            Ok(manifest) => manifest.with_implied_grants(),
            Err(error) => panic!("plugin.toml: {error}"),
        }
    }

    /// What a watch delivers it reads, and a schedule takes its lock.
    fn with_implied_grants(mut self) -> Manifest {
        self.grants.kv_read.extend(self.trigger.watch.iter().filter_map(|watch| watch.prefix.clone()));
        let plugin = &self.plugin.name;
        self.grants.lock.extend(self.trigger.schedule.iter().map(|schedule| schedule.lock(plugin)));
        self
    }
}

impl ScheduleTrigger {
    /// The lock that the task runs under.
    pub(crate) fn lock(&self, plugin: &str) -> String {
        self.lock.clone().unwrap_or_else(|| format!("/kvasir/locks/{plugin}/{}", self.id))
    }
}

impl WatchTrigger {
    /// The keys that are watched.
    pub(crate) fn selection(&self) -> Selection {
        match (&self.key, &self.prefix, &self.range) {
            (Some(key), None, None) => Selection::key(key),
            (None, Some(prefix), None) => Selection::prefix(prefix),
            (None, None, Some((from, to))) => Selection::span(from, to),
            _ => panic!("plugin.toml: trigger {}: exactly one of `key`, `prefix` and `range`", self.id),
        }
    }
}

/// `"256KiB"` in bytes.
pub(crate) fn bytes(text: &str) -> usize {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.get(digits.len()..) {
        Some("" | "B") => 1,
        Some("KiB") => 1 << 10,
        Some("MiB") => 1 << 20,
        Some("GiB") => 1 << 30,
        _ => panic!("plugin.toml: `{text}` is not a size like 256KiB"),
    };
    match digits.parse::<usize>() {
        Ok(number) => number * unit,
        Err(_) => panic!("plugin.toml: `{text}` is not a size like 256KiB"),
    }
}
