//! The file tree as programs see it: the kernel's calls on `/unum`, answered from the registry and
//! the chunks.
//!
//! A call that reads looks at the local copy of the tree, under a read lease or behind a barrier, once no
//! other node has a write lease on what it is about. A call that changes something goes to the change log if
//! this node's write lease covers it; else it is one registry command, answered when no node shows what was
//! before it. Either way its name is made of the FUSE connection and the kernel's number of the call. So a
//! call that a dead daemon had carried out and not answered gets its first answer from the next daemon, and
//! is not carried out twice.
//!
//! - `mount`: the descriptor, fresh or taken over
//! - `operations`: from each kernel call to one method here
//! - `namespace`, `attributes`, `content`, `locks`: the methods, by what they touch
//! - `handles`: the open files, kept across daemons
//! - `lock_owners`: who of this node may hold locks on what
//! - `changelog`: what programs here changed and the registry does not have yet
//! - `caches`: what the kernel may cache, and taking it back
//! - `replicas`: chunks on several nodes
//! - `volumes`: what root asks of whole volumes
//! - `snapshots`: what volumes were at one moment
//! - `upkeep`: orphans, leftover locks, ragged files
//!
//! Leaves out on purpose: permission checks (the kernel makes them, `default_permissions`) and
//! caches beyond the kernel's own.

mod attributes;
mod caches;
mod changelog;
mod content;
pub mod errno;
mod handles;
mod lock_owners;
mod locks;
pub mod mount;
mod namespace;
mod operations;
pub mod replicas;
mod snapshots;
mod upkeep;
mod volumes;

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use unum_core::tree::{Tree, TreeError};
use unum_net::Client;
use unum_proto::ids::{Ino, Lane, NodeId, RequestId};
use unum_proto::registry::{command, reply};
use unum_proto::tree::{TreeCommand, tree_command, tree_reply};
use unum_sys::fuse::Notifier;

use crate::cluster::proposer::{Proposer, propose_as};
use crate::registry::Registry;
use caches::{Caches, Trust};
use changelog::ChangeLog;
use errno::FileError;
use handles::Handles;
use lock_owners::LockOwners;
use replicas::{Draft, Replicas};

pub use upkeep::{Cluster, nothing_held, routes as upkeep_routes, run as start_upkeep};

/// Commands that one kernel call may need, at most: each has its own request id.
const STEPS_MAX: u64 = 32;

/// How long a daemon that goes tries to drain what programs changed last.
const HAND_IN_TIME: Duration = Duration::from_secs(5);

/// Who alone may know what some inodes are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// This node's write lease covers them.
    Ours,
    Theirs(NodeId),
    Free,
}

/// What the file service is made of.
pub struct Parts {
    pub node: NodeId,
    pub registry: Registry,
    pub replicas: Replicas,
    /// Of the FUSE connection: lives as long as the mount.
    pub mount_lane: Lane,
    /// For what the daemon itself changes.
    pub proposer: Proposer,
    /// How long a call waits for a majority or a replica before it fails.
    pub patience: Duration,
    pub client: Client,
    /// Of the FUSE connection.
    pub notifier: Notifier,
    /// Its kernel can drop all names at once.
    pub drops_names: bool,
    /// Its kernel obeys access control lists.
    pub obeys_acls: bool,
}

/// Files that the service keeps where a daemon's death does not reach, but a machine's does.
pub struct Kept<'a> {
    /// The journal of open files.
    pub handles: &'a Path,
    /// What the kernel may cache.
    pub trusted: &'a Path,
    /// The directory of the change log.
    pub changes: &'a Path,
}

/// The file service of a node.
pub struct Files {
    parts: Parts,
    /// Protects the open files and their journal. Never held across an await.
    handles: Arc<Mutex<Handles>>,
    log: Arc<ChangeLog>,
    caches: Arc<Caches>,
    /// Protects the set of lock owners of this node. Never held across an await.
    lock_owners: Arc<Mutex<LockOwners>>,
    /// Protects the list of places in files whose extents want merging. Never held across an await.
    ragged: Mutex<HashSet<(Ino, u64)>>,
}

