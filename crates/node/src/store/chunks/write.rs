//! Writing groups of changes.
//!
//! Invariants: the index is changed after the sync and never before; a group holds one change of a
//! chunk at most, so that changes of a chunk take effect in their order.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;
use unum_proto::ids::ChunkId;

use super::format::{
    Body, HEAD_BYTES, Head, SEGMENT_HEADER_BYTES, encode_segment_header, segment_name,
};
use super::{ChunkError, ChunkStore, Draft, Index, Place, Segment, Tomb};
use crate::store::disk::{DiskError, DiskFile, Op, Open};
use crate::store::limits::{CHUNK_BULK_BYTES_MIN, CHUNK_GROUP_BYTES_MAX};

pub(super) struct Writer {
    next_number: u64,
    poison: Option<DiskError>,
}

pub(super) enum Change {
    Put(Draft),
    Delete(ChunkId),
    /// Delete it unless its stamp is higher.
    Expire(ChunkId, u64),
    /// Write the chunk once more, if it is still at this place.
    Move(Draft, Place),
    /// Write the tombstone once more.
    Carry(Tomb),
}

/// A record that a change asks for.
struct Planned<'a> {
    change: &'a Change,
    head: Head,
    content: Bytes,
}

/// Where a group goes.
struct Target {
    number: u64,
    salt: u64,
    file: Arc<dyn DiskFile>,
    at: u32,
}

type Outcomes = Vec<Result<(), ChunkError>>;

impl Writer {
    pub fn new(next_number: u64) -> Self {
        Self { next_number, poison: None }
    }

    fn poison(&mut self, by: DiskError) -> ChunkError {
        self.poison = Some(by.clone());
        ChunkError::Poisoned { by }
    }
}

impl Change {
    fn chunk(&self) -> ChunkId {
        match self {
            Change::Put(draft) | Change::Move(draft, _) => draft.chunk,
            Change::Delete(chunk) | Change::Expire(chunk, _) => *chunk,
            Change::Carry(tomb) => tomb.chunk,
        }
    }

    pub fn span(&self) -> usize {
        match self {
            Change::Put(draft) | Change::Move(draft, _) => draft.span(),
            Change::Delete(_) | Change::Expire(..) | Change::Carry(_) => HEAD_BYTES,
        }
    }
}

impl ChunkStore {
    pub(super) fn commit_one(&self, change: Change) -> Result<(), ChunkError> {
        self.commit(&[change]).pop().unwrap_or(Ok(()))
    }

    /// Makes the changes durable, in order, and tells the outcome of each.
    pub(super) fn commit(&self, changes: &[Change]) -> Outcomes {
        let mut writer = self.lock_writer();
        let mut outcomes = Vec::with_capacity(changes.len());
        while let Some(rest) = changes.get(outcomes.len()..).filter(|rest| !rest.is_empty()) {
            let group = &rest[..group_len(rest)];
            outcomes.extend(self.commit_group(&mut writer, group));
        }
        outcomes
    }

    fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn commit_group(&self, writer: &mut Writer, group: &[Change]) -> Outcomes {
        match self.write_group(writer, group) {
            Ok(outcomes) => outcomes,
            Err(ChunkError::Full(error)) => match group {
                [change] => vec![self.without_room(change, error)],
                // The small ones shall not fail with the large.
                _ => group.iter().flat_map(|c| self.commit_group(writer, &[c.copy()])).collect(),
            },
            Err(error) => vec![Err(error); group.len()],
        }
    }

    /// A full disk must not keep anybody from making room: see the module about deletions.
    fn without_room(&self, change: &Change, error: DiskError) -> Result<(), ChunkError> {
        match change {
            Change::Delete(chunk) => {
                self.write_index().unset(*chunk);
                Ok(())
            }
            Change::Expire(chunk, stamp_max) => {
                let mut index = self.write_index();
                if index.chunks.get(chunk).is_some_and(|place| place.stamp <= *stamp_max) {
                    index.unset(*chunk);
                }
                Ok(())
            }
            Change::Put(_) | Change::Move(..) | Change::Carry(_) => Err(ChunkError::Full(error)),
        }
    }

