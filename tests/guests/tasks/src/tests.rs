//! The orders against the SDK's harness, among them those that the host answers alike.

use kvasir_guest::testing::Harness;

use super::*;

const CONFORMANCE: &str = include_str!("../conformance.txt");

fn harness() -> Harness {
    Harness::task::<on_schedule>().with_reactor::<on_copy>()
}

/// Gives an order and returns the answer.
fn order(h: &mut Harness, order: &str, argument: &str) -> String {
    h.put(format!("/tasks/do/{order}"), argument);
    assert_eq!(h.run_task(), Ok(()), "{order}");
    assert_eq!(h.keys("/tasks/do/"), Vec::<String>::new());
    h.get_text(format!("/tasks/done/{order}")).unwrap_or_default()
}

#[test]
fn the_harness_does_what_the_host_does() {
    let mut h = harness();
    let (mut case, mut revision) = ("", 0);
    for line in CONFORMANCE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (step, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split(' ').collect();
        match (step, words.as_slice()) {
            ("case", _) => case = rest,
            ("put", [key, value]) => {
                h.put(key, value);
            }
            ("txn", keys) => revision = h.write(|writes| keys.iter().for_each(|key| writes.put(key, "x"))),
            ("many", [count, prefix]) => {
                let count: usize = count.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
                for n in 0..count {
                    h.put(format!("{prefix}{n:03}"), "x");
                }
            }
            ("compact", _) => h.compact(),
            ("hold", [name]) => drop(h.hold_lock(name)),
            ("see", [key, value]) => {
                h.run();
                assert_eq!(h.get_text(key).as_deref(), Some(*value), "{case}: {line}");
            }
            ("do", [name, argument, "=>", ..]) => {
                let argument = argument.replace('@', &revision.to_string());
                let expected = rest.split_once(" => ").map(|(_, expected)| expected);
                assert_eq!(Some(order(&mut h, name, &argument).as_str()), expected, "{case}: {line}");
            }
            _ => panic!("not a step: {line}"),
        }
    }
}

#[test]
fn a_second_lock_guards_the_commit_and_goes_with_its_handle() {
    let mut h = harness();
    h.while_waiting(|writes| writes.put("/tasks/step/guard", ""));
    assert_eq!(order(&mut h, "guard", "/tasks/second"), "committed");
    assert!(h.get("/tasks/own/guarded").is_some());
    assert_eq!(h.keys("/tasks/second/"), Vec::<String>::new());
}

#[test]
fn a_lease_is_renewed_and_takes_its_key_when_it_is_revoked() {
    let mut h = harness();
    h.while_waiting(|writes| writes.put("/tasks/step/lease", ""));
    assert_eq!(order(&mut h, "lease", "60"), "renewed, then not-found");
    assert!(h.get("/tasks/own/leased").is_none());
}
