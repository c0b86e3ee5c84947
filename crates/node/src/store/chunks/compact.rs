//! Freeing the room of dead records: what is alive in a segment is moved, then the file is removed.
//!
//! Invariants: a segment is removed only when all that is alive in it is durable elsewhere; a step
//! does a bounded amount of work; puts go on between the groups of a step.

use unum_proto::ids::ChunkId;

use super::format::{HEAD_BYTES, segment_name};
use super::write::Change;
use super::{ChunkError, ChunkStore, Index, Place, Segment, Tomb};
use crate::store::disk::DiskError;

/// The last segment is ended before it is full when this part of a full one is dead in it: what was
/// deleted shall not wait for others to write.
const SEAL_DEAD_SHARE: u64 = 4;

/// The outcome of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compacted {
    /// No segment is worth it.
    Nothing,
    /// Some of a segment was moved; more is to do.
    Moved { bytes: u64 },
    /// A segment was removed. The chunks named were rotten in it and are lost on this node.
    Freed { bytes: u64, rotten: Vec<ChunkId> },
}

pub(super) struct Cursor {
    segment: u64,
    /// What was alive when the work began and was not looked at yet.
    alive: Vec<(ChunkId, Place)>,
    rotten: Vec<(ChunkId, Place)>,
}

impl ChunkStore {
    /// Does one step: moves about `bytes_max` bytes, or removes a segment in which nothing is alive
    /// any more. Those bytes are in memory meanwhile. The caller decides how often.
    ///
    /// On a full disk it removes what needs no room for that, and fails with `Full` when there is
    /// nothing of the kind.
    pub fn compact(&self, bytes_max: u64) -> Result<Compacted, ChunkError> {
        let mut compaction = self.compaction.lock().unwrap_or_else(|p| p.into_inner());
        let stepped = self.step(&mut compaction, bytes_max);
        let Err(full @ ChunkError::Full(_)) = stepped else { return stepped };
        let dead = self.read_index().dead();
        match dead {
            Some(segment) => self.free(Cursor::of_dead(segment), 0),
            None => Err(full),
        }
    }

    fn step(
        &self,
        compaction: &mut Option<Cursor>,
        bytes_max: u64,
    ) -> Result<Compacted, ChunkError> {
        let next = match compaction.take() {
            Some(cursor) => Some(cursor),
            None => self.choose()?,
        };
        let Some(mut cursor) = next else { return Ok(Compacted::Nothing) };
        // After an error the work begins anew: the cursor is gone.
        let bytes = self.move_some(&mut cursor, bytes_max)?;
        if !cursor.alive.is_empty() {
            *compaction = Some(cursor);
            return Ok(Compacted::Moved { bytes });
        }
        self.free(cursor, bytes)
    }

    /// What to free next. The last segment, too, if it is worth it: another one is begun then.
    fn choose(&self) -> Result<Option<Cursor>, ChunkError> {
        let percent = self.options.compact_dead_percent;
        let sealed = self.read_index().choose(percent);
        if sealed.is_some() {
            return Ok(sealed);
        }
        let dead_min = self.options.segment_bytes / SEAL_DEAD_SHARE;
        let last = self.read_index().last_if_dead(percent, dead_min);
        let Some(last) = last else { return Ok(None) };
        self.seal(last)?;
        Ok(self.read_index().choose(percent))
    }

