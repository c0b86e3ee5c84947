//! Copies by reference: extents of several inodes, or of one, take their bytes from the same chunk.
//!
//! A copy is made of the source's extents as they are when the command is applied, so it depends on both
//! inodes and on nothing else. Holes stay holes, allocated zeros stay allocated zeros.

use std::collections::{BTreeMap, BTreeSet};

use unum_proto::ids::{ChunkId, Ino};
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{Copied, CopyRange};

use super::Tree;
use super::error::TreeError;
use super::extents::{Extent, ExtentMap};
use super::inode::Body;
use super::volumes::growth;
use crate::limits::{COPY_EXTENTS_MAX, EXTENTS_PER_INODE_MAX, FILE_SIZE_MAX};
use crate::time::Time;

impl Tree {
    /// Copies what the source has of the range, up to its end; less if that is very many extents.
    pub(super) fn copy_range(
        &mut self,
        now: Time,
        command: &CopyRange,
    ) -> Result<Outcome, TreeError> {
        let to = Ino(command.to);
        // A chunk has the replicas of one volume.
        self.refuse_crossing(Ino(command.from), to)?;
        let source = self.inode(Ino(command.from))?;
        let target = self.inode(to)?;
        let present = target.extents()?.len();
        let (map, start) = (source.extents()?, command.from_offset);
        let asked = command.length.min(source.length.saturating_sub(start));
        if command.from == command.to && start.abs_diff(command.to_offset) < asked {
            return Err(TreeError::Invalid);
        }
        let (extents, length) = shifted(map, start, asked, command.to_offset)?;
        if length > 0 {
            if present + extents.len() + 1 > EXTENTS_PER_INODE_MAX {
                return Err(TreeError::NoSpace);
            }
            self.room_for_bytes(extents.iter().map(|extent| extent.length))?;
            let map = target.extents()?;
            self.quota_for_bytes(to, || growth(map, &extents))?;

            let end = command.to_offset + length;
            self.cut(to, command.to_offset, end)?;
            self.put_extents(to, &extents)?;
            let target = self.inode_mut(to)?;
            target.length = target.length.max(end);
            target.touch_content(now);
            if command.kill_privileges {
                target.kill_privileges();
            }
        }
        let attributes = Some(self.attributes(to)?);
        Ok(Outcome::Copied(Copied { bytes: length, attributes }))
    }

    /// The inodes whose extents take bytes from each of these chunks, in the order of their numbers. Looks at
    /// all extents of all files; of those of snapshots, at what differs from the next newer state.
    pub fn users_of(&self, chunks: &BTreeSet<ChunkId>) -> BTreeMap<ChunkId, Vec<Ino>> {
        let mut users = BTreeMap::<ChunkId, Vec<Ino>>::new();
        for (ino, inode) in self.inodes.iter() {
            let Body::Regular(map) = &inode.body else { continue };
            for source in map.iter().filter_map(|extent| extent.source) {
                if !chunks.contains(&source.chunk) {
                    continue;
                }
                let known = users.entry(source.chunk).or_default();
                if known.last() != Some(&ino) {
                    known.push(ino);
                }
            }
        }
        for (chunk, mut inos) in self.past_users(chunks) {
            inos.sort_unstable();
            users.entry(chunk).or_default().extend(inos);
        }
        users
    }
}

/// The extents of a range as they are to be at `to`, as many as one command takes, and the length that they
/// stand for, holes included.
fn shifted(
    map: &ExtentMap,
    start: u64,
    length: u64,
    to: u64,
) -> Result<(Vec<Extent>, u64), TreeError> {
    let end = start.saturating_add(length);
    let mut extents = Vec::new();
    let mut taken = length;
    for extent in map.within(start, end) {
        if extents.len() == COPY_EXTENTS_MAX {
            taken = extent.offset - start;
            break;
        }
        extents.push(extent);
    }
    let fits = to.checked_add(taken).is_some_and(|end| end <= FILE_SIZE_MAX);
    if !fits {
        return Err(TreeError::FileTooBig);
    }
    for extent in &mut extents {
        extent.offset = extent.offset - start + to;
    }
    Ok((extents, taken))
}
