//! The unsynced part of one file: pages that are in memory only, over a file that holds the rest.
//!
//! Invariants: reading gives what was written last, synced or not; the file below changes only by
//! `sync` and `write_some`, and then only towards what was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;

use super::{DiskError, DiskFile};

pub(super) const PAGE_BYTES: usize = 4096;
/// What a disk writes wholly or not at all.
const SECTOR_BYTES: usize = 512;

pub(super) struct Overlay {
    below: Arc<dyn DiskFile>,
    len: u64,
    /// How long the file below is.
    stored: u64,
    /// What the file below holds from here on is void: it was truncated.
    cut: u64,
    pages: BTreeMap<u64, Page>,
}

struct Page {
    bytes: Box<[u8; PAGE_BYTES]>,
    /// A sync failed with this page: it reads back, but no sync will write it.
    lost: bool,
}

impl Overlay {
    pub fn over(below: Arc<dyn DiskFile>) -> Result<Self, DiskError> {
        let stored = below.size()?;
        Ok(Self { below, len: stored, stored, cut: u64::MAX, pages: BTreeMap::new() })
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn drop_cached(&self, offset: u64, len: u64) {
        self.below.drop_cached(offset, len);
    }

    pub fn held_bytes(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<usize, DiskError> {
        let len = buf.len().min(self.len.saturating_sub(offset) as usize);
        let buf = &mut buf[..len];
        self.read_below(buf, offset)?;
        let end = offset + len as u64;
        for (page, at, span) in page_spans(offset, end) {
            if let Some(held) = self.pages.get(&page) {
                let from = (page * PAGE_BYTES as u64 + at as u64 - offset) as usize;
                buf[from..from + span].copy_from_slice(&held.bytes[at..at + span]);
            }
        }
        Ok(len)
    }

    fn read_below(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let sound = self.stored.min(self.cut).saturating_sub(offset).min(buf.len() as u64);
        let read = self.below.read_at(&mut buf[..sound as usize], offset)?;
        buf[read..].fill(0);
        Ok(())
    }

    pub fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), DiskError> {
        let mut rest = bytes;
        for (page, at, span) in page_spans(offset, offset + bytes.len() as u64) {
            let (part, behind) = rest.split_at(span);
            let held = self.page(page, span == PAGE_BYTES)?;
            held.bytes[at..at + span].copy_from_slice(part);
            held.lost = false;
            rest = behind;
        }
        self.len = self.len.max(offset + bytes.len() as u64);
        Ok(())
    }

    fn page(&mut self, page: u64, overwritten: bool) -> Result<&mut Page, DiskError> {
        if !self.pages.contains_key(&page) {
            let mut bytes = Box::new([0; PAGE_BYTES]);
            if !overwritten {
                self.read_below(&mut bytes[..], page * PAGE_BYTES as u64)?;
            }
            self.pages.insert(page, Page { bytes, lost: false });
        }
        Ok(self
            .pages
            .entry(page)
            .or_insert_with(|| Page { bytes: Box::new([0; PAGE_BYTES]), lost: false }))
    }

    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.cut = self.cut.min(len);
            self.pages.split_off(&len.div_ceil(PAGE_BYTES as u64));
            if let Some(last) = self.pages.get_mut(&(len / PAGE_BYTES as u64)) {
                last.bytes[(len % PAGE_BYTES as u64) as usize..].fill(0);
            }
        }
        self.len = len;
    }

    /// Writes everything to the file below and syncs it.
    pub fn sync(&mut self) -> Result<(), DiskError> {
        self.apply_cut()?;
        let (len, below) = (self.len, self.below.clone());
        let mut run: Vec<&[u8]> = Vec::new();
        let mut run_at = 0;
        let mut expected = None;
        for (number, page) in self.pages.iter().filter(|(_, page)| !page.lost) {
            if expected != Some(*number) && !run.is_empty() {
                below.write_parts_at(&run, run_at)?;
                run.clear();
            }
            let at = number * PAGE_BYTES as u64;
            if run.is_empty() {
                run_at = at;
            }
            run.push(&page.bytes[..len.saturating_sub(at).min(PAGE_BYTES as u64) as usize]);
            expected = Some(number + 1);
        }
        if !run.is_empty() {
            below.write_parts_at(&run, run_at)?;
        }
        self.stored = below.size()?;
        if self.stored < len {
            below.set_len(len)?;
            self.stored = len;
        }
        below.sync()?;
        self.pages.retain(|_, page| page.lost);
        Ok(())
    }

    fn apply_cut(&mut self) -> Result<(), DiskError> {
        if self.cut < self.stored {
            self.below.set_len(self.cut)?;
            self.stored = self.cut;
        }
        self.cut = u64::MAX;
        Ok(())
    }

    /// Writes a random part of what is unsynced, in whole sectors, as a kernel does on its own.
    pub fn write_some(&mut self, rng: &mut StdRng) -> Result<(), DiskError> {
        if self.cut < self.stored && rng.random_bool(0.5) {
            return Ok(());
        }
        self.apply_cut()?;
        let share = rng.random_range(0.0..1.0);
        let len = self.len;
        for (number, page) in self.pages.iter().filter(|(_, page)| !page.lost) {
            let at = number * PAGE_BYTES as u64;
            let span = len.saturating_sub(at).min(PAGE_BYTES as u64) as usize;
            for sector in (0..span).step_by(SECTOR_BYTES) {
                if rng.random_bool(share) {
                    let end = (sector + SECTOR_BYTES).min(span);
                    self.below.write_at(&page.bytes[sector..end], at + sector as u64)?;
                }
            }
        }
        self.stored = self.below.size()?;
        Ok(())
    }

    /// What Linux does after a failed sync: the pages count as clean, written or not.
    pub fn lose(&mut self) {
        self.pages.values_mut().for_each(|page| page.lost = true);
    }
}

/// The pages that a range touches: number, offset in the page, length in it.
fn page_spans(from: u64, end: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut next = from;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let page = next / PAGE_BYTES as u64;
        let at = (next % PAGE_BYTES as u64) as usize;
        let span = (PAGE_BYTES - at).min((end - next) as usize);
        next += span as u64;
        Some((page, at, span))
    })
}
