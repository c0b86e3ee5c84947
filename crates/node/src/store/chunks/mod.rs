//! The chunks that a node keeps: content by id, in log-structured segment files.
//!
//! A *group* of changes is written by one write and made durable by one sync. Each chunk carries a
//! CRC per 64 KiB block, so that a small read is checked at the cost of one block, and the blake3
//! hash of the whole, which is compared when it is put and when it is verified or moved: CRCs find
//! what disks do by chance, the hash also what software did to both.
//!
//! Invariants:
//! - A chunk whose put was acknowledged is there after a crash; one whose put was not acknowledged
//!   is there in full or not at all.
//! - Content that does not match its checksums is never returned: it is `Rotten`, and a put of the
//!   same chunk replaces it.
//! - A deletion is durable when it is acknowledged, unless the disk is full. Then, and when its
//!   tombstone rots, the chunk returns with the next opening. That is harmless: ids are never
//!   reused, and who lists the chunks finds one that nobody wants and deletes it again.
//! - A tombstone is kept as long as a segment that holds content of its chunk: besides the last, those
//!   of which it was moved and that are not removed yet.
//! - After a failed sync nothing is written until the store was opened again.
//! - `expire` never takes a chunk that was put, for the first time or again, after the stamp that it
//!   is given: who puts a chunk wants it.
//!
//! The index is in memory: about 100 bytes for each chunk. What is written in large chunks leaves the
//! page cache once it is durable: it is of large files, whose readers have caches of their own, and a gigabyte of
//! it would only drive out what is read often.
//!
//! Left out on purpose: which chunks are wanted and where their replicas are (the registry), and
//! clocks: the age of a chunk is told by stamps that grow with every group.

mod compact;
mod format;
mod queue;
mod recover;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use unum_proto::ids::ChunkId;

use super::disk::{Disk, DiskError, DiskFile, Space};
use super::limits::{
    CHUNK_BLOCK_BYTES, CHUNK_BUFFERS_IDLE_MAX, CHUNK_RESERVE_BYTES, CHUNK_SEGMENT_BYTES,
    CHUNK_SIZE_MAX,
};
use crate::buffers::Buffers;
use format::{Body, HEAD_BYTES, HEAD_BYTES_MAX, Head, block_crcs, blocks_hold};
use write::Writer;

pub use compact::Compacted;
pub use queue::ChunkQueue;
pub use recover::Damage;

#[derive(Clone, Copy, Debug)]
pub struct ChunkOptions {
    pub segment_bytes: u64,
    /// Room that puts leave on the disk; deletions and moves may use it.
    pub reserve_bytes: u64,
    /// A segment is worth compacting when this share of it is dead.
    pub compact_dead_percent: u64,
    /// Makes the checksums of this store unlike those of any other.
    pub salt: u64,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        Self {
            segment_bytes: CHUNK_SEGMENT_BYTES,
            reserve_bytes: CHUNK_RESERVE_BYTES,
            compact_dead_percent: 50,
            salt: rand::random(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Nothing of the change is kept; the same call may succeed when there is room.
    #[error(transparent)]
    Full(DiskError),
    #[error(transparent)]
    Disk(DiskError),
    #[error("chunk {chunk} is not on this node")]
    NotFound { chunk: ChunkId },
    #[error("chunk {chunk} is damaged on this node ({file}, byte {offset}): take another replica")]
    Rotten { chunk: ChunkId, file: String, offset: u64 },
    #[error("the content given for chunk {chunk} does not match its hash: send it again")]
    Mismatch { chunk: ChunkId },
    #[error("chunk {chunk} exists with another content, and a chunk never changes")]
    Conflict { chunk: ChunkId },
    #[error("chunk {chunk} has {len} bytes; the most is {CHUNK_SIZE_MAX}")]
    TooLarge { chunk: ChunkId, len: usize },
    #[error("chunk {chunk} has {size} bytes; {len} at {offset} were asked for")]
    OutOfRange { chunk: ChunkId, offset: u64, len: usize, size: u32 },
    #[error(
        "no chunk is stored any more because the disk failed ({by}): restart the daemon when the \
         disk is sound"
    )]
    Poisoned { by: DiskError },
    #[error("the chunk store's writer has stopped")]
    Stopped,
}

impl From<DiskError> for ChunkError {
    fn from(error: DiskError) -> Self {
        if error.is_full() { ChunkError::Full(error) } else { ChunkError::Disk(error) }
    }
}

/// A chunk as `list` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub chunk: ChunkId,
    pub len: u32,
    /// When it was last put, by the store's own count; 0 if before the store was opened.
    pub stamp: u64,
    pub rotten: bool,
}

