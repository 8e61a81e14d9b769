//! The plugin in the harness: what policies ask for, what is gone, what the report says.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use kvasir_guest::testing::{Call, Harness};
use kvasir_guest::{Error, Fault};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::report::Report;
use crate::sweep;

const TEN_S: Duration = Duration::from_secs(10);

fn harness() -> Harness {
    Harness::task::<sweep>()
}

fn policy(h: &mut Harness, name: &str, value: &Value) {
    h.put_json(format!("/janitor/policy/{name}"), value);
}

fn report(h: &Harness, name: &str) -> Report {
    h.get_json(format!("/janitor/report/{name}")).unwrap_or_default()
}

/// As the schedule does: time passes, the task runs.
fn tick(h: &mut Harness, times: usize) {
    for _ in 0..times {
        h.advance(TEN_S);
        assert_eq!(h.run_task(), Ok(()));
    }
}

#[test]
fn what_is_older_than_the_policy_says_goes_and_the_rest_stays() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 60}));
    h.put("/tmp/old", "x");
    h.put("/elsewhere/old", "x");
    tick(&mut h, 4);
    h.put("/tmp/young", "x");
    h.put("/tmp/refreshed", "x");
    tick(&mut h, 1);
    assert_eq!(h.keys("/tmp/"), ["/tmp/old", "/tmp/refreshed", "/tmp/young"]);
    tick(&mut h, 4);
    h.put("/tmp/refreshed", "y");
    tick(&mut h, 3);
    assert_eq!(h.keys("/tmp/"), ["/tmp/refreshed"]);
    assert!(h.get("/elsewhere/old").is_some());
    let report = report(&h, "tmp");
    assert_eq!((report.deleted_total, report.errors.is_empty(), report.stopped), (2, true, None));
    assert_eq!(report.last_run_ms, h.now_ms());
}

#[test]
fn a_key_goes_at_most_two_runs_and_a_spacing_late() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 100}));
    tick(&mut h, 3);
    h.put("/tmp/x", "x");
    let mut late = 0;
    while h.get("/tmp/x").is_some() {
        tick(&mut h, 1);
        late += 1;
        assert!(late <= 14, "still there after {} s", late * 10);
    }
    assert!(late >= 10, "gone after {} s", late * 10);
}

#[test]
fn deletes_come_in_batches_with_a_commit_each_and_stop_at_the_maximum() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 10, "max_deletes": 25, "batch": 10}));
    for n in 0..60 {
        h.put(format!("/tmp/{n:02}"), "x");
    }
    tick(&mut h, 3);
    let first = report(&h, "tmp");
    assert_eq!((first.deleted, first.batches, first.stopped.as_deref()), (25, 3, Some("max_deletes reached")));
    assert_eq!(h.keys("/tmp/").len(), 35);
    assert_eq!(h.keys("/tmp/").first().map(String::as_str), Some("/tmp/25"));
    tick(&mut h, 2);
    assert_eq!(h.keys("/tmp/").len(), 0);
    assert_eq!(report(&h, "tmp").deleted_total, 60);
}

#[test]
fn a_dry_run_only_counts() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 10, "dry_run": true}));
    h.put("/tmp/a", "x");
    h.put("/tmp/b", "x");
    tick(&mut h, 3);
    assert_eq!(h.keys("/tmp/").len(), 2);
    let report = report(&h, "tmp");
    assert_eq!((report.would_delete, report.deleted, report.batches), (2, 0, 0));
}

#[test]
fn an_invalid_policy_is_told_in_its_report_and_does_not_stop_the_others() {
    let mut h = harness();
    policy(&mut h, "a-bad", &json!({"prefix": "/tmp/", "older_than": 10}));
    policy(&mut h, "b-good", &json!({"prefix": "/tmp/", "older_than_s": 10}));
    policy(&mut h, "c-denied", &json!({"prefix": "/secret/", "older_than_s": 10}));
    h.put("/tmp/a", "x");
    tick(&mut h, 3);
    assert_eq!(h.keys("/tmp/").len(), 0);
    let bad = report(&h, "a-bad").errors;
    assert!(bad[0].starts_with("invalid policy: unknown field `older_than`, expected one of `prefix`"), "{bad:?}");
    assert_eq!(report(&h, "c-denied").errors, ["denied: no grant to read keys under /secret/"]);
    h.delete("/janitor/policy/a-bad");
    tick(&mut h, 1);
    assert!(h.get("/janitor/report/a-bad").is_none(), "a report goes with its policy");
}

#[test]
fn a_policy_that_covers_the_janitor_leaves_the_janitor_alone() {
    let manifest = include_str!("../plugin.toml").replace("\"/tmp/\"", "\"/\"");
    let mut h = harness().with_manifest(&manifest);
    policy(&mut h, "all", &json!({"prefix": "/", "older_than_s": 10}));
    policy(&mut h, "own", &json!({"prefix": "/janitor/report/", "older_than_s": 10}));
    h.put("/a", "x");
    tick(&mut h, 5);
    assert_eq!(
        h.keys("/"),
        ["/janitor/marks", "/janitor/policy/all", "/janitor/policy/own", "/janitor/report/all", "/janitor/report/own"]
    );
    assert!(report(&h, "own").errors[0].contains("is the janitor's own"));
}

