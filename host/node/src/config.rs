//! What `kvasir serve` can be told: each setting by flag, environment variable or file, with etcd's names where etcd has the
//! same setting, and what is refused because this version does not do it yet.
//!
//! **Invariant:** one table names the settings; a value is parsed in one place whatever its source, and a refusal says which
//! source it came from and what to give instead.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvasir_transport::identity::CERTIFICATE_LIFE;
use peers::Peers;
use refused::NOT_YET;

pub(crate) mod parse;
pub(crate) mod peers;
pub(crate) mod refused;
#[cfg(test)]
mod tests;

/// One setting: its flag is `--name`, its variable `KVASIR_NAME`, its key in the file `name`.
pub(crate) struct Setting {
    /// etcd's name for it, where the meaning is the same.
    pub(crate) name: &'static str,
    /// What stands for the value in the help.
    pub(crate) value: &'static str,
    /// One sentence, with the default.
    pub(crate) help: &'static str,
}

const fn setting(name: &'static str, value: &'static str, help: &'static str) -> Setting {
    Setting { name, value, help }
}

/// Every setting of this version.
pub(crate) const SETTINGS: &[Setting] = &[
    setting("config-file", "PATH", "TOML file with settings by their flags' names; flags and environment go before it"),
    setting("name", "NAME", "Human-readable name of this member [default: default]"),
    setting("data-dir", "PATH", "Folder of the data, created if missing [default: ./kvasir-data]"),
    setting(
        "listen-client-urls",
        "URLS",
        "Where to listen for clients: gRPC and HTTP on one port, comma-separated [default: http://127.0.0.1:2379]",
    ),
    setting("advertise-client-urls", "URLS", "What to tell clients to connect to [default: the addresses listened on]"),
    setting(
        "listen-peer-urls",
        "URL",
        "Where to listen for other members: QUIC over UDP, always with TLS [default: https://127.0.0.1:2380]",
    ),
    setting(
        "initial-advertise-peer-urls",
        "URLS",
        "What to tell other members to connect to [default: the address listened on]",
    ),
    setting("join", "TOKEN", "Join the cluster that this token of `kvasir token create` is for; ignored once joined"),
    setting("learner", "", "Join as a learner, which never votes unless `kvasir member promote` says so [default: false]"),
    setting(
        "force-new-cluster",
        "",
        "Go on alone with what this member has, when the others are lost for good; never start those again [default: false]",
    ),
    setting(
        "initial-cluster",
        "MEMBERS",
        "Members of a new cluster, each with your own certificate: name=https://host:port, comma-separated",
    ),
    setting(
        "initial-cluster-state",
        "STATE",
        "new, or existing for a member that `kvasir member add` has added [default: new]",
    ),
    setting(
        "initial-cluster-token",
        "NAME",
        "Names a new cluster; with the members' names it makes their ids [default: kvasir-cluster]",
    ),
    setting("peer-cert-file", "PATH", "Your own certificate for this node, PEM; read again when it changes"),
    setting("peer-key-file", "PATH", "The key of that certificate, PEM"),
    setting(
        "peer-cert-life",
        "DURATION",
        "How long the certificates are good for that this node signs for members; renewed after two thirds [default: 720h]",
    ),
    setting("peer-trusted-ca-file", "PATH", "The authorities whose certificates other members may have, PEM"),
    setting(
        "quota-backend-bytes",
        "BYTES",
        "Logical bytes stored before writes are refused; 0 means the default [default: 2 GiB, or a quarter of RAM if that is less]",
    ),
    setting(
        "corrupt-check-time",
        "DURATION",
        "How often the leader compares what the members hold and raises CORRUPT for one that differs; 0s: never [default: 0s]",
    ),
    setting("heartbeat-interval", "MS", "Milliseconds between heartbeats of the leader [default: 100]"),
    setting("election-timeout", "MS", "Milliseconds without a heartbeat before an election [default: 1000]"),
    setting("max-concurrent-streams", "COUNT", "Streams that one client connection may have open at once [default: 100000]"),
    setting("grpc-keepalive-interval", "DURATION", "Idle time before a client connection is pinged; 0s: never [default: 2h]"),
    setting(
        "grpc-keepalive-timeout",
        "DURATION",
        "How long to wait for the answer to a ping before closing the connection [default: 20s]",
    ),
    setting(
        "log-level",
        "LEVEL",
        "error, warn, info, debug or trace; or filters such as info,kvasir_engine=debug [default: info]",
    ),
    setting("log-outputs", "OUTPUT", "stderr, stdout or the path of a file to append to [default: stderr]"),
];

