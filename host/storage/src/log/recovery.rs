//! Opening a log: every segment is read and verified, in order, and the end of the log is found.
//!
//! The torn-tail rule (`docs/storage.md`): a power cut leaves each sector of an unsynced write old (zeros) or new. So a record
//! that does not verify ends the log only if a whole sector of it is missing and no later record was written after its place
//! had been synced; then what follows is wiped. Anything else is damage, reported with file and offset, and nothing is changed.
//!
//! **Invariant:** nothing is written before everything has been verified.

use super::index::{Index, Position};
use super::record::Record;
use super::segment::{self, Place, SEGMENT_HEADER_BYTES, Segment, Window};
use super::view::View;
use crate::StorageError;
use crate::disk::Disk;
use std::path::Path;
use std::sync::Arc;

/// A log as found.
pub(super) struct Recovered {
    pub(super) view: View,
    pub(super) index: Index,
    /// The newest segment with records and the offset after the last; `None` for a log that has none.
    pub(super) active: Option<(Arc<Segment>, u64)>,
    /// A segment made ready for after `active`.
    pub(super) ready: Option<Segment>,
    /// The newest segment is sealed: the next record needs another.
    pub(super) sealed: bool,
    /// Some record was ever durable.
    pub(super) begun: bool,
}

struct Tail {
    end: u64,
    synced: u64,
    used: u64,
}

/// Reads the log in `dir`, then wipes its torn tail if it has one.
pub(super) fn recover(disk: &dyn Disk, dir: &Path) -> Result<Recovered, StorageError> {
    // A name may be there by a rename that was never made durable; what is written under it from now on must be.
    disk.sync_dir(dir).map_err(|source| StorageError::io(dir, "sync the log folder", source))?;
    let names = disk.list(dir).map_err(|source| StorageError::io(dir, "list the log folder", source))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment::number_of(name)).collect();
    numbers.sort_unstable();
    let mut found =
        Recovered { view: View::default(), index: Index::default(), active: None, ready: None, sealed: true, begun: false };
    let mut tail = None;
    let mut head_last = None;
    for (at, number) in numbers.iter().copied().enumerate() {
        if at > 0 && numbers[at - 1] + 1 != number {
            let missing = segment::path(dir, numbers[at - 1] + 1);
            return Err(StorageError::corrupt(&missing, 0, "the log segment is missing"));
        }
        let segment = Arc::new(Segment::open(disk, dir, number)?);
        if !found.sealed {
            if at + 1 != numbers.len() || !is_blank(&segment)? {
                let (last, end) = tail_of(&found);
                return Err(StorageError::corrupt(&last, end, "the segment is not sealed, and a later one is in use"));
            }
            found.ready = Arc::into_inner(segment);
            break;
        }
        if at + 1 == numbers.len() && is_blank(&segment)? && !wiped_head(&segment)? {
            // Made ready, never used: the log ends with the segment before.
            if at == 0 && number != 1 {
                return Err(StorageError::corrupt(&segment.path, 0, "the segments before this one are missing"));
            }
            found.ready = Arc::into_inner(segment);
            break;
        }
        let read = replay(&segment, at == 0, &mut found)?;
        if at == 0 {
            head_last = read.head_last;
        }
        found.sealed = read.sealed;
        tail = Some(read.tail);
    }
    if let Some(last) = head_last
        && found.view.purged.is_none_or(|purged| purged.index < last.index)
    {
        let first = segment::path(dir, numbers[0]);
        return Err(StorageError::corrupt(&first, 0, "segments with unpurged entries before this one are missing"));
    }
    if let (Some((segment, end)), Some(tail)) = (&found.active, tail) {
        settle(segment, *end, &tail)?;
    }
    if disk.exists(&segment::unfinished(dir)).unwrap_or(false) {
        let path = segment::unfinished(dir);
        disk.remove(&path).map_err(|source| StorageError::io(&path, "remove the unfinished segment", source))?;
    }
    found.index.purge(found.view.first());
    found.begun = found.active.as_ref().is_some_and(|(segment, end)| segment.number > 1 || *end > SEGMENT_HEADER_BYTES);
    Ok(found)
}

fn tail_of(found: &Recovered) -> (std::path::PathBuf, u64) {
    found.active.as_ref().map_or_else(Default::default, |(segment, end)| (segment.path.clone(), *end))
}