    fn write_group(&self, writer: &mut Writer, group: &[Change]) -> Result<Outcomes, ChunkError> {
        if let Some(by) = &writer.poison {
            return Err(ChunkError::Poisoned { by: by.clone() });
        }
        let mut outcomes = Vec::with_capacity(group.len());
        let mut planned = Vec::with_capacity(group.len());
        for change in group {
            match self.plan(change) {
                Ok(plan) => {
                    planned.extend(plan);
                    outcomes.push(Ok(()));
                }
                Err(error) => outcomes.push(Err(error)),
            }
        }
        if !planned.is_empty() {
            self.write_planned(writer, planned)?;
        }
        Ok(outcomes)
    }

    /// What has to be written for a change: nothing if it is done already.
    fn plan<'a>(&self, change: &'a Change) -> Result<Option<Planned<'a>>, ChunkError> {
        let chunk = change.chunk();
        let present = self.read_index().chunks.get(&chunk).copied();
        let (body, content) = match change {
            Change::Put(draft) => match present.filter(|place| !place.rotten) {
                Some(place) if self.is_same(draft, &place)? => {
                    self.renew(chunk);
                    return Ok(None);
                }
                _ => (draft.body(), draft.content.clone()),
            },
            Change::Delete(_) => match present {
                None => return Ok(None),
                Some(place) => (Body::Tomb { buried: place.segment }, Bytes::new()),
            },
            Change::Expire(_, stamp_max) => match present {
                Some(place) if place.stamp <= *stamp_max => {
                    (Body::Tomb { buried: place.segment }, Bytes::new())
                }
                Some(_) | None => return Ok(None),
            },
            Change::Move(draft, from) => match present {
                Some(place) if place == *from => (draft.body(), draft.content.clone()),
                _ => return Ok(None),
            },
            Change::Carry(tomb) => (Body::Tomb { buried: tomb.buried }, Bytes::new()),
        };
        Ok(Some(Planned { change, head: Head { chunk, group: 0, body }, content }))
    }

    /// Whether the chunk that is there is the one to be put; `Conflict` if it is another one, and
    /// no if it is rotten, which is found out here for its head only.
    fn is_same(&self, draft: &Draft, place: &Place) -> Result<bool, ChunkError> {
        let chunk = draft.chunk;
        let found =
            self.find(chunk).and_then(|(_, salt, file)| self.head(chunk, place, salt, &*file));
        match found {
            Ok(Head { body: Body::Put { hash, .. }, .. }) if hash == draft.hash => Ok(true),
            Ok(_) => Err(ChunkError::Conflict { chunk }),
            Err(ChunkError::Rotten { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn write_planned(
        &self,
        writer: &mut Writer,
        mut planned: Vec<Planned<'_>>,
    ) -> Result<(), ChunkError> {
        let bytes: usize = planned.iter().map(|plan| plan.head.span()).sum();
        if planned.iter().any(|plan| matches!(plan.change, Change::Put(_))) {
            self.check_reserve(bytes)?;
        }
        let target = self.target(writer, bytes)?;
        let heads: Vec<Vec<u8>> = planned
            .iter_mut()
            .map(|plan| {
                plan.head.group = target.at;
                plan.head.encode(target.salt)
            })
            .collect();
        let parts: Vec<&[u8]> = heads
            .iter()
            .zip(&planned)
            .flat_map(|(head, plan)| [&head[..], &plan.content[..]])
            .filter(|part| !part.is_empty())
            .collect();
        if let Err(error) = target.file.write_parts_at(&parts, u64::from(target.at)) {
            return Err(undo_write(writer, &target, error));
        }
        target.file.sync().map_err(|error| writer.poison(error))?;
        self.write_index().enter(&target, &planned);
        if bytes / planned.len() >= CHUNK_BULK_BYTES_MIN {
            target.file.drop_cached(u64::from(target.at), bytes as u64);
        }
        Ok(())
    }

    fn check_reserve(&self, bytes: usize) -> Result<(), ChunkError> {
        let needed = self.options.reserve_bytes.saturating_add(bytes as u64);
        if self.disk.space()?.free_bytes < needed {
            let path = self.disk.path().to_owned();
            return Err(ChunkError::Full(DiskError::Full { op: Op::Write, path }));
        }
        Ok(())
    }

    /// The end of the last segment, or of a new one if the group would make it too long.
    fn target(&self, writer: &mut Writer, bytes: usize) -> Result<Target, ChunkError> {
        if let Some((number, segment)) = self.read_index().segments.last_key_value() {
            let len = u64::from(segment.end) + bytes as u64;
            if len <= self.options.segment_bytes || segment.end as usize <= SEGMENT_HEADER_BYTES {
                return Ok(Target {
                    number: *number,
                    salt: segment.salt,
                    file: segment.file.clone(),
                    at: segment.end,
                });
            }
        }
        self.add_segment(writer)
    }

    /// Ends a segment if it is the last: what is written next goes to a new one.
    pub(super) fn seal(&self, number: u64) -> Result<(), ChunkError> {
        let mut writer = self.lock_writer();
        if let Some(by) = &writer.poison {
            return Err(ChunkError::Poisoned { by: by.clone() });
        }
        let last = self.read_index().segments.last_key_value().map(|(last, _)| *last);
        if last == Some(number) {
            self.add_segment(&mut writer)?;
        }
        Ok(())
    }

    fn add_segment(&self, writer: &mut Writer) -> Result<Target, ChunkError> {
        let number = writer.next_number;
        writer.next_number += 1;
        let salt = self.options.salt ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let name = segment_name(number);
        let file = self.disk.open(&name, Open::New)?;
        if let Err(error) = file.write_at(&encode_segment_header(number, salt), 0) {
            return Err(self.undo_creation(writer, &name, error));
        }
        if let Err(error) = file.sync().and_then(|()| self.disk.sync_dir()) {
            let _ = self.disk.remove(&name);
            return Err(writer.poison(error));
        }
        let at = SEGMENT_HEADER_BYTES as u32;
        let segment =
            Segment { salt, file: file.clone(), end: at, live_bytes: 0, tombs: Vec::new() };
        self.write_index().segments.insert(number, segment);
        Ok(Target { number, salt, file, at })
    }

    /// The file must not come back after a crash: the segment before it goes on.
    fn undo_creation(&self, writer: &mut Writer, name: &str, error: DiskError) -> ChunkError {
        let undone = self.disk.remove(name).and_then(|()| self.disk.sync_dir());
        match undone {
            Ok(()) if error.is_full() => ChunkError::Full(error),
            Ok(()) => writer.poison(error),
            Err(undo) => writer.poison(undo),
        }
    }
}

impl Change {
    /// Cheap: content is shared.
    fn copy(&self) -> Change {
        match self {
            Change::Put(draft) => Change::Put(draft.clone()),
            Change::Delete(chunk) => Change::Delete(*chunk),
            Change::Expire(chunk, stamp_max) => Change::Expire(*chunk, *stamp_max),
            Change::Move(draft, from) => Change::Move(draft.clone(), *from),
            Change::Carry(tomb) => Change::Carry(*tomb),
        }
    }
}

impl Draft {
    fn body(&self) -> Body {
        let len = self.content.len() as u32;
        Body::Put { len, hash: self.hash, blocks: self.blocks.clone() }
    }
}

impl Index {
    fn enter(&mut self, target: &Target, planned: &[Planned<'_>]) {
        self.stamp += 1;
        let mut at = target.at;
        for Planned { change, head, .. } in planned {
            let place = |stamp| Place {
                segment: target.number,
                at,
                len: head.content_bytes() as u32,
                stamp,
                rotten: false,
            };
            match (change, &head.body) {
                (Change::Put(_), _) => self.set(head.chunk, place(self.stamp)),
                (Change::Move(_, from), _) => self.set(head.chunk, place(from.stamp)),
                (Change::Delete(chunk) | Change::Expire(chunk, _), Body::Tomb { buried }) => {
                    let tomb = self.bury(*chunk, *buried);
                    self.add_tomb(target.number, tomb);
                }
                (Change::Carry(tomb), _) => self.add_tomb(target.number, *tomb),
                (Change::Delete(_) | Change::Expire(..), Body::Put { .. } | Body::Void { .. }) => {}
            }
            at += head.span() as u32;
        }
        if let Some(segment) = self.segments.get_mut(&target.number) {
            segment.end = at;
        }
    }
}

/// After a write that failed. The cut is synced: else what was written of this group could come
/// back behind the next one.
fn undo_write(writer: &mut Writer, target: &Target, error: DiskError) -> ChunkError {
    if !error.is_full() {
        return writer.poison(error);
    }
    match target.file.set_len(u64::from(target.at)).and_then(|()| target.file.sync()) {
        Ok(()) => ChunkError::Full(error),
        Err(cut) => writer.poison(cut),
    }
}

/// How many changes go into the next group: at least one.
fn group_len(changes: &[Change]) -> usize {
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let fits = |change: &&Change| {
        bytes += change.span();
        seen.insert(change.chunk()) && bytes <= CHUNK_GROUP_BYTES_MAX
    };
    changes.iter().take_while(fits).count().max(1)
}
