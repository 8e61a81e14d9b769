//! What a node writes to stderr, read as it comes; the lines that say where it listens are among it.
//!
//! **Invariant:** nothing of it is lost: a failed test shows it.

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const READY: &str = "ready to serve client requests on ";
const PEERS: &str = "listening for peers on ";

/// Is told where a node listens for peers, at once: before the node is ready, which may need peers.
pub(super) type OnPeerAddress = Arc<dyn Fn(SocketAddr) + Send + Sync>;

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
    pub(super) fn follow(stderr: impl Read + Send + 'static, on_peer_address: Option<OnPeerAddress>) -> Arc<Self> {
        let log = Arc::new(Self::default());
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if let (Some(on_peer_address), Some(address)) = (&on_peer_address, address_after(&line, PEERS)) {
                    on_peer_address(address.parse().expect("the node logs an address"));
                }
                let mut state = writer.state.lock().unwrap();
                if let Some(address) = address_after(&line, READY) {
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

/// The word after `marker`, which is an address and may have something behind it.
fn address_after<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(marker)?;
    rest.split(|c: char| c.is_whitespace() || c == ',').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_read_from_the_lines_that_say_them() {
        let (told, heard) = std::sync::mpsc::channel();
        let text =
            b"2026 INFO kvasir: listening for peers on 127.0.0.1:41\n\xff\nready to serve client requests on 127.0.0.1:42, 7\n";
        let log = Log::follow(&text[..], Some(Arc::new(move |address| told.send(address).unwrap())));
        log.wait_closed();
        assert_eq!(log.wait_ready(Instant::now()).as_deref(), Some("127.0.0.1:42"));
        assert_eq!(heard.recv().unwrap(), "127.0.0.1:41".parse().unwrap());
        assert_eq!(log.text().lines().count(), 3);
    }
}
