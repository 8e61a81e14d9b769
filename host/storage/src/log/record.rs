//! One record of a segment, byte by byte (`docs/storage.md`, "Log records").
//!
//! **Invariant:** a record verifies only at the place it was written to: its header's checksum covers segment number and
//! offset. Decoding never panics and never allocates more than the record's verified length.

use super::entry::{EntryKind, LogEntry, LogId, Vote};
use super::view::View;
use bytes::Bytes;

/// Bytes of a record before its body.
pub(super) const HEADER_BYTES: usize = 24;
/// Records start at multiples of this.
pub(super) const ALIGN: usize = 8;
/// An entry's body before its payload.
pub(super) const ENTRY_HEAD_BYTES: usize = 25;
const MARK: u8 = 0xa7;
/// A disk writes a sector whole or not at all.
const SECTOR: u64 = 512;

/// What a segment is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// First in every segment: all that the segments before it established.
    Head(View),
    Entry(LogEntry),
    Vote(Vote),
    Committed(LogId),
    /// Entries after this one are void; all unpurged ones if `None`.
    Truncate(Option<LogId>),
    /// Entries up to this one are no longer needed.
    Purge(LogId),
    /// Last in every segment but the newest.
    Seal,
}

/// A record's header, verified.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) body_crc: u32,
    pub(super) body_len: u32,
    pub(super) kind: u8,
    /// Bytes of the segment before this offset were synced when the record was written.
    pub(super) synced: u32,
}

/// What stands where a header should be.
#[derive(Debug)]
pub(super) enum HeaderRead {
    /// A header that verifies.
    Valid(Header),
    /// Nothing but zeros.
    Blank,
    /// A header of which a whole sector is missing.
    Torn,
    /// Something that no power cut leaves.
    Damaged,
}

impl Header {
    /// Bytes from this record's start to the next one's.
    pub(super) fn span(&self) -> u64 {
        span(self.body_len as usize)
    }

    /// Reads the header at `offset` of segment `segment`.
    pub(super) fn read(bytes: &[u8; HEADER_BYTES], segment: u64, offset: u64) -> HeaderRead {
        if bytes.iter().all(|byte| *byte == 0) {
            return HeaderRead::Blank;
        }
        if let Some(header) = Self::verify(bytes, segment, offset) {
            return HeaderRead::Valid(header);
        }
        let first = (SECTOR - offset % SECTOR) as usize;
        let half_missing = first < HEADER_BYTES
            && (bytes[..first].iter().all(|byte| *byte == 0) || bytes[first..].iter().all(|byte| *byte == 0));
        if half_missing { HeaderRead::Torn } else { HeaderRead::Damaged }
    }

    /// The header if it verifies at this place.
    pub(super) fn verify(bytes: &[u8; HEADER_BYTES], segment: u64, offset: u64) -> Option<Self> {
        if bytes[9] != MARK || le_u32(bytes, 20) != header_crc(bytes, segment, offset) {
            return None;
        }
        Some(Self { body_crc: le_u32(bytes, 0), body_len: le_u32(bytes, 4), kind: bytes[8], synced: le_u32(bytes, 12) })
    }

    /// Whether a body that does not verify has a whole sector missing, as after a power cut. The header, which starts at
    /// `offset`, did verify, so the sector it ends in did arrive.
    pub(super) fn torn(&self, offset: u64, body: &[u8]) -> bool {
        let start = offset + HEADER_BYTES as u64;
        let first = ((SECTOR - start % SECTOR) % SECTOR) as usize;
        body.get(first..).is_some_and(|rest| rest.chunks(SECTOR as usize).any(|part| part.iter().all(|byte| *byte == 0)))
    }
}

/// Bytes that a record with such a body takes.
pub(super) fn span(body_len: usize) -> u64 {
    (HEADER_BYTES + body_len).next_multiple_of(ALIGN) as u64
}

