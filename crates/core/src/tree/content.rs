//! Commands and reads of a file's content, as extents; the bytes themselves never come here.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use unum_proto::ids::{ChunkId, Ino, VolumeId};
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{self as proto, Fallocate, FallocateMode, Write, Written};

use super::Tree;
use super::chunks::Chunk;
use super::error::TreeError;
use super::extents::{Extent, ExtentMap, Source};
use super::inode::{Body, Inode};
use super::volumes::{growth, holes};
use crate::limits::{
    ALLOCATED_MAX, CHUNKS_MAX, EXTENTS_PER_INODE_MAX, FILE_SIZE_MAX, RESERVED_BYTES_MAX,
    RESERVED_MAX, WRITE_EXTENTS_MAX,
};
use crate::time::Time;

/// What lseek looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

impl Tree {
    /// What is in `offset..offset + length` of a file, up to its end, in order. What no extent
    /// covers is a hole.
    pub fn extents(
        &self,
        ino: Ino,
        offset: u64,
        length: u64,
    ) -> Result<impl Iterator<Item = Extent>, TreeError> {
        let inode = self.inode(ino)?;
        let end = offset.saturating_add(length).min(inode.length);
        Ok(inode.extents()?.within(offset.min(end), end))
    }

    /// How many extents a file has: with its size a measure of how ragged it is.
    pub fn extent_count(&self, ino: Ino) -> Result<usize, TreeError> {
        Ok(self.inode(ino)?.extents()?.len())
    }

    /// The next data or hole at or behind `offset`. Zeros that are only allocated count as a hole,
    /// as does the end of the file.
    pub fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, TreeError> {
        let inode = self.inode(ino)?;
        let extents = inode.extents()?;
        if offset >= inode.length {
            return Err(TreeError::BeyondEnd);
        }
        let mut data = extents.within(offset, inode.length).filter(|e| e.source.is_some());
        match what {
            Seek::Data => data.next().map(|extent| extent.offset).ok_or(TreeError::BeyondEnd),
            Seek::Hole => {
                let mut at = offset;
                for extent in data {
                    if extent.offset > at {
                        break;
                    }
                    at = extent.end();
                }
                Ok(at)
            }
        }
    }

    pub(super) fn write(&mut self, now: Time, command: &Write) -> Result<Outcome, TreeError> {
        let ino = Ino(command.ino);
        let inode = self.inode(ino)?;
        let present = inode.extents()?.len();
        if command.if_version.is_some_and(|version| version != inode.version) {
            return Err(TreeError::Stale);
        }
        if command.relayout && (command.append || command.if_version.is_none()) {
            return Err(TreeError::Invalid);
        }
        let base = if command.append { inode.length } else { 0 };
        let length = inode.length;
        let chunks = self.new_chunks(inode.volume, command)?;
        let extents = self.written_extents(inode, base, command, &chunks)?;
        let end = extents.iter().map(Extent::end).max().unwrap_or(0);
        if command.relayout && end > length {
            return Err(TreeError::Invalid);
        }
        // Several writes that were drained as one were counted one by one when they were made.
        let more = if self.reserved { 2 * WRITE_EXTENTS_MAX } else { 0 };
        if present + 2 * extents.len() > EXTENTS_PER_INODE_MAX + more {
            return Err(TreeError::NoSpace);
        }
        self.room_for_bytes(extents.iter().map(|extent| extent.length))?;
        let map = self.inode(ino)?.extents()?;
        self.quota_for_bytes(ino, || growth(map, &extents))?;

        let fresh: Vec<ChunkId> = chunks.keys().copied().collect();
        let birth = self.snapshots.newest(self.inode(ino)?.volume);
        for (id, chunk) in chunks {
            self.chunks.add(id, Chunk { birth, ..chunk });
        }
        self.put_extents(ino, &extents)?;
        self.bury(fresh);
        let inode = self.inode_mut(ino)?;
        if command.relayout {
            inode.version += 1;
        } else if !extents.is_empty() {
            inode.length = length.max(end);
            inode.touch_content(now);
            if command.kill_privileges {
                inode.kill_privileges();
            }
        }
        Ok(Outcome::Written(Written { base, attributes: Some(self.attributes(ino)?) }))
    }

