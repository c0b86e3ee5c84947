//! The check of everything: the tree by its own rules, the stores of all nodes against the tree, and
//! the number of replicas of each chunk.
//!
//! It runs while the cluster works, on a copy of the tree (which is cheap), and each node judges its
//! replicas by a state that is fresh. So what is told was wrong when it was looked at, and what is
//! changed meanwhile is not mistaken for damage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep};
use unum_core::placement::chunks::Place;
use unum_core::placement::redundancy::{Need, View};
use unum_core::tree::{Chunk, Kind, ROOT, SNAPSHOTS_NAME, Tree, in_one_snapshot, is_past};
use unum_net::{CallOptions, Code, Method, Name, Status};
use unum_proto::admin::fsck_event::Kind as Event;
use unum_proto::admin::{FindingKind, FsckFinding, FsckProgress, FsckReply, FsckRequest};
use unum_proto::file::{
    CHECK_CHUNKS_MAX, CheckChunks, CheckChunksReply, ChunkFault, FaultKind, UnknownChunks,
    UnknownChunksReply,
};
use unum_proto::ids::{ChunkId, Ino, NodeId};

use super::check::{CheckChunksMethod, UnknownChunksMethod};
use super::survey::Item;
use super::{Contents, locked, repair};

/// Findings that are told one by one; the others are only counted.
const FINDINGS_MAX: usize = 10_000;
/// Chunks of the table looked at for one question to a node; all of them may be read there.
const STEP_MAX: usize = CHECK_CHUNKS_MAX;
const DEEP_STEP_MAX: usize = 64;
/// Files that one finding names besides its own, where they share a chunk.
const SHARERS_NAMED_MAX: usize = 8;
/// How long a node may take to answer a question.
const QUESTION_TIME_MAX: Duration = Duration::from_secs(300);
/// How often a node is asked that does not answer.
const TRIES_MAX: u32 = 5;
const TRY_PAUSE: Duration = Duration::from_secs(1);
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);
/// Chunks that are copied at the same time.
const COPIES_MAX: usize = 4;
/// How long copies that are under way are waited for.
const COPIES_WAIT: Duration = Duration::from_secs(10);
const COPIES_PAUSE: Duration = Duration::from_millis(500);
/// Chunks looked at in one step of the last walk.
const SCAN_MAX: usize = 4096;

struct Member {
    node: NodeId,
    name: String,
    is_alive: bool,
}

/// What has been found so far.
#[derive(Default)]
struct Tally {
    what: String,
    total: u64,
    reply: FsckReply,
    /// With the chunk that each is about, if that is a file's.
    findings: Vec<(Option<ChunkId>, FsckFinding)>,
    /// Of each chunk, the replicas that are no good.
    bad: BTreeMap<ChunkId, usize>,
}

impl Tally {
    fn add(&mut self, finding: FsckFinding) {
        self.add_of(None, finding);
    }

    fn add_of(&mut self, chunk: Option<ChunkId>, finding: FsckFinding) {
        self.reply.found += 1;
        self.reply.mended += u64::from(finding.mended);
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push((chunk, finding));
        }
    }

    fn progress(&self) -> Event {
        let FsckReply { replicas: done, .. } = self.reply;
        Event::Progress(FsckProgress { what: self.what.clone(), done, total: self.total })
    }
}

struct Run<'a> {
    contents: &'a Contents,
    request: FsckRequest,
    tree: Tree,
    members: Vec<Member>,
    tally: Mutex<Tally>,
}

