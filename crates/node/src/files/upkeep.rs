//! What the file tree needs done behind its users' backs: orphans held and reaped, leftover locks
//! given back, ragged files laid out anew. What chunks need is done in `crate::contents`.
//!
//! Each loop does a bounded amount of work at a time and starts over from the registry's state, so
//! that any of them may die at any point.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use unum_core::tree::{Tree, TreeError, gives_locks_back};
use unum_net::{CallOptions, Client, Name, Router, Status};
use unum_proto::file::{CHUNK_SIZE_MAX, HeldInodes, HeldInodesReply};
use unum_proto::ids::{Ino, NodeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::{Hold, LockTable, Reap, Release, ReleaseOwner, Write};

use super::Files;
use super::changelog;
use super::content::{Plan, RAGGED_EXTENTS_MIN, placed};
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
}

/// Starts the loops.
pub fn run(files: &Arc<Files>, cluster: Arc<dyn Cluster>, client: &Client, tasks: &Tasks) {
    let stop = || tasks.stop();
    tasks.spawn_lasting("orphans", until(stop(), watch_orphans(files.clone())));
    let reaper = reap(files.clone(), cluster, client.clone());
    tasks.spawn_lasting("reaper", until(stop(), reaper));
    tasks.spawn_lasting("leftovers", until(stop(), give_back(files.clone())));
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
    let log = changelog::routes(&files.log);
    log.call::<HeldInodesMethod>(move |_, request: HeldInodes| {
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
        files.look_confirmed(|tree| asked.into_iter().partition(|ino| tree.is_orphan(*ino)));
    // A copy that is not drained yet takes bytes from its source when it is.
    let copied = files.log.copied_from();
    let (wanted, orphans) = orphans.into_iter().partition(|ino| copied.contains(ino));
    let wanted: Vec<Ino> = wanted;
    let held = files.held(orphans).into_iter().chain(others).chain(wanted);
    let held = held.map(|ino| ino.0).collect();
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
    let new: Vec<(u64, Ino)> = files.look_confirmed(|tree| tree.orphans_after(seen).collect());
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
                    let table = table as i32;
                    Command::ReleaseOwner(ReleaseOwner { ino: ino.0, table, owner })
                }
            };
            match give_back_one(&files, command).await {
                Ok(()) => files.forget_leftover(leftover),
                Err(error) => tracing::debug!(%error, ?leftover, "is given back later"),
            }
        }
        before = left;
    }
}

async fn give_back_one(files: &Files, command: Command) -> Result<(), FileError> {
    let deadline = files.deadline();
    let _pass = match gives_locks_back(&command) {
        // What was locked may not be drained yet.
        true => Some(files.log.pass_locks(&command, deadline).await?),
        false => None,
    };
    files.change(command, deadline).await.map(drop)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Leftover {
    Hold(Ino),
    Lock(Ino, LockTable, u64),
}

impl Files {
    fn forget_leftover(&self, leftover: &Leftover) {
        if let Leftover::Lock(ino, table, owner) = *leftover {
            self.lock_owners().forget((ino, table, owner));
        }
    }
}

fn leftovers(files: &Files) -> BTreeSet<Leftover> {
    let node = files.parts.node;
    let handles = files.handles();
    let locks_of = |tree: &Tree| tree.locks().of_node(node).collect();
    let (holds, locks): (Vec<Ino>, Vec<(Ino, LockTable, u64)>) =
        files.look(|tree| (tree.held_by(node).collect(), locks_of(tree)));
    let holds = holds.into_iter().filter(|ino| !handles.is_open(*ino)).map(Leftover::Hold);
    let locks = locks.into_iter().filter(|(ino, _, _)| !handles.is_open(*ino));
    holds.chain(locks.map(|(ino, table, owner)| Leftover::Lock(ino, table, owner))).collect()
}

/// Rule 4 of the contract, on the leader.
async fn reap(files: Arc<Files>, cluster: Arc<dyn Cluster>, client: Client) {
    let mut applied = files.parts.registry.watch();
    loop {
        let none = files.look_confirmed(|tree| tree.orphans_after(None).next().is_none());
        if none && applied.changed().await.is_err() {
            return;
        }
        sleep(REAP_PAUSE).await;
        if !cluster.leads() {
            continue;
        }
        let now = crate::registry::system_clock()();
        let candidates = files.look_confirmed(|tree| tree.reapable(now, INODES_MAX));
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
    if files.look_confirmed(|tree| tree.holder_of(ino).is_some()) {
        files.note_ragged(ino, start);
        return Ok(());
    }
    let plan = files.look_confirmed(|tree| Plan::of(tree, ino, start, CHUNK_SIZE_MAX as u64))?;
    // A hole would be filled: sparse files stay as they are. What was drained since may be whole.
    if plan.has_holes() || plan.pieces() < RAGGED_EXTENTS_MIN {
        return Ok(());
    }
    let version = plan.version;
    let data = plan.fetch(files, deadline).await?;
    if data.is_empty() {
        return Ok(());
    }
    let wanted = files.look_confirmed(|tree| files.replicas().wanted(tree, ino));
    let stored = files.replicas().write(data, wanted, deadline).await?;
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
