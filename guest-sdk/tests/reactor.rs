//! A reactor in the harness: what its handler may rely on.

use kvasir_guest::prelude::*;
use kvasir_guest::testing::{Call, Harness};
use kvasir_guest::{Error, Reactor};
use serde_json::json;

#[derive(Clone, Debug, serde::Deserialize)]
struct AppConfig {
    replicas: u32,
    #[serde(default)]
    mode: String,
}

/// Does what the configuration's `mode` says.
#[kvasir_guest::reactor]
fn on_config(cx: &mut Cx, event: Event<AppConfig>) -> Outcome {
    log::info!("{} at revision {}", event.key, event.revision);
    let target = format!("/replicas/{}", event.name());
    let Some(config) = event.value() else {
        cx.delete(target)?;
        return Ok(());
    };
    match config.mode.as_str() {
        "reject" => bail_reject!("rejected on purpose"),
        "retry" => bail_retry!("attempt {}", cx.attempt()),
        "panic" => panic!("panicked on purpose"),
        "flood" => loop {
            cx.get(&target)?;
        },
        "denied" => cx.put("/elsewhere", "x")?,
        "large" => cx.put(&target, vec![0; 2000])?,
        "many" => (0..20).try_for_each(|n| cx.put(format!("{target}/{n}"), "x"))?,
        "add" => {
            let before: u32 = cx.get_json("/replicas/total")?.map_or(0, |entry| entry.value);
            cx.put_json("/replicas/total", &(before + config.replicas))?;
        }
        "count" => {
            let count = cx.scan(Selection::prefix("/replicas/")).keys_only().collect::<Result<Vec<_>, _>>()?.len();
            cx.put_json(&target, &count)?;
        }
        "previous" => cx.put_json(&target, &event.previous.map(|entry| entry.value.replicas))?,
        "replayed" => cx.put_json(&target, &event.replayed)?,
        "reread" => {
            let again = cx.get_json::<AppConfig>(&event.key)?.map(|entry| entry.value.replicas);
            cx.put_json(&target, &again)?;
        }
        _ => cx.put_json(target, &config.replicas)?,
    }
    Ok(())
}

fn harness() -> Harness {
    Harness::reactor::<on_config>()
}

fn put(h: &mut Harness, name: &str, replicas: u32, mode: &str) -> u64 {
    h.put_json(format!("/config/{name}"), &json!({ "replicas": replicas, "mode": mode }))
}

fn reasons(h: &Harness) -> Vec<String> {
    h.dead_letters().iter().map(|letter| letter.reason.clone()).collect()
}

#[test]
fn the_manifest_is_the_crates_own() {
    assert_eq!(<on_config as Reactor>::MANIFEST, include_str!("../plugin.toml"));
}

#[test]
#[should_panic(expected = "`5 minutes` is not a duration; write a whole number and ms, s, m or h")]
fn a_manifest_that_the_host_refuses_is_refused() {
    let _ = harness().with_manifest(&on_config::MANIFEST.replace("every = \"10s\"", "every = \"5 minutes\""));
}

