//! How a handler says that it did not succeed: again later, or never.
//!
//! Invariant: an error that nobody classified is a retry; only a plugin's explicit word, or a value that does not decode,
//! sends an input to the dead letters at once.

use std::error::Error as StdError;
use std::fmt;

/// What a handler returns.
pub type Outcome = Result<(), Fault>;

/// Why a handler did not succeed.
///
/// `?` turns any [`std::error::Error`] into [`Fault::Retry`] with the whole chain of causes as its text; a handler that knows
/// better says [`bail_reject!`](crate::bail_reject) or [`ResultExt::or_reject`].
#[derive(Clone, PartialEq, Eq)]
pub enum Fault {
    /// Run again later: the reason is outside the input.
    Retry(String),
    /// Never succeeds with this input: park it as a dead letter and go on.
    Reject(String),
}

impl Fault {
    /// The reason, without the kind.
    pub fn message(&self) -> &str {
        match self {
            Fault::Retry(message) | Fault::Reject(message) => message,
        }
    }

    /// The same fault with `what` in front of its reason.
    pub fn context(self, what: impl fmt::Display) -> Self {
        match self {
            Fault::Retry(message) => Fault::Retry(format!("{what}: {message}")),
            Fault::Reject(message) => Fault::Reject(format!("{what}: {message}")),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Retry(message) => write!(f, "retry: {message}"),
            Fault::Reject(message) => write!(f, "reject: {message}"),
        }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// `Fault` itself is not a `std::error::Error`, or this would overlap with `impl From<T> for T` (the same choice as `anyhow`'s).
impl<E: StdError> From<E> for Fault {
    fn from(error: E) -> Self {
        Fault::Retry(chain(&error))
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Many errors print their cause themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Classifies an error where it happens.
pub trait ResultExt<T> {
    /// The error, if any, is the input's: park it.
    ///
    /// # Errors
    /// [`Fault::Reject`] with the error's text.
    fn or_reject(self) -> Result<T, Fault>;
    /// The error, if any, is the environment's: try again later.
    ///
    /// # Errors
    /// [`Fault::Retry`] with the error's text.
    fn or_retry(self) -> Result<T, Fault>;
}

impl<T, E: fmt::Display> ResultExt<T> for Result<T, E> {
    fn or_reject(self) -> Result<T, Fault> {
        self.map_err(|error| Fault::Reject(error.to_string()))
    }

    fn or_retry(self) -> Result<T, Fault> {
        self.map_err(|error| Fault::Retry(error.to_string()))
    }
}

/// Returns [`Fault::Reject`] with a formatted reason: this input never succeeds.
#[macro_export]
macro_rules! bail_reject {
    ($($message:tt)+) => {
        return ::core::result::Result::Err($crate::Fault::Reject(::std::format!($($message)+)))
    };
}

/// Returns [`Fault::Retry`] with a formatted reason: run again later.
#[macro_export]
macro_rules! bail_retry {
    ($($message:tt)+) => {
        return ::core::result::Result::Err($crate::Fault::Retry(::std::format!($($message)+)))
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::num::ParseIntError);

    fn parse(text: &str) -> Outcome {
        text.parse::<u32>().map_err(Outer)?;
        Ok(())
    }

    fn refuse(text: &str) -> Outcome {
        text.parse::<u32>().or_reject()?;
        bail_reject!("{text} is a number, which is not wanted")
    }

    #[test]
    fn any_error_becomes_a_retry_that_tells_its_causes() {
        assert_eq!(parse("x"), Err(Fault::Retry("outer: invalid digit found in string".to_owned())));
    }

    #[test]
    fn a_reject_is_explicit() {
        assert_eq!(refuse("x"), Err(Fault::Reject("invalid digit found in string".to_owned())));
        assert_eq!(refuse("7"), Err(Fault::Reject("7 is a number, which is not wanted".to_owned())));
    }
}