/// Bytes that an entry with such a payload takes.
pub(super) fn entry_span(payload_len: usize) -> u64 {
    span(ENTRY_HEAD_BYTES + payload_len)
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Self::Head(_) => 1,
            Self::Entry(_) => 2,
            Self::Vote(_) => 3,
            Self::Committed(_) => 4,
            Self::Truncate(_) => 5,
            Self::Purge(_) => 6,
            Self::Seal => 7,
        }
    }

    /// Appends the record, which will stand at `offset` of segment `segment`.
    pub(super) fn encode(&self, buffer: &mut Vec<u8>, segment: u64, offset: u64, synced: u32) {
        let start = buffer.len();
        buffer.extend_from_slice(&[0; HEADER_BYTES]);
        match self {
            Self::Head(view) => {
                put_vote(buffer, view.vote);
                put_log_id(buffer, view.committed);
                put_log_id(buffer, view.purged);
                put_log_id(buffer, view.last);
            }
            Self::Entry(entry) => {
                put_id(buffer, entry.id);
                buffer.push(entry.kind.code());
                buffer.extend_from_slice(&entry.payload);
            }
            Self::Vote(vote) => put_vote(buffer, Some(*vote)),
            Self::Committed(id) | Self::Purge(id) => put_id(buffer, *id),
            Self::Truncate(after) => put_log_id(buffer, *after),
            Self::Seal => {}
        }
        let body = start + HEADER_BYTES;
        let body_crc = crc32c::crc32c(&buffer[body..]);
        let body_len = (buffer.len() - body) as u32;
        buffer.resize(buffer.len().next_multiple_of(ALIGN), 0);
        let mut header = [0; HEADER_BYTES];
        header[0..4].copy_from_slice(&body_crc.to_le_bytes());
        header[4..8].copy_from_slice(&body_len.to_le_bytes());
        header[8] = self.kind();
        header[9] = MARK;
        header[12..16].copy_from_slice(&synced.to_le_bytes());
        let crc = header_crc(&header, segment, offset);
        header[20..24].copy_from_slice(&crc.to_le_bytes());
        buffer[start..body].copy_from_slice(&header);
    }

    /// The record of a verified header and body; `Err` says what does not fit.
    pub(super) fn decode(kind: u8, body: &Bytes) -> Result<Self, &'static str> {
        let mut at = Reader(body);
        let record = match kind {
            1 => Self::Head(View { vote: at.vote()?, committed: at.log_id()?, purged: at.log_id()?, last: at.log_id()? }),
            2 => {
                let id = at.id()?;
                let kind = EntryKind::from_code(at.u8()?).ok_or("an entry of unknown kind")?;
                return Ok(Self::Entry(LogEntry { id, kind, payload: body.slice(ENTRY_HEAD_BYTES..) }));
            }
            3 => Self::Vote(at.vote()?.ok_or("a vote record without a vote")?),
            4 => Self::Committed(at.id()?),
            5 => Self::Truncate(at.log_id()?),
            6 => Self::Purge(at.id()?),
            7 => Self::Seal,
            _ => return Err("a record of unknown type"),
        };
        if at.0.is_empty() { Ok(record) } else { Err("a record longer than its content") }
    }
}

fn header_crc(header: &[u8; HEADER_BYTES], segment: u64, offset: u64) -> u32 {
    let crc = crc32c::crc32c(&segment.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    crc32c::crc32c_append(crc, &header[..20])
}

fn le_u32(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put_id(buffer: &mut Vec<u8>, id: LogId) {
    buffer.extend_from_slice(&id.term.to_le_bytes());
    buffer.extend_from_slice(&id.node.to_le_bytes());
    buffer.extend_from_slice(&id.index.to_le_bytes());
}

fn put_log_id(buffer: &mut Vec<u8>, id: Option<LogId>) {
    buffer.push(u8::from(id.is_some()));
    put_id(buffer, id.unwrap_or_default());
}

fn put_vote(buffer: &mut Vec<u8>, vote: Option<Vote>) {
    buffer.push(u8::from(vote.is_some()));
    let vote = vote.unwrap_or_default();
    buffer.extend_from_slice(&vote.term.to_le_bytes());
    buffer.extend_from_slice(&vote.node.to_le_bytes());
    buffer.push(u8::from(vote.committed));
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u8(&mut self) -> Result<u8, &'static str> {
        let (byte, rest) = self.0.split_first().ok_or("a record shorter than its content")?;
        self.0 = rest;
        Ok(*byte)
    }

    fn flag(&mut self) -> Result<bool, &'static str> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag that is neither 0 nor 1"),
        }
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or("a record shorter than its content")?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    fn id(&mut self) -> Result<LogId, &'static str> {
        Ok(LogId { term: self.u64()?, node: self.u64()?, index: self.u64()? })
    }

    fn log_id(&mut self) -> Result<Option<LogId>, &'static str> {
        let present = self.flag()?;
        let id = self.id()?;
        Ok(present.then_some(id))
    }

    fn vote(&mut self) -> Result<Option<Vote>, &'static str> {
        let present = self.flag()?;
        let vote = Vote { term: self.u64()?, node: self.u64()?, committed: self.flag()? };
        Ok(present.then_some(vote))
    }
}