/// What `serve` runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Human-readable name of the member.
    pub(crate) name: String,
    /// Folder of the data.
    pub(crate) data_dir: PathBuf,
    /// `host:port` of every door.
    pub(crate) listen: Vec<String>,
    /// What clients are told; empty: the addresses that were bound.
    pub(crate) advertise: Vec<String>,
    /// How it comes to its cluster, and reaches it.
    pub(crate) peers: Peers,
    /// How long certificates are good for that this node signs.
    pub(crate) certificate_life: Duration,
    /// To go on alone, whoever else was a member.
    pub(crate) force_new_cluster: bool,
    /// Logical bytes; `None`: the default.
    pub(crate) quota_bytes: Option<u64>,
    /// Between two comparisons of the members; `None`: never.
    pub(crate) corrupt_check_interval: Option<Duration>,
    /// The leader's heartbeat, in milliseconds.
    pub(crate) heartbeat_ms: u64,
    /// Election timeout, in milliseconds.
    pub(crate) election_ms: u64,
    /// Streams per connection.
    pub(crate) streams_max: u32,
    /// Idle time before a ping; `None`: never.
    pub(crate) keepalive_interval: Option<Duration>,
    /// Wait for the ping's answer.
    pub(crate) keepalive_timeout: Duration,
    /// Level or filter directives.
    pub(crate) log_level: String,
    /// Where logs go.
    pub(crate) log_output: LogOutput,
}

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Flag,
    Env,
    File(PathBuf),
}

/// A value as it was given, with its source, so that a refusal can name it.
#[derive(Debug, Clone)]
struct Given {
    name: &'static str,
    text: String,
    source: Source,
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Flag => write!(f, "--{} {:?}", self.name, self.text),
            Source::Env => write!(f, "{}={:?} (for --{})", variable(self.name), self.text, self.name),
            Source::File(path) => write!(f, "{} = {:?} in {} (for --{})", self.name, self.text, path.display(), self.name),
        }
    }
}

/// Why a setting was refused: one line that names it and says what to give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The value does not fit the setting.
    #[error("{given} {reason}")]
    Value { given: String, reason: String },
    /// One of etcd's settings that this version does not have.
    #[error("--{name} is not supported in this version: {instead}")]
    NotYet { name: String, instead: String },
    /// The file has a key that is no setting.
    #[error("unknown field `{field}` in {path}; remove it, or see `kvasir serve --help` for the settings")]
    UnknownField { field: String, path: String },
    /// The file cannot be read, or is not TOML.
    #[error("cannot use --config-file {path}: {reason}")]
    File { path: String, reason: String },
}

/// The variable of a setting: `KVASIR_DATA_DIR` for `data-dir`.
pub(crate) fn variable(name: &str) -> String {
    format!("KVASIR_{}", name.to_ascii_uppercase().replace('-', "_"))
}