impl Files {
    /// `fresh`: the mount is new.
    pub fn new(parts: Parts, kept: &Kept<'_>, fresh: bool) -> std::io::Result<Arc<Self>> {
        let (registry, notifier) = (parts.registry.clone(), parts.notifier.clone());
        let caches = Caches::new(parts.node, registry, notifier, parts.drops_names, kept.trusted)?;
        let handles = Arc::new(Mutex::new(Handles::restore(kept.handles, fresh)?));
        let lock_owners = Arc::<Mutex<LockOwners>>::default();
        let log_parts = changelog::Parts {
            node: parts.node,
            registry: parts.registry.clone(),
            replicas: parts.replicas.clone(),
            client: parts.client.clone(),
            proposer: parts.proposer.clone(),
            patience: parts.patience,
            handles: handles.clone(),
            lock_owners: lock_owners.clone(),
        };
        let log = ChangeLog::new(log_parts, kept.changes, fresh)?;
        Ok(Arc::new(Self { parts, caches, handles, log, lock_owners, ragged: Mutex::default() }))
    }

    /// Keeps the kernel's caches true, once the kernel's calls are answered. Ends when the caller
    /// drops it.
    pub async fn keep_caches(&self) {
        self.caches.clone().keep_true().await;
    }

    /// Empties the kernel's caches before nobody keeps them true any more.
    pub async fn empty_caches(&self) {
        self.caches.retire().await;
    }

    /// The mount is gone, and with it whatever the kernel cached of it.
    pub async fn unmounted(&self) {
        self.parts.registry.resign_lease().await;
    }

    pub fn replicas(&self) -> &Replicas {
        &self.parts.replicas
    }

    /// Of these inodes, those that are open here. The caller has made sure that the registry's
    /// state here shows them as orphans: an open that comes later then fails by itself.
    pub fn held(&self, inodes: impl IntoIterator<Item = Ino>) -> Vec<Ino> {
        let handles = self.handles();
        inodes.into_iter().filter(|ino| handles.is_open(*ino)).collect()
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.parts.patience
    }

    /// Returns once everything that was committed before the call is visible here.
    async fn fresh(&self, deadline: Instant) -> Result<(), FileError> {
        Ok(self.parts.registry.barrier(left(deadline)).await?)
    }

    /// Looks at the tree and returns what was seen once it may be shown: everything that was
    /// acknowledged before the call is in it, and nobody can see older things later. `about`: the inodes that
    /// the look is about. It is told whether the kernel may be trusted with what it sees: not if the answer
    /// has to wait, for what is taken back meanwhile would have the kernel ignore the answer.
    async fn see<T>(
        &self,
        deadline: Instant,
        about: impl Fn(&Tree) -> [Ino; 2],
        look: impl Fn(&Tree, Trust) -> T,
    ) -> Result<T, FileError> {
        let registry = &self.parts.registry;
        self.log.resume(deadline).await?;
        let mut frozen = false;
        let seen = self.look(|tree| {
            let inodes = about(tree);
            frozen = snapshots::are_frozen(tree, inodes);
            if frozen {
                return Some(look(tree, Trust::Kernel));
            }
            let (inodes, standing) = self.standing(tree, inodes);
            let shown = match standing {
                Standing::Ours => true,
                Standing::Theirs(_) => false,
                Standing::Free => registry.unsettled(&inodes) == 0,
            };
            (shown && registry.ungranted() == 0 && registry.holds_lease())
                .then(|| look(tree, Trust::Kernel))
        });
        match seen {
            Some(seen) if frozen || registry.holds_lease() => Ok(seen),
            // Most calls need nobody else: the room for those that do is not theirs.
            _ => Box::pin(self.see_at_last(deadline, about, look)).await,
        }
    }

