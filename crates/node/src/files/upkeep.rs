//! What the file tree needs done behind its users' backs: orphans held and reaped, leftover locks
//! given back, chunks brought back to their number of replicas, garbage deleted, ragged files laid
//! out anew.
//!
//! Each loop does a bounded amount of work at a time and starts over from the registry's state, so
//! that any of them may die at any point.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use unum_core::placement::chunks::{Place, place};
use unum_core::tree::{Lacking, Tree, TreeError};
use unum_net::{CallOptions, Client, Name, Router, Status};
use unum_proto::file::{CHUNK_SIZE_MAX, HeldInodes, HeldInodesReply};
use unum_proto::ids::{ChunkId, Ino, NodeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::{Hold, Reap, Release, ReleaseOwner, SetReplicas, Write};

use super::Files;
use super::content::{Plan, placed};
use super::errno::FileError;
use crate::tasks::{Stop, Tasks};

/// Pause between two looks for orphans that nobody has open.
const REAP_PAUSE: Duration = Duration::from_secs(2);
/// Inodes in one Hold, Reap or question to the nodes.
const INODES_MAX: usize = 256;
/// How long a node may take to say what it has open.
const QUESTION_TIME_MAX: Duration = Duration::from_secs(5);

/// Locks and holds of files that are not open here are given back when two looks with this pause
/// between them saw them. The pause is far longer than a call that is about to open the file.
const LEFTOVER_PAUSE: Duration = Duration::from_secs(60);

/// Pause between two looks whether chunks may lack replicas.
const REPAIR_PAUSE: Duration = Duration::from_secs(5);
/// The chunk table is walked after so long even if nothing seems to have changed.
const REPAIR_SWEEP_PERIOD: Duration = Duration::from_secs(600);
/// After a walk, this many times as long as it took is rested: a long table that changes all the
/// time takes a small share of a core.
const REPAIR_REST: u32 = 50;
/// Chunks looked at, and chunks copied at the same time, in one step of a walk.
const REPAIR_SCAN_MAX: usize = 4096;
const REPAIR_COPIES_MAX: usize = 4;
const REPAIR_TIME_MAX: Duration = Duration::from_secs(20);

/// A chunk that the registry does not know is deleted when it was unknown in two passes. Between
/// them lies far more than the deadline of any write.
const GARBAGE_PAUSE: Duration = Duration::from_secs(600);
/// Chunks in one step of a pass.
const GARBAGE_STEP_MAX: usize = 1024;
/// Bytes that compaction may move after each step of a pass.
const COMPACT_STEP_BYTES: u64 = 8 << 20;
/// Unknown chunks remembered between two passes; more wait for the next.
const GARBAGE_MAX: usize = 1 << 20;

/// Pause between two looks for ragged files.
const RAGGED_PAUSE: Duration = Duration::from_millis(500);

unum_net::methods! {
    /// Asks which of these inodes are open on a node.
    pub HeldInodesMethod = "file.held-inodes", Control, idempotent, HeldInodes => HeldInodesReply;
}

/// What the leader's part of the upkeep asks of its surroundings.
pub trait Cluster: Send + Sync {
    /// Whether this node leads the registry.
    fn leads(&self) -> bool;
    /// Every node that may have files open.
    fn members(&self) -> Vec<NodeId>;
    /// Nodes whose replicas count: they live, or died so lately that they may be back soon.
    fn counting(&self) -> Vec<Place>;
}

/// Starts the loops.
pub fn run(files: &Arc<Files>, cluster: Arc<dyn Cluster>, client: &Client, tasks: &Tasks) {
    let stop = || tasks.stop();
    tasks.spawn_lasting("orphans", until(stop(), watch_orphans(files.clone())));
    let reaper = reap(files.clone(), cluster.clone(), client.clone());
    tasks.spawn_lasting("reaper", until(stop(), reaper));
    tasks.spawn_lasting("leftovers", until(stop(), give_back(files.clone())));
    tasks.spawn_lasting("repair", until(stop(), repair(files.clone(), cluster)));
    tasks.spawn_lasting("garbage", until(stop(), collect_garbage(files.clone())));
    tasks.spawn_lasting("ragged", until(stop(), lay_out_anew(files.clone())));
}

async fn until(stop: Stop, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.requested() => {}
        () = work => {}
    }
}

