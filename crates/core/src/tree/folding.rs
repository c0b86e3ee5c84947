//! Several writes to one file that are drained as one.
//!
//! Programs write in pieces; what they wrote in a row goes to the replicas as one chunk and to the registry as
//! one write. Of the others only their times are left (`LoggedChange::folded`). A fold lies within one drain, so
//! nobody but the node that wrote sees the file between its parts.
//!
//! Invariants: between the writes of a fold the drain has no other change of their file, nor one that may
//! be about it by name; a folded write is what its parts would have made, but for the names of
//! chunks, which [`Unfolding`] carries over to the writer's own view.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use unum_proto::ids::{ChunkId, Ino};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::{self as proto, LoggedChange, NewChunk, TreeCommand, Write};

use super::Tree;
use super::chunks::Chunk;
use super::error::TreeError;
use super::extents::{Extent, Source};
use super::local::Pending;
use super::volumes::ROOT_VOLUME;
use crate::limits::WRITE_EXTENTS_MAX;

/// A write that has the bytes of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    /// Its place among the changes. Its one chunk lacks a hash.
    pub at: usize,
    /// The chunks whose bytes, one behind the other, are those of the new one.
    pub parts: Vec<ChunkId>,
}

/// Writes to one file that may become one.
#[derive(Default)]
struct Run {
    at: Vec<usize>,
    bytes: u64,
}

/// Folds writes whose bytes are at most `bytes_max` together. `name` gives names for new chunks.
pub fn fold(
    changes: &mut [LoggedChange],
    bytes_max: u64,
    mut name: impl FnMut() -> ChunkId,
) -> Vec<Folded> {
    let mut runs: BTreeMap<u64, Run> = BTreeMap::new();
    let mut whole = Vec::new();
    for (at, change) in changes.iter().enumerate() {
        let command = change.command.as_ref().and_then(|command| command.command.as_ref());
        match command {
            Some(Command::Write(write)) => {
                let Some(part) = Part::of(write) else {
                    whole.extend(runs.remove(&write.ino));
                    continue;
                };
                let run = runs.entry(write.ino).or_default();
                let full = run.bytes + part.length > bytes_max || run.at.len() >= WRITE_EXTENTS_MAX;
                if full {
                    whole.push(std::mem::take(run));
                }
                run.at.push(at);
                run.bytes += part.length;
            }
            // What is made is no file that is written to already.
            Some(Command::Create(_)) => {}
            // What is locked says nothing of what is in a file.
            Some(Command::Lock(_) | Command::Unlock(_) | Command::ReleaseOwner(_)) => {}
            Some(Command::SetAttributes(set)) => whole.extend(runs.remove(&set.ino)),
            Some(Command::Fallocate(fallocate)) => whole.extend(runs.remove(&fallocate.ino)),
            Some(Command::SetXattr(set)) => whole.extend(runs.remove(&set.ino)),
            Some(Command::RemoveXattr(remove)) => whole.extend(runs.remove(&remove.ino)),
            Some(Command::CopyRange(copy)) => {
                whole.extend([copy.from, copy.to].iter().filter_map(|ino| runs.remove(ino)));
            }
            // These are about files by their names.
            _ => whole.extend(std::mem::take(&mut runs).into_values()),
        }
    }
    whole.extend(runs.into_values());
    whole.retain(|run| run.at.len() > 1);
    whole.iter().filter_map(|run| fold_run(changes, &run.at, name())).collect()
}

/// Puts all into the last one.
fn fold_run(changes: &mut [LoggedChange], run: &[usize], id: ChunkId) -> Option<Folded> {
    let (&at, others) = run.split_last()?;
    let mut parts = Vec::with_capacity(run.len());
    let mut extents: Vec<proto::Extent> = Vec::new();
    let mut bytes = 0;
    let mut kill_privileges = false;
    for &at in run {
        let write = write_of(changes.get(at)?.command.as_ref())?;
        let part = Part::of(write)?;
        kill_privileges |= write.kill_privileges;
        parts.push(part.chunk);
        match extents.last_mut().filter(|last| last.offset + last.length == part.offset) {
            Some(last) => last.length += part.length,
            None => extents.push(proto::Extent {
                offset: part.offset,
                length: part.length,
                chunk: Some(id.into()),
                chunk_offset: bytes as u32,
            }),
        }
        bytes += part.length;
    }
    for &at in others {
        let change = &mut changes[at];
        let ino = change.command.take().as_ref().and_then(|command| write_of(Some(command)))?.ino;
        change.folded = ino;
    }
    let command = changes[at].command.as_mut()?.command.as_mut()?;
    let Command::Write(write) = command else { return None };
    let replicas = std::mem::take(&mut write.chunks.first_mut()?.replicas);
    write.chunks = vec![NewChunk {
        id: Some(id.into()),
        length: bytes as u32,
        replicas,
        ..NewChunk::default()
    }];
    write.extents = extents;
    write.kill_privileges = kill_privileges;
    Some(Folded { at, parts })
}

fn write_of(command: Option<&TreeCommand>) -> Option<&Write> {
    match command?.command.as_ref()? {
        Command::Write(write) => Some(write),
        _ => None,
    }
}

