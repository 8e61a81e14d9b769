//! Work that waits for the disk.

use std::io;

/// Does it on a thread where it may wait; or, on a disk that is driven and never waits, at once and here.
///
/// # Errors
/// The work panicked, or the runtime is shutting down.
pub async fn blocking<T: Send + 'static>(driven: bool, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    if driven {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