impl Contents {
    /// `tell` gets what people shall see; it is given up when nobody takes that.
    pub async fn fsck(
        &self,
        request: FsckRequest,
        tell: &mpsc::Sender<Event>,
    ) -> Result<FsckReply, Status> {
        let unavailable = |error| Status::new(Code::Unavailable, format!("{error}"));
        self.fresh().await.map_err(unavailable)?;
        let alive = self.parts.replicas.alive();
        let (tree, members) = self.parts.registry.read(|state| {
            let workers = state.nodes().members().filter(|node| node.is_worker());
            let members = workers.map(|node| Member {
                node: node.id,
                name: node.name.clone(),
                is_alive: alive.contains(&node.id),
            });
            (state.tree().clone(), members.collect::<Vec<Member>>())
        });
        let mut tally = Tally::default();
        let dead = members.iter().filter(|member| !member.is_alive);
        tally.reply.dead = dead.map(|member| member.name.clone()).collect();
        let tally = Mutex::new(tally);
        let run = Run { contents: self, request, tree, members, tally };
        tokio::select! {
            done = run.all() => done?,
            () = run.tell_progress(tell) => return Err(gone()),
        }
        let tally = run.tally.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        let findings = with_files(run.tree, tally.findings).await?;
        for finding in findings {
            tell.send(Event::Finding(finding)).await.map_err(|_| gone())?;
        }
        Ok(tally.reply)
    }
}

fn gone() -> Status {
    Status::new(Code::Cancelled, "nobody waits for the answer any more")
}