impl Config {
    /// Settles every setting: flag before environment before file before default.
    ///
    /// `flags` and `environment` answer with the text given for a setting's name or variable.
    ///
    /// # Errors
    /// The first setting that is unknown, not supported or does not parse.
    pub(crate) fn settle(
        flags: impl Fn(&str) -> Option<String>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, ConfigError> {
        let mut given: BTreeMap<&'static str, Given> = BTreeMap::new();
        for name in SETTINGS.iter().map(|setting| setting.name).chain(NOT_YET.iter().map(|(name, _)| *name)) {
            let found = flags(name).map(|text| (text, Source::Flag));
            let found = found.or_else(|| environment(&variable(name)).map(|text| (text, Source::Env)));
            if let Some((text, source)) = found {
                given.insert(name, Given { name, text, source });
            }
        }
        if let Some(file) = given.get("config-file") {
            for value in read_file(Path::new(&file.text))? {
                given.entry(value.name).or_insert(value);
            }
        }
        if let Some((name, instead)) = NOT_YET.iter().find(|(name, _)| given.contains_key(name)) {
            return Err(ConfigError::NotYet { name: (*name).to_owned(), instead: (*instead).to_owned() });
        }
        Config::from_given(&given)
    }

    fn from_given(given: &BTreeMap<&'static str, Given>) -> Result<Config, ConfigError> {
        let heartbeat_ms = parse::or(given, "heartbeat-interval", 100, parse::milliseconds)?;
        let election_ms = parse::or(given, "election-timeout", 1_000, parse::milliseconds)?;
        if election_ms < heartbeat_ms.saturating_mul(5) {
            return Err(ConfigError::Value {
                given: format!("--election-timeout {election_ms} with --heartbeat-interval {heartbeat_ms}:"),
                reason: format!(
                    "the timeout must be at least five heartbeats; give {} or more",
                    heartbeat_ms.saturating_mul(5)
                ),
            });
        }
        let corrupt_check = parse::or(given, "corrupt-check-time", Duration::ZERO, parse::duration)?;
        let keepalive = parse::or(given, "grpc-keepalive-interval", Duration::from_secs(2 * 3600), parse::duration)?;
        let name = parse::or(given, "name", "default".to_owned(), parse::name)?;
        Ok(Config {
            peers: peers::settle(given, &name)?,
            certificate_life: parse::or(given, "peer-cert-life", CERTIFICATE_LIFE, parse::certificate_life)?,
            name,
            data_dir: parse::or(given, "data-dir", PathBuf::from("kvasir-data"), parse::path)?,
            listen: parse::or(given, "listen-client-urls", vec!["127.0.0.1:2379".to_owned()], parse::listen)?,
            advertise: parse::or(given, "advertise-client-urls", Vec::new(), parse::advertise)?,
            force_new_cluster: parse::or(given, "force-new-cluster", false, parse::yes_or_no)?,
            quota_bytes: Some(parse::or(given, "quota-backend-bytes", 0, parse::bytes)?).filter(|bytes| *bytes > 0),
            corrupt_check_interval: (!corrupt_check.is_zero()).then_some(corrupt_check),
            heartbeat_ms,
            election_ms,
            streams_max: parse::or(given, "max-concurrent-streams", 100_000, parse::count)?,
            keepalive_interval: (!keepalive.is_zero()).then_some(keepalive),
            keepalive_timeout: parse::or(given, "grpc-keepalive-timeout", Duration::from_secs(20), parse::duration)?,
            log_level: parse::or(given, "log-level", "info".to_owned(), parse::level)?,
            log_output: parse::or(given, "log-outputs", LogOutput::Stderr, parse::output)?,
        })
    }
}

/// Reads the file's settings as text, as if each had been given as a flag.
fn read_file(path: &Path) -> Result<Vec<Given>, ConfigError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::File {
        path: shown.clone(),
        reason: format!("{error}; give the path of a readable TOML file"),
    })?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        ConfigError::File { path: shown.clone(), reason: format!("line {line}: {}", error.message().replace('\n', ", ")) }
    })?;
    let mut values = Vec::new();
    for (field, value) in table {
        let known = SETTINGS.iter().map(|setting| setting.name).chain(NOT_YET.iter().map(|(name, _)| *name));
        let Some(name) = known.filter(|name| *name != "config-file").find(|name| *name == field) else {
            return Err(ConfigError::UnknownField { field, path: shown });
        };
        let text = as_text(&value).ok_or_else(|| ConfigError::File {
            path: shown.clone(),
            reason: format!("field `{name}` must be a string, a number, or a list of strings"),
        })?;
        values.push(Given { name, text, source: Source::File(path.to_owned()) });
    }
    Ok(values)
}

fn as_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        toml::Value::Array(items) => {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>().map(|items| items.join(","))
        }
        _ => None,
    }
}
