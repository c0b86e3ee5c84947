//! The file tree as programs see it: the kernel's calls on `/unum`, answered from the registry and
//! the chunks.
//!
//! A call that reads looks at the local copy of the registry, under a read lease or behind a barrier; a
//! call that changes something is one registry command, answered when no node shows what was before it, whose request id is made of the FUSE
//! connection and the kernel's number of the call. So a call that a dead daemon had carried out and
//! not answered gets its first answer from the next daemon, and is not carried out twice.
//!
//! - `mount`: the descriptor, fresh or taken over
//! - `operations`: from each kernel call to one method here
//! - `namespace`, `attributes`, `content`, `locks`: the methods, by what they touch
//! - `handles`: the open files, kept across daemons
//! - `caches`: what the kernel may cache, and taking it back
//! - `replicas`: chunks on several nodes
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
mod locks;
pub mod mount;
mod namespace;
mod operations;
pub mod replicas;
mod upkeep;

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use unum_core::tree::Tree;
use unum_proto::ids::{Ino, Lane, NodeId, RequestId};
use unum_proto::registry::{command, reply};
use unum_proto::tree::{TreeCommand, tree_command, tree_reply};
use unum_sys::fuse::Notifier;

use crate::cluster::proposer::{Proposer, propose_as};
use crate::registry::Registry;
use caches::{Caches, Trust};
use errno::FileError;
use handles::Handles;
use locks::LockOwners;
use replicas::Replicas;

pub use upkeep::{Cluster, nothing_held, routes as upkeep_routes, run as start_upkeep};

/// Commands that one kernel call may need, at most: each has its own request id.
const STEPS_MAX: u64 = 8;

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
    /// Of the FUSE connection.
    pub notifier: Notifier,
    /// Its kernel can drop all names at once.
    pub drops_names: bool,
}

/// Files that the service keeps where a daemon's death does not reach, but a machine's does.
pub struct Kept<'a> {
    /// The journal of open files.
    pub handles: &'a Path,
    /// What the kernel may cache.
    pub trusted: &'a Path,
}

/// The file service of a node.
pub struct Files {
    parts: Parts,
    /// Protects the open files and their journal. Never held across an await.
    handles: Mutex<Handles>,
    caches: Arc<Caches>,
    /// Protects the set of lock owners of this node. Never held across an await.
    lock_owners: Mutex<LockOwners>,
    /// Protects the list of places in files whose extents want merging. Never held across an await.
    ragged: Mutex<HashSet<(Ino, u64)>>,
}

impl Files {
    /// `fresh`: the mount is new.
    pub fn new(parts: Parts, kept: &Kept<'_>, fresh: bool) -> std::io::Result<Arc<Self>> {
        let (registry, notifier) = (parts.registry.clone(), parts.notifier.clone());
        let caches = Caches::new(parts.node, registry, notifier, parts.drops_names, kept.trusted)?;
        Ok(Arc::new(Self {
            parts,
            caches,
            handles: Mutex::new(Handles::restore(kept.handles, fresh)?),
            lock_owners: Mutex::default(),
            ragged: Mutex::default(),
        }))
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
    /// acknowledged before the call is in it, and nobody can see older things later. The look names the
    /// inodes that it is about, and is told whether the kernel may be trusted with what it sees: not if
    /// the answer has to wait.
    async fn see<T>(
        &self,
        deadline: Instant,
        look: impl Fn(&Tree, Trust) -> (T, [Ino; 2]),
    ) -> Result<T, FileError> {
        let registry = &self.parts.registry;
        let (seen, inodes) = self.look(|tree| look(tree, Trust::Kernel));
        if registry.holds_lease() && registry.unsettled(&inodes) == 0 {
            return Ok(seen);
        }
        if !registry.holds_lease() {
            self.fresh(deadline).await?;
        }
        let (seen, inodes) = self.look(|tree| look(tree, Trust::Nobody));
        self.settled(&inodes, deadline).await?;
        Ok(seen)
    }

    /// Returns once no node can see what was before the changes of these inodes that are applied here.
    async fn settled(&self, inodes: &[Ino], deadline: Instant) -> Result<(), FileError> {
        let registry = &self.parts.registry;
        match registry.unsettled(inodes) {
            0 => Ok(()),
            index => Ok(registry.settle(index, left(deadline)).await?),
        }
    }

    /// Looks at the tree as it is here now.
    fn look<T>(&self, look: impl FnOnce(&Tree) -> T) -> T {
        self.parts.registry.read(|state| look(state.tree()))
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
        let step = self.step.fetch_add(1, Ordering::Relaxed);
        if step >= STEPS_MAX {
            // The next id is another call's: its reply would be taken for this one's.
            return Err(FileError::Strange);
        }
        let seq = self.unique * STEPS_MAX + step;
        let id = RequestId { lane: self.files.parts.mount_lane, seq };
        let command = command::Kind::Tree(TreeCommand::from(command));
        let registry = &self.files.parts.registry;
        let (reply, index) = propose_as(registry, id, command, self.deadline).await?;
        // What the kernel asks next is answered from here.
        registry.reached(index, left(self.deadline)).await?;
        tree_outcome(reply)
    }

    /// A change that programs see: returns once no node shows what was before it. A refusal tells
    /// what is there, so that has to be seen by all, too.
    async fn change_seen(
        &self,
        command: tree_command::Command,
        inodes: [Ino; 2],
    ) -> Result<tree_reply::Outcome, FileError> {
        let outcome = self.change(command).await;
        if let Ok(_) | Err(FileError::Tree(_)) = &outcome {
            self.files.settled(&inodes, self.deadline).await?;
        }
        outcome
    }

    async fn see<T>(&self, look: impl Fn(&Tree, Trust) -> (T, [Ino; 2])) -> Result<T, FileError> {
        self.files.see(self.deadline, look).await
    }

    /// Looks at what is about this call's inode alone.
    async fn see_own<T>(&self, look: impl Fn(&Tree, Trust) -> T) -> Result<T, FileError> {
        self.see(|tree, trust| (look(tree, trust), [self.ino; 2])).await
    }
}
