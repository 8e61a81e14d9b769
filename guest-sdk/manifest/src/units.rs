//! Sizes, durations and names as a manifest writes them: text with a unit, typed once.
//!
//! **Invariant:** parse and print round-trip, so that the replicated form of a manifest means what the author wrote.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number of bytes, written `"32MiB"`, `"256KiB"`, `"1GiB"` or `"100B"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

/// A span of time in whole milliseconds, written `"200ms"`, `"2s"`, `"5m"` or `"1h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

/// From the shortest to the longest wait, written `"1s..30s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpanRange {
    /// The first wait.
    pub first: Span,
    /// No wait is longer.
    pub last: Span,
}

/// The name of a plugin or the id of a trigger: `[a-z0-9-]{1,63}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fits = (1..=63).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if fits { Ok(Self(text)) } else { Err(format!("`{}` is not a name; use 1 to 63 of a-z, 0-9 and -", short(&text))) }
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (number, unit) = number_and_unit(&text);
        let factor = match unit {
            "B" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            _ => None,
        };
        factor.and_then(|factor: u64| number?.checked_mul(factor)).map(Self).ok_or_else(|| {
            format!("`{}` is not a size; write a whole number and B, KiB, MiB or GiB, like \"32MiB\"", short(&text))
        })
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        bytes.to_string()
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (number, unit) = number_and_unit(&text);
        let factor = match unit {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        factor.and_then(|factor: u64| number?.checked_mul(factor)).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(|| {
            format!("`{}` is not a duration; write a whole number and ms, s, m or h, like \"200ms\"", short(&text))
        })
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        for (factor, unit) in [(3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
            if ms > 0 && ms.is_multiple_of(factor) {
                return write!(f, "{}{unit}", ms / factor);
            }
        }
        write!(f, "{ms}ms")
    }
}

impl TryFrom<String> for SpanRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (first, last) = text.split_once("..").ok_or_else(|| {
            format!("`{}` is not a range of durations; write the first and the longest wait, like \"1s..30s\"", short(&text))
        })?;
        let (first, last) = (Span::try_from(first.to_owned())?, Span::try_from(last.to_owned())?);
        if first > last {
            return Err(format!("`{}` ends before it starts; write the shorter wait first", short(&text)));
        }
        Ok(Self { first, last })
    }
}

impl From<SpanRange> for String {
    fn from(range: SpanRange) -> String {
        format!("{}..{}", range.first, range.last)
    }
}

/// Splits at the end of the leading digits; the number is `None` when there is none or it does not fit.
fn number_and_unit(text: &str) -> (Option<u64>, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    (number.parse().ok(), unit.trim_start())
}

/// What an error quotes of outside text.
pub fn short(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut quoted: String = text.chars().take(CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() > CHARS_MAX {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_print_as_they_parse() {
        for text in ["32MiB", "256KiB", "1GiB", "100B", "0B"] {
            assert_eq!(Bytes::try_from(text.to_owned()).map(String::from).as_deref(), Ok(text));
        }
        for text in ["200ms", "2s", "5m", "1h", "1500ms", "0ms"] {
            assert_eq!(Span::try_from(text.to_owned()).map(String::from).as_deref(), Ok(text));
        }
        assert_eq!(SpanRange::try_from("1s..30s".to_owned()).map(String::from).as_deref(), Ok("1s..30s"));
    }

    #[test]
    fn a_number_without_a_unit_or_with_another_is_refused() {
        for text in ["", "32", "MiB", "32MB", "-1KiB", "1.5MiB", "99999999999999999999MiB", "18446744073709551615GiB"] {
            assert!(Bytes::try_from(text.to_owned()).is_err(), "{text}");
        }
        for text in ["", "5", "s", "5 days", "1e3s"] {
            assert!(Span::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert!(SpanRange::try_from("30s..1s".to_owned()).is_err());
        assert!(SpanRange::try_from("1s".to_owned()).is_err());
    }

    #[test]
    fn names_are_lower_case_and_short() {
        for text in ["a", "config-render", "0"] {
            assert!(Name::try_from(text.to_owned()).is_ok());
        }
        for text in ["", "A", "a/b", "a b", "é", &"x".repeat(64)] {
            assert!(Name::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
