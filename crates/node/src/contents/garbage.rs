//! Deletes the chunks that nobody wants on this node, and frees the room of what is deleted.
//!
//! The registry knows which chunks are wanted; see the contract in `unum_core::tree` on chunks. A
//! chunk that is unknown may belong to a write that is under way. Such a chunk was put lately, which
//! its stamp in the store tells; so what is unknown to a fresh state and was not put for as long as
//! any write or copy may take is garbage. Who moves a replica here puts it, too, and so renews its
//! stamp.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use unum_proto::ids::ChunkId;

use super::{Contents, locked};
use crate::store::chunks::{Compacted, Listed};
use crate::store::{ChunkError, ChunkStore};

/// Chunks in one step of a pass.
pub(super) const STEP_MAX: usize = 1024;
/// Bytes that one step of compaction may move.
const COMPACT_STEP_BYTES: u64 = 8 << 20;
/// Passes in the time after which garbage is deleted.
const PASSES: u32 = 6;
/// Who has deleted nothing for so many times that time is late.
const LATE: u32 = 2;
const PASS_PAUSE_MIN: Duration = Duration::from_secs(1);

/// Which stamps are how old.
///
/// Invariant: a chunk whose stamp is not above that of a mark was put before it.
#[derive(Debug)]
pub(super) struct Ages {
    marks: VecDeque<(Instant, u64)>,
    /// When all garbage was deleted last.
    collected: Instant,
}

impl Ages {
    pub fn since(now: Instant, stamp: u64) -> Self {
        Self { marks: VecDeque::from([(now, stamp)]), collected: now }
    }

    /// `stamp` was asked for before `now`. Forgets what is not needed to answer for `age`.
    pub fn note(&mut self, now: Instant, stamp: u64, age: Duration) {
        self.marks.push_back((now, stamp));
        while self.marks.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= age) {
            self.marks.pop_front();
        }
    }

    /// All that was garbage at `now` is deleted.
    pub fn collected(&mut self, now: Instant) {
        self.collected = now;
    }

    /// Whether garbage should have been deleted long ago.
    pub fn is_late(&self, now: Instant, age: Duration) -> bool {
        now.duration_since(self.collected) > age * LATE
    }

    /// Chunks up to this stamp are older than `age`; none if nothing is known to be.
    pub fn stamp_before(&self, now: Instant, age: Duration) -> Option<u64> {
        let old = self.marks.iter().rev().find(|(at, _)| now.duration_since(*at) >= age);
        old.map(|(_, stamp)| *stamp)
    }
}

pub(super) async fn run(contents: Arc<Contents>) {
    let after = contents.parts.rates.garbage_after;
    loop {
        sleep((after / PASSES).max(PASS_PAUSE_MIN)).await;
        let stamp = contents.parts.replicas.store().store().stamp();
        let now = Instant::now();
        locked(&contents.ages).note(now, stamp, after);
        match pass(&contents).await {
            Ok(deleted) => {
                locked(&contents.ages).collected(now);
                if deleted > 0 {
                    tracing::info!(deleted, "deleted chunks that no file uses any more");
                }
            }
            Err(why) => tracing::warn!(why, "garbage is collected later"),
        }
        if let Err(error) = compact(&contents).await {
            tracing::warn!(%error, "the room of deleted chunks is freed later");
        }
    }
}

/// Deletes what is old enough; tells how much.
async fn pass(contents: &Contents) -> Result<u64, String> {
    let Some(stamp_max) = contents.stamp_of_garbage() else { return Ok(0) };
    contents.fresh().await.map_err(|error| error.to_string())?;
    let store = contents.parts.replicas.store();
    let mut after = None;
    let mut deleted = 0;
    while let Some((unwanted, last)) = unwanted_step(contents, store.store(), after) {
        for listed in unwanted.iter().filter(|listed| listed.stamp <= stamp_max) {
            let gone = store.expire(listed.chunk, stamp_max).await;
            deleted += u64::from(gone.map_err(|error| error.to_string())?);
        }
        after = Some(last);
        tokio::task::yield_now().await;
    }
    Ok(deleted)
}

/// Of the next chunks, those that nobody wants here, and the last one that was looked at.
pub(super) fn unwanted_step(
    contents: &Contents,
    store: &ChunkStore,
    after: Option<ChunkId>,
) -> Option<(Vec<Listed>, ChunkId)> {
    let node = contents.parts.node;
    let step = store.list(after, STEP_MAX);
    let last = step.last()?.chunk;
    let unwanted = contents.look(|tree| {
        let wanted = |listed: &Listed| {
            tree.chunk(listed.chunk).is_some_and(|chunk| chunk.replicas.contains(&node))
        };
        step.into_iter().filter(|listed| !wanted(listed)).collect()
    });
    Some((unwanted, last))
}

/// Frees every segment that is worth it.
async fn compact(contents: &Contents) -> Result<(), ChunkError> {
    let replicas = &contents.parts.replicas;
    loop {
        match replicas.store().compact(COMPACT_STEP_BYTES).await {
            Ok(Compacted::Nothing) => return Ok(()),
            // Something of it cannot be moved: the next pass tries again.
            Ok(Compacted::Moved { bytes: 0 }) => return Ok(()),
            Ok(Compacted::Moved { bytes }) => contents.copying.take(bytes).await,
            Ok(Compacted::Freed { rotten, .. }) => {
                rotten.into_iter().for_each(|chunk| replicas.suspect(chunk));
            }
            Err(error) => return Err(error),
        }
    }
}

impl Contents {
    /// What is unwanted and has this stamp or a lower one is garbage.
    pub(super) fn stamp_of_garbage(&self) -> Option<u64> {
        locked(&self.ages).stamp_before(Instant::now(), self.parts.rates.garbage_after)
    }

    /// Whether garbage should have been deleted long ago.
    pub(super) fn is_garbage_late(&self) -> bool {
        locked(&self.ages).is_late(Instant::now(), self.parts.rates.garbage_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_tell_a_least_age() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let age = Duration::from_secs(10);
        let mut ages = Ages::since(at(0), 3);
        let mut seen = Vec::new();
        for second in (5..40).step_by(5) {
            ages.note(at(second), 3 + second, age);
            seen.push(ages.stamp_before(at(second), age));
        }
        let expected: Vec<Option<u64>> =
            vec![None, Some(3), Some(8), Some(13), Some(18), Some(23), Some(28)];
        assert_eq!(seen, expected);
        assert!(ages.marks.len() <= 4);
        // After a pause, what was there before it is old.
        assert_eq!(ages.stamp_before(at(100), age), Some(38));
        assert_eq!(ages.stamp_before(at(44), age), Some(33));
        assert!(!ages.is_late(at(20), age) && ages.is_late(at(21), age));
        ages.collected(at(21));
        assert!(!ages.is_late(at(41), age));
    }
}