    fn new_chunks(
        &self,
        volume: VolumeId,
        command: &Write,
    ) -> Result<BTreeMap<ChunkId, Chunk>, TreeError> {
        if command.chunks.len() > WRITE_EXTENTS_MAX {
            return Err(TreeError::Invalid);
        }
        let max = CHUNKS_MAX - self.kept_back(RESERVED_MAX);
        if self.chunks.len() + command.chunks.len() > max {
            return Err(TreeError::NoSpace);
        }
        let mut chunks = BTreeMap::new();
        for chunk in &command.chunks {
            let (id, chunk) = Chunk::from_proto(volume, chunk)?;
            if self.chunks.contains(id) || chunks.insert(id, chunk).is_some() {
                return Err(TreeError::Invalid);
            }
        }
        Ok(chunks)
    }

    /// Bytes come from chunks that the write brings along, or from those that the file takes bytes from
    /// already: no other inode's changes are to decide whether a chunk is still there.
    fn written_extents(
        &self,
        inode: &Inode,
        base: u64,
        command: &Write,
        new: &BTreeMap<ChunkId, Chunk>,
    ) -> Result<Vec<Extent>, TreeError> {
        if command.extents.len() > WRITE_EXTENTS_MAX {
            return Err(TreeError::Invalid);
        }
        let mut own = None;
        let extents = command.extents.iter().map(|raw| {
            let extent = valid_extent(raw, base)?;
            let id = extent.source.ok_or(TreeError::Invalid)?.chunk;
            let chunk = match new.get(&id) {
                Some(chunk) => Cow::Borrowed(chunk),
                None => {
                    let chunk = self.chunks.get(id).ok_or(TreeError::Stale)?;
                    match own.get_or_insert_with(|| chunks_of(inode)).contains(&id) {
                        true => chunk,
                        false => return Err(TreeError::Invalid),
                    }
                }
            };
            if within_chunk(&extent, &chunk) { Ok(extent) } else { Err(TreeError::Invalid) }
        });
        extents.collect()
    }

    /// fallocate: whole bytes, not blocks.
    pub(super) fn fallocate(
        &mut self,
        now: Time,
        command: &Fallocate,
    ) -> Result<Outcome, TreeError> {
        let ino = Ino(command.ino);
        let inode = self.inode(ino)?;
        let extents = inode.extents()?;
        let mode = FallocateMode::try_from(command.mode).map_err(|_| TreeError::Unsupported)?;
        if command.length == 0 {
            return Err(TreeError::Invalid);
        }
        let start = command.offset;
        let end = start.checked_add(command.length).ok_or(TreeError::FileTooBig)?;
        let end = match mode {
            FallocateMode::PunchHole => end.min(FILE_SIZE_MAX),
            _ if end > FILE_SIZE_MAX => return Err(TreeError::FileTooBig),
            _ => end,
        };
        let added = match mode {
            FallocateMode::Allocate => extents.holes(start, end),
            FallocateMode::ZeroRange => vec![(start, end - start)],
            FallocateMode::PunchHole => Vec::new(),
            FallocateMode::Unspecified => return Err(TreeError::Unsupported),
        };
        if extents.len() + added.len() + 1 > EXTENTS_PER_INODE_MAX {
            return Err(TreeError::NoSpace);
        }
        self.room_for_bytes(added.iter().map(|&(_, length)| length))?;
        if mode != FallocateMode::PunchHole {
            self.quota_for_bytes(ino, || holes(extents, start, end))?;
        }
        let keep_size = command.keep_size || mode == FallocateMode::PunchHole;
        let grows = !keep_size && end > inode.length;

        if mode != FallocateMode::Allocate {
            self.cut(ino, start, end)?;
        }
        let reserved: Vec<Extent> = added
            .into_iter()
            .map(|(offset, length)| Extent { offset, length, source: None })
            .collect();
        self.put_extents(ino, &reserved)?;
        let inode = self.inode_mut(ino)?;
        if grows {
            inode.length = end;
        }
        if command.kill_privileges {
            inode.kill_privileges();
        }
        if grows || mode != FallocateMode::Allocate {
            inode.touch_content(now);
        } else {
            inode.touch(now);
        }
        self.inode_reply(ino, false)
    }

