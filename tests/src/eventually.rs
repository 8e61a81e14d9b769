//! Waiting for a condition with a deadline: what the tests do instead of sleeping.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long the tests wait for what should happen soon: generous, because the machine may be busy with other things.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks `probe` again and again until it answers `Ok`.
///
/// # Panics
/// When the deadline passes first: with `what` and the last `Err`.
pub async fn eventually<T, F, P>(what: &str, deadline: Duration, mut probe: F) -> T
where
    F: FnMut() -> P,
    P: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + deadline;
    let mut last = "no answer".to_owned();
    while Instant::now() < end {
        match tokio::time::timeout_at(end.into(), probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(answer)) => last = answer,
            Err(_) => last.push_str(" (and then the probe itself did not end)"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within {deadline:?}: {what}; at last: {last}")
}
