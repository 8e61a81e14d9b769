//! Saying that a case is skipped, so that it is seen and counted.

use std::io::Write;

/// Says that a case is skipped and why. Goes past the test harness's capture: `cargo xtask test` counts these lines.
pub fn skip(case: &str, reason: &str) {
    // Nothing to do about a terminal that is gone.
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED: {case}: {reason}");
}
