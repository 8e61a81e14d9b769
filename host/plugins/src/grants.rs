//! What a plugin may do: what its manifest asks for, what the operator gives, and both in words.
//!
//! **Invariant:** the grants of an installed plugin are exactly what its manifest asks for, and every one of them was given by the
//! operator; at run time the engine checks them, for plugins as for any other caller.

use std::fmt;
use std::sync::Arc;

use kvasir_engine::{Grants, KeyRange};
use serde::{Deserialize, Serialize};

use crate::manifest::{EventKind, Manifest, keys, short};

/// One grant, in the form of `--grant`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Grant {
    /// `kv:read=<prefix>`
    Read(String),
    /// `kv:write=<prefix>`
    Write(String),
    /// `lock=<prefix of names>`
    Lock(String),
    /// `lease`
    Lease,
}

impl TryFrom<String> for Grant {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("kv:read", prefix)) => Ok(Self::Read(prefix.to_owned())),
            Some(("kv:write", prefix)) => Ok(Self::Write(prefix.to_owned())),
            Some(("lock", prefix)) if !prefix.is_empty() => Ok(Self::Lock(prefix.to_owned())),
            None if text == "lease" => Ok(Self::Lease),
            _ => Err(format!(
                "`{}` is not a grant; write kv:read=/prefix/, kv:write=/prefix/, lock=/name or lease",
                short(&text)
            )),
        }
    }
}

impl From<Grant> for String {
    fn from(grant: Grant) -> String {
        grant.to_string()
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(prefix) => write!(f, "kv:read={prefix}"),
            Self::Write(prefix) => write!(f, "kv:write={prefix}"),
            Self::Lock(prefix) => write!(f, "lock={prefix}"),
            Self::Lease => f.write_str("lease"),
        }
    }
}

impl Grant {
    /// Whether giving `self` gives `other` too.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Read(given), Self::Read(asked))
            | (Self::Write(given), Self::Write(asked))
            | (Self::Lock(given), Self::Lock(asked)) => asked.starts_with(given.as_str()),
            (Self::Lease, Self::Lease) => true,
            _ => false,
        }
    }

    fn words(&self) -> String {
        let under = |prefix: &str| if prefix.is_empty() { "every key".to_owned() } else { format!("keys under {prefix}") };
        match self {
            Self::Read(prefix) => format!("may read {}", under(prefix)),
            Self::Write(prefix) => format!("may put and delete {}", under(prefix)),
            Self::Lock(prefix) => format!("may take locks whose name starts with {prefix}"),
            Self::Lease => "may grant, renew and revoke leases".to_owned(),
        }
    }
}

/// Everything the manifest asks for, including the prefixes it watches and the locks its schedules run under.
pub(crate) fn requested(manifest: &Manifest) -> Vec<Grant> {
    let asked = &manifest.grants;
    let mut grants: Vec<Grant> = Vec::new();
    grants.extend(asked.kv_read.iter().cloned().map(Grant::Read));
    grants.extend(asked.kv_write.iter().cloned().map(Grant::Write));
    grants.extend(asked.lock.iter().cloned().map(Grant::Lock));
    grants.extend(asked.lease.then_some(Grant::Lease));
    // What a watch delivers it reads.
    for prefix in manifest.trigger.watch.iter().filter_map(|watch| watch.prefix()) {
        let grant = Grant::Read(prefix.to_owned());
        if !grants.iter().any(|given| given.covers(&grant)) {
            grants.push(grant);
        }
    }
    for lock in manifest.trigger.schedule.iter().filter_map(|schedule| schedule.chosen_lock()) {
        let grant = Grant::Lock(lock.to_owned());
        if !grants.iter().any(|given| given.covers(&grant)) {
            grants.push(grant);
        }
    }
    grants.sort();
    grants.dedup();
    grants
}

/// Decides whether a plugin may be installed with what the operator gives.
///
/// # Errors
/// One sentence that names the grant that is missing, too much or in conflict with a trigger, and the remedy.
pub(crate) fn decide(manifest: &Manifest, given: &[String], accept_requested: bool) -> Result<Vec<Grant>, String> {
    let requested = requested(manifest);
    let given = given.iter().cloned().map(Grant::try_from).collect::<Result<Vec<_>, _>>()?;
    for grant in &given {
        if !requested.iter().any(|asked| grant.covers(asked)) {
            return Err(format!("--grant {grant} gives what the manifest does not ask for; leave it out"));
        }
    }
    if !accept_requested {
        let missing: Vec<String> = requested
            .iter()
            .filter(|asked| !given.iter().any(|grant| grant.covers(asked)))
            .map(|grant| format!("--grant {grant}"))
            .collect();
        if !missing.is_empty() {
            return Err(format!(
                "the plugin asks for more than is granted; add {} or --accept-requested, or change its manifest",
                missing.join(" ")
            ));
        }
    }
    check_watches(manifest)?;
    Ok(requested)
}