/// A write of one new chunk, whole, at a known place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    offset: u64,
    length: u64,
    chunk: ChunkId,
}

impl Part {
    fn of(write: &Write) -> Option<Self> {
        let ([extent], [chunk]) = (write.extents.as_slice(), write.chunks.as_slice()) else {
            return None;
        };
        let special = write.append || write.relayout || write.if_version.is_some();
        let whole = extent.chunk == chunk.id
            && extent.chunk_offset == 0
            && extent.length == u64::from(chunk.length);
        (!special && whole).then_some(Self {
            offset: extent.offset,
            length: extent.length,
            chunk: ChunkId::from(chunk.id?),
        })
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Has the view of the node that wrote follow a drain: what it shows of chunks that were folded comes
/// from the new ones from now on.
#[derive(Default)]
pub(super) struct Unfolding {
    runs: BTreeMap<Ino, Vec<Part>>,
    /// Files that may share what was written to others.
    sharers: BTreeSet<Ino>,
    astray: bool,
}

impl Unfolding {
    pub fn among(sharers: BTreeSet<Ino>) -> Self {
        Self { sharers, ..Self::default() }
    }

    /// One change of the drain, with what the node had made.
    pub fn follow(&mut self, tree: &mut Tree, drained: &LoggedChange, made: Option<&Pending>) {
        let part = made.and_then(|made| write_of(Some(&made.command))).and_then(Part::of);
        if drained.folded != 0 {
            let ino = Ino(drained.folded);
            match part {
                Some(part) => self.runs.entry(ino).or_default().push(part),
                None => self.astray = true,
            }
            return;
        }
        let Some(write) = write_of(drained.command.as_ref()) else { return };
        let ino = Ino(write.ino);
        let Some(mut parts) = self.runs.remove(&ino) else {
            tree.chunks.adopt_places(&write.chunks);
            return;
        };
        parts.extend(part);
        self.astray |= tree.unite(ino, &parts, &write.chunks, &self.sharers).is_err();
    }

    /// Whether the view has to be made anew.
    pub fn is_astray(&self) -> bool {
        self.astray || !self.runs.is_empty()
    }
}

impl Tree {
    /// The bytes of chunks that only `ino` and `sharers` have are in one chunk now, one behind the other. If
    /// that fails the tree contradicts itself and has to be made anew.
    fn unite(
        &mut self,
        ino: Ino,
        parts: &[Part],
        new: &[NewChunk],
        sharers: &BTreeSet<Ino>,
    ) -> Result<(), TreeError> {
        let [new] = new else { return Err(TreeError::Invalid) };
        // Those of which nothing is left do not tell; if that is all, neither will be left of this one.
        let volume = parts.iter().find_map(|part| Some(self.chunks.get(part.chunk)?.volume));
        let (id, chunk) = Chunk::from_proto(volume.unwrap_or(ROOT_VOLUME), new)?;
        if u64::from(chunk.length) != parts.iter().map(|part| part.length).sum::<u64>() {
            return Err(TreeError::Invalid);
        }
        let mut starts = BTreeMap::new();
        let mut start = 0;
        for part in parts {
            starts.insert(part.chunk, start);
            start += part.length as u32;
        }
        let birth = self.snapshots.newest(chunk.volume);
        self.chunks.add(id, Chunk { birth, ..chunk });
        for part in parts {
            self.move_bytes(ino, part.offset..part.end(), &starts, id)?;
        }
        let is_left = |tree: &Self| parts.iter().any(|part| tree.chunks.is_live(part.chunk));
        let mut others = sharers.iter().chain([&ino]);
        while is_left(self)
            && let Some(other) = others.next()
        {
            self.move_bytes(*other, 0..u64::MAX, &starts, id)?;
        }
        self.bury(parts.iter().map(|part| part.chunk).chain([id]));
        let left = parts.iter().any(|part| self.chunks.get(part.chunk).is_some());
        if left { Err(TreeError::Stale) } else { Ok(()) }
    }

    /// What a file takes from chunks in `range` comes from chunk `new`, where the bytes of each start as said.
    fn move_bytes(
        &mut self,
        ino: Ino,
        range: Range<u64>,
        starts: &BTreeMap<ChunkId, u32>,
        new: ChunkId,
    ) -> Result<(), TreeError> {
        if self.inode(ino).is_err() {
            // It was removed since, and what it took with it.
            return Ok(());
        }
        let mut moved = Vec::new();
        self.change_extents(ino, |map| {
            let of_parts: Vec<(Extent, Source, u32)> = map
                .overlapping(range.start, range.end)
                .filter_map(|extent| {
                    let source = extent.source?;
                    Some((extent, source, *starts.get(&source.chunk)?))
                })
                .collect();
            for (extent, source, start) in of_parts {
                map.cut(extent.offset, extent.end());
                let moved_to = Source { chunk: new, offset: start + source.offset };
                map.insert(Extent { source: Some(moved_to), ..extent });
                moved.push((source.chunk, extent.length));
            }
        })?;
        for (part, bytes) in moved {
            self.chunks.release(part, bytes);
            self.chunks.acquire(new, bytes);
        }
        Ok(())
    }
}
