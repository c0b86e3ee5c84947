//! The chunk table: what the cluster must keep, where, and how to tell that it is whole.
//!
//! Invariants: `live` is the number of bytes that extents take from a chunk, those of all inodes summed up:
//! the same byte counts as often as it is taken. A chunk with none leaves the table with the command that
//! made it so, or is on the dead list of a snapshot, and nodes delete chunks that the table does not know. Every chunk has a replica.
//!
//! Which inodes take bytes from a chunk is not kept: their extents say so (see [`super::Tree::users_of`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use unum_proto::ids::{ChunkId, NodeId, SnapshotId, VolumeId};
use unum_proto::tree::{NewChunk, SetReplicas};

use super::error::TreeError;
use crate::limits::{CHUNK_SIZE_MAX, REPLICAS_MAX};
use crate::packed::{Finder, PackedMap};

/// A blake3 hash.
pub type Hash = [u8; 32];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// That of all inodes that take bytes from it.
    pub volume: VolumeId,
    pub length: u32,
    pub hash: Hash,
    /// Sorted, without repetition.
    pub replicas: Arc<[NodeId]>,
    pub live: u64,
    /// The newest snapshot of the volume at its birth, or a later one that does not need it; 0 is none.
    pub birth: SnapshotId,
}

impl Chunk {
    /// What a message says of a chunk, checked.
    pub fn from_proto(volume: VolumeId, chunk: &NewChunk) -> Result<(ChunkId, Self), TreeError> {
        let id = chunk.id.ok_or(TreeError::Invalid)?.into();
        if chunk.length == 0 || chunk.length > CHUNK_SIZE_MAX {
            return Err(TreeError::Invalid);
        }
        let hash = chunk.hash.as_ref().try_into().map_err(|_| TreeError::Invalid)?;
        let replicas = valid_replicas(&chunk.replicas)?;
        let length = chunk.length;
        Ok((id, Self { volume, length, hash, replicas, live: 0, birth: SnapshotId(0) }))
    }

    pub fn to_proto(&self, id: ChunkId) -> NewChunk {
        NewChunk {
            id: Some(id.into()),
            length: self.length,
            hash: bytes::Bytes::copy_from_slice(&self.hash),
            replicas: self.replicas.iter().map(|node| node.0).collect(),
        }
    }
}

/// A chunk with fewer live replicas than it should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    pub id: ChunkId,
    pub chunk: Chunk,
    pub live: Vec<NodeId>,
}

/// One step of a walk through the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk<T> {
    pub found: Vec<T>,
    /// Where to go on; None at the end.
    pub next: Option<ChunkId>,
}

#[derive(Clone, Debug, Default)]
pub struct ChunkTable {
    chunks: PackedMap<Chunk>,
    stored: u64,
}

