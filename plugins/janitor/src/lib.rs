//! `janitor`: deletes what a policy key says is old, in bounded batches, on one node at a time.
//!
//! A policy is JSON at `/janitor/policy/<name>`; the result of each run stands at `/janitor/report/<name>`. The store keeps
//! revisions, not times, so the janitor keeps *marks*: revisions with the time by which they were surely there (`marks.rs`). A key
//! is deleted if the last put to it is not newer than a mark that is old enough. `README.md` has the rules.
//!
//! Invariant: a key younger than its policy says is never deleted: every batch's deletes are guarded by what the batch has read, so
//! a put between the read and the commit voids the batch, and by the janitor's lock.

mod batches;
pub mod marks;
pub mod policy;
pub mod report;

#[cfg(test)]
mod tests;

use std::time::Instant;

use kvasir_guest::Error;
use kvasir_guest::prelude::*;

use crate::marks::{MARKS, Marks};
use crate::policy::{POLICIES, Policy};
use crate::report::{REPORTS, Report};

/// Everything of the janitor's own; never deleted by a policy.
pub const OWN: &str = "/janitor/";
/// Policies looked at in one run, in order of name.
const POLICIES_MAX: usize = 256;
/// Reports of removed policies deleted in one run.
const STALE_REPORTS_MAX: usize = 256;
/// Host calls that all sweeps of a run may make together; the manifest allows more, for what is around them.
const CALLS_MAX: u64 = 12_000;
/// Times that the beginning of a run is tried when somebody else writes the same keys.
const START_TRIES_MAX: usize = 8;

/// A policy key as it was read.
struct Loaded {
    key: Key,
    name: String,
    revision: u64,
    policy: Result<Policy, String>,
}

/// One run: marks the time, then sweeps for every policy.
#[kvasir_guest::task]
fn sweep(cx: &mut TaskCx) -> Outcome {
    let (policies, marks) = start(cx)?;
    let now_ms = cx.now_ms();
    let mut calls_left = CALLS_MAX;
    for (index, loaded) in policies.iter().enumerate() {
        if cx.cancelled() {
            log::info!("ends early: cancelled");
            return Ok(());
        }
        // What one policy leaves is shared by those behind it.
        let share = calls_left / (policies.len() - index) as u64;
        let began = Instant::now();
        let before = cx.get_json::<Report>(report::key(&loaded.name)).ok().flatten().map(|entry| entry.value);
        let mut report = Report::new(loaded.revision, now_ms, before.as_ref());
        match &loaded.policy {
            Ok(policy) => {
                let cutoff = marks.revision_before(now_ms, policy.older_than_ms());
                calls_left -= batches::sweep(cx, loaded, policy, cutoff, share, &mut report)?.min(calls_left);
            }
            Err(reason) => report.errors.push(reason.clone()),
        }
        report.duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if report.is_news(before.as_ref()) {
            cx.put_json(report::key(&loaded.name), &report)?;
            if !commit(cx)? {
                return Ok(());
            }
        }
        if report.deleted > 0 || !report.errors.is_empty() {
            log::info!("{}: {} deleted, {} scanned, errors: {:?}", loaded.name, report.deleted, report.scanned, report.errors);
        }
    }
    remove_stale_reports(cx, &policies)
}

/// Reads the policies and brings the marks up to date.
fn start(cx: &mut TaskCx) -> Result<(Vec<Loaded>, Marks), Fault> {
    let mut last = None;
    for _ in 0..START_TRIES_MAX {
        let policies = load(cx)?;
        let shortest_ms = policies.iter().filter_map(|loaded| loaded.policy.as_ref().ok()).map(Policy::older_than_ms).min();
        let before = match cx.get_json::<Marks>(MARKS) {
            Ok(entry) => entry.map(|entry| entry.value).unwrap_or_default(),
            // Without marks everything counts as young, so starting over errs on the safe side.
            Err(error @ Error::Decode { .. }) => {
                log::warn!("starts over: {error}");
                Marks::default()
            }
            Err(error) => return Err(error.into()),
        };
        let marks = before.clone().observed(cx.now_ms(), cx.snapshot_revision(), shortest_ms);
        if marks == before {
            return Ok((policies, marks));
        }
        cx.put_json(MARKS, &marks)?;
        match cx.commit() {
            Ok(_) => return Ok((policies, marks)),
            Err(error @ Error::Conflict(_)) if !cx.cancelled() => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    bail_retry!("the policies or marks kept changing: {}", last.map(|error| error.to_string()).unwrap_or_default())
}

fn load(cx: &TaskCx) -> Result<Vec<Loaded>, Error> {
    let mut policies = Vec::new();
    for entry in cx.scan(Selection::prefix(POLICIES)) {
        let entry = entry?;
        let Some(name) = entry.key.strip_prefix(POLICIES).filter(|name| policy::is_name(name)) else {
            log::warn!("{} is no policy's key: {POLICIES}<name> with letters, digits, `.`, `_` and `-`", entry.key);
            continue;
        };
        if policies.len() == POLICIES_MAX {
            log::warn!("{} and those behind it are left out: at most {POLICIES_MAX} policies", entry.key);
            break;
        }
        let policy = Policy::parse(&entry.value);
        policies.push(Loaded { name: name.to_owned(), revision: entry.mod_revision, policy, key: entry.key });
    }
    Ok(policies)
}

/// Deletes reports whose policy is gone.
fn remove_stale_reports(cx: &mut TaskCx, policies: &[Loaded]) -> Outcome {
    let mut stale = Vec::new();
    for entry in cx.scan(Selection::prefix(REPORTS)).keys_only() {
        let key = entry?.key;
        let has_policy = key.strip_prefix(REPORTS).is_some_and(|name| policies.iter().any(|loaded| loaded.name == name));
        if !has_policy && stale.len() < STALE_REPORTS_MAX && policies.len() < POLICIES_MAX {
            stale.push(key);
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    stale.iter().try_for_each(|key| cx.delete(key))?;
    commit(cx)?;
    Ok(())
}

/// Commits the janitor's own keys. False if the run must end because its lock is gone.
fn commit(cx: &mut TaskCx) -> Result<bool, Fault> {
    match cx.commit() {
        Ok(_) => Ok(true),
        Err(Error::Conflict(reason)) if cx.cancelled() => {
            log::info!("ends early: {reason}");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
