//! A task in the harness: commits, its lock, other locks, leases and watches.

use std::time::Duration;

use kvasir_guest::prelude::*;
use kvasir_guest::testing::Harness;
use kvasir_guest::{Error, Position, Task};

/// Does what `/tidy/mode` says.
#[kvasir_guest::task]
fn tidy(cx: &mut TaskCx) -> Outcome {
    let mode = cx.get("/tidy/mode")?.map(|entry| entry.value.as_str().unwrap_or_default().to_owned()).unwrap_or_default();
    match mode.as_str() {
        "uncommitted" => cx.put("/tidy/a", "1")?,
        "uncommitted-fault" => {
            cx.put("/tidy/a", "1")?;
            return Err(Fault::Retry("not now".to_owned()));
        }
        "twice" => {
            cx.put("/tidy/a", "1")?;
            let first = cx.commit()?;
            cx.put("/tidy/a", "2")?;
            let second = cx.commit()?;
            assert!(first < second && second == cx.snapshot_revision());
        }
        "conflict" => {
            cx.put("/tidy/a", "1")?;
            let refused = cx.commit();
            assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
            // Nothing is staged any more, and the snapshot is a new one.
            assert_eq!(cx.get("/tidy/a")?.map(|entry| entry.value.0), None);
            cx.put("/tidy/b", "1")?;
            cx.commit()?;
        }
        "lock" => {
            let lock = cx.lock("/tidy/lock", Duration::from_secs(1))?;
            cx.put("/tidy/token", lock.fencing_token().to_string())?;
            cx.put("/tidy/key", lock.key())?;
            cx.commit()?;
        }
        "lease" => {
            let lease = cx.lease(60)?;
            cx.put_with_lease("/tidy/leased", "x", lease.id())?;
            cx.commit()?;
            assert_eq!(lease.keep_alive()?.granted_ttl_s, 60);
        }
        "lease-put" => {
            cx.put_with_lease("/tidy/leased", "x", 77)?;
            cx.commit()?;
        }
        "watch" => {
            let mut watch = cx.watch(&Selection::prefix("/tidy/in/"), Position::from(1))?;
            let mut seen = Vec::new();
            loop {
                let events = watch.next::<Raw>(2, Duration::from_millis(10))?;
                if events.is_empty() {
                    break;
                }
                seen.extend(events.iter().map(|event| event.name().to_owned()));
            }
            cx.put("/tidy/seen", seen.join(","))?;
            cx.commit()?;
        }
        _ => {}
    }
    Ok(())
}

fn harness(mode: &str) -> Harness {
    let mut h = Harness::task::<tidy>();
    h.put("/tidy/mode", mode);
    h
}

#[test]
fn what_is_still_staged_at_the_end_is_committed_on_ok_and_discarded_on_a_fault() {
    let mut h = harness("uncommitted");
    assert_eq!(h.run_task(), Ok(()));
    assert!(h.get("/tidy/a").is_some());
    let mut h = harness("uncommitted-fault");
    assert!(h.run_task().is_err());
    assert!(h.get("/tidy/a").is_none());
}

#[test]
fn each_commit_is_a_revision_of_its_own() {
    let mut h = harness("twice");
    assert_eq!(h.run_task(), Ok(()));
    assert_eq!(h.get("/tidy/a").map(|entry| (entry.value.0, entry.version)), Some((b"2".to_vec(), 2)));
}

#[test]
fn a_broken_guard_is_a_conflict_and_the_task_goes_on() {
    let mut h = harness("conflict");
    h.before_next_commit(|writes| writes.put("/tidy/mode", "other"));
    assert_eq!(h.run_task(), Ok(()));
    assert_eq!(h.keys("/tidy/"), ["/tidy/b", "/tidy/mode"]);
}

#[test]
fn a_task_without_its_lock_writes_nothing() {
    let mut h = harness("twice");
    h.lose_lock_after(Some(2));
    assert!(matches!(h.run_task(), Err(Fault::Retry(reason)) if reason.contains("is lost")));
    assert_eq!(h.keys("/tidy/"), ["/tidy/mode"]);
}

#[test]
fn a_lock_is_waited_for_and_given_back() {
    let mut h = harness("lock");
    let held = h.hold_lock("/tidy/lock");
    assert!(matches!(h.run_task(), Err(Fault::Retry(reason)) if reason.contains("held by /tidy/lock/other")));
    h.while_waiting(move |writes| writes.delete(&held));
    assert_eq!(h.run_task(), Ok(()));
    let key = h.get_text("/tidy/key").unwrap_or_default();
    assert!(key.starts_with("/tidy/lock/"));
    assert!(h.get(&key).is_none(), "the lock's key is gone with the handle");
    assert!(h.get_text("/tidy/token").is_some_and(|token| token.parse::<u64>().is_ok_and(|token| token > 1)));
    assert_eq!(h.keys("/kvasir/"), Vec::<String>::new());
}

#[test]
fn leases_need_their_grant_and_a_key_a_lease_that_is_there() {
    for mode in ["lease", "lease-put"] {
        let mut h = harness(mode).with_manifest(&tidy::MANIFEST.replace("lease = true", "lease = false"));
        h.put("/tidy/mode", mode);
        assert!(matches!(h.run_task(), Err(Fault::Retry(reason)) if reason == "denied: no grant for leases"), "{mode}");
    }
    let mut h = harness("lease-put");
    assert!(matches!(h.run_task(), Err(Fault::Retry(reason)) if reason == "not found: lease 77"));
    assert_eq!(h.keys("/tidy/"), ["/tidy/mode"]);
}

#[test]
fn leased_keys_go_with_their_lease() {
    let mut h = harness("lease");
    assert_eq!(h.run_task(), Ok(()));
    assert!(h.get("/tidy/leased").is_some());
    h.advance(Duration::from_secs(60));
    assert!(h.get("/tidy/leased").is_none());
}

#[test]
fn a_watch_pulls_history_and_then_what_comes_while_it_waits() {
    let mut h = harness("watch");
    for name in ["a", "b", "c"] {
        h.put(format!("/tidy/in/{name}"), "x");
    }
    h.write(|writes| ["d", "e", "f"].iter().for_each(|name| writes.put(format!("/tidy/in/{name}"), "x")));
    let mut late = vec!["h", "g"];
    h.while_waiting(move |writes| {
        if let Some(name) = late.pop() {
            writes.put(format!("/tidy/in/{name}"), "x");
        }
    });
    assert_eq!(h.run_task(), Ok(()));
    assert_eq!(h.get_text("/tidy/seen").as_deref(), Some("a,b,c,d,e,f,g,h"));
}
