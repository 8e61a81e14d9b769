//! The seam at which tests make a node's wall clock step: time itself, off by what a file says.
//!
//! Without [`VARIABLE`] in the environment there is no seam and the system's clock is used as it is.
//!
//! **Invariant:** only what is stamped as wall time passes here; leases live by cluster time, which no step can reach.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Names the file that holds the milliseconds to add, as decimal text; a file that is missing or says something else adds none.
const VARIABLE: &str = "KVASIR_WALL_CLOCK_OFFSET_FILE";
/// How old what was read may be.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The wall clock that the environment asks for; `None` is the system's.
pub(crate) fn clock() -> Option<Arc<dyn Fn() -> u64 + Send + Sync>> {
    let file = PathBuf::from(std::env::var_os(VARIABLE)?);
    tracing::warn!("{VARIABLE}: the wall clock is off by what {} says; this is for tests", file.display());
    Some(Arc::new(stepping(file)))
}

fn stepping(file: PathBuf) -> impl Fn() -> u64 + Send + Sync {
    let known = Mutex::new((None::<Instant>, 0_i64));
    move || {
        let offset_ms = {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.0.is_none_or(|at| at.elapsed() >= READ_AGAIN_AFTER) {
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                *known = (Some(Instant::now()), text.trim().parse().unwrap_or(0));
            }
            known.1
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_add_signed(offset_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_steps_by_what_the_file_says_and_back_without_it() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let file = folder.path().join("offset");
        let clock = stepping(file.clone());
        let near = |offset_ms: i64| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
            clock().abs_diff((now + offset_ms) as u64) < 60_000
        };
        assert!(near(0), "no file");
        for offset_ms in [3_600_000, -3_600_000] {
            std::fs::write(&file, format!("{offset_ms}\n")).expect("it can be written");
            let end = Instant::now() + Duration::from_secs(10);
            while !near(offset_ms) {
                assert!(Instant::now() < end, "the step is noticed");
                std::thread::yield_now();
            }
        }
        std::fs::write(&file, "soon").expect("it can be written");
        let end = Instant::now() + Duration::from_secs(10);
        while !near(0) {
            assert!(Instant::now() < end, "nonsense adds nothing");
            std::thread::yield_now();
        }
    }
}
