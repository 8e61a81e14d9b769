//! A plugin for tests with both exports: a task that does what it is told with what only tasks may use, and a reactor.
//!
//! A key under `/tasks/do/` is an order, its value the order's argument. The task carries out one after the other and commits the
//! answer under `/tasks/done/` together with the order's end.
//!
//! | order | argument | what it does | answer |
//! |---|---|---|---|
//! | `lock-try` | a lock's name | takes it without waiting | `held`, or the refusal |
//! | `guard` | a lock's name | takes it, says where in `/tasks/own/lock`, waits for its step, writes `/tasks/own/guarded` | `committed`, or the refusal |
//! | `lease` | a TTL | puts `/tasks/own/leased` with it, renews it, waits for its step, revokes it | whether, and its state then |
//! | `lease-of` | a lease's id | renews it | `renewed`, or the refusal |
//! | `lease-put` | a lease's id | puts `/tasks/own/attached` with it | `committed`, or the refusal |
//! | `watch` | a revision | pulls `/tasks/in/` from there, two changes at a time, with a new cursor each time | the pulls |
//! | `pages` | a prefix | scans it | the pages' sizes |
//! | `outside` | a key | reads it | `read`, or the refusal |
//!
//! A step is a put of `/tasks/step/<order>`. The reactor copies `/tasks/copy/<name>` to `/tasks/copied/<name>`.
//!
//! Invariant: an answer names the kind of a refusal only, so that it is the same in the host and in the harness.

use std::time::Duration;

use kvasir_guest::prelude::*;
use kvasir_guest::{Error, LeaseStatus, Position};

/// Long enough that only a broken test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one pull waits for a step.
const STEP: Duration = Duration::from_millis(200);

#[kvasir_guest::reactor]
fn on_copy(cx: &mut Cx, event: Event<Raw>) -> Outcome {
    let copy = format!("/tasks/copied/{}", event.name());
    match event.value() {
        Some(value) => cx.put(copy, value)?,
        None => cx.delete(copy)?,
    }
    Ok(())
}

#[kvasir_guest::task]
fn on_schedule(cx: &mut TaskCx) -> Outcome {
    let orders = cx.scan(Selection::prefix("/tasks/do/")).collect::<Result<Vec<_>, _>>()?;
    for order in orders {
        // A new snapshot: what an order commits does not depend on what others read.
        cx.commit()?;
        let argument = order.value.as_str().unwrap_or_default();
        let answer = carry_out(cx, order.key.name(), argument).unwrap_or_else(|error| kind(&error).to_owned());
        cx.put(format!("/tasks/done/{}", order.key.name()), answer)?;
        cx.delete(&order.key)?;
        cx.commit()?;
    }
    Ok(())
}

fn carry_out(cx: &mut TaskCx, order: &str, argument: &str) -> Result<String, Error> {
    let number = || argument.parse::<u64>().map_err(|_| Error::Invalid(format!("{argument} is not a number")));
    match order {
        "lock-try" => cx.lock(argument, Duration::ZERO).map(|_| "held".to_owned()),
        "guard" => guard(cx, argument),
        "lease" => lease(cx, number()?),
        "lease-of" => cx.lease_of(number()?).keep_alive().map(|_| "renewed".to_owned()),
        "lease-put" => {
            cx.put_with_lease("/tasks/own/attached", "x", number()?)?;
            cx.commit().map(|_| "committed".to_owned())
        }
        "watch" => pulls(cx, number()?),
        "pages" => pages(cx, argument),
        "outside" => cx.get(argument).map(|_| "read".to_owned()),
        other => Err(Error::Unsupported(other.to_owned())),
    }
}

/// Writes under a second lock, which a client may have ended meanwhile.
fn guard(cx: &mut TaskCx, name: &str) -> Result<String, Error> {
    let lock = cx.lock(name, PATIENCE)?;
    cx.put("/tasks/own/lock", format!("{} {}", lock.fencing_token(), lock.key()))?;
    let at = cx.commit()?;
    step(cx, "guard", at)?;
    cx.put("/tasks/own/guarded", "x")?;
    cx.commit().map(|_| "committed".to_owned())
}

fn lease(cx: &mut TaskCx, ttl_s: u64) -> Result<String, Error> {
    let lease = cx.lease(ttl_s)?;
    cx.put_with_lease("/tasks/own/leased", "x", lease.id())?;
    let at = cx.commit()?;
    let LeaseStatus { ttl_s, granted_ttl_s } = lease.keep_alive()?;
    step(cx, "lease", at)?;
    let again = cx.lease_of(lease.id());
    lease.revoke()?;
    let after = again.time_to_live().map_or_else(|error| kind(&error).to_owned(), |status| format!("{status:?}"));
    // Whole seconds of what is left: a moment later it is one less.
    let renewed = if ttl_s + 1 >= granted_ttl_s { "renewed" } else { "not renewed" };
    Ok(format!("{renewed}, then {after}"))
}

/// Waits until somebody puts the order's step after this revision.
fn step(cx: &TaskCx, order: &str, at: u64) -> Result<(), Error> {
    let mut steps = cx.watch(&Selection::key(format!("/tasks/step/{order}")), Position::from(at + 1))?;
    while steps.next::<Raw>(1, STEP)?.is_empty() {
        if cx.cancelled() {
            return Err(Error::Conflict("cancelled".to_owned()));
        }
    }
    Ok(())
}

/// Each change as its name and its place in the revision, each pull of at most two in brackets. Every pull is by a cursor of its
/// own, opened where the one before it stood.
fn pulls(cx: &TaskCx, start: u64) -> Result<String, Error> {
    let (mut at, mut pulls) = (Position::from(start), Vec::new());
    loop {
        let mut watch = cx.watch(&Selection::prefix("/tasks/in/"), at)?;
        let events = watch.next::<Raw>(2, Duration::ZERO)?;
        at = watch.position();
        if events.is_empty() {
            return Ok(pulls.join(" "));
        }
        let events: Vec<_> = events.iter().map(|event| format!("{}.{}", event.name(), event.sub)).collect();
        pulls.push(format!("[{}]", events.join(" ")));
    }
}

fn pages(cx: &TaskCx, prefix: &str) -> Result<String, Error> {
    let mut scan = cx.scan(Selection::prefix(prefix)).keys_only();
    let mut sizes = Vec::new();
    loop {
        match scan.next_page()?.len() {
            0 => return Ok(sizes.join(" ")),
            size => sizes.push(size.to_string()),
        }
    }
}

fn kind(error: &Error) -> &'static str {
    match error {
        Error::Denied(_) => "denied",
        Error::Invalid(_) => "invalid",
        Error::Conflict(_) => "conflict",
        Error::Limit(_) => "limit",
        Error::NotFound(_) => "not-found",
        Error::Compacted(_) => "compacted",
        Error::Unavailable(_) => "unavailable",
        Error::Unsupported(_) => "unsupported",
        _ => "other",
    }
}

#[cfg(test)]
mod tests;
