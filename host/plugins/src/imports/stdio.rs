//! Standard output and error of a guest: lines of its log.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::logs::{PluginLog, Source, cut};

/// Bytes a guest may write at once; also the longest line.
const WRITE_BYTES_MAX: usize = kvasir_api::limits::PLUGIN_LOG_LINE_BYTES_MAX;

/// One standard stream; clones write the same lines.
#[derive(Clone)]
pub(crate) struct LogStream {
    log: Arc<PluginLog>,
    source: Source,
    level: &'static str,
    target: &'static str,
    line: Arc<Mutex<Vec<u8>>>,
    words: LastWords,
}

/// The last lines of standard error: what a guest said before it trapped, a panic's message usually.
#[derive(Clone, Default)]
pub(crate) struct LastWords(Arc<Mutex<VecDeque<String>>>);

impl LastWords {
    const LINES: usize = 3;
    const LINE_BYTES: usize = 256;

    fn hear(&self, line: &str) {
        // The standard library's hint about backtraces says nothing about this guest.
        if line.trim().is_empty() || line.starts_with("note: run with") {
            return;
        }
        let mut lines = self.0.lock();
        if lines.len() == Self::LINES {
            lines.pop_front();
        }
        lines.push_back(cut(line.trim(), Self::LINE_BYTES));
    }

    /// On one line; empty when nothing was said.
    pub(crate) fn text(&self) -> String {
        self.0.lock().iter().map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}

impl LogStream {
    pub(crate) fn new(
        log: Arc<PluginLog>,
        source: Source,
        level: &'static str,
        target: &'static str,
        words: LastWords,
    ) -> Self {
        Self { log, source, level, target, line: Arc::new(Mutex::new(Vec::new())), words }
    }

    fn take(&self, bytes: &[u8]) {
        let mut line = self.line.lock();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = WRITE_BYTES_MAX.saturating_sub(line.len());
            line.extend_from_slice(text.get(..room).unwrap_or(text));
            if ends || line.len() >= WRITE_BYTES_MAX {
                self.emit(&mut line);
            }
        }
    }

    fn emit(&self, line: &mut Vec<u8>) {
        if !line.is_empty() {
            let text = String::from_utf8_lossy(line);
            self.words.hear(&text);
            self.log.guest(&self.source, self.level, self.target, &text);
            line.clear();
        }
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        // The last clone writes what had no line end: a panic message's last words.
        if Arc::strong_count(&self.line) == 1 {
            let mut line = self.line.lock();
            self.emit(&mut line);
        }
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

impl AsyncWrite for LogStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
