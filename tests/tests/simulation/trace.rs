//! What happened in a world, line by line, folded into one number: two runs of a seed must come to the same.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::world;

/// The trace of one world. A clone is the same trace.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    hash: u64,
    lines: u64,
    /// Whether the lines go to the terminal.
    loud: bool,
}

impl Trace {
    pub(crate) fn new(loud: bool) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { hash: 0xcbf2_9ce4_8422_2325, lines: 0, loud })) }
    }

    /// Something happens now.
    pub(crate) fn note(&self, line: &str) {
        let now = world::now();
        let mut inner = self.inner.lock();
        inner.lines += 1;
        for byte in now.to_le_bytes().iter().chain(line.as_bytes()).chain(b"\n") {
            inner.hash = (inner.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if inner.loud {
            eprintln!("{:>10.3} {line}", now as f64 / 1e9);
        }
    }

    /// The number, and of how many lines.
    pub(crate) fn sum(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.hash, inner.lines)
    }
}

/// A short name of some bytes.
pub(crate) fn digest(parts: &[bytes::Bytes]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    parts.iter().flatten().fold(0xcbf2_9ce4_8422_2325, fold)
}
