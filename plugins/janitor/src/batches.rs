//! One policy's sweep over its prefix, batch by batch.
//!
//! Invariant: a batch is one page read, its old keys deleted, one commit. What was read guards the commit, the policy's own key
//! included, so a key that is put meanwhile, or a policy that is changed, voids the batch.

use kvasir_guest::Error;
use kvasir_guest::prelude::*;

use crate::policy::Policy;
use crate::report::Report;
use crate::{Loaded, OWN};

/// Batches in a row that others may void before the policy gives up until the next run.
const CONFLICTS_MAX: u32 = 16;
/// Host calls of a batch besides its deletes: cancelled (twice), the policy, the page, the commit.
const CALLS_PER_BATCH: u64 = 5;
/// Errors told.
const ERRORS_MAX: usize = 5;

/// How a batch went.
struct Batch {
    scanned: u64,
    old: u64,
    /// The last key dealt with; `None` at the end of the prefix.
    upto: Option<Key>,
    /// Why the rest of the page was left.
    failed: Option<Error>,
}

enum Stop {
    /// Not an error: a bound is reached or the run must end.
    Early(&'static str),
    /// Others wrote what the batch had read; nothing is staged any more.
    Conflict(String),
    /// For the report; nothing is staged.
    Failed(Error),
    /// For the whole run: something may still be staged, and must not ride on the next commit.
    Fatal(Error),
}

/// Deletes what is old under the policy's prefix, within its bounds and `calls` host calls. Returns the host calls made.
///
/// # Errors
/// Only what the whole run should end for: the node cannot answer.
pub(crate) fn sweep(
    cx: &mut TaskCx,
    loaded: &Loaded,
    policy: &Policy,
    cutoff: Option<u64>,
    calls: u64,
    report: &mut Report,
) -> Result<u64, Fault> {
    report.cutoff_revision = cutoff;
    // Nothing is known to be old enough yet.
    let Some(cutoff) = cutoff else { return Ok(0) };
    let mut after = report.resume_after();
    report.set_resume_after(None);
    let (mut made, mut conflicts, mut entries) = (0, 0, policy.batch.get());
    loop {
        let found = report.deleted + report.would_delete;
        let left = policy.max_deletes.get() - found;
        let room = calls.saturating_sub(made + CALLS_PER_BATCH);
        let stop = if cx.cancelled() {
            Some("cancelled")
        } else if left == 0 {
            Some("max_deletes reached")
        } else if room == 0 {
            Some("enough for one run")
        } else {
            None
        };
        let batch = match stop {
            Some(reason) => Err(Stop::Early(reason)),
            None => batch(cx, loaded, policy, cutoff, after.as_ref(), entries.min(room), left),
        };
        made += CALLS_PER_BATCH;
        match batch {
            Ok(batch) => {
                conflicts = 0;
                entries = (entries * 2).min(policy.batch.get());
                made += batch.old;
                report.scanned += batch.scanned;
                if policy.dry_run {
                    report.would_delete += batch.old;
                } else if batch.old > 0 {
                    report.deleted += batch.old;
                    report.deleted_total += batch.old;
                    report.batches += 1;
                }
                if let Some(error) = batch.failed {
                    report.set_resume_after(batch.upto.or(after).as_ref());
                    push(report, error.to_string());
                    return Ok(made);
                }
                match batch.upto {
                    Some(upto) => after = Some(upto),
                    None => return Ok(made),
                }
            }
            // Smaller batches are less often in somebody's way.
            Err(Stop::Conflict(_)) if conflicts < CONFLICTS_MAX && !cx.cancelled() => {
                conflicts += 1;
                made += entries;
                entries = (entries / 2).max(1);
            }
            Err(stop) => {
                report.set_resume_after(after.as_ref());
                match stop {
                    Stop::Early(reason) => report.stopped = Some(reason.to_owned()),
                    Stop::Conflict(reason) => push(report, format!("others kept changing what a batch had read: {reason}")),
                    Stop::Failed(error @ Error::Unavailable(_)) | Stop::Fatal(error) => return Err(error.into()),
                    Stop::Failed(error) => push(report, error.to_string()),
                }
                return Ok(made);
            }
        }
    }
}

fn push(report: &mut Report, error: String) {
    if report.errors.len() < ERRORS_MAX {
        report.errors.push(error);
    }
}

/// One page and its commit.
fn batch(
    cx: &mut TaskCx,
    loaded: &Loaded,
    policy: &Policy,
    cutoff: u64,
    after: Option<&Key>,
    entries: u64,
    deletes_max: u64,
) -> Result<Batch, Stop> {
    if cx.get(&loaded.key).map_err(Stop::Failed)?.is_none_or(|entry| entry.mod_revision != loaded.revision) {
        return Err(Stop::Early("the policy has changed"));
    }
    let mut scan = cx.scan(Selection::prefix(&policy.prefix)).keys_only().page_size(u32::try_from(entries).unwrap_or(u32::MAX));
    if let Some(after) = after {
        scan = scan.after(after);
    }
    let page = scan.next_page().map_err(Stop::Failed)?;
    let mut batch = Batch { scanned: 0, old: 0, upto: None, failed: None };
    for entry in page {
        let own = entry.key.starts_with(OWN.as_bytes());
        let leased = entry.lease.is_some() && !policy.include_leased;
        if entry.mod_revision <= cutoff && !own && !leased {
            if batch.old == deletes_max {
                break;
            }
            if !policy.dry_run
                && let Err(error) = cx.delete(&entry.key)
            {
                batch.failed = Some(error);
                break;
            }
            batch.old += 1;
        }
        batch.scanned += 1;
        batch.upto = Some(entry.key);
    }
    // Without deletes, too: it is the way to a new snapshot, and lets go of what was read so far.
    match cx.commit() {
        Ok(_) => Ok(batch),
        Err(Error::Conflict(reason)) => Err(Stop::Conflict(reason)),
        Err(error) => Err(Stop::Fatal(error)),
    }
}