    /// Counts bytes as added that may replace others: close to the limit that is too strict.
    pub(super) fn room_for_bytes(
        &self,
        lengths: impl Iterator<Item = u64>,
    ) -> Result<(), TreeError> {
        let total = lengths.fold(self.allocated, u64::saturating_add);
        if total <= ALLOCATED_MAX - self.kept_back(RESERVED_BYTES_MAX) {
            Ok(())
        } else {
            Err(TreeError::NoSpace)
        }
    }

    /// truncate. Changes nothing if it fails.
    pub(super) fn resize(&mut self, now: Time, ino: Ino, size: u64) -> Result<(), TreeError> {
        self.inode(ino)?.extents()?;
        if size > FILE_SIZE_MAX {
            return Err(TreeError::FileTooBig);
        }
        self.cut(ino, size, u64::MAX)?;
        let inode = self.inode_mut(ino)?;
        inode.length = size;
        inode.touch_content(now);
        Ok(())
    }

    /// Puts extents over what is there, in order, and accounts for it all.
    pub(super) fn put_extents(&mut self, ino: Ino, extents: &[Extent]) -> Result<(), TreeError> {
        let mut removed = Vec::new();
        self.change_extents(ino, |map| {
            for extent in extents {
                removed.extend(map.cut(extent.offset, extent.end()));
                map.insert(*extent);
            }
        })?;
        for (id, bytes) in sourced(extents) {
            self.chunks.acquire(id, bytes);
        }
        self.release_extents(&removed);
        Ok(())
    }

    pub(super) fn cut(&mut self, ino: Ino, start: u64, end: u64) -> Result<(), TreeError> {
        let mut removed = Vec::new();
        self.change_extents(ino, |map| removed = map.cut(start, end))?;
        self.release_extents(&removed);
        Ok(())
    }

    pub(super) fn change_extents(
        &mut self,
        ino: Ino,
        change: impl FnOnce(&mut ExtentMap),
    ) -> Result<(), TreeError> {
        let inode = self.inode_mut(ino)?;
        let volume = inode.volume;
        let Body::Regular(map) = &mut inode.body else {
            return Err(TreeError::Invalid);
        };
        let before = map.allocated();
        change(map);
        let after = map.allocated();
        self.allocated = self.allocated + after - before;
        match after >= before {
            true => self.volumes.add_bytes(volume, after - before),
            false => self.volumes.take_bytes(volume, before - after),
        }
        Ok(())
    }

    /// Takes extents that left their map off their chunks.
    pub(super) fn release_extents(&mut self, removed: &[Extent]) {
        for (id, bytes) in sourced(removed) {
            self.chunks.release(id, bytes);
        }
        let touched: BTreeSet<ChunkId> = sourced(removed).map(|(id, _)| id).collect();
        self.bury(touched);
    }
}

/// The chunks that a file takes bytes from.
fn chunks_of(inode: &Inode) -> BTreeSet<ChunkId> {
    let extents = inode.extents().into_iter().flat_map(ExtentMap::iter);
    extents.filter_map(|extent| Some(extent.source?.chunk)).collect()
}

fn sourced(extents: &[Extent]) -> impl Iterator<Item = (ChunkId, u64)> {
    extents.iter().filter_map(|extent| Some((extent.source?.chunk, extent.length)))
}

/// An extent within the largest file, its offset counted from `base`.
pub(super) fn valid_extent(raw: &proto::Extent, base: u64) -> Result<Extent, TreeError> {
    let offset = base.checked_add(raw.offset).ok_or(TreeError::FileTooBig)?;
    let end = offset.checked_add(raw.length).ok_or(TreeError::FileTooBig)?;
    if end > FILE_SIZE_MAX {
        return Err(TreeError::FileTooBig);
    }
    if raw.length == 0 {
        return Err(TreeError::Invalid);
    }
    let source = raw.chunk.map(|id| Source { chunk: id.into(), offset: raw.chunk_offset });
    Ok(Extent { offset, length: raw.length, source })
}

pub(super) fn within_chunk(extent: &Extent, chunk: &Chunk) -> bool {
    extent.source.is_some_and(|source| {
        let end = u64::from(source.offset).checked_add(extent.length);
        end.is_some_and(|end| end <= u64::from(chunk.length))
    })
}