impl ChunkTable {
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes of all chunks, each counted once.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    pub fn get(&self, id: ChunkId) -> Option<Cow<'_, Chunk>> {
        self.chunks.get(&id)
    }

    /// For looking at many.
    pub fn finder(&self) -> Finder<'_, Chunk> {
        Finder::new(&self.chunks)
    }

    pub fn contains(&self, id: ChunkId) -> bool {
        self.chunks.contains(&id)
    }

    pub fn iter_after(&self, after: Option<ChunkId>) -> impl Iterator<Item = (ChunkId, Chunk)> {
        let from = after.unwrap_or_default();
        self.chunks.iter_from(from).skip_while(move |(id, _)| Some(*id) == after)
    }

    /// Looks at `scan_max` chunks after `after` and returns those with fewer replicas than are `wanted`
    /// of them (or than there are live nodes, if these are fewer).
    pub fn lacking(
        &self,
        live: &BTreeSet<NodeId>,
        wanted: impl Fn(&Chunk) -> usize,
        after: Option<ChunkId>,
        scan_max: usize,
    ) -> Walk<Lacking> {
        self.walk(after, scan_max, |id, chunk| {
            let alive: Vec<NodeId> =
                chunk.replicas.iter().copied().filter(|node| live.contains(node)).collect();
            (alive.len() < wanted(&chunk).min(live.len())).then_some(Lacking {
                id,
                chunk,
                live: alive,
            })
        })
    }

    /// Looks at `scan_max` chunks after `after` and returns those that `node` keeps.
    pub fn on_node(
        &self,
        node: NodeId,
        after: Option<ChunkId>,
        scan_max: usize,
    ) -> Walk<(ChunkId, Chunk)> {
        self.walk(after, scan_max, |id, chunk| {
            chunk.replicas.contains(&node).then_some((id, chunk))
        })
    }

    fn walk<T>(
        &self,
        after: Option<ChunkId>,
        scan_max: usize,
        mut pick: impl FnMut(ChunkId, Chunk) -> Option<T>,
    ) -> Walk<T> {
        let mut found = Vec::new();
        let mut last = None;
        let mut seen = 0;
        for (id, chunk) in self.iter_after(after).take(scan_max.max(1)) {
            found.extend(pick(id, chunk));
            last = Some(id);
            seen += 1;
        }
        let next = if seen == scan_max.max(1) { last } else { None };
        Walk { found, next }
    }

    pub(super) fn add(&mut self, id: ChunkId, chunk: Chunk) {
        self.stored += u64::from(chunk.length);
        self.chunks.insert(id, chunk);
    }

    /// Chunks that were written down here first are now where these messages say.
    pub(super) fn adopt_places(&mut self, chunks: &[NewChunk]) {
        for chunk in chunks {
            let Ok((id, placed)) = Chunk::from_proto(VolumeId(0), chunk) else { continue };
            if let Some(chunk) = self.chunks.get_mut(&id) {
                chunk.replicas = placed.replicas;
            }
        }
    }

    pub(super) fn acquire(&mut self, id: ChunkId, bytes: u64) {
        if let Some(chunk) = self.chunks.get_mut(&id) {
            chunk.live += bytes;
        }
    }

    pub(super) fn is_live(&self, id: ChunkId) -> bool {
        self.chunks.get(&id).is_some_and(|chunk| chunk.live > 0)
    }

    /// The chunk stays until it is buried: a later step of the same command may take it up again.
    pub(super) fn release(&mut self, id: ChunkId, bytes: u64) {
        if let Some(chunk) = self.chunks.get_mut(&id) {
            chunk.live -= bytes;
        }
    }

    /// If these are all the bytes that are taken from it, the chunk counts as born after a snapshot.
    pub(super) fn rejuvenate(&mut self, id: ChunkId, bytes: u64, birth: SnapshotId) {
        if let Some(chunk) = self.chunks.get_mut(&id).filter(|chunk| chunk.live == bytes) {
            chunk.birth = birth;
        }
    }

    pub(super) fn remove(&mut self, id: ChunkId) {
        if let Some(chunk) = self.chunks.remove(&id) {
            self.stored -= u64::from(chunk.length);
        }
    }

    pub(super) fn set_replicas(&mut self, command: &SetReplicas) -> Result<(), TreeError> {
        let id: ChunkId = command.chunk.ok_or(TreeError::Invalid)?.into();
        let expected = valid_replicas(&command.expected)?;
        let replicas = valid_replicas(&command.replicas)?;
        let chunk = self.chunks.get_mut(&id).ok_or(TreeError::Stale)?;
        if chunk.replicas != expected {
            return Err(TreeError::Stale);
        }
        chunk.replicas = replicas;
        Ok(())
    }

    /// What is wrong, given the bytes that extents really take from each chunk, and what is on dead lists.
    pub(super) fn faults(
        &self,
        used: &BTreeMap<ChunkId, u64>,
        dead: &BTreeMap<ChunkId, SnapshotId>,
    ) -> Vec<String> {
        let mut faults = Vec::new();
        let mut stored = 0;
        for (id, chunk) in self.chunks.iter() {
            stored += u64::from(chunk.length);
            let live = used.get(&id).copied().unwrap_or(0);
            if live != chunk.live || (live == 0) != dead.contains_key(&id) {
                faults.push(format!("chunk {id}: {} bytes live, {live} used", chunk.live));
            }
            if chunk.replicas.is_empty() {
                faults.push(format!("chunk {id} has no replica"));
            }
        }
        for id in used.keys().filter(|id| self.get(**id).is_none()) {
            faults.push(format!("chunk {id} is used, but unknown"));
        }
        if stored != self.stored {
            faults.push(format!("{} bytes stored, {stored} in chunks", self.stored));
        }
        faults
    }
}

fn valid_replicas(raw: &[u64]) -> Result<Arc<[NodeId]>, TreeError> {
    let sorted: BTreeSet<NodeId> = raw.iter().copied().map(NodeId).collect();
    let fits = !raw.is_empty() && raw.len() <= REPLICAS_MAX && sorted.len() == raw.len();
    if !fits || sorted.contains(&NodeId(0)) {
        return Err(TreeError::Invalid);
    }
    Ok(sorted.into_iter().collect())
}
