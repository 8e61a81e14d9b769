//! The end of the process: the one line that says why it must end.
//!
//! **Invariant:** the first line stands; whatever fails after it is a consequence.

use std::sync::Arc;

use tokio::sync::watch;

/// Carries a fatal line to whoever ends the process.
#[derive(Debug, Clone)]
pub(crate) struct Fatal {
    line: Arc<watch::Sender<Option<String>>>,
}

impl Fatal {
    pub(crate) fn new() -> Self {
        Self { line: Arc::new(watch::Sender::new(None)) }
    }

    /// Says why the process must end.
    pub(crate) fn raise(&self, line: impl Into<String>) {
        self.line.send_if_modified(|current| {
            if current.is_some() {
                return false;
            }
            let line = line.into();
            // Whoever ends the process says it aloud, once.
            tracing::debug!("{line}");
            *current = Some(line);
            true
        });
    }

    /// Whether there is a line.
    pub(crate) fn is_raised(&self) -> bool {
        self.line.borrow().is_some()
    }

    /// The line, if there is one.
    pub(crate) fn line(&self) -> Option<String> {
        self.line.borrow().clone()
    }

    /// Waits for the line.
    pub(crate) async fn wait(&self) -> String {
        let mut lines = self.line.subscribe();
        loop {
            if let Some(line) = lines.borrow_and_update().clone() {
                return line;
            }
            if lines.changed().await.is_err() {
                // Cannot be while `self` holds the sender.
                return std::future::pending().await;
            }
        }
    }
}
