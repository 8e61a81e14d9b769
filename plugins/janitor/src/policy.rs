//! What is old: a policy key's value.
//!
//! Invariant: a [`Policy`] that exists is valid; every other value is a reason for the report.

use std::num::NonZeroU64;

use serde::Deserialize;

use crate::OWN;

/// Where policies live.
pub const POLICIES: &str = "/janitor/policy/";
/// Longest name of a policy, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Longest age, in seconds: a hundred years.
const AGE_MAX_S: u64 = 100 * 366 * 24 * 3600;
/// Most deletes that a policy may ask for in one run.
const DELETES_MAX: u64 = 10_000;
/// Most deletes in one commit.
const BATCH_MAX: u64 = 500;

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The keys it is about. Not empty, not under `/janitor/`.
    pub prefix: String,
    /// A key is old when its last put is longer ago than this, in seconds.
    pub older_than_s: NonZeroU64,
    /// Most deletes in one run.
    #[serde(default = "max_deletes")]
    pub max_deletes: NonZeroU64,
    /// Keys looked at, and so at most deleted, in one commit.
    #[serde(default = "batch")]
    pub batch: NonZeroU64,
    /// Only counts.
    #[serde(default)]
    pub dry_run: bool,
    /// Deletes keys that are attached to a lease, too. They have an owner who keeps them alive, or go by themselves.
    #[serde(default)]
    pub include_leased: bool,
}

fn max_deletes() -> NonZeroU64 {
    NonZeroU64::MIN.saturating_add(999)
}

fn batch() -> NonZeroU64 {
    NonZeroU64::MIN.saturating_add(99)
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(value: &[u8]) -> Result<Policy, String> {
        let policy: Policy = serde_json::from_slice(value).map_err(|error| format!("invalid policy: {error}"))?;
        let invalid = |reason: String| Err(format!("invalid policy: {reason}"));
        if policy.prefix.is_empty() {
            return invalid("`prefix` is empty; \"/\" would be every key that starts with a slash".to_owned());
        }
        if policy.prefix.starts_with(OWN) {
            return invalid(format!("`prefix` is under {OWN}, which is the janitor's own"));
        }
        for (name, value, most) in [
            ("older_than_s", policy.older_than_s, AGE_MAX_S),
            ("max_deletes", policy.max_deletes, DELETES_MAX),
            ("batch", policy.batch, BATCH_MAX),
        ] {
            if value.get() > most {
                return invalid(format!("`{name}` is {value}, at most {most} is possible"));
            }
        }
        Ok(policy)
    }

    /// The age in ms.
    pub fn older_than_ms(&self) -> u64 {
        self.older_than_s.get().saturating_mul(1000)
    }
}

/// Whether a policy may be called so.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_needs_a_prefix_and_an_age() {
        let policy = Policy::parse(br#"{"prefix": "/tmp/", "older_than_s": 60}"#)
            .map(|p| (p.max_deletes.get(), p.batch.get(), p.dry_run));
        assert_eq!(policy, Ok((1000, 100, false)));
    }

    #[test]
    fn every_other_value_has_its_reason() {
        for (value, expected) in [
            ("{", "EOF while parsing"),
            (r#"{"prefix": "/tmp/"}"#, "missing field `older_than_s`"),
            (r#"{"prefix": "/tmp/", "older_than_s": 0}"#, "a nonzero u64"),
            (r#"{"prefix": "/tmp/", "older_than_s": "1h"}"#, "invalid type: string \"1h\""),
            (r#"{"prefix": "/tmp/", "older_than_s": 1, "batch": 501}"#, "`batch` is 501, at most 500 is possible"),
            (r#"{"prefix": "/tmp/", "older_than_s": 1, "older": 1}"#, "unknown field `older`"),
            (r#"{"prefix": "", "older_than_s": 1}"#, "`prefix` is empty"),
            (r#"{"prefix": "/janitor/marks", "older_than_s": 1}"#, "`prefix` is under /janitor/"),
        ] {
            let reason = Policy::parse(value.as_bytes()).err().unwrap_or_default();
            assert!(reason.starts_with("invalid policy: ") && reason.contains(expected), "{value}: {reason}");
        }
    }
}