/// What this node answers to the others.
pub fn routes(files: &Arc<Files>) -> Router {
    let files = files.clone();
    Router::new().call::<HeldInodesMethod>(move |_, request: HeldInodes| {
        let files = files.clone();
        async move { answer_held(&files, request).await }
    })
}

/// The answer of a node without a mount: nothing is open there.
pub fn nothing_held() -> Router {
    Router::new()
        .call::<HeldInodesMethod>(|_, _| async { Ok(HeldInodesReply { held: Vec::new() }) })
}

/// Rule 4 of the contract in `unum_core::tree`: the answer is final only if the state here shows the
/// inodes as orphans, so what is not shown as one counts as open.
async fn answer_held(files: &Files, request: HeldInodes) -> Result<HeldInodesReply, Status> {
    let fresh = files.fresh(Instant::now() + QUESTION_TIME_MAX).await;
    fresh.map_err(|error| Status::internal(error.to_string()))?;
    let asked: Vec<Ino> = request.inodes.into_iter().take(INODES_MAX).map(Ino).collect();
    let (orphans, others): (Vec<Ino>, Vec<Ino>) =
        files.look(|tree| asked.into_iter().partition(|ino| tree.is_orphan(*ino)));
    let held = files.held(orphans).into_iter().chain(others).map(|ino| ino.0).collect();
    Ok(HeldInodesReply { held })
}

