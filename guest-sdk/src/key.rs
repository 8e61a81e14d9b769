//! Keys and selections of keys.
//!
//! Invariant: a key is bytes; text is a view of it that may fail.

use std::fmt;
use std::ops::Deref;

/// A key: any bytes, not empty. Prints as text where it is text, with escapes where it is not.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(Vec<u8>);

impl Key {
    /// The key as text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// What follows `prefix`, if the key is text and starts with it.
    pub fn strip_prefix(&self, prefix: &str) -> Option<&str> {
        self.as_str()?.strip_prefix(prefix)
    }

    /// The last segment of a path-like key: `"b"` of `/a/b`. Empty if the key is not text or ends in a slash.
    pub fn name(&self) -> &str {
        self.as_str().map_or("", |text| text.rsplit('/').next().unwrap_or(text))
    }
}

impl Deref for Key {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Key {
    fn from(bytes: Vec<u8>) -> Self {
        Key(bytes)
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Self {
        Key(bytes.to_vec())
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Key(text.into_bytes())
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Key(text.as_bytes().to_vec())
    }
}

impl PartialEq<str> for Key {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Key {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_str() {
            Some(text) if !text.contains(char::is_control) => f.write_str(text),
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Which keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Exactly this key.
    Key(Key),
    /// Every key that starts with these bytes; empty bytes mean every key.
    Prefix(Key),
    /// Every key from the first (included) to the second (excluded).
    Span(Key, Key),
}

impl Selection {
    /// Exactly this key.
    pub fn key(key: impl AsRef<[u8]>) -> Self {
        Selection::Key(Key::from(key.as_ref()))
    }

    /// Every key that starts with these bytes.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        Selection::Prefix(Key::from(prefix.as_ref()))
    }

    /// Every key from `from` (included) to `to` (excluded).
    pub fn span(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        Selection::Span(Key::from(from.as_ref()), Key::from(to.as_ref()))
    }

    /// Whether the key is one of them.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Selection::Key(only) => only.as_bytes() == key,
            Selection::Prefix(prefix) => key.starts_with(prefix),
            Selection::Span(from, to) => from.as_bytes() <= key && key < to.as_bytes(),
        }
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selection::Key(key) => write!(f, "key {key}"),
            Selection::Prefix(prefix) => write!(f, "keys under {prefix}"),
            Selection::Span(from, to) => write!(f, "keys from {from} to {to}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_not_text_prints_with_escapes() {
        assert_eq!(Key::from("/a/ö").to_string(), "/a/ö");
        assert_eq!(Key::from(&b"/a/\xff\x00"[..]).to_string(), "/a/\\xff\\x00");
        assert_eq!(Key::from("/a/b").name(), "b");
        assert_eq!(Key::from("/a/").name(), "");
        assert_eq!(Key::from(&b"\xff"[..]).name(), "");
    }

    #[test]
    fn a_selection_contains_what_it_says() {
        assert!(Selection::prefix("/a/").contains(b"/a/b"));
        assert!(!Selection::prefix("/a/").contains(b"/a"));
        assert!(Selection::span("a", "c").contains(b"b\xff"));
        assert!(!Selection::span("a", "c").contains(b"c"));
        assert!(Selection::prefix("").contains(b"x"));
    }
}