/// Whether no first record was ever begun in the segment.
fn is_blank(segment: &Segment) -> Result<bool, StorageError> {
    Ok(matches!(Window::new(segment).place(SEGMENT_HEADER_BYTES)?, Place::Blank))
}

/// Whether something follows a blank first record: the remains of an unsynced first write.
fn wiped_head(segment: &Segment) -> Result<bool, StorageError> {
    let (_, used) = Window::new(segment).beyond(SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES)?;
    Ok(used > SEGMENT_HEADER_BYTES)
}

struct Replayed {
    head_last: Option<super::entry::LogId>,
    sealed: bool,
    tail: Tail,
}

/// Takes in the records of a segment.
fn replay(segment: &Arc<Segment>, oldest: bool, found: &mut Recovered) -> Result<Replayed, StorageError> {
    found.index.add_segment(segment.clone());
    let mut window = Window::new(segment);
    let mut offset = SEGMENT_HEADER_BYTES;
    let mut read =
        Replayed { head_last: None, sealed: false, tail: Tail { end: offset, synced: SEGMENT_HEADER_BYTES, used: offset } };
    let damaged = |offset, what: &str| StorageError::corrupt(&segment.path, offset, what);
    while !read.sealed {
        let (header, body) = match window.place(offset)? {
            Place::Record(header, body) => (header, body),
            Place::Damaged(what) => return Err(damaged(offset, what)),
            Place::Blank | Place::Torn => {
                if oldest && offset == SEGMENT_HEADER_BYTES && segment.number != 1 {
                    return Err(damaged(offset, "the segments before this one are missing"));
                }
                let (later, used) = window.beyond(offset, offset)?;
                if later.is_some() {
                    return Err(damaged(offset, "a record that had been synced is missing or incomplete"));
                }
                read.tail.used = used;
                break;
            }
        };
        let record = Record::decode(header.kind, &body).map_err(|what| damaged(offset, what))?;
        match (&record, offset == SEGMENT_HEADER_BYTES) {
            (Record::Head(head), true) if oldest => {
                found.view = *head;
                read.head_last = head.last;
            }
            (Record::Head(_), true) => {}
            (Record::Head(_), false) | (_, true) => return Err(damaged(offset, "a record out of its place")),
            _ => {}
        }
        found.view.apply(&record).map_err(|what| damaged(offset, what))?;
        match &record {
            Record::Entry(entry) => {
                let position = Position { segment: segment.number, offset: offset as u32, span: header.span() as u32 };
                found.index.push(entry.id.index, position);
            }
            Record::Truncate(_) => found.index.truncate(found.view.next()),
            Record::Purge(_) => found.index.purge(found.view.first()),
            Record::Seal => read.sealed = true,
            Record::Head(_) | Record::Vote(_) | Record::Committed(_) => {}
        }
        read.tail.synced = read.tail.synced.max(u64::from(header.synced));
        offset += header.span();
    }
    read.tail.end = offset;
    found.active = Some((segment.clone(), offset));
    Ok(read)
}

/// Wipes what follows the log's end, and writes again what may only have reached the system's memory: after a failed sync the
/// system can serve bytes that are not on the disk.
fn settle(segment: &Segment, end: u64, tail: &Tail) -> Result<(), StorageError> {
    let from = tail.synced.max(SEGMENT_HEADER_BYTES).min(end);
    if from == end && tail.used <= end {
        return Ok(());
    }
    if tail.used > end {
        // Zeros in a sector are taken for a write that never arrived. Was it a synced one, the disk has lost it.
        tracing::warn!(
            path = %segment.path.display(),
            offset = end,
            bytes = tail.used - end,
            "the raft log ends in an incomplete record, as after a power cut; what follows is wiped"
        );
    }
    let write = segment.fail("write the log segment");
    let mut bytes = vec![0; (end - from) as usize];
    segment.file.read_at(from, &mut bytes).map_err(segment.fail("read the log segment"))?;
    segment.file.write_at(from, &bytes).map_err(&write)?;
    let zeros = [0; 4096];
    let mut at = end;
    while at < tail.used {
        let part = (tail.used - at).min(zeros.len() as u64);
        segment.file.write_at(at, &zeros[..part as usize]).map_err(&write)?;
        at += part;
    }
    segment.file.sync_data().map_err(segment.fail("sync the log segment"))
}