#[test]
fn a_key_with_a_lease_is_left_to_its_lease_unless_the_policy_says_so() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 10}));
    h.put_with_ttl("/tmp/held", "x", Duration::from_secs(3600));
    tick(&mut h, 4);
    assert_eq!(h.keys("/tmp/"), ["/tmp/held"]);
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 10, "include_leased": true}));
    tick(&mut h, 1);
    assert_eq!(h.keys("/tmp/").len(), 0);
}

#[test]
fn what_can_only_be_partly_deleted_is_deleted_and_counted_and_told() {
    let manifest = include_str!("../plugin.toml").replace("kv-read = [\"/janitor/\", \"/tmp/\"]", "kv-read = [\"/\"]");
    let mut h = harness().with_manifest(&manifest);
    policy(&mut h, "all", &json!({"prefix": "/t", "older_than_s": 10}));
    h.put("/tmp/mine", "x");
    h.put("/tother", "x");
    tick(&mut h, 3);
    assert_eq!(h.keys("/t"), ["/tother"]);
    let report = report(&h, "all");
    assert_eq!((report.deleted_total, report.errors), (1, vec!["denied: no grant to write key /tother".to_owned()]));
}

#[test]
fn a_put_between_the_read_and_the_commit_saves_the_key() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 10}));
    h.put("/tmp/a", "old");
    h.put("/tmp/b", "old");
    tick(&mut h, 2);
    // The first commit of the next run is that of the marks: interfere with those of the batches only.
    h.before_every_commit(|writes| writes.put("/tmp/b", "new"));
    h.advance(TEN_S);
    assert_eq!(h.run_task(), Ok(()));
    assert_eq!(h.keys("/tmp/"), ["/tmp/b"]);
    assert_eq!(h.get_text("/tmp/b").as_deref(), Some("new"));
    assert_eq!(report(&h, "tmp").deleted, 1, "smaller batches get through where larger ones are voided");
}

#[test]
fn a_policy_that_changes_during_the_run_stops_it() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 10, "batch": 1}));
    for n in 0..5 {
        h.put(format!("/tmp/{n}"), "x");
    }
    tick(&mut h, 2);
    let mut commits = 0;
    h.before_every_commit(move |writes| {
        commits += 1;
        if commits == 3 {
            writes.put("/janitor/policy/tmp", json!({"prefix": "/tmp/", "older_than_s": 9_999}).to_string());
        }
    });
    h.advance(TEN_S);
    assert_eq!(h.run_task(), Ok(()));
    let left = h.keys("/tmp/").len();
    assert!((3..=4).contains(&left), "{left} left");
    tick(&mut h, 3);
    assert_eq!(h.keys("/tmp/").len(), left);
}

#[test]
fn a_cancelled_run_ends_after_its_batch_and_the_next_one_goes_on() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 10, "batch": 5}));
    for n in 0..50 {
        h.put(format!("/tmp/{n:02}"), "x");
    }
    tick(&mut h, 2);
    h.cancel_after(Some(30));
    h.advance(TEN_S);
    assert_eq!(h.run_task(), Ok(()));
    let left = h.keys("/tmp/").len();
    assert!((20..50).contains(&left), "{left} left");
    h.cancel_after(None);
    tick(&mut h, 1);
    assert_eq!(h.keys("/tmp/").len(), 0);
}

#[test]
fn without_its_lock_a_run_writes_nothing() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 10}));
    h.put("/tmp/a", "x");
    tick(&mut h, 2);
    for calls in 0..20 {
        h.lose_lock_after(Some(calls));
        h.advance(TEN_S);
        let before = h.entries("/janitor/report/");
        let outcome = h.run_task();
        if h.get("/tmp/a").is_none() {
            return assert!(calls > 5, "deleted although the lock was lost after {calls} calls");
        }
        assert!(outcome.is_ok() || matches!(outcome, Err(Fault::Retry(_))), "{outcome:?}");
        assert_eq!(h.entries("/janitor/report/"), before);
    }
    panic!("never deleted");
}

#[test]
fn another_holder_of_the_lock_keeps_it_from_running() {
    let mut h = harness();
    let held = h.hold_lock("/janitor/lock");
    assert!(matches!(h.run_task(), Err(Fault::Retry(reason)) if reason.contains("held")));
    h.delete(&held);
    assert_eq!(h.run_task(), Ok(()));
}

#[test]
fn a_node_that_cannot_answer_is_a_retry() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 10}));
    h.put("/tmp/a", "x");
    tick(&mut h, 2);
    h.inject(|call| matches!(call, Call::Delete(b"/tmp/a")).then(|| Error::Denied("no".into())));
    tick(&mut h, 1);
    assert_eq!(report(&h, "tmp").errors, ["denied: no"]);
    h.inject(|call| matches!(call, Call::Commit).then(|| Error::Unavailable("no leader".into())));
    h.advance(TEN_S);
    assert_eq!(h.run_task(), Err(Fault::Retry("unavailable: no leader".into())));
    assert_eq!(h.keys("/tmp/"), ["/tmp/a"]);
}

