//! From a setting's text to its value; each parser's refusal says what to give instead.
//!
//! **Invariant:** pure; looks nothing up.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kvasir_api::limits;

use super::{ConfigError, Given, LogOutput};

/// The setting's value, or the default when it was not given.
pub(super) fn or<T>(
    given: &BTreeMap<&'static str, Given>,
    name: &str,
    default: T,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, ConfigError> {
    match given.get(name) {
        None => Ok(default),
        Some(value) => parse(value.text.trim()).map_err(|reason| ConfigError::Value { given: value.to_string(), reason }),
    }
}

pub(crate) fn name(text: &str) -> Result<String, String> {
    match text {
        "" => Err("is empty; give a name".to_owned()),
        _ if text.len() > limits::MEMBER_NAME_BYTES_MAX => {
            Err(format!("is too long; give at most {} bytes", limits::MEMBER_NAME_BYTES_MAX))
        }
        _ => Ok(text.to_owned()),
    }
}

pub(crate) fn path(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("is empty; give the path of a folder".to_owned()),
        _ => Ok(PathBuf::from(text)),
    }
}

pub(super) fn milliseconds(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(ms @ 1..=50_000) => Ok(ms),
        Ok(_) => Err("is out of bounds; give 1 to 50000 milliseconds".to_owned()),
        Err(_) => Err("is not a whole number of milliseconds; give one, such as 100".to_owned()),
    }
}

pub(super) fn bytes(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "is not a whole number of bytes; give one, such as 2147483648, or 0 for the default".to_owned())
}

pub(super) fn count(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("is not a count; give a whole number from 1 to 4294967295".to_owned()),
        Ok(count) => Ok(count),
    }
}

/// `500ms`, `20s`, `10m`, `2h`.
///
/// # Errors
/// What a duration looks like.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let per_unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("is not a duration; give a whole number with its unit, such as 20s, 500ms or 2h".to_owned()),
    };
    let number = &text[..text.len() - unit.len()];
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(per_unit_ms))
        .map(Duration::from_millis)
        .ok_or_else(|| "is not a duration; give a whole number with its unit, such as 20s, 500ms or 2h".to_owned())
}

/// Long enough to be renewed in time, short enough to be worth renewing.
pub(super) fn certificate_life(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        life if (Duration::from_secs(5)..=Duration::from_secs(366 * 24 * 3_600)).contains(&life) => Ok(life),
        _ => Err("is out of bounds; give 5s to 8784h, such as 720h".to_owned()),
    }
}

/// `http://host:port`, comma-separated, as `host:port`.
pub(super) fn listen(text: &str) -> Result<Vec<String>, String> {
    text.split(',').map(|url| host_and_port(url.trim())).collect()
}

/// URLs that clients may use, as they were written.
pub(super) fn advertise(text: &str) -> Result<Vec<String>, String> {
    text.split(',').map(|url| host_and_port(url.trim()).map(|_| url.trim().trim_end_matches('/').to_owned())).collect()
}

fn host_and_port(url: &str) -> Result<String, String> {
    if url.starts_with("https://") {
        return Err("asks for TLS, which is not supported in this version; give an http:// URL".to_owned());
    }
    authority(url, "http://")
        .ok_or_else(|| "is not a URL of the form http://host:port; give one, such as http://127.0.0.1:2379".to_owned())
}

/// The `host:port` of a URL of this scheme and nothing else.
pub(super) fn authority(url: &str, scheme: &str) -> Option<String> {
    let authority = url.strip_prefix(scheme)?.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':')?;
    let bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    let wrong = host.is_empty() || bare_ipv6 || host.contains(['/', '?', '@', ' ']) || port.parse::<u16>().is_err();
    (!wrong).then(|| authority.to_owned())
}

/// A setting that is on or off; the bare flag turns it on.
pub(super) fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "" | "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("is neither yes nor no; give true or false".to_owned()),
    }
}

/// A level, or filter directives that name one of kvasir's modules.
pub(super) fn level(text: &str) -> Result<String, String> {
    let wrong = || "is not a log level; give error, warn, info, debug or trace".to_owned();
    for directive in text.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level).trim();
        if !["off", "error", "warn", "info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str()) {
            return Err(wrong());
        }
    }
    text.parse::<tracing_subscriber::filter::Targets>().map_err(|_| wrong())?;
    Ok(text.to_owned())
}

pub(super) fn output(text: &str) -> Result<LogOutput, String> {
    match text {
        "" => Err("is empty; give stderr, stdout or the path of a file".to_owned()),
        "default" | "stderr" => Ok(LogOutput::Stderr),
        "stdout" => Ok(LogOutput::Stdout),
        path if path.contains(',') => Err("names several outputs; give one: stderr, stdout or the path of a file".to_owned()),
        path => Ok(LogOutput::File(PathBuf::from(path))),
    }
}
