//! The change log: what programs of this node changed under its write lease, and the registry does not
//! have yet.
//!
//! A change whose inodes the lease covers is applied to the local view of the tree
//! (`unum_core::tree::Local`), written to the journal, and answered; nobody else is asked. The log is drained
//! in order, in batches, soon after, at fsync, and before anything else that has to come behind it. Any
//! other change is a command to the registry, as if there were no log.
//!
//! - here: whether and how a change is made
//! - `gate`: what must not overtake what
//! - `drain`: from the log to the registry
//! - `holding`: getting write leases, giving them back, asking others for theirs
//! - `journal`: what survives the daemon
//!
//! Invariants: what the registry has is at any time a prefix of what this node did. No change is made
//! unheard without a read lease, for only that shows that the write lease is not over. A change is in the
//! journal before it is answered.

mod clearing;
mod drain;
mod gate;
mod holding;
mod journal;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use unum_core::time::Time;
use unum_core::tree::locks::LockOwner;
use unum_core::tree::{Local, Pending, Refusal, Tree, gives_locks_back, locks_left};
use unum_net::Client;
use unum_proto::ids::{ChunkId, Ino, LeaseId, NodeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::{TreeCommand, TreeReply};

use super::errno::FileError;
use super::handles::Handles;
use super::lock_owners::{LockOwners, OwnerKey};
use super::replicas::{Draft, Replicas};
use crate::cluster::proposer::Proposer;
use crate::registry::{Registry, RegistryError, system_clock};
use drain::{Batch, Trouble, inodes_of};
use gate::Gate;
use holding::{Contention, Wanted};
use journal::{Journal, Kept, Record};

pub use drain::run as drain;
pub use holding::routes;

/// Bytes of contents that may wait to be drained; what comes then waits itself.
const CONTENT_MAX: u64 = 128 << 20;
/// Bytes of the journal, contents of refused changes included, beyond which it is begun anew once nothing
/// waits.
const JOURNAL_IDLE_MAX: u64 = 64 << 20;
/// Free bytes of this node's disk below which contents go to the replicas before their call returns.
const ROOM_MIN: u64 = 4 * CONTENT_MAX;
/// How long a look at the disk counts.
const ROOM_LOOK: Duration = Duration::from_secs(1);
/// A node that changed something within this time asks for a write lease at its next change.
const ACTIVE_TIME: Duration = Duration::from_secs(1);

pub(super) struct Parts {
    pub node: NodeId,
    pub registry: Registry,
    pub replicas: Replicas,
    pub client: Client,
    pub proposer: Proposer,
    pub patience: Duration,
    /// Told of files whose changes were lost.
    pub handles: Arc<Mutex<Handles>>,
    /// Told of locks that a former daemon took.
    pub lock_owners: Arc<Mutex<LockOwners>>,
}

pub(super) struct ChangeLog {
    parts: Parts,
    /// Taken before the registry's state is changed, so that changes are kept in the order in which they are
    /// made. Never held across an await.
    inner: Mutex<Inner>,
    /// What an earlier daemon left is in the local view.
    resumed: AtomicBool,
    /// There is something to drain, or somebody wants it drained now.
    work: Notify,
    /// Something was drained, or the gate has opened.
    moved: Notify,
    /// One batch is drained at a time. The next one, if its contents are on their replicas already.
    draining: tokio::sync::Mutex<Option<Batch>>,
    /// Protects the getting and giving back of the write lease against each other.
    turn: tokio::sync::Mutex<()>,
}

struct Inner {
    journal: Journal,
    gate: Gate,
    clock: LeaseClock,
    /// When a program here last changed something.
    changed: Option<Instant>,
    /// What others want, too.
    contention: Contention,
    /// Replies to calls of the kernel that an earlier daemon had carried out.
    answered: HashMap<u64, TreeReply>,
    /// What an earlier daemon left, until it is in the local view.
    left: Vec<Record>,
    /// Bytes of contents that wait to be drained.
    content: u64,
    /// The log shall be empty as soon as may be.
    demanded: bool,
    /// Since when the oldest pending change waits.
    oldest: Option<Instant>,
    /// Why draining does not get on.
    trouble: Option<Trouble>,
    /// Whether this node's disk has room for what may wait, and when that was looked at.
    roomy: Option<(Instant, bool)>,
}

/// The cluster's time, as the entry told it that granted the lease.
#[derive(Clone, Copy)]
struct LeaseClock {
    base: Time,
    at: Instant,
}

impl LeaseClock {
    fn now(&self) -> Time {
        Time(self.base.0.saturating_add(self.at.elapsed().as_nanos() as u64))
    }
}

/// What came of a change that was to be made unheard.
enum Tried {
    Done(TreeReply),
    /// The log is full, or has to be drained first.
    Later,
    /// It is to be a command to the registry.
    Directly,
    /// These inodes want covering first.
    Acquire(Vec<Ino>),
    /// This node has them covered.
    Reclaim(NodeId, Vec<Ino>),
    /// The lease has no inode number left.
    Renew,
    /// The lease may be used once this entry is stable.
    Settle(u64),
}

/// Who may change what a command touches.
enum Standing {
    Ours,
    Theirs(NodeId, Vec<Ino>),
    /// Nobody else has these covered, and this node not all of them.
    Free(Vec<Ino>),
    /// No lease allows this command to be kept back.
    Public,
}

impl ChangeLog {
    /// `fresh`: the mount is new, so that nothing an earlier daemon left is of use.
    pub fn new(parts: Parts, journal: &Path, fresh: bool) -> std::io::Result<Arc<Self>> {
        let (journal, left) = Journal::open(journal, fresh)?;
        let inner = Inner {
            journal,
            gate: Gate::default(),
            clock: LeaseClock { base: system_clock()(), at: Instant::now() },
            changed: None,
            contention: Contention::default(),
            answered: HashMap::new(),
            left,
            content: 0,
            demanded: false,
            oldest: None,
            trouble: None,
            roomy: None,
        };
        Ok(Arc::new(Self {
            parts,
            inner: Mutex::new(inner),
            resumed: AtomicBool::new(false),
            work: Notify::new(),
            moved: Notify::new(),
            draining: tokio::sync::Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
        }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings what an earlier daemon left into the local view. To be called before the tree is looked at.
    pub async fn resume(&self, deadline: Instant) -> Result<(), FileError> {
        match self.resumed.load(Ordering::Acquire) {
            true => Ok(()),
            false => Box::pin(self.resume_at_last(deadline)).await,
        }
    }

    async fn resume_at_last(&self, deadline: Instant) -> Result<(), FileError> {
        let _turn = self.turn(deadline).await?;
        if self.resumed.load(Ordering::Acquire) {
            return Ok(());
        }
        let registry = &self.parts.registry;
        registry.barrier(left(deadline)).await?;
        if registry.read(|state| state.tree().lease_of(self.parts.node).is_some()) {
            // Some of what it covers may have been granted a moment before the daemon died.
            let applied = registry.applied();
            registry.settle(applied, left(deadline)).await?;
        }
        if let Err(error) = self.resume_here() {
            tracing::warn!(%error, "the change log cannot be cut");
        }
        self.resumed.store(true, Ordering::Release);
        self.work.notify_one();
        Ok(())
    }

    fn resume_here(&self) -> std::io::Result<()> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let records = std::mem::take(&mut inner.left);
        inner.answered.extend(records.iter().map(|record| (record.call, record.reply.clone())));
        let (resumed, content, lost, drained) =
            self.parts.registry.with_local(|confirmed, local| {
                let lease = confirmed.lease_of(self.parts.node);
                let live = lease.map(|(id, _)| id);
                let (ours, others): (Vec<_>, Vec<_>) =
                    records.into_iter().partition(|record| Some(record.lease) == live);
                let pending = ours.into_iter().map(|record| Pending {
                    number: record.number,
                    time: record.time,
                    command: record.command,
                });
                *local = Local::resume(confirmed, self.parts.node, pending)
                    .filter(|local| !local.pending().is_empty());
                let pending = local.iter().flat_map(Local::pending);
                let content: u64 = pending
                    .filter_map(|change| change.command.command.as_ref())
                    .map(length_of)
                    .sum();
                let resumed = local.as_ref().map_or(0, |local| local.pending().len());
                (resumed, content, others, lease.map(|(id, state)| (id, state.drained)))
            });
        inner.clock = LeaseClock {
            base: self.parts.registry.read(|state| state.time()).max(system_clock()()),
            at: Instant::now(),
        };
        inner.oldest = (resumed > 0).then(Instant::now);
        inner.content = content;
        let commands = lost.iter().map(|record| &record.command);
        self.fail(&commands.flat_map(|command| inodes_of(Some(command))).collect());
        let node = self.parts.node;
        let lost_locks =
            locks_left(node, lost.iter().filter_map(|record| record.command.command.as_ref()));
        self.resume_locks(lost_locks);
        let over: BTreeSet<LeaseId> = lost.iter().map(|record| record.lease).collect();
        for (lease, last) in over.into_iter().map(|lease| (lease, u64::MAX)).chain(drained) {
            inner.journal.drained(lease, last)?;
        }
        if !lost.is_empty() {
            tracing::error!(
                changes = lost.len(),
                "this node was declared down before its daemon could go on: what its programs \
                 changed last is lost, as after a crash"
            );
        }
        if resumed > 0 {
            tracing::info!(changes = resumed, "going on with what the former daemon had changed");
        }
        Ok(())
    }

    /// Who locked something, by what an earlier daemon left.
    pub fn left_locked(&self) -> Vec<OwnerKey> {
        let inner = self.inner();
        let commands = inner.left.iter().filter_map(|record| record.command.command.as_ref());
        locks_left(self.parts.node, commands)
    }

    /// What is locked here now counts as held; so do these, though they are not.
    fn resume_locks(&self, lost: Vec<OwnerKey>) {
        let node = self.parts.node;
        let held: Vec<OwnerKey> = self.parts.registry.read_tree(|tree| {
            let ours = tree.locks().of_node(node);
            let holds = |(ino, table, id): &OwnerKey| {
                tree.locks().holds(*ino, *table, LockOwner { node, id: *id })
            };
            ours.filter(holds).collect()
        });
        let handles = self.parts.handles.lock().unwrap_or_else(PoisonError::into_inner);
        let open = held.into_iter().chain(lost).filter(|(ino, ..)| handles.is_open(*ino));
        let mut owners = self.parts.lock_owners.lock().unwrap_or_else(PoisonError::into_inner);
        open.for_each(|key| owners.resume(key));
    }

    /// Makes a change unheard if that may be. None: it is to be a command to the registry. `call`: the
    /// kernel's call, in whose name it is made; `resent`: a former daemon may have made it.
    pub async fn make(
        &self,
        call: u64,
        resent: bool,
        command: &Command,
        drafts: &[Draft],
        deadline: Instant,
    ) -> Result<Option<TreeReply>, FileError> {
        self.resume(deadline).await?;
        if resent {
            return Ok(self.inner().answered.remove(&call));
        }
        match self.attempt(call, command, drafts) {
            Tried::Done(reply) => Ok(Some(reply)),
            Tried::Directly => Ok(None),
            tried => Box::pin(self.make_at_last(tried, call, command, drafts, deadline)).await,
        }
    }

    async fn make_at_last(
        &self,
        mut tried: Tried,
        call: u64,
        command: &Command,
        drafts: &[Draft],
        deadline: Instant,
    ) -> Result<Option<TreeReply>, FileError> {
        loop {
            match tried {
                Tried::Done(reply) => return Ok(Some(reply)),
                Tried::Directly => return Ok(None),
                Tried::Later => self.moved_on(deadline).await?,
                Tried::Acquire(inos) => self.acquire(&inos, deadline).await?,
                Tried::Reclaim(holder, inos) => {
                    self.reclaim(holder, &inos, deadline).await?;
                    self.inner().contention.note(&inos, Instant::now());
                }
                Tried::Settle(index) => {
                    self.parts.registry.settle(index, left(deadline)).await?;
                }
                Tried::Renew => self.give_back(Wanted::Some(&[]), deadline).await.map(drop)?,
            }
            if Instant::now() >= deadline {
                return Err(self.late());
            }
            tried = self.attempt(call, command, drafts);
        }
    }

    fn attempt(&self, call: u64, command: &Command, drafts: &[Draft]) -> Tried {
        let registry = &self.parts.registry;
        let mut inner = self.inner();
        let inner = &mut *inner;
        let now = Instant::now();
        let active = inner.changed.is_some_and(|at| now < at + ACTIVE_TIME);
        inner.changed = Some(now);
        if !registry.holds_lease() {
            return Tried::Directly;
        }
        match registry.read_tree(|tree| standing(tree, self.parts.node, command)) {
            Standing::Ours => {}
            Standing::Theirs(holder, inos) => return Tried::Reclaim(holder, inos),
            Standing::Free(inos) if active && !inner.contention.is_on(&inos, now) => {
                return Tried::Acquire(inos);
            }
            Standing::Free(_) | Standing::Public => return Tried::Directly,
        }
        match registry.ungranted() {
            0 => {}
            index => return Tried::Settle(index),
        }
        // Without room it is told at once, which a drain could not do.
        if inner.gate.is_passing() || !drafts.is_empty() && !self.is_roomy(inner, now) {
            return Tried::Directly;
        }
        if inner.gate.is_closed() || inner.content >= CONTENT_MAX {
            inner.demanded = true;
            self.work.notify_one();
            return Tried::Later;
        }
        if let Err(error) = drafts.iter().try_for_each(|d| inner.journal.put_chunk(d.id, &d.data)) {
            tracing::warn!(%error, "the change log cannot be written; changes go without it");
            return Tried::Directly;
        }
        match self.apply(inner, call, command) {
            Ok(reply) => Tried::Done(reply),
            Err(Refusal::Full) => Tried::Later,
            Err(Refusal::NoNumber) => Tried::Renew,
            Err(Refusal::NotCovered) => Tried::Directly,
        }
    }

    fn is_roomy(&self, inner: &mut Inner, now: Instant) -> bool {
        if inner.trouble.as_ref().is_some_and(Trouble::is_room) {
            return false;
        }
        if let Some((_, roomy)) = inner.roomy.filter(|(at, _)| now < *at + ROOM_LOOK) {
            return roomy;
        }
        let usage = self.parts.replicas.store().store().usage();
        let roomy = usage.is_ok_and(|usage| usage.disk.free_bytes >= ROOM_MIN);
        inner.roomy = Some((now, roomy));
        roomy
    }

    fn apply(&self, inner: &mut Inner, call: u64, command: &Command) -> Result<TreeReply, Refusal> {
        let (time, journal) = (inner.clock.now(), &mut inner.journal);
        let (reply, pending, kept) = self.parts.registry.with_local(|confirmed, local| {
            let view = match local {
                Some(view) => view,
                None => {
                    let view = Local::resume(confirmed, self.parts.node, []);
                    local.insert(view.ok_or(Refusal::NotCovered)?)
                }
            };
            let made = view.change(time, command.clone());
            if let Ok((reply, Some(change))) = &made {
                let record = Record {
                    lease: view.lease(),
                    number: change.number,
                    call,
                    time,
                    command: change.command.clone(),
                    reply: reply.clone(),
                };
                if let Err(error) = journal.append(&record) {
                    tracing::warn!(%error, "the change log cannot be written; changes go without it");
                    view.take_back(confirmed);
                    return Err(Refusal::NotCovered);
                }
            }
            let pending = view.pending().len();
            if pending == 0 {
                *local = None;
            }
            made.map(|(reply, change)| (reply, pending, change.is_some()))
        })?;
        if kept {
            inner.oldest.get_or_insert_with(Instant::now);
            inner.content += length_of(command);
        }
        if pending == 1 || pending >= drain::BATCH_CHANGES_MAX {
            self.work.notify_one();
        }
        Ok(reply)
    }

    /// The bytes of a chunk that is not drained yet.
    pub fn chunk(&self, id: ChunkId) -> Option<Kept> {
        self.inner().journal.chunk(id)
    }

    /// The inodes that copies take bytes from which are not drained yet.
    pub fn copied_from(&self) -> BTreeSet<Ino> {
        let source = |command: &TreeCommand| match &command.command {
            Some(Command::CopyRange(copy)) => Some(Ino(copy.from)),
            _ => None,
        };
        let inner = self.inner();
        let left = inner.left.iter().filter_map(|record| source(&record.command));
        self.parts.registry.read_local(|local| {
            let pending = local.into_iter().flat_map(Local::pending);
            left.chain(pending.filter_map(|change| source(&change.command))).collect()
        })
    }

    async fn moved_on(&self, deadline: Instant) -> Result<(), FileError> {
        let moved = self.moved.notified();
        tokio::pin!(moved);
        moved.as_mut().enable();
        let stuck = {
            let inner = self.inner();
            inner.gate.is_closed() || inner.content >= CONTENT_MAX
        };
        if stuck || self.is_full() {
            timeout_at(deadline, moved).await.map_err(|_| self.late())?;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        let pending = |local: Option<&Local>| local.map_or(0, |local| local.pending().len());
        self.parts.registry.read_local(pending) >= unum_core::limits::PENDING_CHANGES_MAX
    }

    /// Why a call that waited for the log got nothing.
    fn late(&self) -> FileError {
        match &self.inner().trouble {
            Some(trouble) => trouble.error(),
            None => RegistryError::NoQuorum { waited: self.parts.patience }.into(),
        }
    }
}

fn standing(tree: &Tree, node: NodeId, command: &Command) -> Standing {
    let Some(inos) = tree.touched(command) else { return Standing::Public };
    // That needs no lease, and none is worth getting for it.
    if gives_locks_back(command) && !tree.may_change_unheard(node, command) {
        return Standing::Public;
    }
    let holder = inos.iter().find_map(|ino| tree.holder_of(*ino).filter(|holder| *holder != node));
    if let Some(holder) = holder {
        let theirs = inos.into_iter().filter(|ino| tree.holder_of(*ino) == Some(holder));
        return Standing::Theirs(holder, theirs.collect());
    }
    if tree.may_change_unheard(node, command) {
        return Standing::Ours;
    }
    let lenient = |ino: &Ino| tree.inode(*ino).is_ok_and(|inode| !inode.strict);
    if !tree.may_be_unheard(node, command) || !inos.iter().all(lenient) {
        return Standing::Public;
    }
    Standing::Free(inos)
}

/// Bytes of the contents that come with a change.
fn length_of(command: &Command) -> u64 {
    match command {
        Command::Write(write) => write.chunks.iter().map(|chunk| u64::from(chunk.length)).sum(),
        _ => 0,
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
