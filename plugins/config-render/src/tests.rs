//! The plugin in the harness: what applications write and what readers find.

use std::collections::BTreeMap;

use kvasir_guest::Error;
use kvasir_guest::testing::{Call, Harness};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::on_fragments;

fn harness() -> Harness {
    Harness::reactor::<on_fragments>()
}

fn config(harness: &Harness, app: &str) -> Option<Value> {
    harness.get_json::<Value>(format!("/rendered/{app}")).map(|rendered| rendered["config"].clone())
}

fn error(harness: &Harness, app: &str) -> Option<String> {
    harness.get_text(format!("/rendered/{app}/error"))
}

#[test]
fn fragments_merge_in_order_of_name_and_name_their_sources() {
    let mut h = harness();
    let base = h.put_json("/config/web/10-base", &json!({"db": {"host": "a", "port": 1}, "tags": ["x"]}));
    let site = h.put_json("/config/web/20-site", &json!({"db": {"host": "b"}, "tags": ["y", "z"], "debug": true}));
    h.run();
    let expected = json!({
        "config": {"db": {"host": "b", "port": 1}, "tags": ["y", "z"], "debug": true},
        "sources": {"/config/web/10-base": base, "/config/web/20-site": site},
    });
    assert_eq!(h.get_json::<Value>("/rendered/web"), Some(expected));
    assert_eq!(error(&h, "web"), None);
}

#[test]
fn a_batch_of_many_events_renders_each_application_once() {
    let mut h = harness();
    for n in 0..20 {
        h.put_json(format!("/config/a/{n}"), &json!({ format!("k{n}"): n }));
        h.put_json(format!("/config/b/{n}"), &json!({ "same": n }));
    }
    let ran = h.run();
    assert_eq!((ran.calls, ran.parked), (1, 0));
    assert_eq!(config(&h, "b"), Some(json!({"same": 9})), "\"9\" is the last name in order of text");
    assert_eq!(h.get("/rendered/a").map(|entry| entry.version), Some(1));
}

#[test]
fn an_object_and_a_scalar_of_one_name_conflict_and_the_last_good_value_stays() {
    let mut h = harness();
    h.put_json("/config/web/a", &json!({"db": {"host": "x"}}));
    h.run();
    h.put_json("/config/web/b", &json!({"db": "x:5432"}));
    h.run();
    assert_eq!(
        error(&h, "web").as_deref(),
        Some("fragment `b`: at /db: expected an object, as in fragment `a`, found a string")
    );
    assert_eq!(config(&h, "web"), Some(json!({"db": {"host": "x"}})));

    h.put_json("/config/web/a", &json!({"db": 7}));
    h.put_json("/config/web/b", &json!({"db": {}}));
    h.run();
    assert_eq!(
        error(&h, "web").as_deref(),
        Some("fragment `b`: at /db: expected an integer, as in fragment `a`, found an object")
    );

    h.delete("/config/web/b");
    h.run();
    assert_eq!(error(&h, "web"), None);
    assert_eq!(config(&h, "web"), Some(json!({"db": 7})));
}

#[test]
fn what_is_not_a_json_object_is_told_with_its_place() {
    let mut h = harness();
    h.put("/config/web/a", "{\"x\": }");
    h.put("/config/web/b", "[1]");
    h.put("/config/web/c", b"\xff");
    h.run();
    let text = error(&h, "web").unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "fragment `a`: expected a JSON object, found text that is not JSON: expected value at line 1 column 7"
    );
    assert_eq!(lines[1], "fragment `b`: expected a JSON object, found an array");
    assert!(lines[2].starts_with("fragment `c`: expected a JSON object"), "{text}");
    assert_eq!(h.get("/rendered/web"), None);
    assert!(h.dead_letters().is_empty());
}

#[test]
fn deleting_the_last_fragment_removes_everything_rendered() {
    let mut h = harness();
    h.put_json("/config/web/_schema", &json!({"type": "object"}));
    h.put_json("/config/web/a", &json!({}));
    h.run();
    assert_eq!(config(&h, "web"), Some(json!({})));
    h.delete("/config/web/a");
    h.run();
    assert_eq!(h.keys("/rendered/"), Vec::<String>::new());
    h.put("/config/web/a", "broken");
    h.run();
    assert_eq!(h.keys("/rendered/"), ["/rendered/web/error"]);
    h.delete("/config/web/a");
    h.run();
    assert_eq!(h.keys("/rendered/"), Vec::<String>::new());
}

