//! A plugin for tests of the limits: it misbehaves in the way that its configuration value `mode` names.
//!
//! | mode | what it does | what should stop it |
//! |---|---|---|
//! | `ok` | puts the event's revision under `/hostile/out/` | nothing |
//! | `endless-loop` | computes for ever | `cpu` |
//! | `allocation-bomb` | allocates and touches memory for ever | `memory` |
//! | `recursion` | calls itself for ever | the stack's size |
//! | `host-call-flood` | reads one key for ever | `host-calls` |
//! | `huge-string` | logs one line of 100 MB | the size of a line, or of what a call may carry |
//! | `huge-put` | puts one value of 100 MB | `staged-bytes` |
//! | `huge-fault` | fails with a reason of 100 MB | the size of what a guest may return |
//! | `trap` | panics | it is its own end |
//! | `exit` | ends its process | it is its own end |
//! | `reject` | rejects the event | the event is parked |
//! | `retry` | asks to be run again, every time | `retries` |
//! | `log-flood` | logs lines for ever | the log's rate, then `cpu` or `host-calls` |
//! | `staged-flood` | puts other keys for ever | `staged-ops` |
//! | `denied` | puts a key it has no grant for | the grants |
//! | `slow` | sleeps for an hour | `wall` |
//!
//! Errors of the host are passed on, unless ignoring them is the point: the floods go on after the first refusal.

use std::hint::black_box;
use std::time::Duration;

use kvasir_guest::prelude::*;

/// What a 100 MB string is.
const HUGE_BYTES: usize = 100 * 1000 * 1000;
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
        "host-call-flood" => loop {
            // The refusal is ignored on purpose: a flood that stops when told so is no flood.
            let _ = black_box(cx.get("/hostile/in/flood"));
        },
        "huge-string" => log::info!("{}", "x".repeat(HUGE_BYTES)),
        "huge-put" => cx.put(out, vec![b'x'; HUGE_BYTES])?,
        "huge-fault" => return Err(Fault::Retry("x".repeat(HUGE_BYTES))),
        "trap" => panic!("trapped on purpose by {}", event.key),
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

/// Calls itself for ever, with a frame that the compiler cannot turn into a loop.
#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 32]);
    black_box(recurse(depth + 1)).wrapping_add(frame[(depth % 32) as usize])
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
