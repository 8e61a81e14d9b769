//! Frames on a stream: a length of four bytes, little-endian, then that many bytes.
//!
//! A length of its own size keeps a header out of what is behind it, so that an entry is sent from the bytes it has in the log.
//!
//! **Invariant:** no room is made for more than has come in, whatever the length says.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes of a frame's length.
pub const HEAD_BYTES: usize = 4;

/// What a stream carries that is no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length above the bound.
    #[error("a frame of {length} bytes is announced, more than the {limit} that are allowed")]
    TooLong {
        /// What it said.
        length: u32,
        /// What may be.
        limit: u32,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended {missing} bytes before the end of a frame")]
    Cut {
        /// How much is missing, as far as is known.
        missing: usize,
    },
}

/// The head of a frame of `length` bytes.
pub fn head(length: u32) -> [u8; HEAD_BYTES] {
    length.to_le_bytes()
}

/// Takes frames out of the bytes of a stream as they come in.
#[derive(Debug)]
pub struct Decoder {
    held: BytesMut,
    limit: u32,
}

impl Decoder {
    /// A decoder of frames of at most `limit` bytes.
    pub fn new(limit: u32) -> Self {
        Self { held: BytesMut::new(), limit }
    }

    /// Takes what came in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there.
    ///
    /// # Errors
    /// [`FrameError::TooLong`], as soon as the length is known.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.announced() else { return Ok(None) };
        if length > self.limit {
            return Err(FrameError::TooLong { length, limit: self.limit });
        }
        let whole = HEAD_BYTES + length as usize;
        if self.held.len() < whole {
            return Ok(None);
        }
        let mut frame = self.held.split_to(whole);
        frame.advance(HEAD_BYTES);
        Ok(Some(frame.freeze()))
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Cut`] inside a frame.
    pub fn end(&self) -> Result<(), FrameError> {
        if self.held.is_empty() {
            return Ok(());
        }
        let whole = self.announced().map_or(HEAD_BYTES, |length| HEAD_BYTES + length as usize);
        Err(FrameError::Cut { missing: whole.saturating_sub(self.held.len()) })
    }

    fn announced(&self) -> Option<u32> {
        self.held.first_chunk::<HEAD_BYTES>().map(|head| u32::from_le_bytes(*head))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20),
            cuts in proptest::collection::vec(1usize..64, 1..64),
        ) {
            let mut bytes = Vec::new();
            for frame in &frames {
                bytes.extend_from_slice(&head(u32::try_from(frame.len()).unwrap()));
                bytes.extend_from_slice(frame);
            }
            let mut decoder = Decoder::new(200);
            let mut out = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, left) = rest.split_at((*cut).min(rest.len()));
                rest = left;
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    out.push(frame.to_vec());
                }
            }
            prop_assert_eq!(decoder.end(), Ok(()));
            prop_assert_eq!(out, frames);
        }

        #[test]
        fn any_bytes_are_frames_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut decoder = Decoder::new(64);
            decoder.push(&bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                prop_assert!(frame.len() <= 64);
            }
        }
    }

    #[test]
    fn a_length_above_the_bound_is_refused_before_its_bytes_come() {
        let mut decoder = Decoder::new(10);
        decoder.push(&head(11));
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLong { length: 11, limit: 10 }));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_told_so() {
        let mut decoder = Decoder::new(10);
        decoder.push(&head(5));
        decoder.push(b"ab");
        assert_eq!(decoder.next_frame(), Ok(None));
        assert_eq!(decoder.end(), Err(FrameError::Cut { missing: 3 }));
    }
}