impl Run<'_> {
    async fn all(&self) -> Result<(), Status> {
        self.check_tree().await?;
        self.say("checking the nodes' stores");
        let alive: BTreeSet<NodeId> = self.alive().map(|member| member.node).collect();
        let total = self.tree.chunks_after(None);
        let total =
            total.map(|(_, c)| c.replicas.iter().filter(|n| alive.contains(n)).count() as u64);
        let (total, chunks) = (total.sum(), self.tree.usage().chunks);
        {
            let mut tally = locked(&self.tally);
            tally.total = total;
            tally.reply.chunks = chunks;
            tally.reply.inodes = self.tree.usage().inodes;
        }
        join_all(self.alive().map(|member| self.check_node(member))).await;
        locked(&self.tally).total = 0;
        if !self.request.repair {
            self.say("waiting for copies that are under way");
            self.wait_for_copies().await;
        }
        self.say("counting replicas");
        self.count_replicas().await
    }

    fn alive(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.is_alive)
    }

    fn say(&self, what: &str) {
        locked(&self.tally).what = what.into();
    }

    async fn tell_progress(&self, tell: &mpsc::Sender<Event>) {
        let mut ticks = interval(PROGRESS_PERIOD);
        loop {
            ticks.tick().await;
            let progress = locked(&self.tally).progress();
            if tell.send(progress).await.is_err() {
                return;
            }
        }
    }

    async fn check_tree(&self) -> Result<(), Status> {
        self.say("checking the tree");
        let tree = self.tree.clone();
        let faults = aside(move || tree.check()).await?;
        let mut tally = locked(&self.tally);
        for what in faults {
            let kind = FindingKind::Tree.into();
            tally.add(FsckFinding { kind, what, ..FsckFinding::default() });
        }
        Ok(())
    }

    async fn check_node(&self, member: &Member) {
        let checked = async {
            self.check_replicas(member).await?;
            self.check_unknown(member).await
        };
        if let Err(status) = checked.await {
            let mut tally = locked(&self.tally);
            tally.reply.unchecked += 1;
            tally.add(FsckFinding {
                kind: FindingKind::Unchecked.into(),
                what: format!("{} could not be asked: {status}", member.name),
                node: member.name.clone(),
                ..FsckFinding::default()
            });
        }
    }

    async fn check_replicas(&self, member: &Member) -> Result<(), Status> {
        let FsckRequest { deep, repair: mend } = self.request;
        let step = if deep { DEEP_STEP_MAX } else { STEP_MAX };
        let mut after = None;
        loop {
            let walk = self.tree.chunks_on(member.node, after, step);
            let chunks = walk.found.iter().map(|(id, chunk)| chunk.to_proto(*id)).collect();
            let question = CheckChunks { chunks, deep, mend };
            if !question.chunks.is_empty() {
                for fault in self.ask_chunks(member.node, question).await?.faults {
                    self.add_fault(member, fault);
                }
            }
            {
                let reply = &mut locked(&self.tally).reply;
                reply.replicas += walk.found.len() as u64;
                reply.bytes += walk.found.iter().map(|(_, c)| u64::from(c.length)).sum::<u64>();
            }
            match walk.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
            tokio::task::yield_now().await;
        }
    }

    fn add_fault(&self, member: &Member, fault: ChunkFault) {
        let kind = match fault.kind() {
            FaultKind::Missing => FindingKind::Missing,
            FaultKind::Length => FindingKind::Length,
            FaultKind::Rotten | FaultKind::Unspecified => FindingKind::Rotten,
        };
        let id: ChunkId = fault.chunk.unwrap_or_default().into();
        let mut tally = locked(&self.tally);
        if !fault.mended && tally.bad.len() < FINDINGS_MAX {
            *tally.bad.entry(id).or_default() += 1;
        }
        let finding = FsckFinding {
            kind: kind.into(),
            what: format!("chunk {id} on {}: {}", member.name, fault.what),
            node: member.name.clone(),
            chunk: id.to_string(),
            ino: 0,
            path: Vec::new(),
            mended: fault.mended,
        };
        tally.add_of(Some(id), finding);
    }

    async fn check_unknown(&self, member: &Member) -> Result<(), Status> {
        let mut after = None;
        loop {
            let question = UnknownChunks { after, collect: self.request.repair };
            let UnknownChunksReply { chunks, next } =
                self.ask_unknown(member.node, question).await?;
            let mut tally = locked(&self.tally);
            for unknown in chunks {
                if !unknown.overdue {
                    if !unknown.deleted {
                        tally.reply.young_garbage += 1;
                        tally.reply.young_garbage_bytes += u64::from(unknown.length);
                    }
                    continue;
                }
                let id: ChunkId = unknown.chunk.unwrap_or_default().into();
                tally.add(FsckFinding {
                    kind: FindingKind::Garbage.into(),
                    what: format!(
                        "{} keeps chunk {id} ({} bytes), which no file has used for long",
                        member.name, unknown.length
                    ),
                    node: member.name.clone(),
                    chunk: id.to_string(),
                    mended: unknown.deleted,
                    ..FsckFinding::default()
                });
            }
            match next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn ask_chunks(
        &self,
        node: NodeId,
        question: CheckChunks,
    ) -> Result<CheckChunksReply, Status> {
        match node == self.contents.parts.node {
            true => self.contents.check(question).await,
            false => self.ask::<CheckChunksMethod>(node, question).await,
        }
    }

    async fn ask_unknown(
        &self,
        node: NodeId,
        question: UnknownChunks,
    ) -> Result<UnknownChunksReply, Status> {
        match node == self.contents.parts.node {
            true => self.contents.unknown(question).await,
            false => self.ask::<UnknownChunksMethod>(node, question).await,
        }
    }

    /// A connection may just be made anew, or a daemon start again.
    async fn ask<M: Method>(&self, node: NodeId, question: M::Request) -> Result<M::Reply, Status>
    where
        M::Request: Clone,
    {
        let to = Name::Node(node);
        let client = &self.contents.parts.client;
        let mut tries = 0;
        loop {
            let options = CallOptions::within(QUESTION_TIME_MAX).fail_fast();
            tries += 1;
            match client.call::<M>(&to, question.clone(), &options).await {
                Ok(reply) => return Ok(reply),
                Err(error) if tries >= TRIES_MAX => {
                    return Err(Status::new(Code::Unavailable, error.to_string()));
                }
                Err(_) => sleep(TRY_PAUSE).await,
            }
        }
    }

    /// A write is acknowledged when enough replicas are durable, and repair makes those that were too
    /// slow a moment later. That is no damage, so it gets this moment.
    async fn wait_for_copies(&self) {
        let deadline = Instant::now() + COPIES_WAIT;
        while Instant::now() < deadline {
            let view = self.contents.view();
            // A copy of the tree costs nothing, and no lock is held while it is gone through.
            let tree = self.contents.look(Tree::clone);
            let replicas = self.contents.parts.replicas.clone();
            let any = aside(move || {
                tree.chunks_after(None).any(|(id, chunk)| {
                    let wanted = replicas.wanted_of(&tree, &chunk);
                    matches!(view.need(id, &chunk.replicas, wanted), Need::Copies(_))
                })
            });
            let Ok(any) = any.await else { return };
            if !any {
                return;
            }
            sleep(COPIES_PAUSE).await;
        }
    }

    /// By what the registry knows now: repair may have been at work.
    async fn count_replicas(&self) -> Result<(), Status> {
        let contents = self.contents;
        let fresh = contents.fresh().await;
        fresh.map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
        // Who checks wants to know how things are, not how they will be when nodes come back.
        let view = contents.view();
        let alive = |place: &Place| view.alive.contains(&place.node);
        let counting: Vec<Place> = view.counting.iter().copied().filter(alive).collect();
        let view = View { counting, ..view };
        let mut after = None;
        loop {
            let step = contents.step(after, SCAN_MAX);
            let next = step.last().map(|(last, ..)| *last).filter(|_| step.len() == SCAN_MAX);
            let view = &view;
            futures_util::stream::iter(step)
                .map(|(id, chunk, wanted)| async move {
                    let need = view.need(id, &chunk.replicas, wanted);
                    self.count_one(need, id, &chunk).await;
                })
                .buffer_unordered(COPIES_MAX)
                .collect::<()>()
                .await;
            match next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn count_one(&self, need: Need, id: ChunkId, chunk: &Chunk) {
        let (kind, what, mended) = match need {
            Need::Nothing => match self.is_bad_everywhere(id, chunk) {
                false => return,
                true => {
                    let what = format!("chunk {id} is damaged or missing on all of its nodes");
                    (FindingKind::Lost, what, false)
                }
            },
            Need::Source => {
                let what = format!("no node that lives holds chunk {id}");
                (FindingKind::Lost, what, false)
            }
            Need::Move(_) => return,
            Need::Copies(transfer) => {
                let lacks = match transfer.count {
                    1 => "a replica".into(),
                    count => format!("{count} replicas"),
                };
                let mut what = format!("chunk {id} lacks {lacks} on nodes that live");
                let item = Item { id, chunk: chunk.clone(), transfer, is_move: false };
                let mended = match self.request.repair {
                    false => false,
                    true => match repair::carry_out(self.contents, &item).await {
                        Ok(()) => true,
                        Err(why) => {
                            what = format!("{what}; none can be made: {why}");
                            false
                        }
                    },
                };
                (FindingKind::Replicas, what, mended)
            }
        };
        let finding = FsckFinding {
            kind: kind.into(),
            what,
            node: String::new(),
            chunk: id.to_string(),
            ino: 0,
            path: Vec::new(),
            mended,
        };
        locked(&self.tally).add_of(Some(id), finding);
    }

    fn is_bad_everywhere(&self, id: ChunkId, chunk: &Chunk) -> bool {
        let bad = locked(&self.tally).bad.get(&id).copied();
        bad.is_some_and(|bad| bad >= chunk.replicas.len())
    }
}

/// Names the files that the findings are about: those that take bytes from their chunks.
async fn with_files(
    tree: Tree,
    findings: Vec<(Option<ChunkId>, FsckFinding)>,
) -> Result<Vec<FsckFinding>, Status> {
    let chunks: BTreeSet<ChunkId> = findings.iter().filter_map(|(chunk, _)| *chunk).collect();
    let (users, paths) = match chunks.is_empty() {
        true => Default::default(),
        false => aside(move || files_of(&tree, &chunks)).await?,
    };
    let named = findings.into_iter().map(|(chunk, mut finding)| {
        let inodes = chunk.and_then(|chunk| users.get(&chunk)).map_or(&[][..], Vec::as_slice);
        name_files(&mut finding, inodes, &paths);
        finding
    });
    Ok(named.collect())
}

type Users = BTreeMap<ChunkId, Vec<Ino>>;
type Paths = BTreeMap<Ino, Vec<u8>>;

fn files_of(tree: &Tree, chunks: &BTreeSet<ChunkId>) -> (Users, Paths) {
    let users = tree.users_of(chunks);
    let wanted = users.values().flatten().copied().collect();
    let paths = paths_of(tree, &wanted);
    (users, paths)
}

/// The first file is the finding's own; others that share the chunk are told of in its sentence.
fn name_files(finding: &mut FsckFinding, inodes: &[Ino], paths: &Paths) {
    let Some((first, others)) = inodes.split_first() else { return };
    finding.ino = first.0;
    finding.path = paths.get(first).cloned().unwrap_or_default();
    if others.is_empty() {
        return;
    }
    let shown = others.iter().take(SHARERS_NAMED_MAX).map(|ino| match paths.get(ino) {
        Some(path) => String::from_utf8_lossy(path).into_owned(),
        None => ino.to_string(),
    });
    let mut shown = shown.collect::<Vec<String>>().join(", ");
    if let Some(more) = others.len().checked_sub(SHARERS_NAMED_MAX).filter(|more| *more > 0) {
        shown += &format!(" and {more} more");
    }
    finding.what += &format!("; the chunk is also in {shown}");
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path.is_empty() {
        true => name.to_vec(),
        false => [path, name].join(&b'/'),
    }
}

/// One path of each, below the root.
fn paths_of(tree: &Tree, wanted: &BTreeSet<Ino>) -> Paths {
    let mut paths = BTreeMap::new();
    let mut open = vec![(ROOT, Vec::new())];
    // Where snapshots are found: looked through after all that is there today.
    let mut shelves = Vec::new();
    let of_snapshots = wanted.iter().any(|ino| is_past(*ino));
    while let Some((directory, path)) = open.pop().or_else(|| shelves.pop()) {
        let Ok(entries) = tree.read_directory(directory, 0) else { continue };
        for entry in entries.filter(|entry| !matches!(&*entry.name, b"." | b"..")) {
            let below = joined(&path, &entry.name);
            if wanted.contains(&entry.ino) {
                paths.entry(entry.ino).or_insert_with(|| below.clone());
            }
            let leads = !is_past(entry.ino)
                || in_one_snapshot(directory, entry.ino)
                || wanted.iter().any(|ino| in_one_snapshot(*ino, entry.ino));
            if leads && entry.kind == Kind::Directory {
                open.push((entry.ino, below));
            }
        }
        // Nothing lists what is in snapshots.
        let found = tree.lookup(directory, SNAPSHOTS_NAME).ok();
        if of_snapshots && let Some(snapshots) = found.filter(|found| is_past(*found)) {
            shelves.push((snapshots, joined(&path, SNAPSHOTS_NAME)));
        }
        if paths.len() == wanted.len() {
            break;
        }
    }
    paths
}

async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Status::internal(format!("a part of the check ended early: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_all_files_that_share_the_chunk() {
        let inodes: Vec<Ino> = (2..13).map(Ino).collect();
        let paths = Paths::from([(Ino(2), b"d/a".to_vec()), (Ino(4), b"c".to_vec())]);
        let named = |count: usize| {
            let mut finding =
                FsckFinding { what: "it is damaged".into(), ..FsckFinding::default() };
            name_files(&mut finding, &inodes[..count], &paths);
            (finding.ino, finding.path, finding.what)
        };
        assert_eq!(named(0), (0, Vec::new(), "it is damaged".into()));
        assert_eq!(named(1), (2, b"d/a".to_vec(), "it is damaged".into()));
        let shown = "it is damaged; the chunk is also in inode 3, c, inode 5";
        assert_eq!(named(4), (2, b"d/a".to_vec(), shown.into()));
        assert!(named(11).2.ends_with("inode 9, inode 10 and 2 more"), "{}", named(11).2);
    }
}