#[test]
fn a_value_that_does_not_decode_is_parked_alone_with_its_key() {
    let mut h = harness();
    put(&mut h, "a", 1, "");
    let bad = h.put("/config/bad", r#"{"replicas": "three"}"#);
    put(&mut h, "b", 2, "");
    h.run();
    let reason = format!(
        "/config/bad at revision {bad}: the value of /config/bad does not decode: invalid type: string \"three\", expected u32 at line 1 column 20"
    );
    assert_eq!(reasons(&h), [reason]);
    assert_eq!((h.get_json("/replicas/a"), h.get_json("/replicas/b")), (Some(1), Some(2)));
}

#[test]
fn a_batch_is_one_revision_and_runs_see_their_own_writes() {
    let mut h = harness();
    for n in 1..=4 {
        put(&mut h, &format!("{n}"), n, "add");
    }
    let before = h.revision();
    let ran = h.run();
    assert_eq!((ran.calls, h.revision()), (1, before + 1));
    assert_eq!(h.get_json("/replicas/total"), Some(10));
}

#[test]
fn every_event_counts_once_whatever_happens_to_its_runs() {
    let mut h = harness();
    for n in 0..50 {
        put(&mut h, "x", 1, "add");
        match n % 5 {
            0 => h.crash_before_commit(),
            1 => h.before_next_commit(|writes| writes.put("/config/y", r#"{"replicas": 1, "mode": "add"}"#)),
            2 => {
                h.run();
            }
            _ => {}
        }
    }
    h.run();
    assert_eq!(h.get_json("/replicas/total"), Some(60), "fifty of ours and ten that came in between");
}

#[test]
fn what_was_read_guards_the_commit() {
    let mut h = harness();
    put(&mut h, "x", 5, "add");
    h.before_next_commit(|writes| writes.put("/replicas/total", "7"));
    let ran = h.run();
    assert_eq!((ran.calls, h.get_json("/replicas/total")), (2, Some(12)));

    put(&mut h, "counted", 0, "count");
    h.before_next_commit(|writes| writes.put("/replicas/new", "1"));
    let ran = h.run();
    assert_eq!((ran.calls, h.get_json("/replicas/counted")), (2, Some(2)), "a range guard sees a key that appears");
}

#[test]
fn a_retry_is_bounded_and_then_parked() {
    let mut h = harness();
    put(&mut h, "x", 1, "retry");
    let ran = h.run();
    assert_eq!((ran.calls, ran.parked), (3, 1));
    assert!(reasons(&h)[0].ends_with("attempt 3"), "{:?}", reasons(&h));

    let manifest = on_config::MANIFEST.replace("\"park\"", "\"halt\"");
    let mut h = harness().with_manifest(&manifest);
    put(&mut h, "x", 1, "retry");
    put(&mut h, "y", 1, "");
    h.run();
    assert!(h.halted().is_some_and(|reason| reason.contains("attempt 3")));
    assert!(h.get("/replicas/y").is_none());

    let mut h = harness().with_manifest(&manifest);
    put(&mut h, "x", 1, "reject");
    put(&mut h, "y", 1, "");
    h.run();
    assert!(h.halted().is_some_and(|reason| reason.contains("rejected on purpose")), "halting is for a reject too");
    assert!(h.get("/replicas/y").is_none() && h.dead_letters().is_empty());
}

#[test]
fn a_panic_a_flood_and_a_refused_write_are_told_and_have_no_effect() {
    let mut h = harness();
    for mode in ["panic", "flood", "denied", "large", "many", "reject"] {
        put(&mut h, mode, 1, mode);
    }
    put(&mut h, "fine", 1, "");
    h.run();
    let expected = [
        "panicked on purpose",
        "stopped: more than 200 host calls (host-calls)",
        "denied: no grant to write key /elsewhere",
        "limit: more than 1KiB of staged writes",
        "limit: more than 8 staged writes",
        "rejected on purpose",
    ];
    let reasons = reasons(&h);
    assert_eq!(reasons.len(), expected.len());
    for (reason, expected) in reasons.iter().zip(expected) {
        assert!(reason.contains(expected), "{reason}");
    }
    assert_eq!(h.keys("/replicas/"), ["/replicas/fine"]);
    assert!(h.logs().iter().any(|line| line.target == "panic" && line.message.contains("panicked on purpose")));
}

#[test]
fn the_previous_state_comes_along_if_the_trigger_asks() {
    let mut h = harness();
    put(&mut h, "x", 3, "");
    put(&mut h, "x", 4, "previous");
    h.run();
    assert_eq!(h.get_json("/replicas/x"), Some(Some(3)));
    h.put("/config/x", "no json");
    put(&mut h, "x", 4, "previous");
    h.run();
    assert_eq!(h.get_json::<Option<u32>>("/replicas/x"), Some(None), "a bad past is no reason to refuse the present");
}

#[test]
fn deletes_and_ended_leases_are_events() {
    let mut h = harness();
    put(&mut h, "x", 3, "");
    h.put_with_ttl("/config/y", r#"{"replicas": 1}"#, std::time::Duration::from_secs(5));
    h.run();
    assert_eq!(h.keys("/replicas/"), ["/replicas/x", "/replicas/y"]);
    h.delete("/config/x");
    h.advance(std::time::Duration::from_secs(5));
    h.run();
    assert_eq!(h.keys("/replicas/"), Vec::<String>::new());
}

#[test]
fn after_compaction_the_range_is_replayed_as_puts() {
    let mut h = harness();
    h.set_page_size(2);
    for n in 0..5 {
        put(&mut h, &n.to_string(), n, "replayed");
    }
    h.compact();
    let ran = h.run();
    assert_eq!(ran.committed, 3);
    assert_eq!(h.get_json("/replicas/4"), Some(true));
    put(&mut h, "4", 0, "replayed");
    h.run();
    assert_eq!(h.get_json("/replicas/4"), Some(false));
}

#[test]
fn latest_delivers_the_newest_state_of_each_key() {
    let manifest = on_config::MANIFEST.replace("prev = true", "mode = \"latest\"");
    let mut h = harness().with_manifest(&manifest);
    for n in 0..9 {
        put(&mut h, "x", n, "");
        put(&mut h, "y", n, "");
    }
    let ran = h.run();
    assert_eq!((ran.calls, h.get_json("/replicas/x"), h.get_json("/replicas/y")), (1, Some(8), Some(8)));
    assert_eq!(h.logs().len(), 2);
}

#[test]
fn latest_does_not_deliver_what_a_change_of_another_kind_replaced() {
    let manifest = on_config::MANIFEST.replace("prev = true", "mode = \"latest\"\nevents = [\"put\"]");
    let mut h = harness().with_manifest(&manifest);
    put(&mut h, "x", 1, "");
    h.delete("/config/x");
    assert_eq!(h.run().calls, 0);
    assert!(h.get("/replicas/x").is_none());
}

#[test]
fn what_a_watch_delivers_may_be_read_without_asking_for_it() {
    let manifest = on_config::MANIFEST.replace("\"/config/\", \"/replicas/\"", "\"/replicas/\"");
    let mut h = harness().with_manifest(&manifest);
    put(&mut h, "x", 3, "reread");
    h.run();
    assert_eq!(h.get_json("/replicas/x"), Some(3));
}

#[test]
fn an_injected_failure_is_what_the_call_answers() {
    let mut h = harness();
    h.inject(|call| matches!(call, Call::Put(b"/replicas/x")).then(|| Error::Unavailable("no leader".to_owned())));
    put(&mut h, "x", 1, "");
    h.run();
    assert!(reasons(&h)[0].ends_with("unavailable: no leader"));
}
