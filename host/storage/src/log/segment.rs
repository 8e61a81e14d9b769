//! One segment file: its header, how it comes to be, and its records in order.
//!
//! **Invariant:** a segment has its final name only once its header and its zeros are durable, so that a record is always
//! written over zeros that are on the disk.

use super::record::{HEADER_BYTES, Header, HeaderRead};
use crate::StorageError;
use crate::disk::{Disk, DiskFile};
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a segment before its first record.
pub(super) const SEGMENT_HEADER_BYTES: u64 = 64;
/// The log's format version.
pub(super) const FORMAT_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"KVSRLOG\0";
const SUFFIX: &str = ".log";
const ZEROS_AT_ONCE: usize = 1 << 20;
/// The zeros are synced in pieces, so that a sync of the log beside them waits for no more than one piece.
const SYNC_EVERY_BYTES: u64 = 8 << 20;
/// A segment's offsets fit 32 bits.
const CAPACITY_MAX: u64 = 1 << 30;

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    /// Length of the file in bytes; fixed.
    pub(super) capacity: u64,
}

/// The path of a segment.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}{SUFFIX}"))
}

/// The number in a segment's file name.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (digits.len() == 16 && format!("{number:016x}") == digits).then_some(number)
}

/// The name under which a segment is made ready.
pub(super) fn unfinished(dir: &Path) -> PathBuf {
    dir.join("next.tmp")
}

