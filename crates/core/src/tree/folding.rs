//! Several writes to one file that are drained as one.
//!
//! Programs write in pieces; what they wrote in a row goes to the replicas as one chunk and to the registry as
//! one write. Of the others only their times are left (`LoggedChange::folded`). A fold lies within one drain, so
//! nobody but the node that wrote sees the file between its parts.
//!
//! Invariants: between the writes of a fold the drain has no other change of their file, nor one that may
//! be about it by name; a folded write is what its parts would have made, but for the names of
//! chunks, which [`Unfolding`] carries over to the writer's own view.

use std::collections::BTreeMap;

use unum_proto::ids::{ChunkId, Ino};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::{self as proto, LoggedChange, NewChunk, TreeCommand, Write};

use super::Tree;
use super::chunks::Chunk;
use super::error::TreeError;
use super::extents::{Extent, Source};
use super::local::Pending;
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
            Some(Command::SetAttributes(set)) => whole.extend(runs.remove(&set.ino)),
            Some(Command::Fallocate(fallocate)) => whole.extend(runs.remove(&fallocate.ino)),
            Some(Command::SetXattr(set)) => whole.extend(runs.remove(&set.ino)),
            Some(Command::RemoveXattr(remove)) => whole.extend(runs.remove(&remove.ino)),
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
    astray: bool,
}

impl Unfolding {
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
            tree.chunks.adopt_places(ino, &write.chunks);
            return;
        };
        parts.extend(part);
        self.astray |= tree.unite(ino, &parts, &write.chunks).is_err();
    }

    /// Whether the view has to be made anew.
    pub fn is_astray(&self) -> bool {
        self.astray || !self.runs.is_empty()
    }
}

impl Tree {
    /// The bytes of chunks that only `ino` has are in one chunk now, one behind the other. If that fails the
    /// tree contradicts itself and has to be made anew.
    fn unite(&mut self, ino: Ino, parts: &[Part], new: &[NewChunk]) -> Result<(), TreeError> {
        let [new] = new else { return Err(TreeError::Invalid) };
        let (id, chunk) = Chunk::from_proto(ino, new)?;
        if u64::from(chunk.length) != parts.iter().map(|part| part.length).sum::<u64>() {
            return Err(TreeError::Invalid);
        }
        if self.inode(ino).is_err() {
            // It was removed since, and its chunks with it.
            return Ok(());
        }
        let mut moved = Vec::new();
        let mut start = 0;
        self.change_extents(ino, |map| {
            for part in parts {
                let of_part: Vec<(Extent, Source)> = map
                    .overlapping(part.offset, part.end())
                    .filter_map(|extent| Some((extent, extent.source?)))
                    .filter(|(_, source)| source.chunk == part.chunk)
                    .collect();
                for (extent, source) in of_part {
                    map.cut(extent.offset, extent.end());
                    let source = Source { chunk: id, offset: start + source.offset };
                    map.insert(Extent { source: Some(source), ..extent });
                    moved.push((part.chunk, extent.length));
                }
                start += part.length as u32;
            }
        })?;
        self.chunks.add(id, chunk);
        for (part, bytes) in moved {
            self.chunks.release(part, bytes);
            self.chunks.acquire(id, bytes);
        }
        self.chunks.prune(parts.iter().map(|part| part.chunk).chain([id]));
        let left = parts.iter().any(|part| self.chunks.get(part.chunk).is_some());
        if left { Err(TreeError::Stale) } else { Ok(()) }
    }
}