/// What a chunk's content is, without the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    pub len: u32,
    /// blake3.
    pub hash: [u8; 32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub chunks: u64,
    /// Bytes on the disk that hold chunks.
    pub live_bytes: u64,
    /// Bytes on the disk that compaction could free, sooner or later.
    pub dead_bytes: u64,
    pub disk: Space,
}

/// Chunks on one disk. Its calls block; `ChunkQueue` is the front for tasks.
pub struct ChunkStore {
    disk: Arc<dyn Disk>,
    options: ChunkOptions,
    /// Held during a group's write and sync. Taken before `index`.
    writer: Mutex<Writer>,
    index: RwLock<Index>,
    /// For what is read.
    buffers: Buffers,
    /// The compaction that is under way; held during a step of it. Taken before `writer`.
    compaction: Mutex<Option<compact::Cursor>>,
}

/// What is where; changed only after what it tells is durable.
#[derive(Default)]
struct Index {
    chunks: BTreeMap<ChunkId, Place>,
    /// Older records of `chunks`, by segment: what was moved out of one that is not removed yet, and
    /// what rotted and was put again.
    stale: BTreeSet<(ChunkId, u64)>,
    /// The last one is written to.
    segments: BTreeMap<u64, Segment>,
    stamp: u64,
}

struct Segment {
    salt: u64,
    file: Arc<dyn DiskFile>,
    end: u32,
    live_bytes: u64,
    tombs: Vec<Tomb>,
}

/// Where a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    segment: u64,
    at: u32,
    len: u32,
    stamp: u64,
    rotten: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tomb {
    chunk: ChunkId,
    /// The last segment that holds the deleted content.
    buried: u64,
    /// The first one that does.
    oldest: u64,
}

/// A chunk that was checked and is ready to be written.
#[derive(Clone, Debug)]
pub struct Draft {
    chunk: ChunkId,
    hash: [u8; 32],
    blocks: Vec<u32>,
    content: Bytes,
}

impl Draft {
    /// Checks the content against its hash: the costly part of a put, for the caller's thread.
    pub fn new(chunk: ChunkId, content: Bytes, hash: &blake3::Hash) -> Result<Self, ChunkError> {
        if content.len() > CHUNK_SIZE_MAX {
            return Err(ChunkError::TooLarge { chunk, len: content.len() });
        }
        if blake3::hash(&content) != *hash {
            return Err(ChunkError::Mismatch { chunk });
        }
        let blocks = block_crcs(&content);
        Ok(Self { chunk, hash: *hash.as_bytes(), blocks, content })
    }

    fn span(&self) -> usize {
        HEAD_BYTES + 4 * self.blocks.len() + self.content.len()
    }
}

impl Place {
    /// Length of the whole record.
    fn span(&self) -> u64 {
        (HEAD_BYTES + 4 * format::block_count(self.len)) as u64 + u64::from(self.len)
    }
}

impl Index {
    /// Lets the chunk be at `place`; what it was before is dead.
    fn set(&mut self, chunk: ChunkId, place: Place) {
        if let Some(before) = self.unset(chunk)
            && before.segment != place.segment
        {
            self.stale.insert((chunk, before.segment));
        }
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live_bytes += place.span();
        }
        self.chunks.insert(chunk, place);
    }

    fn unset(&mut self, chunk: ChunkId) -> Option<Place> {
        let place = self.chunks.remove(&chunk)?;
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live_bytes = segment.live_bytes.saturating_sub(place.span());
        }
        Some(place)
    }

    /// All records of the chunk up to the segment `buried` are dead.
    fn bury(&mut self, chunk: ChunkId, buried: u64) -> Tomb {
        let place = self.chunks.get(&chunk).map(|place| place.segment);
        let stale: Vec<_> = self.stale.range((chunk, 0)..=(chunk, buried)).copied().collect();
        let oldest = stale.first().map_or(buried, |(_, segment)| *segment);
        for record in stale {
            self.stale.remove(&record);
        }
        match place.filter(|segment| *segment <= buried) {
            // Else it was put again after that.
            None => Tomb { chunk, buried, oldest },
            Some(segment) => {
                self.unset(chunk);
                Tomb { chunk, buried, oldest: oldest.min(segment) }
            }
        }
    }

    fn add_tomb(&mut self, segment: u64, tomb: Tomb) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.tombs.push(tomb);
        }
    }

    fn forget_segment(&mut self, number: u64) {
        self.segments.remove(&number);
        self.stale.retain(|(_, segment)| *segment != number);
    }
}