fn header(number: u64, capacity: u64) -> [u8; SEGMENT_HEADER_BYTES as usize] {
    let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
    bytes[0..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    bytes[24..32].copy_from_slice(&capacity.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    bytes
}

impl Segment {
    /// Makes a segment: header and written zeros, durable, then its name, durable. What a failed making leaves is removed: on a
    /// full disk it would hold the last room.
    pub(super) fn create(disk: &dyn Disk, dir: &Path, number: u64, capacity: u64) -> Result<Self, StorageError> {
        Self::make(disk, dir, number, capacity).inspect_err(|_| {
            let _ = disk.remove(&unfinished(dir));
        })
    }

    fn make(disk: &dyn Disk, dir: &Path, number: u64, capacity: u64) -> Result<Self, StorageError> {
        let unfinished = unfinished(dir);
        let path = path(dir, number);
        let fail = |doing| {
            let path = path.clone();
            move |source| StorageError::io(&path, doing, source)
        };
        let file = disk.create(&unfinished).map_err(fail("create the log segment"))?;
        let zeros = vec![0; ZEROS_AT_ONCE.min(capacity as usize)];
        let mut at = 0;
        let mut unsynced = 0;
        while at < capacity {
            let part = (capacity - at).min(zeros.len() as u64);
            file.write_at(at, &zeros[..part as usize]).map_err(fail("preallocate the log segment"))?;
            at += part;
            unsynced += part;
            if unsynced >= SYNC_EVERY_BYTES {
                file.sync_data().map_err(fail("sync the log segment"))?;
                unsynced = 0;
            }
        }
        file.write_at(0, &header(number, capacity)).map_err(fail("write the log segment"))?;
        file.sync_data().map_err(fail("sync the log segment"))?;
        disk.rename(&unfinished, &path).map_err(fail("name the log segment"))?;
        disk.sync_dir(dir).map_err(fail("sync the log folder"))?;
        Ok(Self { number, path, file, capacity })
    }

    /// Opens a segment and verifies its header.
    pub(super) fn open(disk: &dyn Disk, dir: &Path, number: u64) -> Result<Self, StorageError> {
        let path = path(dir, number);
        let file = disk.open(&path).map_err(|source| StorageError::io(&path, "open the log segment", source))?;
        let read = |source| StorageError::io(&path, "read the log segment", source);
        let len = file.len().map_err(read)?;
        if len < SEGMENT_HEADER_BYTES {
            return Err(StorageError::corrupt(&path, 0, "the file is shorter than a segment's header"));
        }
        let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
        file.read_at(0, &mut bytes).map_err(read)?;
        if bytes[..8] != MAGIC[..] {
            return Err(StorageError::corrupt(&path, 0, "not a log segment"));
        }
        if crc32c::crc32c(&bytes[..60]) != u32_at(&bytes, 60) {
            return Err(StorageError::corrupt(&path, 0, "the segment's header fails its checksum"));
        }
        let version = u32_at(&bytes, 8);
        if version != FORMAT_VERSION {
            return Err(StorageError::OtherVersion { path, found: version.to_string(), supported: FORMAT_VERSION });
        }
        let (stored, capacity) = (u64_at(&bytes, 16), u64_at(&bytes, 24));
        if stored != number {
            return Err(StorageError::corrupt(&path, 16, format!("the file holds segment {stored}")));
        }
        if capacity != len || capacity > CAPACITY_MAX {
            let what = format!("the file has {len} bytes and its header says {capacity}");
            return Err(StorageError::corrupt(&path, 24, what));
        }
        Ok(Self { number, path, file, capacity })
    }

    pub(super) fn fail(&self, doing: &'static str) -> impl Fn(std::io::Error) -> StorageError + '_ {
        move |source| StorageError::io(&self.path, doing, source)
    }
}

fn u32_at(bytes: &[u8; SEGMENT_HEADER_BYTES as usize], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; SEGMENT_HEADER_BYTES as usize], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// A window on a segment's bytes that moves forward.
pub(super) struct Window<'a> {
    segment: &'a Segment,
    start: u64,
    bytes: Vec<u8>,
}

const WINDOW_BYTES: u64 = 1 << 20;

/// What stands at a place of a segment.
pub(super) enum Place {
    /// A record that verifies.
    Record(Header, Bytes),
    /// Zeros where a header would be.
    Blank,
    /// A record of which a whole sector never arrived.
    Torn,
    /// Bytes that no power cut leaves behind.
    Damaged(&'static str),
}

impl<'a> Window<'a> {
    pub(super) fn new(segment: &'a Segment) -> Self {
        Self { segment, start: 0, bytes: Vec::new() }
    }

    /// The `len` bytes at `offset`, which must be within the segment.
    pub(super) fn bytes(&mut self, offset: u64, len: usize) -> Result<&[u8], StorageError> {
        let within = offset >= self.start && offset + len as u64 <= self.start + self.bytes.len() as u64;
        if !within {
            let want = (len as u64).max(WINDOW_BYTES).min(self.segment.capacity.saturating_sub(offset));
            self.bytes.resize(want as usize, 0);
            self.start = offset;
            self.segment.file.read_at(offset, &mut self.bytes).map_err(self.segment.fail("read the log segment"))?;
        }
        let at = (offset - self.start) as usize;
        self.bytes
            .get(at..at + len)
            .ok_or_else(|| StorageError::corrupt(&self.segment.path, offset, "a record reaches past the segment's end"))
    }

    /// Reads what stands at `offset`.
    pub(super) fn place(&mut self, offset: u64) -> Result<Place, StorageError> {
        let capacity = self.segment.capacity;
        if offset + HEADER_BYTES as u64 > capacity {
            return Ok(Place::Blank);
        }
        let number = self.segment.number;
        let mut head = [0; HEADER_BYTES];
        head.copy_from_slice(self.bytes(offset, HEADER_BYTES)?);
        let header = match Header::read(&head, number, offset) {
            HeaderRead::Valid(header) => header,
            HeaderRead::Blank => return Ok(Place::Blank),
            HeaderRead::Torn => return Ok(Place::Torn),
            HeaderRead::Damaged => return Ok(Place::Damaged("a record's header fails its checksum")),
        };
        if offset + header.span() > capacity || u64::from(header.synced) > offset {
            return Ok(Place::Damaged("a record's header does not fit its place"));
        }
        let body = self.bytes(offset + HEADER_BYTES as u64, header.body_len as usize)?;
        if crc32c::crc32c(body) == header.body_crc {
            return Ok(Place::Record(header, Bytes::copy_from_slice(body)));
        }
        if header.torn(offset, body) {
            return Ok(Place::Torn);
        }
        Ok(Place::Damaged("a record's content fails its checksum"))
    }

    /// The offset of the first record at or after `from` that was written after everything before `hole` was synced, and the
    /// offset after the last byte that is not zero.
    pub(super) fn beyond(&mut self, hole: u64, from: u64) -> Result<(Option<u64>, u64), StorageError> {
        let (number, capacity) = (self.segment.number, self.segment.capacity);
        let mut used = hole;
        let mut at = from.next_multiple_of(8);
        while at < capacity {
            let len = (capacity - at).min(WINDOW_BYTES);
            let bytes = self.bytes(at, len as usize)?;
            if let Some(end) = used_bytes(bytes) {
                used = used.max(at + end as u64);
                let step_end = if at + len == capacity { len as usize } else { len as usize - HEADER_BYTES };
                let mut offset = 0;
                while offset < step_end && offset + HEADER_BYTES <= bytes.len() {
                    let mut head = [0; HEADER_BYTES];
                    head.copy_from_slice(&bytes[offset..offset + HEADER_BYTES]);
                    if let Some(header) = Header::verify(&head, number, at + offset as u64)
                        && u64::from(header.synced) > hole
                    {
                        return Ok((Some(at + offset as u64), used));
                    }
                    offset += 8;
                }
            }
            if at + len == capacity {
                break;
            }
            // Windows overlap by a header, so that none is missed between two.
            at += len - HEADER_BYTES as u64;
        }
        Ok((None, used))
    }
}

/// Bytes up to the last that is not zero; `None` if all are.
fn used_bytes(bytes: &[u8]) -> Option<usize> {
    const PAGE: usize = 4096;
    const ZEROS: [u8; PAGE] = [0; PAGE];
    for (page, part) in bytes.chunks(PAGE).enumerate().rev() {
        if part != &ZEROS[..part.len()] {
            return part.iter().rposition(|byte| *byte != 0).map(|last| page * PAGE + last + 1);
        }
    }
    None
}
