//! The bytes of a simulated file, sparse: a page that was only ever zero costs nothing.

use super::random::Random;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

const PAGE: u64 = 4096;
pub(super) const SECTOR: u64 = 512;

/// A file's bytes. Pages are shared between images until one of them is written.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
    len: u64,
}

impl Image {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for_pages(offset, out.len(), |page, within, range| match self.pages.get(&page) {
            Some(bytes) => out[range.clone()].copy_from_slice(&bytes[within..within + range.len()]),
            None => out[range].fill(0),
        });
        Ok(())
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        self.len = self.len.max(offset + data.len() as u64);
        for_pages(offset, data.len(), |page, within, range| {
            let part = &data[range];
            if !self.pages.contains_key(&page) && is_zero(part) {
                return;
            }
            let bytes = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(bytes)[within..within + part.len()].copy_from_slice(part);
        });
    }

    fn write_zeros(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        self.len = self.len.max(offset + len);
        let touched = offset / PAGE..(offset + len).div_ceil(PAGE);
        for (page, bytes) in self.pages.range_mut(touched) {
            let begin = offset.saturating_sub(page * PAGE);
            let end = (offset + len - page * PAGE).min(PAGE);
            Arc::make_mut(bytes)[begin as usize..end as usize].fill(0);
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.write_zeros(len, (len.div_ceil(PAGE) * PAGE).min(self.len) - len);
            self.pages.split_off(&len.div_ceil(PAGE));
        }
        self.len = len;
    }
}

/// Looked at in blocks, which the processor does at once.
fn is_zero(data: &[u8]) -> bool {
    data.chunks(256).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Calls `each(page, offset in the page, range of the data)` for each page that `len` bytes at `offset` touch.
fn for_pages(offset: u64, len: usize, mut each: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let within = (at % PAGE) as usize;
        let part = (PAGE as usize - within).min(len - done);
        each(at / PAGE, within, done..done + part);
        done += part;
    }
}

/// A change of a file that no sync has covered yet.
#[derive(Debug, Clone)]
pub(super) enum Pending {
    Write { offset: u64, data: Vec<u8> },
    Zeros { offset: u64, len: u64 },
    SetLen(u64),
}

impl Pending {
    pub(super) fn write(offset: u64, data: &[u8]) -> Self {
        if is_zero(data) { Self::Zeros { offset, len: data.len() as u64 } } else { Self::Write { offset, data: data.to_vec() } }
    }

    pub(super) fn apply(&self, image: &mut Image) {
        match self {
            Self::Write { offset, data } => image.write(*offset, data),
            Self::Zeros { offset, len } => image.write_zeros(*offset, *len),
            Self::SetLen(len) => image.set_len(*len),
        }
    }

    /// Applies a random half of the sectors, each whole.
    pub(super) fn apply_torn(&self, image: &mut Image, random: &mut Random) {
        match self {
            Self::Write { offset, data } => {
                let mut at = 0;
                while at < data.len() {
                    let sector_left = (SECTOR - (offset + at as u64) % SECTOR) as usize;
                    let part = sector_left.min(data.len() - at);
                    if random.below(2) == 0 {
                        image.write(offset + at as u64, &data[at..at + part]);
                    }
                    at += part;
                }
            }
            Self::Zeros { offset, len } => {
                let kept = random.below(len + 1) / SECTOR * SECTOR;
                image.write_zeros(*offset, kept);
            }
            Self::SetLen(len) => {
                if random.below(2) == 0 {
                    image.set_len(*len);
                }
            }
        }
    }
}