/// A plugin reads what it watches, and must not watch what it writes unless it says so.
fn check_watches(manifest: &Manifest) -> Result<(), String> {
    let range = |prefix: &String| KeyRange::prefix(prefix.clone().into_bytes());
    let write: Vec<KeyRange> = manifest.grants.kv_write.iter().map(range).collect();
    let mut read: Vec<KeyRange> = manifest.grants.kv_read.iter().map(range).collect();
    read.extend(manifest.trigger.watch.iter().filter(|watch| watch.prefix().is_some()).map(keys));
    for watch in &manifest.trigger.watch {
        let keys = keys(watch);
        if !read.iter().any(|range| range.contains(&keys)) {
            return Err(format!(
                "trigger.watch `{}` watches {}, which no kv-read grant covers; add it to grants.kv-read",
                watch.id,
                watch.words()
            ));
        }
        if !watch.self_events
            && let Some(index) = write.iter().position(|range| overlaps(range, &keys))
        {
            let prefix = manifest.grants.kv_write.get(index).map_or("", String::as_str);
            return Err(format!(
                "trigger.watch `{}` watches {}, where the plugin may also write (kv-write {prefix}): it could trigger itself without end; \
                 separate the two, or set self-events = true if that is meant",
                watch.id,
                watch.words()
            ));
        }
    }
    Ok(())
}

/// Whether any key is in both.
fn overlaps(a: &KeyRange, b: &KeyRange) -> bool {
    let starts_before_end = |start: &KeyRange, of: &KeyRange| {
        if of.is_single() { start.key <= of.key } else { of.is_open() || start.key < of.range_end }
    };
    starts_before_end(a, b) && starts_before_end(b, a)
}

/// What the engine checks at run time. `own_locks` are the default locks of the plugin's schedules, which are its own.
pub(crate) fn at_run_time(grants: &[Grant], own_locks: &[String]) -> Arc<Grants> {
    let mut made = Grants::default();
    let prefix = |prefix: &String| KeyRange::prefix(prefix.clone().into_bytes());
    for grant in grants {
        match grant {
            Grant::Read(keys) => made.read.push(prefix(keys)),
            Grant::Write(keys) => made.write.push(prefix(keys)),
            Grant::Lock(names) => made.lock.push(prefix(names)),
            Grant::Lease => made.lease = true,
        }
    }
    made.lock.extend(own_locks.iter().map(prefix));
    Arc::new(made)
}