    fn move_some(&self, cursor: &mut Cursor, bytes_max: u64) -> Result<u64, ChunkError> {
        let mut changes = Vec::new();
        let mut bytes = 0;
        while bytes < bytes_max {
            let Some((chunk, place)) = cursor.alive.pop() else { break };
            match self.load(chunk, &place) {
                Ok(draft) => {
                    bytes += place.span();
                    changes.push(Change::Move(draft, place));
                }
                Err(ChunkError::Rotten { .. }) => cursor.rotten.push((chunk, place)),
                // Deleted meanwhile.
                Err(ChunkError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.commit(&changes).into_iter().collect::<Result<(), _>>()?;
        Ok(bytes)
    }

    fn free(&self, cursor: Cursor, bytes: u64) -> Result<Compacted, ChunkError> {
        let carried: Vec<Change> = self
            .read_index()
            .needed_tombs(cursor.segment)
            .map(|tomb| Change::Carry(*tomb))
            .collect();
        self.commit(&carried).into_iter().collect::<Result<(), _>>()?;
        let rotten_bytes: u64 = cursor.rotten.iter().map(|(_, place)| place.span()).sum();
        let freed = match self.read_index().segments.get(&cursor.segment) {
            None => return Ok(Compacted::Nothing),
            // Something could not be moved after all: the next step begins anew.
            Some(segment) if segment.live_bytes > rotten_bytes => {
                return Ok(Compacted::Moved { bytes });
            }
            Some(segment) => u64::from(segment.end),
        };
        match self.disk.remove(&segment_name(cursor.segment)) {
            // An earlier step removed it and could not sync that.
            Ok(()) | Err(DiskError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.disk.sync_dir()?;
        self.write_index().forget_segment(cursor.segment);
        let rotten = cursor.rotten.into_iter().map(|(chunk, _)| chunk).collect();
        Ok(Compacted::Freed { bytes: freed, rotten })
    }
}

impl Cursor {
    /// Nothing is to be moved out of the segment.
    fn of_dead(segment: u64) -> Self {
        Self { segment, alive: Vec::new(), rotten: Vec::new() }
    }
}

impl Index {
    /// A sealed segment that can go as it is.
    fn dead(&self) -> Option<u64> {
        let (active, _) = self.segments.last_key_value()?;
        let mut sealed = self.segments.range(..active);
        let dead = sealed.find(|(number, segment)| {
            segment.live_bytes == 0 && self.needed_tombs(**number).next().is_none()
        });
        dead.map(|(number, _)| *number)
    }

    /// The sealed segment with the most dead bytes, if it is worth it.
    fn choose(&self, dead_percent: u64) -> Option<Cursor> {
        let (active, _) = self.segments.last_key_value()?;
        let (number, _) = self
            .segments
            .range(..active)
            .filter_map(|(number, segment)| {
                Some((*number, self.dead_in(*number, segment, dead_percent)?))
            })
            .max_by_key(|(_, dead)| *dead)?;
        let places = self.chunks.iter().filter(|(_, place)| place.segment == number);
        let (rotten, alive) =
            places.map(|(chunk, place)| (*chunk, *place)).partition(|(_, place)| place.rotten);
        Some(Cursor { segment: number, alive, rotten })
    }

    /// The segment that is written to, if this much of it is dead.
    fn last_if_dead(&self, dead_percent: u64, dead_min: u64) -> Option<u64> {
        let (number, last) = self.segments.last_key_value()?;
        let dead = self.dead_in(*number, last, dead_percent)?;
        (dead >= dead_min).then_some(*number)
    }

    /// The bytes of a segment that nobody needs, if they are this share of it.
    fn dead_in(&self, number: u64, segment: &Segment, dead_percent: u64) -> Option<u64> {
        let tombs = (self.needed_tombs(number).count() * HEAD_BYTES) as u64;
        let total = u64::from(segment.end);
        let dead = total.saturating_sub(segment.live_bytes + tombs);
        (dead * 100 >= total * dead_percent).then_some(dead)
    }

    /// The tombstones in a segment without which a deleted chunk would return.
    fn needed_tombs(&self, number: u64) -> impl Iterator<Item = &Tomb> {
        let tombs = self.segments.get(&number).map_or(&[][..], |segment| &segment.tombs[..]);
        tombs.iter().filter(move |tomb| {
            // Some between may never have held the chunk: it is kept longer than it must, then.
            let mut holders = self.segments.range(tomb.oldest..=tomb.buried);
            holders.any(|(holder, _)| *holder != number)
        })
    }
}
