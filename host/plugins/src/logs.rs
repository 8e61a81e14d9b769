//! A plugin's log: the last lines in a ring, and a stream of new ones. Guests write to it through `log` and their standard streams.
//!
//! **Invariant:** a guest can neither grow it past its bounds nor wait on who reads it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvasir_api::kvasir::plugin::v1::LogLine;
use kvasir_api::limits;
use parking_lot::Mutex;
use tokio::sync::broadcast;

/// Lines a slow follower may be behind before it loses some.
const FOLLOW_QUEUE_MAX: usize = 1_024;

/// Where a line comes from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Source {
    pub(crate) trigger: String,
    pub(crate) generation: u64,
    pub(crate) attempt: u32,
}

/// One plugin's log.
pub(crate) struct PluginLog {
    state: Mutex<State>,
    lines: broadcast::Sender<LogLine>,
}

struct State {
    ring: VecDeque<LogLine>,
    second: Instant,
    written: u32,
    dropped: u64,
}

impl PluginLog {
    pub(crate) fn new() -> Arc<Self> {
        let state = State { ring: VecDeque::new(), second: Instant::now(), written: 0, dropped: 0 };
        Arc::new(Self { state: Mutex::new(state), lines: broadcast::Sender::new(FOLLOW_QUEUE_MAX) })
    }

    /// Writes a guest's line, cut to its bound; past the rate lines are dropped and counted.
    pub(crate) fn guest(&self, source: &Source, level: &str, target: &str, message: &str) {
        let mut state = self.state.lock();
        if state.second.elapsed() >= Duration::from_secs(1) {
            state.second = Instant::now();
            state.written = 0;
            let dropped = std::mem::take(&mut state.dropped);
            if dropped > 0 {
                let note =
                    format!("{dropped} lines dropped: a plugin may log {} lines a second", limits::PLUGIN_LOG_LINES_PER_S);
                self.push(&mut state, source, "warn", "kvasir", &note);
            }
        }
        if state.written >= limits::PLUGIN_LOG_LINES_PER_S {
            state.dropped += 1;
            return;
        }
        state.written += 1;
        self.push(&mut state, source, level, target, message);
    }

    /// Writes a line of the host's about the plugin; never dropped.
    pub(crate) fn host(&self, source: &Source, level: &str, message: &str) {
        self.push(&mut self.state.lock(), source, level, "kvasir", message);
    }

    fn push(&self, state: &mut State, source: &Source, level: &str, target: &str, message: &str) {
        let line = LogLine {
            wall_ms: wall_ms(),
            level: level.to_owned(),
            target: cut(target, 128),
            message: cut(message, limits::PLUGIN_LOG_LINE_BYTES_MAX),
            trigger: source.trigger.clone(),
            generation: source.generation,
            attempt: source.attempt,
        };
        if state.ring.len() >= limits::PLUGIN_LOG_LINES_MAX {
            state.ring.pop_front();
        }
        state.ring.push_back(line.clone());
        let _ = self.lines.send(line);
    }

    /// The last `tail` lines (0: all) and what comes after them, without a gap.
    pub(crate) fn tail(&self, tail: usize) -> LogTail {
        let state = self.state.lock();
        let skip = if tail == 0 { 0 } else { state.ring.len().saturating_sub(tail) };
        LogTail { lines: state.ring.iter().skip(skip).cloned().collect(), follow: LogFollow { lines: self.lines.subscribe() } }
    }
}

/// The last lines of a plugin's log and a way to follow it.
pub struct LogTail {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// Lines written after `lines`.
    pub follow: LogFollow,
}

/// Log lines as they are written.
pub struct LogFollow {
    lines: broadcast::Receiver<LogLine>,
}

impl LogFollow {
    /// The next line; `None` when the plugin was removed or the host stopped. A reader that is too slow gets a line that says
    /// how many it missed.
    pub async fn next(&mut self) -> Option<LogLine> {
        match self.lines.recv().await {
            Ok(line) => Some(line),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(LogLine {
                wall_ms: wall_ms(),
                level: "warn".to_owned(),
                target: "kvasir".to_owned(),
                message: format!("{missed} lines missed: they were written faster than they were read"),
                ..LogLine::default()
            }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// At most `bytes_max` bytes of `text`, cut between characters.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut end = bytes_max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut short = text.split_at(end).0.to_owned();
    short.push('…');
    short
}

/// Wall time in ms since 1970; 0 before.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_lines_and_the_rate_is_bounded() {
        let log = PluginLog::new();
        let source = Source::default();
        for n in 0..limits::PLUGIN_LOG_LINES_PER_S * 3 {
            log.guest(&source, "info", "t", &n.to_string());
        }
        let kept = log.tail(0).lines;
        assert!(kept.len() <= limits::PLUGIN_LOG_LINES_MAX);
        log.host(&source, "error", "stopped");
        let last = log.tail(1).lines;
        assert_eq!(last.len(), 1);
        assert_eq!(last[0].message, "stopped");
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let log = PluginLog::new();
        log.guest(&Source::default(), "info", "t", &"é".repeat(limits::PLUGIN_LOG_LINE_BYTES_MAX));
        let line = &log.tail(0).lines[0].message;
        assert!(line.len() <= limits::PLUGIN_LOG_LINE_BYTES_MAX + '…'.len_utf8());
        assert!(line.ends_with('…'));
    }

    #[tokio::test]
    async fn a_follower_sees_every_line_after_the_tail() {
        let log = PluginLog::new();
        log.host(&Source::default(), "info", "before");
        let mut tail = log.tail(0);
        log.host(&Source::default(), "info", "after");
        assert_eq!(tail.lines[0].message, "before");
        assert_eq!(tail.follow.next().await.map(|line| line.message).as_deref(), Some("after"));
        drop(log);
        assert!(tail.follow.next().await.is_none());
    }
}
