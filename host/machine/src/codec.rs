//! The byte codec under every format of this crate: little pieces written and read back, hostile bytes refused.
//!
//! - *varint*: unsigned LEB128, 1 to 10 bytes, low 7 bits first, the high bit of a byte says that another follows. The shortest
//!   form is the only one accepted, so that equal values have equal bytes.
//! - *u64*, *u32*: 8 and 4 bytes, little-endian.
//! - *bytes*: a varint length, then that many bytes. *text* is bytes that are UTF-8.
//!
//! **Invariant:** reading never allocates more than it was given and never panics.

use bytes::Bytes;

/// Why stored bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes end in the middle of a field.
    #[error("{what}: cut off")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// Written by another version of kvasir.
    #[error("{what}: format version {found} is not known to this version of kvasir")]
    UnknownVersion {
        /// What was being read.
        what: &'static str,
        /// The version byte.
        found: u8,
    },
    /// A field has a value that is never written.
    #[error("{what}: {why}")]
    Invalid {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Rows that do not fit together.
    #[error("history at {at}: {why}")]
    History {
        /// Revision of the row that does not fit.
        at: crate::Rev,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Appends fields to a buffer.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(version: u8, capacity: usize) -> Self {
        let mut out = Vec::with_capacity(capacity + 1);
        out.push(version);
        Self(out)
    }

    pub(crate) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn fixed64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// The last field: its length is what is left.
    pub(crate) fn rest(&mut self, value: &[u8]) {
        self.0.extend_from_slice(value);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes fields off shared bytes without copying them.
pub(crate) struct Reader<'a> {
    what: &'static str,
    source: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads the version byte and refuses any but `version`.
    pub(crate) fn new(what: &'static str, version: u8, source: &'a Bytes) -> Result<Self, FormatError> {
        let mut reader = Self { what, source, at: 0 };
        match reader.byte()? {
            found if found == version => Ok(reader),
            found => Err(FormatError::UnknownVersion { what, found }),
        }
    }

    /// Reads the version byte, one of `versions`.
    pub(crate) fn of_versions(
        what: &'static str,
        versions: std::ops::RangeInclusive<u8>,
        source: &'a Bytes,
    ) -> Result<(Self, u8), FormatError> {
        let mut reader = Self { what, source, at: 0 };
        match reader.byte()? {
            found if versions.contains(&found) => Ok((reader, found)),
            found => Err(FormatError::UnknownVersion { what, found }),
        }
    }

    pub(crate) fn invalid(&self, why: &'static str) -> FormatError {
        FormatError::Invalid { what: self.what, why }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.source.len());
        let end = end.ok_or(FormatError::Truncated { what: self.what })?;
        let taken = &self.source[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, FormatError> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn varint(&mut self) -> Result<u64, FormatError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.invalid("a number is too large"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                let shortest = shift == 0 || byte != 0;
                return if shortest { Ok(value) } else { Err(self.invalid("a number is not in its shortest form")) };
            }
        }
        Err(self.invalid("a number is too long"))
    }

    pub(crate) fn varint32(&mut self) -> Result<u32, FormatError> {
        u32::try_from(self.varint()?).map_err(|_| self.invalid("a number is too large"))
    }

    pub(crate) fn fixed64(&mut self) -> Result<u64, FormatError> {
        let mut value = [0; 8];
        value.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(value))
    }

    pub(crate) fn bool(&mut self) -> Result<bool, FormatError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.invalid("a flag is neither 0 nor 1")),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, FormatError> {
        let length = usize::try_from(self.varint()?).map_err(|_| FormatError::Truncated { what: self.what })?;
        Ok(self.source.slice_ref(self.take(length)?))
    }

    pub(crate) fn text(&mut self) -> Result<String, FormatError> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.invalid("text is not UTF-8"))
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> Bytes {
        self.source.slice(self.at..)
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), FormatError> {
        if self.at == self.source.len() { Ok(()) } else { Err(self.invalid("there are bytes after the end")) }
    }
}
