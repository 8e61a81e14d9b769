//! What a run says of a policy.
//!
//! Invariant: bounded in size; written when it says something new, and once a minute otherwise.

use kvasir_guest::Key;
use serde::{Deserialize, Serialize};

/// Where reports go.
pub const REPORTS: &str = "/janitor/report/";
/// A report without news is written after this time, in ms.
const REFRESH_MS: u64 = 60_000;

/// The report of one policy's last run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Start of the run, wall time in ms since 1970.
    pub last_run_ms: u64,
    /// How long the policy took, in ms.
    pub duration_ms: u64,
    /// Keys looked at.
    pub scanned: u64,
    /// Keys deleted.
    pub deleted: u64,
    /// Keys that would have been deleted, in a dry run.
    pub would_delete: u64,
    /// Commits that deleted something.
    pub batches: u64,
    /// Keys deleted since the report began.
    pub deleted_total: u64,
    /// Keys last put after this revision are young; `null` while nothing is known to be old enough.
    pub cutoff_revision: Option<u64>,
    /// What went wrong, or is wrong with the policy.
    pub errors: Vec<String>,
    /// Why the run ended before the last key.
    pub stopped: Option<String>,
    /// The next run goes on behind this key (in hex), if this one stopped early.
    pub resume_after_hex: Option<String>,
    /// Revision of the policy that this is about.
    pub policy_revision: u64,
}

impl Report {
    /// The report of a run that has done nothing yet.
    pub fn new(policy_revision: u64, last_run_ms: u64, before: Option<&Report>) -> Report {
        let deleted_total = before.map_or(0, |before| before.deleted_total);
        Report {
            policy_revision,
            last_run_ms,
            deleted_total,
            resume_after_hex: Report::resume(policy_revision, before),
            ..Report::default()
        }
    }

    fn resume(policy_revision: u64, before: Option<&Report>) -> Option<String> {
        // Another policy begins at the beginning.
        before.filter(|before| before.policy_revision == policy_revision)?.resume_after_hex.clone()
    }

    /// The key to go on behind.
    pub fn resume_after(&self) -> Option<Key> {
        let hex = self.resume_after_hex.as_deref()?;
        let byte = |at: usize| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes = (0..hex.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>()?;
        Some(Key::from(bytes))
    }

    /// Sets the key to go on behind.
    pub fn set_resume_after(&mut self, key: Option<&Key>) {
        self.resume_after_hex = key.map(|key| key.iter().map(|byte| format!("{byte:02x}")).collect());
    }

    /// Whether it is worth writing.
    pub fn is_news(&self, before: Option<&Report>) -> bool {
        let Some(before) = before else { return true };
        let says = |report: &Report| {
            let known = report.cutoff_revision.is_some();
            let next = (report.resume_after_hex.clone(), report.policy_revision);
            (report.errors.clone(), report.stopped.clone(), report.would_delete, known, next)
        };
        self.deleted > 0 || says(self) != says(before) || self.last_run_ms.abs_diff(before.last_run_ms) >= REFRESH_MS
    }
}

/// The key of a policy's report.
pub fn key(policy: &str) -> String {
    format!("{REPORTS}{policy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_to_go_on_at_survives_any_key() {
        let mut report = Report::default();
        let key = Key::from(&b"/tmp/\x00\xff/x"[..]);
        report.set_resume_after(Some(&key));
        assert_eq!(report.resume_after(), Some(key));
        report.resume_after_hex = Some("2g".to_owned());
        assert_eq!(report.resume_after(), None);
        report.resume_after_hex = Some("2".to_owned());
        assert_eq!(report.resume_after(), None);
    }

    #[test]
    fn another_policy_begins_at_the_beginning() {
        let mut before = Report { policy_revision: 7, deleted_total: 3, ..Report::default() };
        before.set_resume_after(Some(&Key::from("x")));
        assert_eq!(Report::new(7, 0, Some(&before)).resume_after(), Some(Key::from("x")));
        assert_eq!(Report::new(8, 0, Some(&before)).resume_after(), None);
        assert_eq!(Report::new(8, 0, Some(&before)).deleted_total, 3);
    }
}