impl ChunkStore {
    /// Opens the store in this directory, or makes an empty one. Tells what was found damaged: the
    /// chunks there are missing now, and their replicas have to be put again.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: ChunkOptions,
    ) -> Result<(Self, Vec<Damage>), ChunkError> {
        let found = recover::recover(&*disk)?;
        let store = Self {
            disk,
            options,
            writer: Mutex::new(Writer::new(found.next_number)),
            index: RwLock::new(found.index),
            buffers: Buffers::new(CHUNK_SIZE_MAX, CHUNK_BUFFERS_IDLE_MAX),
            compaction: Mutex::new(None),
        };
        Ok((store, found.damage))
    }

    /// Stores a chunk; it is durable when this returns. Putting it again is no error.
    pub fn put(
        &self,
        chunk: ChunkId,
        content: Bytes,
        hash: &blake3::Hash,
    ) -> Result<(), ChunkError> {
        self.put_draft(Draft::new(chunk, content, hash)?)
    }

    /// Deletes a chunk; deleting what is not there is no error.
    pub fn delete(&self, chunk: ChunkId) -> Result<(), ChunkError> {
        self.commit_one(write::Change::Delete(chunk))
    }

    fn put_draft(&self, draft: Draft) -> Result<(), ChunkError> {
        self.commit_one(write::Change::Put(draft))
    }

    /// Exactly `len` bytes of the chunk from `offset` on, checked.
    pub fn get(&self, chunk: ChunkId, offset: u64, len: usize) -> Result<Bytes, ChunkError> {
        self.get_known(chunk, None, offset, len)
    }

    /// The same of a chunk whose hash is known: content that was put under another is rotten.
    pub fn get_known(
        &self,
        chunk: ChunkId,
        known: Option<&[u8; 32]>,
        offset: u64,
        len: usize,
    ) -> Result<Bytes, ChunkError> {
        let (place, salt, file) = self.find(chunk)?;
        let end = offset.saturating_add(len as u64);
        if end > u64::from(place.len) {
            return Err(ChunkError::OutOfRange { chunk, offset, len, size: place.len });
        }
        let head = self.head(chunk, &place, salt, &*file)?;
        let Body::Put { blocks, hash, .. } = &head.body else {
            return Err(self.mark_rotten(chunk, &place, &*file));
        };
        if known.is_some_and(|known| known != hash) {
            return Err(self.mark_rotten(chunk, &place, &*file));
        }
        let first = offset as usize / CHUNK_BLOCK_BYTES;
        let from = first * CHUNK_BLOCK_BYTES;
        let to = (end as usize).next_multiple_of(CHUNK_BLOCK_BYTES).min(place.len as usize);
        let at = u64::from(place.at) + (head.head_bytes() + from) as u64;
        let content = self.buffers.filled(to.saturating_sub(from), |content| {
            let read = file.read_at(content, at)?;
            match read == content.len() && blocks_hold(blocks, first, content) {
                true => Ok(()),
                false => Err(self.mark_rotten(chunk, &place, &*file)),
            }
        })?;
        let skip = offset as usize - from;
        Ok(content.slice(skip..skip + len))
    }

    /// The length of a chunk that is there and not known to be damaged.
    pub fn size(&self, chunk: ChunkId) -> Option<u32> {
        self.read_index().chunks.get(&chunk).filter(|place| !place.rotten).map(|place| place.len)
    }

    pub fn contains(&self, chunk: ChunkId) -> bool {
        self.size(chunk).is_some()
    }

    /// Deletes a chunk unless it was put again after `stamp_max`; tells whether it is gone.
    pub fn expire(&self, chunk: ChunkId, stamp_max: u64) -> Result<bool, ChunkError> {
        self.commit_one(write::Change::Expire(chunk, stamp_max))?;
        Ok(self.list_one(chunk).is_none())
    }

    /// Length and hash of a chunk as its head tells them; the content is not read.
    pub fn outline(&self, chunk: ChunkId) -> Result<Outline, ChunkError> {
        let (place, salt, file) = self.find(chunk)?;
        match self.head(chunk, &place, salt, &*file)?.body {
            Body::Put { len, hash, .. } => Ok(Outline { len, hash }),
            Body::Tomb { .. } | Body::Void { .. } => Err(self.mark_rotten(chunk, &place, &*file)),
        }
    }

    /// Reads a whole chunk from the disk itself and compares it with its hash.
    pub fn verify(&self, chunk: ChunkId) -> Result<Outline, ChunkError> {
        let (place, _, file) = self.find(chunk)?;
        file.drop_cached(u64::from(place.at), place.span());
        let draft = self.load(chunk, &place)?;
        // It was read for this alone: memory is for what is read often.
        file.drop_cached(u64::from(place.at), place.span());
        Ok(Outline { len: draft.content.len() as u32, hash: draft.hash })
    }

    /// The chunks behind `after` in the order of their ids, at most `count_max`.
    pub fn list(&self, after: Option<ChunkId>, count_max: usize) -> Vec<Listed> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.read_index()
            .chunks
            .range((from, Bound::Unbounded))
            .take(count_max)
            .map(|(chunk, place)| Listed {
                chunk: *chunk,
                len: place.len,
                stamp: place.stamp,
                rotten: place.rotten,
            })
            .collect()
    }

    pub fn list_one(&self, chunk: ChunkId) -> Option<Listed> {
        self.read_index().chunks.get(&chunk).map(|place| Listed {
            chunk,
            len: place.len,
            stamp: place.stamp,
            rotten: place.rotten,
        })
    }

    /// The stamp that was given last: a chunk with this one or a lower one is older than this call.
    pub fn stamp(&self) -> u64 {
        self.read_index().stamp
    }

    pub fn usage(&self) -> Result<Usage, ChunkError> {
        let disk = self.disk.space()?;
        let index = self.read_index();
        let total: u64 = index.segments.values().map(|segment| u64::from(segment.end)).sum();
        let live_bytes: u64 = index.segments.values().map(|segment| segment.live_bytes).sum();
        let chunks = index.chunks.len() as u64;
        Ok(Usage { chunks, live_bytes, dead_bytes: total.saturating_sub(live_bytes), disk })
    }

    fn find(&self, chunk: ChunkId) -> Result<(Place, u64, Arc<dyn DiskFile>), ChunkError> {
        let index = self.read_index();
        let place = *index.chunks.get(&chunk).ok_or(ChunkError::NotFound { chunk })?;
        let offset = u64::from(place.at);
        match index.segments.get(&place.segment) {
            Some(segment) if !place.rotten => Ok((place, segment.salt, segment.file.clone())),
            Some(segment) => {
                Err(ChunkError::Rotten { chunk, file: segment.file.path().to_owned(), offset })
            }
            // It was rotten when the rest of its segment was moved elsewhere.
            None => Err(ChunkError::Rotten {
                chunk,
                file: format!("{}/{}", self.disk.path(), format::segment_name(place.segment)),
                offset,
            }),
        }
    }

    /// The head of a chunk's record; `Rotten` unless it is what the index says.
    fn head(
        &self,
        chunk: ChunkId,
        place: &Place,
        salt: u64,
        file: &dyn DiskFile,
    ) -> Result<Head, ChunkError> {
        let mut bytes = [0; HEAD_BYTES_MAX];
        let wanted = HEAD_BYTES + 4 * format::block_count(place.len);
        let read = file.read_at(&mut bytes[..wanted], u64::from(place.at))?;
        match Head::decode(&bytes[..read], salt) {
            Some(head) if head.chunk == chunk && head.content_bytes() == place.len as usize => {
                Ok(head)
            }
            _ => Err(self.mark_rotten(chunk, place, file)),
        }
    }

    /// The whole of a chunk, compared with its hash.
    fn load(&self, chunk: ChunkId, place: &Place) -> Result<Draft, ChunkError> {
        let content = self.get(chunk, 0, place.len as usize)?;
        let (now, salt, file) = self.find(chunk)?;
        let head = self.head(chunk, &now, salt, &*file)?;
        match head.body {
            Body::Put { hash, blocks, .. } if *blake3::hash(&content).as_bytes() == hash => {
                Ok(Draft { chunk, hash, blocks, content })
            }
            _ => Err(self.mark_rotten(chunk, &now, &*file)),
        }
    }

    /// From now on the chunk may be put again.
    fn mark_rotten(&self, chunk: ChunkId, place: &Place, file: &dyn DiskFile) -> ChunkError {
        if let Some(now) = self.write_index().chunks.get_mut(&chunk)
            && (now.segment, now.at) == (place.segment, place.at)
        {
            now.rotten = true;
        }
        let offset = u64::from(place.at);
        ChunkError::Rotten { chunk, file: file.path().to_owned(), offset }
    }

    /// Somebody wants a chunk that is there.
    fn renew(&self, chunk: ChunkId) {
        let mut index = self.write_index();
        index.stamp += 1;
        let stamp = index.stamp;
        if let Some(place) = index.chunks.get_mut(&chunk) {
            place.stamp = stamp;
        }
    }

    fn read_index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write_index(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