    async fn see_at_last<T>(
        &self,
        deadline: Instant,
        about: impl Fn(&Tree) -> [Ino; 2],
        look: impl Fn(&Tree, Trust) -> T,
    ) -> Result<T, FileError> {
        let registry = &self.parts.registry;
        loop {
            if !registry.holds_lease() {
                self.fresh(deadline).await?;
            }
            let (seen, inodes, standing) = self.look(|tree| {
                let (inodes, standing) = self.standing(tree, about(tree));
                (look(tree, Trust::Nobody), inodes, standing)
            });
            let unsettled = match standing {
                Standing::Theirs(holder) => {
                    self.log.reclaim(holder, &inodes, deadline).await?;
                    continue;
                }
                Standing::Free => registry.unsettled(&inodes),
                Standing::Ours => 0,
            };
            match unsettled.max(registry.ungranted()) {
                0 => {}
                index => registry.settle(index, left(deadline)).await?,
            }
            return Ok(seen);
        }
    }

    /// Who alone may know what these inodes are now; and those of them that others may know, if any.
    fn standing(&self, tree: &Tree, inodes: [Ino; 2]) -> ([Ino; 2], Standing) {
        let node = self.parts.node;
        let holders = inodes.map(|ino| tree.holder_of(ino));
        if let Some(other) = holders.into_iter().flatten().find(|holder| *holder != node) {
            return (inodes, Standing::Theirs(other));
        }
        match holders {
            [Some(_), Some(_)] => (inodes, Standing::Ours),
            // What is ours need not be settled with others.
            [Some(_), None] => ([inodes[1]; 2], Standing::Free),
            [None, Some(_)] => ([inodes[0]; 2], Standing::Free),
            [None, None] => (inodes, Standing::Free),
        }
    }

    /// Returns once no node can see what was before the changes of these inodes that are applied here.
    async fn settled(&self, inodes: &[Ino], deadline: Instant) -> Result<(), FileError> {
        let registry = &self.parts.registry;
        match registry.unsettled(inodes) {
            0 => Ok(()),
            index => Ok(registry.settle(index, left(deadline)).await?),
        }
    }

    /// Returns once no node shows what was before what is here of this inode: at once while this node's write
    /// lease covers it, for who looks at it elsewhere asks this node first.
    async fn shown_to_all(&self, ino: Ino, deadline: Instant) -> Result<(), FileError> {
        let registry = &self.parts.registry;
        let covered = self.look(|tree| tree.holder_of(ino) == Some(self.parts.node));
        // A lease that is granted counts once the grant is stable, and until the read lease is over.
        if covered && registry.ungranted() == 0 && registry.holds_lease() {
            return Ok(());
        }
        self.settled(&[ino], deadline).await
    }

    /// Looks at the tree as it is here now.
    fn look<T>(&self, look: impl FnOnce(&Tree) -> T) -> T {
        self.parts.registry.read_tree(look)
    }

    /// Looks at what the registry has of it, without what is only here yet.
    fn look_confirmed<T>(&self, look: impl FnOnce(&Tree) -> T) -> T {
        self.parts.registry.read(|state| look(state.tree()))
    }

    /// Keeps draining the change log. Ends when the caller drops it.
    pub async fn drain_changes(&self) {
        changelog::drain(self.log.clone()).await;
    }

    /// Drains the change log for the last time before the daemon goes, and gives the write lease back.
    pub async fn hand_in(&self) {
        if let Err(error) = self.log.hand_in(Instant::now() + HAND_IN_TIME).await {
            tracing::warn!(%error, "what programs changed last stays here for the next daemon");
        }
    }

    /// Asks for the write leases that are in a command's way.
    async fn reclaim_for(
        &self,
        command: &tree_command::Command,
        deadline: Instant,
    ) -> Result<(), FileError> {
        let node = self.parts.node;
        let held: Vec<(NodeId, Ino)> = self.look_confirmed(|tree| {
            let touched = tree.touched(command).unwrap_or_default();
            let holder = |ino| tree.holder_of(ino).filter(|holder| *holder != node);
            touched.into_iter().filter_map(|ino| Some((holder(ino)?, ino))).collect()
        });
        for (holder, ino) in held {
            self.log.reclaim(holder, &[ino], deadline).await?;
        }
        Ok(())
    }