/// Rule 2 of the contract: holds every orphan that is open here.
async fn watch_orphans(files: Arc<Files>) {
    let mut applied = files.parts.registry.watch();
    let mut seen = None;
    loop {
        let (open, last) = open_orphans(&files, seen);
        let held = match open.is_empty() {
            true => Ok(()),
            false => hold(&files, &open).await,
        };
        match held {
            Ok(()) => seen = last.or(seen),
            Err(error) => {
                tracing::warn!(%error, "open files without a name could not be held; trying again");
                sleep(REAP_PAUSE).await;
                continue;
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

fn open_orphans(files: &Files, seen: Option<u64>) -> (Vec<Ino>, Option<u64>) {
    let new: Vec<(u64, Ino)> = files.look(|tree| tree.orphans_after(seen).collect());
    let last = new.last().map(|(sequence, _)| *sequence);
    (files.held(new.into_iter().map(|(_, ino)| ino)), last)
}

async fn hold(files: &Files, open: &[Ino]) -> Result<(), FileError> {
    for batch in open.chunks(INODES_MAX) {
        let hold = Hold { inos: batch.iter().map(|ino| ino.0).collect() };
        match files.change(Command::Hold(hold), files.deadline()).await {
            // They have a name again, or are gone: nothing to hold.
            Ok(_) | Err(FileError::Tree(TreeError::Stale)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What closes could not give back because there was no majority just then.
async fn give_back(files: Arc<Files>) {
    let mut before = BTreeSet::new();
    loop {
        sleep(LEFTOVER_PAUSE).await;
        if files.fresh(files.deadline()).await.is_err() {
            continue;
        }
        let left = leftovers(&files);
        for leftover in left.intersection(&before) {
            let command = match *leftover {
                Leftover::Hold(ino) => Command::Release(Release { inos: vec![ino.0] }),
                Leftover::Lock(ino, table, owner) => {
                    Command::ReleaseOwner(ReleaseOwner { ino: ino.0, table, owner })
                }
            };
            if let Err(error) = files.change(command, files.deadline()).await {
                tracing::debug!(%error, ?leftover, "is given back later");
            }
        }
        before = left;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Leftover {
    Hold(Ino),
    Lock(Ino, i32, u64),
}

fn leftovers(files: &Files) -> BTreeSet<Leftover> {
    let node = files.parts.node;
    let handles = files.handles();
    let locks_of =
        |tree: &Tree| tree.locks().of_node(node).map(|(ino, t, o)| (ino, t as i32, o)).collect();
    let (holds, locks): (Vec<Ino>, Vec<(Ino, i32, u64)>) =
        files.look(|tree| (tree.held_by(node).collect(), locks_of(tree)));
    let holds = holds.into_iter().filter(|ino| !handles.is_open(*ino)).map(Leftover::Hold);
    let locks = locks.into_iter().filter(|(ino, _, _)| !handles.is_open(*ino));
    holds.chain(locks.map(|(ino, table, owner)| Leftover::Lock(ino, table, owner))).collect()
}

/// Rule 4 of the contract, on the leader.
async fn reap(files: Arc<Files>, cluster: Arc<dyn Cluster>, client: Client) {
    let mut applied = files.parts.registry.watch();
    loop {
        let none = files.look(|tree| tree.orphans_after(None).next().is_none());
        if none && applied.changed().await.is_err() {
            return;
        }
        sleep(REAP_PAUSE).await;
        if !cluster.leads() {
            continue;
        }
        let now = crate::registry::system_clock()();
        let candidates = files.look(|tree| tree.reapable(now, INODES_MAX));
        if candidates.is_empty() {
            continue;
        }
        if let Some(free) = nobody_has(&cluster.members(), candidates, &client).await {
            let reap = Reap { inos: free.iter().map(|ino| ino.0).collect() };
            if let Err(error) = files.change(Command::Reap(reap), files.deadline()).await {
                tracing::debug!(%error, "orphans are reaped later");
            }
        }
    }
}

/// Those that no member has open; nothing unless every member has answered.
async fn nobody_has(
    members: &[NodeId],
    candidates: Vec<Ino>,
    client: &Client,
) -> Option<BTreeSet<Ino>> {
    let question = HeldInodes { inodes: candidates.iter().map(|ino| ino.0).collect() };
    let options = CallOptions::within(QUESTION_TIME_MAX).fail_fast();
    let answers =
        join_all(
            members.iter().map(|node| {
                let (question, options) = (question.clone(), &options);
                async move {
                    client.call::<HeldInodesMethod>(&Name::Node(*node), question, options).await
                }
            }),
        );
    let mut free: BTreeSet<Ino> = candidates.into_iter().collect();
    for answer in answers.await {
        for held in answer.ok()?.held {
            free.remove(&Ino(held));
        }
    }
    (!free.is_empty()).then_some(free)
}

/// What a walk through the chunk table depends on.
#[derive(Clone, PartialEq)]
struct Seen {
    applied: u64,
    places: Vec<Place>,
    wanted: usize,
}

/// The first living replica of a chunk that has too few makes the others. The table is walked when
/// something changed that may leave a chunk with too few, and now and then if not.
async fn repair(files: Arc<Files>, cluster: Arc<dyn Cluster>) {
    let mut applied = files.parts.registry.watch();
    let mut done: Option<(Seen, Instant)> = None;
    let mut pause = REPAIR_PAUSE;
    loop {
        sleep(pause).await;
        let applied = *applied.borrow_and_update();
        let seen = Seen { applied, places: cluster.counting(), wanted: files.replicas().factor() };
        let is_done =
            |(walked, at): &(Seen, Instant)| *walked == seen && at.elapsed() < REPAIR_SWEEP_PERIOD;
        if done.as_ref().is_some_and(is_done) {
            pause = REPAIR_PAUSE;
            continue;
        }
        let start = Instant::now();
        let (whole, looking) = repair_all(&files, &seen.places, seen.wanted).await;
        done = whole.then_some((seen, start));
        pause = REPAIR_PAUSE.max(looking * REPAIR_REST);
    }
}

/// One walk. Returns whether nothing is left to do for this node, and how long the looking took: the
/// copying is work that was wanted, and no reason to rest.
async fn repair_all(files: &Files, places: &[Place], wanted: usize) -> (bool, Duration) {
    let node = files.parts.node;
    let live: BTreeSet<NodeId> = places.iter().map(|place| place.node).collect();
    let mut after = None;
    let mut whole = true;
    let mut looking = Duration::ZERO;
    loop {
        let start = Instant::now();
        let walk = files.look(|tree| tree.chunks_lacking(&live, wanted, after, REPAIR_SCAN_MAX));
        looking += start.elapsed();
        let mine: Vec<Lacking> =
            walk.found.into_iter().filter(|lacking| lacking.live.first() == Some(&node)).collect();
        for batch in mine.chunks(REPAIR_COPIES_MAX) {
            let copies = batch.iter().map(|lacking| replicate(files, lacking, places, wanted));
            for result in join_all(copies).await {
                if let Err(why) = result {
                    tracing::warn!(%why, "a chunk still lacks replicas");
                    whole = false;
                }
            }
        }
        match walk.next {
            Some(next) => after = Some(next),
            None => return (whole, looking),
        }
        tokio::task::yield_now().await;
    }
}

async fn replicate(
    files: &Files,
    lacking: &Lacking,
    places: &[Place],
    wanted: usize,
) -> Result<(), String> {
    let Lacking { id, chunk, live } = lacking;
    let replicas = files.replicas();
    let deadline = Instant::now() + REPAIR_TIME_MAX;
    let order = place(*id, places, places.len()).into_iter().filter(|node| !live.contains(node));
    let lacking = wanted.saturating_sub(live.len());
    let copied = replicas.copy(*id, chunk, live, order, lacking, deadline).await?;
    if copied.to.is_empty() {
        return Err(format!("no node takes another replica of chunk {id}: {}", copied.refusal));
    }
    let now = live.iter().chain(&copied.to);
    let set = SetReplicas {
        chunk: Some((*id).into()),
        expected: chunk.replicas.iter().map(|node| node.0).collect(),
        replicas: now.map(|node| node.0).collect(),
    };
    match files.change(Command::SetReplicas(set), deadline).await {
        // The chunk is gone, or somebody else repaired it.
        Ok(_) | Err(FileError::Tree(TreeError::Stale | TreeError::NotFound)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The registry knows which chunks are wanted; see the contract in `unum_core::tree` on chunks.
async fn collect_garbage(files: Arc<Files>) {
    let mut before: HashSet<ChunkId> = HashSet::new();
    loop {
        sleep(GARBAGE_PAUSE).await;
        if files.fresh(files.deadline()).await.is_err() {
            continue;
        }
        match garbage_pass(&files, &before).await {
            Ok(unknown) => before = unknown,
            Err(error) => tracing::warn!(%error, "garbage chunks are collected later"),
        }
    }
}

/// Deletes what is unknown now and was before; returns what is unknown for the first time.
async fn garbage_pass(
    files: &Files,
    before: &HashSet<ChunkId>,
) -> Result<HashSet<ChunkId>, crate::store::ChunkError> {
    let store = files.replicas().store();
    let node = files.parts.node;
    let mut unknown = HashSet::new();
    let mut after = None;
    loop {
        let step: Vec<ChunkId> =
            store.store().list(after, GARBAGE_STEP_MAX).iter().map(|listed| listed.chunk).collect();
        let Some(last) = step.last() else { return Ok(unknown) };
        after = Some(*last);
        let unwanted: Vec<ChunkId> = files.look(|tree| {
            let wanted =
                |id: &ChunkId| tree.chunk(*id).is_some_and(|chunk| chunk.replicas.contains(&node));
            step.into_iter().filter(|id| !wanted(id)).collect()
        });
        for id in unwanted {
            if before.contains(&id) {
                store.delete(id).await?;
            } else if unknown.len() < GARBAGE_MAX {
                unknown.insert(id);
            }
        }
        store.compact(COMPACT_STEP_BYTES).await?;
    }
}

/// Replaces many short extents by one chunk, so that files written in small pieces read well.
async fn lay_out_anew(files: Arc<Files>) {
    // Only writes make files ragged, and they are applied just before that is noted.
    let mut applied = files.parts.registry.watch();
    while applied.changed().await.is_ok() {
        sleep(RAGGED_PAUSE).await;
        let batch: Vec<(Ino, u64)> = {
            let mut ragged = files.ragged.lock().unwrap_or_else(PoisonError::into_inner);
            ragged.drain().collect()
        };
        for (ino, start) in batch {
            if let Err(error) = lay_out(&files, ino, start).await {
                tracing::debug!(%error, %ino, "stays ragged until its next write");
            }
        }
    }
}

async fn lay_out(files: &Files, ino: Ino, start: u64) -> Result<(), FileError> {
    let deadline = files.deadline();
    files.fresh(deadline).await?;
    let plan = files.look(|tree| Plan::of(tree, ino, start, CHUNK_SIZE_MAX as u64))?;
    if plan.has_holes() {
        // A hole would be filled: sparse files stay as they are.
        return Ok(());
    }
    let version = plan.version;
    let data = plan.fetch(files, deadline).await?;
    if data.is_empty() {
        return Ok(());
    }
    let stored = files.replicas().write(data, deadline).await?;
    let (extent, chunk) = placed(start, &stored);
    let write = Write {
        ino: ino.0,
        extents: vec![extent],
        chunks: vec![chunk],
        append: false,
        kill_privileges: false,
        if_version: Some(version),
        relayout: true,
    };
    files.change(Command::Write(write), deadline).await.map(drop)
}