#[test]
fn a_key_of_the_wrong_shape_stops_its_application_until_it_is_gone() {
    let mut h = harness();
    h.put_json("/config/web/a", &json!({"x": 1}));
    h.run();
    for key in ["/config/web", "/config/web/", "/config/web/a/b", "/config/web/_draft"] {
        h.put_json(key, &json!({}));
        h.run();
        let text = error(&h, "web").unwrap_or_default();
        assert!(text.starts_with(&format!("key `{key}`: ")), "{text}");
        assert_eq!(config(&h, "web"), Some(json!({"x": 1})));
        h.delete(key);
        h.run();
        assert_eq!(error(&h, "web"), None);
    }
    assert!(h.dead_letters().is_empty());
}

#[test]
fn a_key_of_no_application_is_parked_alone_with_a_reason() {
    let mut h = harness();
    h.put_json("/config/web/a", &json!({"x": 1}));
    h.put("/config//a", "{}");
    h.put_json("/config/api/a", &json!({"y": 1}));
    h.run();
    let parked: Vec<_> = h.dead_letters().iter().map(|letter| (letter.key.to_string(), letter.reason.clone())).collect();
    assert_eq!(parked, [("/config//a".to_owned(), "/config//a: the application's name is empty".to_owned())]);
    assert_eq!((config(&h, "web"), config(&h, "api")), (Some(json!({"x": 1})), Some(json!({"y": 1}))));
    h.delete("/config//a");
    assert_eq!(h.run().parked, 0, "taking the trouble away is no trouble");
}