#[test]
fn a_run_without_news_writes_a_report_once_a_minute() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 3600}));
    tick(&mut h, 30);
    let version = h.get("/janitor/report/tmp").map_or(0, |entry| entry.version);
    assert!((5..=6).contains(&version), "written {version} times in 300 s");
}

#[test]
fn many_young_keys_are_looked_at_over_several_runs() {
    let mut h = harness();
    policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": 100, "batch": 1}));
    tick(&mut h, 20);
    h.write(|writes| (0..3_800).for_each(|n| writes.put(format!("/tmp/{n:04}"), "x")));
    tick(&mut h, 1);
    let first = report(&h, "tmp");
    assert_eq!((first.deleted, first.stopped.as_deref()), (0, Some("enough for one run")));
    assert!(first.scanned > 1_900 && first.scanned < 2_500, "{}", first.scanned);
    assert!(first.resume_after() > Some(kvasir_guest::Key::from("/tmp/1900")));
    tick(&mut h, 1);
    let second = report(&h, "tmp");
    assert_eq!((second.scanned, second.stopped, second.resume_after_hex), (3_800 - first.scanned, None, None));
}

#[test]
fn many_policies_share_a_run_and_all_get_their_turn() {
    let mut h = harness();
    h.write(|writes| {
        for n in 0..200 {
            let value = json!({"prefix": format!("/tmp/{n:03}/"), "older_than_s": 10, "batch": 500});
            writes.put(format!("/janitor/policy/p{n:03}"), value.to_string());
            (0..20).for_each(|key| writes.put(format!("/tmp/{n:03}/{key}"), "x"));
        }
    });
    tick(&mut h, 3);
    assert_eq!(h.keys("/tmp/"), Vec::<String>::new());
    assert!((0..200).all(|n| report(&h, &format!("p{n:03}")).deleted_total == 20));
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Wait(u64),
    Run,
    /// Runs with puts of this key before each of its commits.
    Disturbed(u8),
    Cancelled(u64),
    LoseLock(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12_u8).prop_map(Step::Put),
        3 => (1..40_000_u64).prop_map(Step::Wait),
        4 => Just(Step::Run),
        2 => (0..12_u8).prop_map(Step::Disturbed),
        1 => (0..40_u64).prop_map(Step::Cancelled),
        1 => (0..40_u64).prop_map(Step::LoseLock),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens between and during runs: a key that is gone was old by the true time of its last put; and if runs go on
    /// undisturbed, everything old is gone in the end.
    #[test]
    fn a_young_key_is_never_deleted(steps in prop::collection::vec(any_step(), 1..60), older_than_s in 1..60_u64, batch in 1..5_u64) {
        let mut h = harness();
        h.set_page_size(3);
        policy(&mut h, "tmp", &json!({"prefix": "/tmp/", "older_than_s": older_than_s, "batch": batch}));
        // The true time of each key's last put.
        let put_ms: Rc<RefCell<BTreeMap<String, u64>>> = Rc::default();
        for step in steps {
            let now_ms = h.now_ms();
            match step {
                Step::Put(key) => {
                    let key = format!("/tmp/{key:02}");
                    h.put(&key, "x");
                    put_ms.borrow_mut().insert(key, now_ms);
                    continue;
                }
                Step::Wait(ms) => {
                    h.advance(Duration::from_millis(ms));
                    continue;
                }
                Step::Run => {}
                Step::Cancelled(calls) => h.cancel_after(Some(calls)),
                Step::LoseLock(calls) => h.lose_lock_after(Some(calls)),
                Step::Disturbed(key) => {
                    let (key, put_ms) = (format!("/tmp/{key:02}"), Rc::clone(&put_ms));
                    h.before_every_commit(move |writes| {
                        writes.put(&key, "disturbed");
                        put_ms.borrow_mut().insert(key.clone(), now_ms);
                    });
                }
            }
            // A run that is disturbed throughout, or has lost its lock, may fail; it may not do harm.
            let _ = h.run_task();
            h.cancel_after(None);
            h.lose_lock_after(None);
            h.before_every_commit(|_| {});
            let keys = h.keys("/tmp/");
            put_ms.borrow_mut().retain(|key, at_ms| {
                let gone = !keys.contains(key);
                assert!(!gone || now_ms - *at_ms >= older_than_s * 1000, "{key} was deleted at an age of {} ms", now_ms - *at_ms);
                !gone
            });
        }
        for _ in 0..4 {
            h.advance(Duration::from_secs(older_than_s));
            prop_assert_eq!(h.run_task(), Ok(()));
        }
        prop_assert_eq!(h.keys("/tmp/"), Vec::<String>::new());
    }
}
