//! Keys and ranges on the command line: what `--prefix` and `--from-key` mean, as etcdctl has it.
//!
//! **Invariant:** pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use bytes::Bytes;
use kvasir_engine::KeyRange;

/// A key with an optional end, and the flags that turn it into a range.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Keys {
    /// The key, or the first of a range; any bytes
    #[arg(value_name = "KEY")]
    key: OsString,
    /// End of the range, excluded
    #[arg(value_name = "RANGE_END", conflicts_with_all = ["prefix", "from_key"])]
    range_end: Option<OsString>,
    /// Every key that starts with KEY
    #[arg(long, conflicts_with = "from_key")]
    prefix: bool,
    /// Every key from KEY on
    #[arg(long)]
    from_key: bool,
}

impl Keys {
    /// The range that etcd's API takes: an empty end means the key alone, `\0` everything from the key on.
    pub(super) fn range(self) -> (Bytes, Bytes) {
        let key = self.key.into_vec();
        let everything = Bytes::from_static(b"\0");
        if self.from_key {
            let from = if key.is_empty() { everything.clone() } else { key.into() };
            return (from, everything);
        }
        if self.prefix {
            let range = KeyRange::prefix(key);
            return (range.key, range.range_end);
        }
        (key.into(), self.range_end.map(OsString::into_vec).unwrap_or_default().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(key: &[u8], prefix: bool, from_key: bool) -> (Bytes, Bytes) {
        Keys { key: OsString::from_vec(key.to_vec()), range_end: None, prefix, from_key }.range()
    }

    #[test]
    fn a_prefix_ends_where_its_last_byte_is_one_higher() {
        assert_eq!(keys(b"/a/", true, false), ("/a/".into(), "/a0".into()));
        assert_eq!(keys(b"a\xff", true, false), (Bytes::from_static(b"a\xff"), "b".into()));
        assert_eq!(keys(b"\xff\xff", true, false), (Bytes::from_static(b"\xff\xff"), "\0".into()));
    }

    #[test]
    fn an_empty_prefix_or_start_means_every_key() {
        assert_eq!(keys(b"", true, false), ("\0".into(), "\0".into()));
        assert_eq!(keys(b"", false, true), ("\0".into(), "\0".into()));
    }

    #[test]
    fn a_key_alone_has_no_end() {
        assert_eq!(keys(b"a", false, false), ("a".into(), Bytes::new()));
        assert_eq!(keys(b"a", false, true), ("a".into(), "\0".into()));
    }
}
