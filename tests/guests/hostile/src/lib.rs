//! A plugin for tests of the limits: it misbehaves in the way that its configuration value `mode` names.
//!
//! | mode | what it does | what stops it |
//! |---|---|---|
//! | `ok` | puts the event's revision under `/hostile/out/` | nothing |
//! | `endless-loop` | computes for ever | `cpu` |
//! | `allocation-bomb` | allocates and touches memory for ever | `memory` |
//! | `recursion` | calls itself for ever, with large frames | its own stack, which is in its memory |
//! | `deep-recursion` | calls itself for ever, with small frames | the host's limit on stack |
//! | `host-call-flood` | reads one key for ever | `host-calls` |
//! | `huge-string` | logs one line of 100 MB | the bytes of one host call |
//! | `huge-put` | puts one value of 100 MB | the bytes of one host call |
//! | `huge-fault` | fails with a reason of 100 MB | the bytes of one host call |
//! | `large-put` | puts one value that a call may carry | `staged-bytes` |
//! | `many-puts` | puts other keys until it is refused | `staged-ops` |
//! | `trap` | panics | it is its own end |
//! | `exit` | ends its process | it is its own end |
//! | `reject` | rejects the event | the event is parked |
//! | `retry` | asks to be run again, every time | `retries` |
//! | `log-flood` | logs lines for ever | `host-calls` |
//! | `staged-flood` | puts other keys for ever, whatever it is told | `host-calls` |
//! | `denied` | puts a key it has no grant for | the grants |
//! | `slow` | sleeps for an hour | `wall` |
//!
//! Errors of the host are passed on, unless ignoring them is the point: the floods go on after the first refusal.

use std::hint::black_box;
use std::time::Duration;

use kvasir_guest::prelude::*;

/// What a 100 MB string is.
const HUGE_BYTES: usize = 100 * 1000 * 1000;
/// What one host call may carry, and no run may stage here.
const LARGE_BYTES: usize = 1 << 20;
/// What one step of the allocation bomb takes.
const BOMB_STEP_BYTES: usize = 1 << 20;

#[kvasir_guest::reactor]
fn on_event(cx: &mut Cx, event: Event<Raw>) -> Outcome {
    let mode = cx.config("mode").unwrap_or_else(|| "ok".to_owned());
    let out = format!("/hostile/out/{}", event.name());
    match mode.as_str() {
        "ok" => cx.put(out, event.revision.to_string())?,
        "endless-loop" => spin(),
        "allocation-bomb" => bomb(),
        "recursion" => {
            black_box(recurse(0));
        }
        "deep-recursion" => {
            black_box(descend(0));
        }
        "host-call-flood" => loop {
            // The refusal is ignored on purpose: a flood that stops when told so is no flood.
            let _ = black_box(cx.get("/hostile/in/flood"));
        },
        "huge-string" => log::info!("{}", "x".repeat(HUGE_BYTES)),
        "huge-put" => cx.put(out, vec![b'x'; HUGE_BYTES])?,
        "huge-fault" => return Err(Fault::Retry("x".repeat(HUGE_BYTES))),
        "large-put" => cx.put(out, vec![b'x'; LARGE_BYTES])?,
        "many-puts" => (0..).try_for_each(|put| cx.put(format!("{out}/{put}"), "x"))?,
        "trap" => panic!("trapped on purpose by {}", event.key),
        // WASI 0.2 has no more than two exit codes: the host sees 1.
        "exit" => std::process::exit(3),
        "reject" => bail_reject!("rejected on purpose"),
        "retry" => bail_retry!("failed on purpose, attempt {}", cx.attempt()),
        "log-flood" => {
            let mut line = 0_u64;
            loop {
                log::info!("flood line {line}");
                line += 1;
            }
        }
        "staged-flood" => {
            let mut put = 0_u64;
            loop {
                let _ = black_box(cx.put(format!("/hostile/out/flood/{put}"), "x"));
                put += 1;
            }
        }
        "denied" => cx.put("/elsewhere", "x")?,
        "slow" => std::thread::sleep(Duration::from_secs(3600)),
        other => bail_reject!("unknown mode `{other}`"),
    }
    Ok(())
}

/// Computes for ever without a call that the host could refuse.
fn spin() {
    let mut state = 1_u64;
    loop {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// Allocates and touches memory until there is none.
fn bomb() {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(black_box(vec![1; BOMB_STEP_BYTES]));
    }
}

/// Calls itself for ever, with a frame that the compiler cannot turn into a loop and that is in linear memory: of the two stacks
/// of such a guest this fills its own first.
#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 512]);
    black_box(recurse(depth + 1)).wrapping_add(frame[(depth % 512) as usize])
}

/// Calls itself for ever, with next to nothing in linear memory: this fills the stack that the host gives.
#[allow(unconditional_recursion)]
fn descend(depth: u64) -> u64 {
    black_box(descend(black_box(depth) + 1)) ^ depth
}

#[cfg(test)]
mod tests {
    use kvasir_guest::testing::Harness;

    use super::*;

    /// Runs one event in a mode; what the dead letter says, if there is one.
    fn run(mode: &str) -> (Harness, Option<String>) {
        let mut h = Harness::reactor::<on_event>();
        h.set_config("mode", mode);
        h.put("/hostile/in/a", "x");
        h.run();
        let reason = h.dead_letters().first().map(|letter| letter.reason.clone());
        (h, reason)
    }

    #[test]
    fn without_a_mode_it_behaves() {
        let mut h = Harness::reactor::<on_event>();
        let revision = h.put("/hostile/in/a", "x");
        h.run();
        assert_eq!(h.get_text("/hostile/out/a"), Some(revision.to_string()));
    }

    // The other modes do not come back without a host that stops them.
    #[test]
    fn what_can_be_stopped_here_is_told() {
        for (mode, expected) in [
            ("host-call-flood", "more than 1000 host calls"),
            ("staged-flood", "more than 1000 host calls"),
            ("huge-put", "limit: more than 64KiB of staged writes"),
            ("large-put", "limit: more than 64KiB of staged writes"),
            ("many-puts", "limit: more than 100 staged writes"),
            ("trap", "trapped on purpose by /hostile/in/a"),
            ("reject", "rejected on purpose"),
            ("retry", "failed on purpose, attempt 3"),
            ("denied", "denied: no grant to write key /elsewhere"),
            ("no-such-mode", "unknown mode `no-such-mode`"),
        ] {
            let (h, reason) = run(mode);
            assert!(reason.as_ref().is_some_and(|reason| reason.contains(expected)), "{mode}: {reason:?}");
            assert_eq!(h.keys("/hostile/out/"), Vec::<String>::new(), "{mode}");
        }
    }
}
