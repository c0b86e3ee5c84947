//! The file tree as programs see it: the kernel's calls on `/unum`, answered from the registry and
//! the chunks.
//!
//! Every call that reads passes a read barrier and then looks at the local copy of the registry;
//! every call that changes something is one registry command, whose request id is made of the FUSE
//! connection and the kernel's number of the call. So a call that a dead daemon had carried out and
//! not answered gets its first answer from the next daemon, and is not carried out twice.
//!
//! - `mount`: the descriptor, fresh or taken over
//! - `operations`: from each kernel call to one method here
//! - `namespace`, `attributes`, `content`, `locks`: the methods, by what they touch
//! - `handles`: the open files, kept across daemons
//! - `replicas`: chunks on several nodes
//! - `upkeep`: orphans, leftover locks, ragged files
//!
//! Leaves out on purpose: permission checks (the kernel makes them, `default_permissions`) and
//! caches beyond the kernel's own, which trusts nothing for longer than one call.

mod attributes;
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

use crate::cluster::proposer::{Proposer, propose_as};
use crate::registry::Registry;
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
}

/// The file service of a node.
pub struct Files {
    parts: Parts,
    /// Protects the open files and their journal. Never held across an await.
    handles: Mutex<Handles>,
    /// Protects the set of lock owners of this node. Never held across an await.
    lock_owners: Mutex<LockOwners>,
    /// Protects the list of places in files whose extents want merging. Never held across an await.
    ragged: Mutex<HashSet<(Ino, u64)>>,
}

impl Files {
    /// `handles_path`: the journal of open files; `fresh`: the mount is new.
    pub fn new(parts: Parts, handles_path: &Path, fresh: bool) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            parts,
            handles: Mutex::new(Handles::restore(handles_path, fresh)?),
            lock_owners: Mutex::default(),
            ragged: Mutex::default(),
        }))
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
        tree_outcome(propose_as(&self.files.parts.registry, id, command, self.deadline).await?)
    }
}
