//! Why an application does not render, in words.
//!
//! Invariant: the text is a function of the fragments alone, so that the same fault is not written twice, and bounded.

use std::fmt;

use crate::render::{FRAGMENT_BYTES_MAX, FRAGMENTS_MAX, INPUT_BYTES_MAX, OUTPUT_BYTES_MAX};

/// Problems told; the rest is counted.
const PROBLEMS_MAX: usize = 20;
/// Longest key or path that is told whole, in characters.
const QUOTE_CHARS_MAX: usize = 200;

/// A fault of one fragment or of all of them together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A key that is not where a fragment can be.
    Misplaced {
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A fragment that is not JSON at all.
    NotJson {
        /// The fragment's name.
        fragment: String,
        /// Where and what.
        reason: String,
    },
    /// Something else was expected at a place of a fragment.
    Unexpected {
        /// The fragment's name.
        fragment: String,
        /// The place, as a JSON pointer; empty for the whole fragment.
        path: String,
        /// What belongs there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The schema requires what no fragment has.
    Missing {
        /// The place, as a JSON pointer.
        path: String,
    },
    /// A fragment is too large to be read.
    FragmentTooLarge {
        /// The fragment's name.
        fragment: String,
        /// Its size.
        bytes: usize,
    },
    /// There are too many keys under the application.
    TooManyFragments,
    /// The fragments are too large together.
    InputTooLarge,
    /// The result is too large to be written.
    OutputTooLarge {
        /// Its size.
        bytes: usize,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Misplaced { key, reason } => write!(f, "key `{}`: {reason}", quote(key)),
            Reason::NotJson { fragment, reason } => {
                write!(f, "fragment `{fragment}`: expected a JSON object, found text that is not JSON: {reason}")
            }
            Reason::Unexpected { fragment, path, expected, found } if path.is_empty() => {
                write!(f, "fragment `{fragment}`: expected {}, found {}", quote(expected), quote(found))
            }
            Reason::Unexpected { fragment, path, expected, found } => {
                write!(f, "fragment `{fragment}`: at {}: expected {}, found {}", quote(path), quote(expected), quote(found))
            }
            Reason::Missing { path } => write!(f, "no fragment has {}, which `_schema` requires", quote(path)),
            Reason::FragmentTooLarge { fragment, bytes } => {
                write!(f, "fragment `{fragment}`: expected at most {FRAGMENT_BYTES_MAX} bytes, found {bytes}")
            }
            Reason::TooManyFragments => write!(f, "expected at most {FRAGMENTS_MAX} fragments, found more"),
            Reason::InputTooLarge => write!(f, "expected at most {INPUT_BYTES_MAX} bytes of fragments together, found more"),
            Reason::OutputTooLarge { bytes } => {
                write!(f, "the merged configuration has {bytes} bytes, expected at most {OUTPUT_BYTES_MAX}")
            }
        }
    }
}

fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_CHARS_MAX) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}

/// Why nothing new is rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// All that is wrong, at least one.
    pub reasons: Vec<Reason>,
    /// Whether what was rendered before stays. It does not when the last fragment is gone.
    pub keeps_output: bool,
}

impl Refused {
    /// One reason; what was rendered stays.
    pub fn one(reason: Reason) -> Self {
        Refused { reasons: vec![reason], keeps_output: true }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.reasons.iter().take(PROBLEMS_MAX).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{reason}")?;
        }
        match self.reasons.len().saturating_sub(PROBLEMS_MAX) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}