/// What the plugin may do and when it runs, one sentence each.
pub(crate) fn words(manifest: &Manifest, grants: &[Grant]) -> Vec<String> {
    let mut words = Vec::new();
    for watch in &manifest.trigger.watch {
        let on = match watch.events.as_slice() {
            [EventKind::Put] => "put",
            [EventKind::Delete] => "deleted",
            _ => "put or deleted",
        };
        words.push(format!("runs when {} are {on} (trigger {})", watch.words(), watch.id));
    }
    for schedule in &manifest.trigger.schedule {
        words.push(format!(
            "runs every {} under the lock {} (trigger {})",
            schedule.every,
            schedule.lock(&manifest.plugin.name),
            schedule.id
        ));
    }
    words.extend(grants.iter().map(Grant::words));
    let limits = &manifest.limits;
    words.push(format!(
        "each run is stopped past {} of memory, {} of processor time, {} in all or {} host calls",
        limits.memory, limits.cpu, limits.wall, limits.host_calls
    ));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(grants: &str, more: &str) -> Manifest {
        let text = format!(
            "[plugin]\nname = \"p\"\nversion = \"1\"\n[[trigger.watch]]\nid = \"w\"\nprefix = \"/config/\"\n{more}\n[grants]\n{grants}\n"
        );
        Manifest::parse(&text).unwrap()
    }

    const BOTH: &str = "kv-read = [\"/config/\"]\nkv-write = [\"/rendered/\"]";

    fn give(grants: &[&str]) -> Vec<String> {
        grants.iter().map(|grant| (*grant).to_owned()).collect()
    }

    #[test]
    fn what_is_asked_for_must_be_given() {
        let manifest = manifest(BOTH, "");
        let error = decide(&manifest, &give(&["kv:read=/config/"]), false).unwrap_err();
        assert!(error.contains("add --grant kv:write=/rendered/ or --accept-requested"), "{error}");
        assert!(decide(&manifest, &give(&["kv:read=/config/", "kv:write=/rendered/"]), false).is_ok());
        assert!(decide(&manifest, &give(&["kv:read=/", "kv:write=/"]), false).is_ok(), "a wider grant covers");
        assert!(decide(&manifest, &[], true).is_ok());
    }

    #[test]
    fn a_grant_wider_than_asked_gives_only_what_was_asked() {
        let manifest = manifest(BOTH, "");
        let granted = decide(&manifest, &give(&["kv:read=", "kv:write=/"]), false).unwrap();
        assert_eq!(granted, [Grant::Read("/config/".into()), Grant::Write("/rendered/".into())]);
        let run_time = at_run_time(&granted, &[]);
        assert_eq!(run_time.read, [KeyRange::prefix("/config/")]);
        assert_eq!(run_time.write, [KeyRange::prefix("/rendered/")]);
        assert!(run_time.lock.is_empty() && !run_time.lease);
    }

    #[test]
    fn a_grant_nobody_asked_for_or_that_is_none_is_refused() {
        let manifest = manifest(BOTH, "");
        assert!(decide(&manifest, &give(&["lease"]), true).unwrap_err().contains("leave it out"));
        for text in ["", "kv:delete=/a/", "lock=", "lease=", "read=/a/"] {
            assert!(decide(&manifest, &give(&[text]), true).unwrap_err().contains("is not a grant"), "{text}");
        }
    }

    #[test]
    fn a_plugin_that_could_trigger_itself_must_say_so() {
        let loops = "kv-read = [\"/\"]\nkv-write = [\"/config/x/\"]";
        let error = decide(&manifest(loops, ""), &[], true).unwrap_err();
        assert!(error.contains("self-events = true"), "{error}");
        assert!(decide(&manifest(loops, "self-events = true"), &[], true).is_ok());
        let wider = "kv-read = [\"/\"]\nkv-write = [\"/\"]";
        assert!(decide(&manifest(wider, ""), &[], true).is_err());
    }

    #[test]
    fn a_watched_prefix_is_asked_for_and_other_watches_need_a_read_grant() {
        let prefix = manifest("kv-read = [\"/other/\"]", "");
        assert!(decide(&prefix, &give(&["kv:read=/other/"]), false).unwrap_err().contains("add --grant kv:read=/config/"));
        assert!(decide(&prefix, &[], true).is_ok());
        let text = "[plugin]\nname = \"p\"\nversion = \"1\"\n[[trigger.watch]]\nid = \"w\"\nkey = \"/one\"\n";
        let key = Manifest::parse(text).unwrap();
        assert!(decide(&key, &[], true).unwrap_err().contains("no kv-read grant covers"));
    }

    #[test]
    fn a_chosen_lock_is_a_grant_and_the_default_one_is_the_plugins_own() {
        let chosen = manifest(BOTH, "[[trigger.schedule]]\nid = \"s\"\nevery = \"1s\"\nlock = \"/jobs/a\"");
        assert!(requested(&chosen).contains(&Grant::Lock("/jobs/a".into())));
        assert!(decide(&chosen, &give(&["kv:read=/", "kv:write=/"]), false).unwrap_err().contains("--grant lock=/jobs/a"));
        let own = manifest(BOTH, "[[trigger.schedule]]\nid = \"s\"\nevery = \"1s\"");
        assert!(!requested(&own).iter().any(|grant| matches!(grant, Grant::Lock(_))));
        assert!(
            words(&own, &requested(&own)).iter().any(|w| w == "runs every 1s under the lock /kvasir/locks/p/s (trigger s)")
        );
    }

    #[test]
    fn ranges_overlap_exactly_when_a_key_is_in_both() {
        let prefix = |p: &'static str| KeyRange::prefix(p);
        assert!(overlaps(&prefix("/a/"), &prefix("/a/b/")));
        assert!(overlaps(&prefix(""), &KeyRange::single("k")));
        assert!(overlaps(&KeyRange::single("/a/x"), &prefix("/a/")));
        assert!(!overlaps(&prefix("/a/"), &prefix("/b/")));
        assert!(!overlaps(&KeyRange::single("/a0"), &prefix("/a/")));
        assert!(!overlaps(&KeyRange::single("a"), &KeyRange::single("b")));
        assert!(!overlaps(&KeyRange::new("a", "b"), &KeyRange::new("b", "c")));
    }
}