#[test]
fn the_schema_says_which_fragment_breaks_which_rule() {
    let mut h = harness();
    h.put_json(
        "/config/web/_schema",
        &json!({
            "type": "object",
            "required": ["name", "db"],
            "properties": {
                "name": {"type": "string", "minLength": 2},
                "level": {"enum": ["info", "debug"]},
                "replicas": {"type": "integer", "minimum": 1, "maximum": 5},
                "db": {"type": "object", "required": ["host"], "additionalProperties": false, "properties": {"host": {"type": "string"}}},
                "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
            },
        }),
    );
    h.put_json("/config/web/a", &json!({"name": "x", "level": "loud", "replicas": 9, "db": {"prt": 1}, "tags": ["a", 2, "c"]}));
    h.run();
    let text = error(&h, "web").unwrap_or_default();
    let expected = [
        "no fragment has /db/host, which `_schema` requires",
        "fragment `a`: at /db/prt: expected no such member, by `_schema`, found an integer",
        "fragment `a`: at /level: expected one of \"info\", \"debug\", found \"loud\"",
        "fragment `a`: at /name: expected at least 2 characters, found 1",
        "fragment `a`: at /replicas: expected at most 5, found 9",
        "fragment `a`: at /tags: expected at most 2 items, found 3",
        "fragment `a`: at /tags/1: expected a string, found an integer",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    h.put_json("/config/web/b", &json!({"name": "web", "level": "info", "replicas": 5.0, "tags": []}));
    h.put_json("/config/web/a", &json!({"db": {"host": "h"}}));
    h.run();
    assert_eq!(error(&h, "web"), None);
    let sources = h.get_json::<Value>("/rendered/web").map(|rendered| rendered["sources"].clone());
    let names: Vec<String> =
        sources.as_ref().and_then(Value::as_object).map(|map| map.keys().cloned().collect()).unwrap_or_default();
    assert_eq!(names, ["/config/web/_schema", "/config/web/a", "/config/web/b"]);
}

#[test]
fn a_schema_that_cannot_be_checked_is_refused() {
    let mut h = harness();
    h.put_json("/config/web/_schema", &json!({"properties": {"a": {"pattern": "^x"}, "b": {"type": "text"}}, "required": "a"}));
    h.put_json("/config/web/a", &json!({}));
    h.run();
    let expected = [
        "fragment `_schema`: at /properties/a/pattern: expected a keyword that is supported, found `pattern`",
        "fragment `_schema`: at /properties/b/type: expected the name of a JSON type, found \"text\"",
        "fragment `_schema`: at /required: expected an array, found a string",
    ];
    assert_eq!(error(&h, "web").unwrap_or_default().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn nothing_is_written_when_nothing_changed() {
    let mut h = harness();
    h.put_json("/config/web/a", &json!({"x": 1}));
    h.put("/config/bad/a", "no");
    h.run();
    let revision = h.revision();
    h.redeliver();
    h.rewind(1);
    h.resync();
    assert_eq!(h.revision(), revision);
}

#[test]
fn a_crash_before_the_commit_loses_and_doubles_nothing() {
    let mut h = harness();
    h.put_json("/config/web/a", &json!({"x": 1}));
    h.crash_before_commit();
    let ran = h.run();
    assert_eq!((ran.calls, ran.committed), (2, 1));
    assert_eq!(h.get("/rendered/web").map(|entry| entry.version), Some(1));
}

#[test]
fn a_fragment_that_arrives_during_the_run_is_rendered_with_the_others() {
    let mut h = harness();
    h.put_json("/config/web/a", &json!({"x": 1}));
    h.before_next_commit(|writes| writes.put("/config/web/b", "{\"y\": 2}"));
    h.run();
    assert_eq!(config(&h, "web"), Some(json!({"x": 1, "y": 2})));
    assert_eq!(h.get("/rendered/web").map(|entry| entry.version), Some(1), "the run whose reads were overtaken wrote nothing");
}

#[test]
fn a_failing_host_call_is_tried_again() {
    let mut h = harness();
    let mut left = 3;
    h.inject(move |call| match call {
        Call::Scan(_) if left > 0 => {
            left -= 1;
            Some(Error::Unavailable("no leader".into()))
        }
        _ => None,
    });
    h.put_json("/config/web/a", &json!({"x": 1}));
    h.run();
    assert_eq!(config(&h, "web"), Some(json!({"x": 1})));
}

#[test]
fn a_resync_renders_what_is_there_and_removes_what_is_stale() {
    let mut h = harness();
    h.set_page_size(3);
    // Names around each other in both orders: `a` sorts before `a-b` as a name, `a/` after `a-b/` as a key.
    for app in ["a", "a-b", "a.b", "ab", "b", "c", "d-e", "z"] {
        for fragment in ["1", "2"] {
            h.put_json(format!("/config/{app}/{fragment}"), &json!({ fragment: app }));
        }
    }
    h.run();
    for app in ["a", "a.b", "c", "z"] {
        h.delete(format!("/config/{app}/1"));
        h.delete(format!("/config/{app}/2"));
    }
    h.put("/rendered/0/error", "stale");
    h.put("/rendered/zz", "stale");
    h.put("/config//foreign", "ignored here");
    h.put_json("/config/b/1", &json!({"1": "new"}));
    h.compact();
    let ran = h.run();
    assert!(ran.committed >= 3, "{ran:?}");
    assert_eq!(h.halted(), None);
    assert_eq!(h.keys("/rendered/"), ["/rendered/a-b", "/rendered/ab", "/rendered/b", "/rendered/d-e"]);
    assert_eq!(config(&h, "b"), Some(json!({"1": "new", "2": "b"})));
}

#[test]
fn a_resync_of_an_empty_range_removes_everything() {
    let mut h = harness();
    h.put_json("/config/web/a", &json!({}));
    h.run();
    h.delete("/config/web/a");
    h.compact();
    h.run();
    assert_eq!(h.keys("/rendered/"), Vec::<String>::new());
}

#[test]
fn sizes_are_bounded_with_a_reason() {
    let mut h = harness();
    let large = "x".repeat(200 * 1024);
    for name in ["a", "b", "c"] {
        h.put_json(format!("/config/web/{name}"), &json!({ name: large }));
    }
    h.run();
    let text = error(&h, "web").unwrap_or_default();
    assert!(text.starts_with("the merged configuration has 6144") && text.ends_with("expected at most 524288"), "{text}");
    h.put_json("/config/web/b", &json!({ "b": "x".repeat(300 * 1024) }));
    h.run();
    let text = error(&h, "web").unwrap_or_default();
    assert!(text.starts_with("fragment `b`: expected at most 262144 bytes, found 3072"), "{text}");
    for n in 0..300 {
        h.put_json(format!("/config/many/{n}"), &json!({}));
    }
    h.run();
    assert_eq!(error(&h, "many").as_deref(), Some("expected at most 256 fragments, found more"));
    assert!(h.dead_letters().is_empty());
}

#[test]
fn many_large_applications_in_one_batch_are_split_over_commits() {
    let mut h = harness();
    for app in 0..12 {
        h.put_json(format!("/config/app{app}/a"), &json!({ "x": "x".repeat(250 * 1024) }));
    }
    let ran = h.run();
    assert_eq!(ran.parked, 0);
    assert_eq!(h.keys("/rendered/").len(), 12);
}

/// The merge as one would write it on a napkin. `None`: an object meets something else.
fn model(fragments: &BTreeMap<String, Value>) -> Option<Value> {
    fn merge(before: &mut Map<String, Value>, later: &Map<String, Value>) -> bool {
        later.iter().all(|(name, value)| match (before.get_mut(name), value) {
            (None, value) => {
                before.insert(name.clone(), value.clone());
                true
            }
            (Some(Value::Object(before)), Value::Object(later)) => merge(before, later),
            (Some(Value::Object(_)), _) | (Some(_), Value::Object(_)) => false,
            (Some(before), later) => {
                *before = later.clone();
                true
            }
        })
    }
    let mut merged = Map::new();
    let fits = fragments.values().all(|fragment| fragment.as_object().is_some_and(|later| merge(&mut merged, later)));
    fits.then_some(Value::Object(merged))
}

fn any_object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        "[xy]{0,2}".prop_map(Value::from)
    ];
    let value = leaf.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[abc]", inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    prop::collection::btree_map("[abc]", value, 0..3).prop_map(|map| Value::Object(map.into_iter().collect()))
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8, Value),
    Delete(u8, u8),
    Deliver,
    Redeliver,
    Crash,
    Compact,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2_u8, 0..3_u8, any_object()).prop_map(|(app, fragment, value)| Step::Put(app, fragment, value)),
        1 => (0..2_u8, 0..3_u8).prop_map(|(app, fragment)| Step::Put(app, fragment, json!("not an object"))),
        3 => (0..2_u8, 0..3_u8).prop_map(|(app, fragment)| Step::Delete(app, fragment)),
        3 => Just(Step::Deliver),
        1 => Just(Step::Redeliver),
        1 => Just(Step::Crash),
        1 => Just(Step::Compact),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is written, lost, delivered twice or resynced: what is rendered is what the model makes of the fragments.
    #[test]
    fn what_is_rendered_equals_the_model(steps in prop::collection::vec(any_step(), 1..40)) {
        let mut h = harness();
        h.set_page_size(2);
        let mut apps: [BTreeMap<String, Value>; 2] = Default::default();
        // The last value of each application that fitted at a moment when it was rendered.
        let mut good: [Option<Value>; 2] = Default::default();
        for step in steps.into_iter().chain([Step::Deliver]) {
            match step {
                Step::Put(app, fragment, value) => {
                    h.put_json(format!("/config/app{app}/{fragment}"), &value);
                    apps[app as usize].insert(fragment.to_string(), value);
                }
                Step::Delete(app, fragment) => {
                    h.delete(format!("/config/app{app}/{fragment}"));
                    apps[app as usize].remove(&fragment.to_string());
                }
                Step::Crash => h.crash_before_commit(),
                Step::Compact => h.compact(),
                Step::Deliver | Step::Redeliver => {
                    if matches!(step, Step::Redeliver) { h.redeliver(); } else { h.run(); }
                    for (app, fragments) in apps.iter().enumerate() {
                        let name = format!("app{app}");
                        match model(fragments) {
                            _ if fragments.is_empty() => good[app] = None,
                            Some(value) => good[app] = Some(value),
                            None => prop_assert!(error(&h, &name).is_some()),
                        }
                        if model(fragments).is_some() {
                            prop_assert_eq!(error(&h, &name), None);
                        }
                        prop_assert_eq!(&config(&h, &name), &good[app]);
                    }
                    prop_assert_eq!(h.halted(), None);
                    prop_assert!(h.dead_letters().is_empty());
                }
            }
        }
    }
}