    /// Proposes on behalf of the daemon itself rather than of a kernel call.
    async fn change(
        &self,
        command: tree_command::Command,
        deadline: Instant,
    ) -> Result<tree_reply::Outcome, FileError> {
        let command = command::Kind::Tree(TreeCommand::from(command));
        tree_outcome(self.parts.proposer.propose(command, left(deadline)).await?)
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn tree_outcome(reply: reply::Kind) -> Result<tree_reply::Outcome, FileError> {
    let reply::Kind::Tree(reply) = reply else { return Err(FileError::Strange) };
    Ok(unum_core::tree::outcome(&reply)?.clone())
}

/// One call of the kernel, with the ids of its commands and its deadline.
struct Call<'a> {
    files: &'a Files,
    unique: u64,
    /// A former daemon was asked already.
    resent: bool,
    step: AtomicU64,
    uid: u32,
    gid: u32,
    pid: u32,
    /// The inode that the call is about.
    ino: Ino,
    deadline: Instant,
}

impl Call<'_> {
    async fn fresh(&self) -> Result<(), FileError> {
        self.files.fresh(self.deadline).await
    }

    fn look<T>(&self, look: impl FnOnce(&Tree) -> T) -> T {
        self.files.look(look)
    }

    async fn change(
        &self,
        command: tree_command::Command,
    ) -> Result<tree_reply::Outcome, FileError> {
        let seq = self.next_step()?;
        let id = RequestId { lane: self.files.parts.mount_lane, seq };
        let command = command::Kind::Tree(TreeCommand::from(command));
        let registry = &self.files.parts.registry;
        let (reply, index) = propose_as(registry, id, command, self.deadline).await?;
        // What the kernel asks next is answered from here.
        registry.reached(index, left(self.deadline)).await?;
        tree_outcome(reply)
    }

    /// The number of this call's next change.
    fn next_step(&self) -> Result<u64, FileError> {
        let step = self.step.fetch_add(1, Ordering::Relaxed);
        if step >= STEPS_MAX {
            // The next id is another call's: its reply would be taken for this one's.
            return Err(FileError::Strange);
        }
        Ok(self.unique * STEPS_MAX + step)
    }

    /// A change that programs see: returns once no node shows what was before it.
    async fn change_seen(
        &self,
        command: tree_command::Command,
        inodes: [Ino; 2],
    ) -> Result<tree_reply::Outcome, FileError> {
        match self.change_unheard(&command, &[]).await? {
            Some(outcome) => Ok(outcome),
            None => Box::pin(self.change_heard(command, Some(inodes))).await,
        }
    }

    /// A change that nobody else needs to hear of yet. None: there is none such.
    async fn change_unheard(
        &self,
        command: &tree_command::Command,
        drafts: &[Draft],
    ) -> Result<Option<tree_reply::Outcome>, FileError> {
        self.look(|tree| tree.refuse_past(command))?;
        let seq = self.next_step()?;
        let (log, deadline) = (&self.files.log, self.deadline);
        let made = log.make(seq, self.resent, command, drafts, deadline).await?;
        made.map(|reply| Ok(unum_core::tree::outcome(&reply)?.clone())).transpose()
    }

    /// A change that is a command to the registry, behind all that are pending here. With `shown`, returns
    /// once no node shows what was before it; a refusal tells what is there, so that has to be seen by
    /// all, too.
    async fn change_heard(
        &self,
        command: tree_command::Command,
        shown: Option<[Ino; 2]>,
    ) -> Result<tree_reply::Outcome, FileError> {
        loop {
            let outcome = {
                let _pass = self.files.log.pass(self.deadline).await?;
                self.change(command.clone()).await
            };
            if let Err(FileError::Tree(TreeError::Held)) = outcome {
                self.files.reclaim_for(&command, self.deadline).await?;
                continue;
            }
            if let (Some(inodes), Ok(_) | Err(FileError::Tree(_))) = (shown, &outcome) {
                self.files.settled(&inodes, self.deadline).await?;
            }
            return outcome;
        }
    }

    /// Looks at what is about this call's inode alone.
    async fn see_own<T>(&self, look: impl Fn(&Tree, Trust) -> T) -> Result<T, FileError> {
        self.files.see(self.deadline, |_| [self.ino; 2], look).await
    }
}
