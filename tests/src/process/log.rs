//! What a node writes to stderr, read as it comes; the line that says it is ready is among it.
//!
//! **Invariant:** nothing of it is lost: a failed test shows it.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const READY: &str = "ready to serve client requests on ";

/// A process's stderr, read as it comes.
#[derive(Debug, Default)]
pub(super) struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    ready: Option<String>,
    closed: bool,
}

impl Log {
    pub(super) fn follow(stderr: impl Read + Send + 'static) -> Arc<Self> {
        let log = Arc::new(Self::default());
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                let mut state = writer.state.lock().unwrap();
                if let Some((_, address)) = line.split_once(READY) {
                    let address = address.split(|c: char| c.is_whitespace() || c == ',').next().unwrap_or_default();
                    state.ready = Some(address.to_owned());
                }
                state.lines.push(line);
                writer.changed.notify_all();
            }
            writer.state.lock().unwrap().closed = true;
            writer.changed.notify_all();
        });
        log
    }

    pub(super) fn wait_ready(&self, end: Instant) -> Option<String> {
        let mut state = self.state.lock().unwrap();
        loop {
            if state.ready.is_some() || state.closed {
                return state.ready.clone();
            }
            let left = end.checked_duration_since(Instant::now())?;
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    pub(super) fn wait_closed(&self) {
        let end = Instant::now() + Duration::from_secs(5);
        let mut state = self.state.lock().unwrap();
        while !state.closed {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return };
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().unwrap().closed
    }

    pub(super) fn text(&self) -> String {
        let state = self.state.lock().unwrap();
        state.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }

    pub(super) fn tail(&self, lines: usize) -> String {
        let state = self.state.lock().unwrap();
        let from = state.lines.len().saturating_sub(lines);
        state.lines[from..].iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}
