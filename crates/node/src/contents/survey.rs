//! Looks through the chunk table for chunks that are on too few nodes or on the wrong ones.
//!
//! The table is walked when something changed that may leave something to do, while something is
//! being done, and now and then if not. A walk takes a small share of a core, however long the
//! table is.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use unum_core::placement::redundancy::{Need, Transfer, View};
use unum_core::progress::{Amount, Progress};
use unum_core::tree::Chunk;
use unum_proto::admin::Work as ShownWork;
use unum_proto::ids::{ChunkId, NodeId};

use super::{Contents, locked};
use crate::beats::beat;

/// Pause between two looks whether anything may be to do.
const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// The same while something is being done, for its progress.
const WORK_PAUSE: Duration = Duration::from_secs(1);
/// The table is walked after so long even if nothing seems to have changed.
const SWEEP_PERIOD: Duration = Duration::from_secs(600);
/// After a walk, this many times as long as it took is rested.
const REST: u32 = 50;
/// Chunks looked at in one step of a walk.
const SCAN_MAX: usize = 4096;
/// Pieces of work that one walk collects; the next ones find the others.
const WORK_MAX: usize = 4096;

/// A chunk that this node shall see to.
#[derive(Clone, Debug)]
pub struct Item {
    pub id: ChunkId,
    pub chunk: Chunk,
    pub transfer: Transfer,
    pub is_move: bool,
}

/// What this node shall do, the most urgent first.
pub type Work = Arc<Vec<Item>>;

/// What the walks have found in the whole cluster.
#[derive(Default)]
pub struct Surveyed {
    lacking: Progress,
    moving: Progress,
    without_source: u64,
}

impl Surveyed {
    pub fn standing(&self) -> (Option<ShownWork>, Option<ShownWork>, u64) {
        (shown(&self.lacking), shown(&self.moving), self.without_source)
    }
}

fn shown(progress: &Progress) -> Option<ShownWork> {
    let left = progress.left();
    let left_ms = progress.time_left().map_or(0, |left| left.as_millis());
    (!left.is_none()).then(|| ShownWork {
        chunks: left.chunks,
        bytes: left.bytes,
        done_bytes: progress.done_bytes(),
        rate: progress.rate(),
        left_ms: u64::try_from(left_ms).unwrap_or(u64::MAX),
    })
}

#[derive(Default)]
struct Found {
    lacking: Amount,
    moving: Amount,
    without_source: u64,
    mine: Vec<Item>,
}

impl Found {
    /// What has no source is nothing to do.
    fn is_nothing(&self) -> bool {
        self.lacking.is_none() && self.moving.is_none()
    }

    fn add(&mut self, own: NodeId, id: ChunkId, chunk: &Chunk, need: Need) {
        let (amount, transfer, is_move) = match need {
            Need::Nothing => return,
            Need::Source => {
                self.without_source += 1;
                return;
            }
            Need::Copies(transfer) => (&mut self.lacking, transfer, false),
            Need::Move(transfer) => (&mut self.moving, transfer, true),
        };
        amount.add(u64::from(chunk.length) * transfer.count as u64);
        if transfer.worker() == Some(own) && self.mine.len() < WORK_MAX {
            self.mine.push(Item { id, chunk: chunk.clone(), transfer, is_move });
        }
    }

    /// Chunks that may be lost with the next node come first, moves last.
    fn into_work(mut self) -> Work {
        self.mine.sort_by_key(|item| (item.is_move, item.transfer.from.len()));
        Arc::new(self.mine)
    }
}

pub(super) async fn run(contents: Arc<Contents>, work: watch::Sender<Work>) {
    let mut applied = contents.parts.registry.watch();
    // The registry's index at which nothing was to do, and the cluster for which all was in place.
    let mut clean: Option<u64> = None;
    let mut placed: Option<(View, Instant)> = None;
    let mut pause = LOOK_PAUSE;
    loop {
        beat(pause).await;
        let view = contents.view();
        let index = *applied.borrow_and_update();
        let is_placed = |(then, at): &(View, Instant)| *then == view && at.elapsed() < SWEEP_PERIOD;
        let in_place = !placed.as_ref().is_some_and(is_placed);
        if !in_place && clean == Some(index) {
            pause = LOOK_PAUSE;
            continue;
        }
        let (found, took) = walk(&contents, &view, in_place).await;
        let is_clean = found.is_nothing();
        clean = is_clean.then_some(index);
        if in_place {
            placed = is_clean.then(|| (view, Instant::now()));
        }
        pause = if is_clean { LOOK_PAUSE } else { WORK_PAUSE };
        publish(&contents, &found);
        // The repair loop ends with the daemon, as this one does.
        let _ = work.send(found.into_work());
        sleep(took * REST).await;
    }
}

/// One walk. The time is that of the looking alone.
async fn walk(contents: &Contents, view: &View, in_place: bool) -> (Found, Duration) {
    let own = contents.parts.node;
    let mut found = Found::default();
    let mut looking = Duration::ZERO;
    let mut after = None;
    loop {
        let start = Instant::now();
        let step = contents.step(after, SCAN_MAX);
        for (id, chunk, wanted) in &step {
            let need = match in_place {
                true => view.need_in_place(*id, &chunk.replicas, *wanted),
                false => view.need(*id, &chunk.replicas, *wanted),
            };
            found.add(own, *id, chunk, need);
        }
        looking += start.elapsed();
        match step.last() {
            Some((last, ..)) if step.len() == SCAN_MAX => after = Some(*last),
            _ => return (found, looking),
        }
        tokio::task::yield_now().await;
    }
}

fn publish(contents: &Contents, found: &Found) {
    let now = crate::beats::elapsed();
    let mut surveyed = locked(&contents.surveyed);
    let restored = surveyed.lacking.note(now, found.lacking);
    let moved = surveyed.moving.note(now, found.moving);
    surveyed.without_source = found.without_source;
    drop(surveyed);
    if let Some(took) = restored {
        tracing::info!(?took, "every chunk has all of its replicas again");
    }
    if let Some(took) = moved {
        tracing::info!(?took, "every chunk is where it should be");
    }
}
