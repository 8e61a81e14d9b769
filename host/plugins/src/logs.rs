//! A plugin's log: the last lines in a ring, and a stream of new ones. Guests write to it through `log` and their standard streams.
//!
//! **Invariant:** a guest can neither grow it past its bounds nor wait on who reads it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvasir_api::kvasir::plugin::v1::{LogLine, MemberLogs, MemberLogsQuestion};
use kvasir_api::limits;
use parking_lot::Mutex;
use tokio::sync::{broadcast, mpsc};

/// Lines a slow follower may be behind before it loses some.
const FOLLOW_QUEUE_MAX: usize = 1_024;
/// Bytes of lines in one answer to another member.
const PAGE_BYTES_MAX: usize = 512 << 10;

/// Where a line comes from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Source {
    pub(crate) trigger: String,
    pub(crate) generation: u64,
    pub(crate) attempt: u32,
}

/// One plugin's log on this node.
pub(crate) struct PluginLog {
    /// Tells it from one that was kept before the node was started anew.
    id: u64,
    state: Mutex<State>,
    lines: broadcast::Sender<LogLine>,
}

struct State {
    ring: VecDeque<LogLine>,
    /// Lines ever written.
    count: u64,
    second: Instant,
    written: u32,
    dropped: u64,
}

impl PluginLog {
    pub(crate) fn new() -> Arc<Self> {
        let state = State { ring: VecDeque::new(), count: 0, second: Instant::now(), written: 0, dropped: 0 };
        // Two starts within a nanosecond are none.
        let id = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64).max(1);
        Arc::new(Self { id, state: Mutex::new(state), lines: broadcast::Sender::new(FOLLOW_QUEUE_MAX) })
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
            node: String::new(),
        };
        state.count += 1;
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
        LogTail { lines: state.ring.iter().skip(skip).cloned().collect(), follow: LogFollow::new(self.lines.subscribe()) }
    }

    /// What another member asks for: lines after those it has, or the last ones, as many as fit an answer.
    pub(crate) fn page(&self, question: &MemberLogsQuestion) -> MemberLogs {
        let state = self.state.lock();
        let weight = |line: &LogLine| line.message.len() + line.target.len() + line.trigger.len() + 64;
        let first = state.count - state.ring.len() as u64;
        if question.log == self.id && question.after >= first {
            let skip = usize::try_from(question.after.min(state.count) - first).unwrap_or(usize::MAX);
            let (mut bytes, mut lines) = (0, Vec::new());
            for line in state.ring.iter().skip(skip) {
                bytes += weight(line);
                if bytes > PAGE_BYTES_MAX {
                    break;
                }
                lines.push(line.clone());
            }
            return MemberLogs { log: self.id, upto: question.after.min(state.count) + lines.len() as u64, lines };
        }
        let tail = if question.tail == 0 { usize::MAX } else { question.tail as usize };
        let (mut bytes, mut lines) = (0, VecDeque::new());
        for line in state.ring.iter().rev().take(tail) {
            bytes += weight(line);
            if bytes > PAGE_BYTES_MAX {
                break;
            }
            lines.push_front(line.clone());
        }
        MemberLogs { log: self.id, upto: state.count, lines: lines.into() }
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
    /// Lines of other members.
    others: Option<mpsc::Receiver<LogLine>>,
    /// What to call this node in them.
    name: String,
}

impl LogFollow {
    fn new(lines: broadcast::Receiver<LogLine>) -> Self {
        Self { lines, others: None, name: String::new() }
    }

    /// Follows other members' lines too, and says whose each is.
    pub(crate) fn join(&mut self, name: String, others: mpsc::Receiver<LogLine>) {
        (self.name, self.others) = (name, Some(others));
    }

    /// The next line; `None` when the plugin was removed or the host stopped. A reader that is too slow gets a line that says
    /// how many it missed.
    pub async fn next(&mut self) -> Option<LogLine> {
        let other = async {
            match &mut self.others {
                Some(others) => others.recv().await,
                None => None,
            }
        };
        tokio::select! {
            Some(line) = other => Some(line),
            line = next_here(&mut self.lines) => line.map(|line| LogLine { node: self.name.clone(), ..line }),
        }
    }
}

async fn next_here(lines: &mut broadcast::Receiver<LogLine>) -> Option<LogLine> {
    match lines.recv().await {
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

    #[test]
    fn another_member_gets_the_lines_it_has_not_and_all_again_from_a_log_it_does_not_know() {
        let log = PluginLog::new();
        let source = Source::default();
        let messages = |logs: &MemberLogs| logs.lines.iter().map(|line| line.message.clone()).collect::<Vec<_>>();
        log.host(&source, "info", "a");
        log.host(&source, "info", "b");
        let first = log.page(&MemberLogsQuestion { tail: 1, ..MemberLogsQuestion::default() });
        assert_eq!((messages(&first), first.upto), (vec!["b".to_owned()], 2));
        log.host(&source, "info", "c");
        let ask = |log_id, after| log.page(&MemberLogsQuestion { log: log_id, after, ..MemberLogsQuestion::default() });
        assert_eq!((messages(&ask(first.log, 2)), ask(first.log, 2).upto), (vec!["c".to_owned()], 3));
        assert_eq!((messages(&ask(first.log, 3)).len(), ask(first.log, 99).upto), (0, 3));
        assert_eq!(messages(&ask(first.log + 1, 2)).len(), 3, "it was started anew");
        for _ in 0..limits::PLUGIN_LOG_LINES_MAX * 2 {
            log.host(&source, "info", &"x".repeat(limits::PLUGIN_LOG_LINE_BYTES_MAX));
        }
        let page = ask(first.log, 3);
        let bytes: usize = page.lines.iter().map(|line| line.message.len()).sum();
        assert!(bytes <= PAGE_BYTES_MAX && !page.lines.is_empty());
        assert_eq!(page.upto, 3 + limits::PLUGIN_LOG_LINES_MAX as u64 * 2, "what fell out of the ring is passed over");
    }
}
