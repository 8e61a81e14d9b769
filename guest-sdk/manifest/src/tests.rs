//! What the manifest accepts, what it refuses and with which words.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use super::*;

const FULL: &str = r#"
[plugin]
name = "config-render"
version = "0.1.0"
description = "renders"

[[trigger.watch]]
id = "fragments"
prefix = "/config/"
events = ["put", "delete"]
mode = "every"
start = "beginning"
prev = false
self-events = false
batch = { max-events = 64, max-bytes = "256KiB" }

[[trigger.schedule]]
id = "sweep"
every = "10s"
lock = "/janitor/lock"

[grants]
kv-read = ["/config/"]
kv-write = ["/rendered/"]
lock = []
lease = false

[limits]
memory = "32MiB"
cpu = "200ms"
wall = "2s"
host-calls = 4096
staged-ops = 256
staged-bytes = "1MiB"

[failure]
retries = 6
backoff = "1s..30s"
on-exhausted = "park"

[config]
interval = "10"
max = 5
strict = true
"#;

const LEAST: &str = "[plugin]\nname = \"p\"\nversion = \"1\"\n[[trigger.watch]]\nid = \"w\"\nprefix = \"/a/\"\n";

fn refused(text: &str) -> String {
    match Manifest::parse(text) {
        Ok(manifest) => panic!("accepted {manifest:?}"),
        Err(error) => {
            assert!(!error.contains('\n'), "one line: {error}");
            error
        }
    }
}

#[test]
fn a_full_manifest_parses_and_its_json_parses_to_the_same() {
    let manifest = Manifest::parse(FULL).unwrap();
    assert_eq!(manifest.trigger.watch[0].keys(), Keys::Prefix("/config/"));
    assert_eq!(manifest.trigger.schedule[0].chosen_lock(), Some("/janitor/lock"));
    assert_eq!(manifest.limits, Limits::default());
    assert_eq!(manifest.failure, Failure::default());
    assert_eq!(manifest.config["max"].to_string(), "5");
    let json = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let manifest = Manifest::parse(LEAST).unwrap();
    let watch = &manifest.trigger.watch[0];
    assert_eq!((watch.mode, watch.start, watch.prev, watch.self_events), (Mode::Every, Start::Now, false, false));
    assert_eq!(watch.events, both_kinds());
    assert_eq!(watch.batch, Batch::default());
    assert_eq!(manifest.grants, Requested::default());
    assert_eq!(manifest.limits, Limits::default());
}

#[test]
fn an_unknown_field_is_refused_by_name_and_line_wherever_it_stands() {
    let error = refused(&FULL.replace("memory = \"32MiB\"", "memroy = \"32MiB\""));
    let line = 1 + FULL.lines().position(|line| line.starts_with("memory")).unwrap();
    assert!(error.starts_with(&format!("manifest line {line}: unknown field `memroy`")), "{error}");
    assert!(error.contains("`memory`") && error.ends_with("remove it or correct its name"), "{error}");
    for (from, to) in [
        ("description", "descr"),
        ("events = [\"put\"", "kinds = [\"put\""),
        ("max-events", "max_events"),
        ("every = \"10s\"", "cron = \"10s\""),
        ("kv-read", "kv_read"),
        ("retries", "tries"),
        ("[failure]", "[failures]"),
        ("trigger.schedule", "trigger.timer"),
    ] {
        let error = refused(&FULL.replace(from, to));
        assert!(error.contains("unknown field"), "{to}: {error}");
        assert!(error.starts_with("manifest line "), "{to}: {error}");
    }
}

#[test]
fn a_wrong_value_is_refused_with_the_form_it_should_have() {
    for (from, to, says) in [
        ("\"32MiB\"", "\"32MB\"", "like \"32MiB\""),
        ("\"32MiB\"", "33554432", "expected a string"),
        ("\"200ms\"", "\"200\"", "like \"200ms\""),
        ("\"1s..30s\"", "\"1s\"", "like \"1s..30s\""),
        ("mode = \"every\"", "mode = \"all\"", "unknown variant `all`"),
        ("\"park\"", "\"skip\"", "unknown variant `skip`"),
        ("name = \"config-render\"", "name = \"Config Render\"", "use 1 to 63 of a-z"),
        ("version = \"0.1.0\"", "", "missing field `version`; add it"),
        ("memory = \"32MiB\"", "memory = \"9GiB\"", "`memory (bytes)` is 9663676416; it must be from 65536 to 268435456"),
        ("prefix = \"/config/\"", "prefix = \"/config/\"\nkey = \"/a\"", "exactly one of"),
        ("prefix = \"/config/\"", "", "exactly one of"),
        ("prefix = \"/config/\"", "range = [\"b\", \"a\"]", "`range` is empty"),
        ("id = \"sweep\"", "id = \"fragments\"", "two triggers have the id `fragments`"),
        ("every = \"10s\"", "every = \"1ms\"", "`every (ms)` is 1"),
        ("interval = \"10\"", "interval = [1]", "string, a number or a boolean"),
    ] {
        let error = refused(&FULL.replacen(from, to, 1));
        assert!(error.contains(says), "{to}: {error}");
    }
}

#[test]
fn a_manifest_without_triggers_or_of_hostile_size_is_refused() {
    assert!(refused("[plugin]\nname = \"p\"\nversion = \"1\"\n").contains("no trigger"));
    assert!(refused(&format!("{LEAST}#{}", "x".repeat(MANIFEST_BYTES_MAX))).contains("at most"));
    assert!(refused(&"[".repeat(10_000)).starts_with("manifest"));
    assert!(refused("\0").starts_with("manifest"));
}
