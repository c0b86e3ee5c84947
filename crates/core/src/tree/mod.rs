//! The replicated file tree: a pure state machine that the registry embeds.
//!
//! `Tree::apply` takes a command with the time of its log entry and the node that issued it, checks
//! every field, and then either changes the state and replies, or changes nothing and replies with a
//! [`TreeError`]. Reads are plain methods; whoever wants a linearizable answer passes a read barrier
//! first. Cloning is cheap (all large parts are persistent maps), so a snapshot is a clone that is
//! encoded beside further commands.
//!
//! Permissions are the kernel's business (FUSE default_permissions). What the kernel leaves to a
//! file system is done here: set-group-ID inheritance, loss of set-ID bits, times, link counts.
//! Reading does not change atime.
//!
//! # Contract with the shells: files that lose their last name while open
//!
//! Opening a file needs no command. An inode that loses its last name becomes an *orphan*: it keeps
//! content and attributes, and it ends only by `Reap`. So that no open file vanishes, shells must:
//!
//! 1. *Open:* write the open down (which survives the daemon) **before** reading the state for it.
//!    If the inode is then gone, or is an orphan that this node has not open already, the open fails
//!    with `Stale`. The exception is a file made by `CreateUnnamed`, which is held from the start.
//! 2. *Watch:* after each advance of the applied state, look through [`Tree::orphans_after`] from
//!    where the last look ended; propose `Hold` for those that are open here. A daemon that starts
//!    looks through all orphans before it answers anybody's question (4). As an open is written down
//!    before the state is read, either the open sees the orphan or the watch sees the open.
//! 3. *Close:* when a held inode's last local handle is gone, propose `Release`.
//! 4. *Reap:* the leader takes candidates from [`Tree::reapable`] (no name, no holder, no locks,
//!    older than `ORPHAN_GRACE`) and asks **every** node of the cluster whether it has them open. A
//!    node answers only once its own applied state shows the inode as an orphan; "no" is then final,
//!    by rule 1. When all have answered "no", the leader proposes `Reap`. A node that does not answer
//!    delays it, until the registry declares it dead and `ReleaseNode` ends its holds; from then on
//!    that node is fenced and its open files are stale.
//!
//! # Contract: chunks
//!
//! The bytes of a new chunk are durable on its replicas before the write that names it is proposed.
//! A node may delete a chunk file that [`Tree::is_known`] denies at an applied index if the file is
//! older than the deadline of any write. If a write is refused, its chunks are garbage of that kind.
//!
//! # Contract: lock waits
//!
//! See [`locks`].

mod acl;
mod attributes;
mod changes;
mod check;
mod chunks;
mod content;
mod copies;
mod directory;
mod error;
mod extents;
mod folding;
mod inode;
mod leased_locks;
mod leases;
mod local;
pub mod locks;
mod namespace;
mod orphans;
mod packing;
mod past;
mod snapshot;
mod snapshots;
mod table;
#[cfg(test)]
mod tests;
mod volumes;

use std::borrow::Cow;
use std::collections::BTreeSet;

use unum_proto::ids::{ChunkId, Ino, NodeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{Attributes, Done, InodeReply, TreeCommand, TreeReply, Waiter};

pub use acl::{ACCESS as ACL_ACCESS, DEFAULT as ACL_DEFAULT};
pub use changes::{Change, What};
pub use chunks::{Chunk, Hash, Lacking, Walk};
pub use content::Seek;
pub use directory::{COOKIE_FIRST, COOKIE_PARENT, COOKIE_SELF, Entry, Name};
pub use error::TreeError;
pub use extents::{Extent, Source};
pub use folding::{Folded, fold};
pub use inode::{Inode, Kind};
pub use leased_locks::{fold_locks, gives_locks_back, locked_inode, locks_left};
pub use leases::WriteLease;
pub use local::{Executed, Local, Pending, Refusal};
pub use snapshot::{SnapshotError, TreeLoader};
pub use snapshots::{SNAPSHOTS_NAME, Snapshot, in_one_snapshot, is_past};
pub use volumes::{ROOT_VOLUME, Volume};

use crate::limits;
use crate::time::Time;
use changes::Changes;
use chunks::ChunkTable;
use directory::Directory;
use inode::Body;
use leases::WriteLeases;
use locks::Locks;
use orphans::Orphans;
use snapshots::Snapshots;
use table::{Inodes, Lent};
use volumes::Volumes;

/// The root directory's inode.
pub const ROOT: Ino = Ino(1);

#[derive(Clone, Debug)]
pub struct Tree {
    inodes: Inodes,
    /// Inodes of snapshots.
    lent_past: Lent,
    next_ino: Ino,
    chunks: ChunkTable,
    orphans: Orphans,
    locks: Locks,
    /// Bytes that all inodes have allocated.
    allocated: u64,
    leases: WriteLeases,
    volumes: Volumes,
    snapshots: Snapshots,
    /// What is applied now was promised room before.
    reserved: bool,
    /// Commands, for the local view of a node with pending changes. No part of what a snapshot holds.
    executed: Option<Vec<Executed>>,
    /// What the commands since the last look at it changed. No part of what a snapshot holds.
    changes: Changes,
}

/// Numbers for statfs. What the disks can take is known to the shells only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub inodes: u64,
    pub inodes_max: u64,
    /// Bytes allocated by files, as each sees it.
    pub allocated: u64,
    pub chunks: u64,
    /// Bytes of all chunks, each counted once.
    pub stored: u64,
    pub name_length_max: u32,
}

/// One entry as readdir shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: Name,
    pub ino: Ino,
    pub kind: Kind,
    /// Where to go on after this entry.
    pub cookie: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// An empty tree: a root of mode 0755 that belongs to root. Its times are the epoch until
    /// something changes.
    pub fn new() -> Self {
        let body = Body::Directory(Directory::new(ROOT));
        let root = Inode::new(Time::ZERO, 0o755, 0, 0, body);
        let mut tree = Self { next_ino: Ino(ROOT.0 + 1), ..Self::bare() };
        tree.inodes.insert(ROOT, root);
        tree.volumes.add_inode(ROOT_VOLUME);
        tree
    }

    fn bare() -> Self {
        let mut snapshots = Snapshots::default();
        snapshots.shelve(ROOT_VOLUME, ROOT, Time::ZERO);
        Self {
            inodes: Inodes::default(),
            lent_past: Lent::default(),
            next_ino: ROOT,
            chunks: ChunkTable::default(),
            orphans: Orphans::default(),
            locks: Locks::default(),
            allocated: 0,
            leases: WriteLeases::default(),
            volumes: Volumes::default(),
            snapshots,
            reserved: false,
            executed: None,
            changes: Changes::default(),
        }
    }

    /// Applies one command. `node` is the issuer, as the registry authenticated it; `now` is the
    /// time of the log entry.
    pub fn apply(&mut self, now: Time, node: NodeId, command: &TreeCommand) -> TreeReply {
        let mut granted = Vec::new();
        self.tidy();
        self.changes.by(node);
        let outcome = command
            .command
            .as_ref()
            .ok_or(TreeError::Invalid)
            .and_then(|command| {
                self.refuse_held(node, command)?;
                self.dispatch(now, node, command, &mut granted)
            })
            .unwrap_or_else(|error| Outcome::Failed(error.code() as i32));
        let reply = TreeReply { outcome: Some(outcome), granted };
        if let Some(executed) = &mut self.executed {
            let (command, reply) = (command.clone(), reply.clone());
            executed.push(Executed { now, issuer: node, command, reply });
        }
        reply
    }

    fn dispatch(
        &mut self,
        now: Time,
        node: NodeId,
        command: &Command,
        granted: &mut Vec<Waiter>,
    ) -> Result<Outcome, TreeError> {
        self.refuse_past(command)?;
        let locks =
            if self.reserved { limits::LOCKS_RESERVED_MAX } else { limits::LOCKS_PER_INODE_MAX };
        match command {
            Command::Create(create) => self.create(now, create),
            Command::CreateUnnamed(create) => self.create_unnamed(now, node, create),
            Command::Link(link) => self.link(now, link),
            Command::Unlink(unlink) => self.unlink(now, unlink).map(|()| done()),
            Command::Rmdir(rmdir) => self.rmdir(now, rmdir).map(|()| done()),
            Command::Rename(rename) => self.rename(now, rename).map(|()| done()),
            Command::SetAttributes(set) => self.set_attributes(now, set),
            Command::Write(write) => self.write(now, write),
            Command::Fallocate(fallocate) => self.fallocate(now, fallocate),
            Command::CopyRange(copy) => self.copy_range(now, copy),
            Command::SetXattr(set) => self.set_xattr(now, set).map(|()| done()),
            Command::RemoveXattr(remove) => self.remove_xattr(now, remove).map(|()| done()),
            Command::SetReplicas(set) => self.chunks.set_replicas(set).map(|()| done()),
            Command::Hold(hold) => self.hold(node, hold).map(|()| done()),
            Command::Release(release) => self.release(node, release).map(|()| done()),
            Command::ReleaseNode(release) => {
                let node = NodeId(release.node);
                self.orphans.release_node(node);
                self.locks.release_node(node, granted);
                self.end_lease(node);
                Ok(done())
            }
            Command::Reap(reap) => self.reap(now, reap),
            Command::Lock(lock) if is_past(Ino(lock.ino)) => {
                self.lock_past(Ino(lock.ino), lock.exclusive)
            }
            Command::Lock(lock) => {
                self.inode(Ino(lock.ino))?;
                self.locks.lock(node, lock, locks, granted).map(Outcome::Locked)
            }
            Command::Unlock(unlock) => {
                self.locks.unlock(node, unlock, locks, granted).map(|()| done())
            }
            Command::CancelWait(cancel) => {
                Ok(Outcome::WaitEnded(self.locks.cancel(node, cancel.waiter, granted)))
            }
            Command::ReleaseOwner(release) => {
                self.locks.release_owner(node, release, granted).map(|()| done())
            }
            Command::AcquireLease(acquire) => self.acquire_lease(now, node, acquire),
            Command::ReleaseLease(release) => self.release_lease(node, release).map(|()| done()),
            Command::Drain(drain) => self.drain(node, drain, granted),
            Command::CreateVolume(create) => self.create_volume(now, create),
            Command::SetVolume(set) => self.set_volume(set).map(|()| done()),
            Command::CreateSnapshot(create) => self.create_snapshot(now, create),
            Command::DeleteSnapshot(delete) => self.delete_snapshot(now, delete),
        }
    }

    /// The inode, orphans and those of snapshots included. `Stale` if there is none.
    pub fn inode(&self, ino: Ino) -> Result<&Inode, TreeError> {
        let inode = match is_past(ino) {
            false => self.inodes.get(ino),
            true => self.past_inode(ino),
        };
        inode.ok_or(TreeError::Stale)
    }

    /// For changes that somebody can see.
    fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode, TreeError> {
        self.changes.inode(ino);
        self.inodes.get_mut(ino).ok_or(TreeError::Stale)
    }

    /// What stat shows.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, TreeError> {
        Ok(self.inode(ino)?.attributes(ino))
    }

    /// A name in a directory. `.` and `..` are understood, as is that of the directory of snapshots.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Ino, TreeError> {
        let directory = self.directory(parent)?;
        match name {
            b"." => Ok(parent),
            b".." => self.parent(parent),
            name => {
                let name = directory::valid_name(name)?;
                let found = directory.get(name).map(|entry| self.beside(parent, entry.ino));
                found.or_else(|| self.shelf_of(parent, name)).ok_or(TreeError::NotFound)
            }
        }
    }

    /// The parent of a directory that still has a name.
    pub fn parent(&self, ino: Ino) -> Result<Ino, TreeError> {
        let parent = self.beside(ino, self.directory(ino)?.parent);
        Ok(self.past_parent(ino).unwrap_or(parent))
    }

    /// The entries of a directory behind `after` (0 at first), `.` and `..` included, lazily. The directory of
    /// snapshots is not among them.
    pub fn read_directory(
        &self,
        ino: Ino,
        after: u64,
    ) -> Result<impl Iterator<Item = Listed>, TreeError> {
        let directory = self.directory(ino)?;
        let dot = |name: &[u8], ino, cookie| Listed {
            name: name.into(),
            ino,
            kind: Kind::Directory,
            cookie,
        };
        let dots = [dot(b".", ino, COOKIE_SELF), dot(b"..", self.parent(ino)?, COOKIE_PARENT)];
        let dots = dots.into_iter().filter(move |listed| listed.cookie > after);
        let entries = directory.after(after.max(COOKIE_PARENT)).map(move |(name, entry)| Listed {
            name,
            ino: self.beside(ino, entry.ino),
            kind: entry.kind,
            cookie: entry.cookie,
        });
        Ok(dots.chain(entries))
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<&[u8], TreeError> {
        match &self.inode(ino)?.body {
            Body::Symlink(target) => Ok(target),
            _ => Err(TreeError::Invalid),
        }
    }

    pub fn usage(&self) -> Usage {
        Usage {
            inodes: self.inodes.len() as u64,
            inodes_max: limits::INODES_MAX as u64,
            allocated: self.allocated,
            chunks: self.chunks.len() as u64,
            stored: self.chunks.stored(),
            name_length_max: limits::NAME_LENGTH_MAX as u32,
        }
    }

    /// What the commands since the last call changed, for whoever keeps copies of what the tree says.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.changes.take()
    }

    /// Whether looking alone has taken so much memory that somebody should [`Tree::tidy`].
    pub fn wants_tidying(&self) -> bool {
        self.inodes.has_lent_much() || self.lent_past.is_full()
    }

    /// Gives back what looking at the tree has taken, if it is much. Each command does.
    pub fn tidy(&mut self) {
        self.inodes.tidy();
        if self.lent_past.is_full() {
            self.lent_past.clear();
        }
    }

    pub fn locks(&self) -> &Locks {
        &self.locks
    }

    /// Whether the bytes of this chunk must be kept.
    pub fn is_known(&self, id: ChunkId) -> bool {
        self.chunks.contains(id)
    }

    pub fn chunk(&self, id: ChunkId) -> Option<Cow<'_, Chunk>> {
        self.chunks.get(id)
    }

    /// All chunks after `after` in the order of their ids, lazily.
    pub fn chunks_after(&self, after: Option<ChunkId>) -> impl Iterator<Item = (ChunkId, Chunk)> {
        self.chunks.iter_after(after)
    }

    /// Looks at `scan_max` chunks after `after` for those that `node` keeps.
    pub fn chunks_on(
        &self,
        node: NodeId,
        after: Option<ChunkId>,
        scan_max: usize,
    ) -> Walk<(ChunkId, Chunk)> {
        self.chunks.on_node(node, after, scan_max)
    }

    /// Looks at `scan_max` chunks after `after` for those with fewer live replicas than their volume wants
    /// (`usual` where it has no number of its own), or than there are live nodes, if these are fewer.
    pub fn chunks_lacking(
        &self,
        live: &BTreeSet<NodeId>,
        usual: usize,
        after: Option<ChunkId>,
        scan_max: usize,
    ) -> Walk<Lacking> {
        let wanted = |chunk: &Chunk| self.wanted_in(chunk.volume, usual);
        self.chunks.lacking(live, wanted, after, scan_max)
    }

    /// A directory that is not removed.
    fn directory(&self, ino: Ino) -> Result<&Directory, TreeError> {
        let inode = self.inode(ino)?;
        let directory = inode.directory()?;
        if inode.nlink == 0 { Err(TreeError::NotFound) } else { Ok(directory) }
    }

    fn inode_reply(&self, ino: Ino, created: bool) -> Result<Outcome, TreeError> {
        Ok(Outcome::Inode(InodeReply { attributes: Some(self.attributes(ino)?), created }))
    }

    fn room_for_inode(&self) -> Result<(), TreeError> {
        let max = limits::INODES_MAX - self.kept_back(limits::RESERVED_MAX);
        let fits = self.inodes.len() < max && self.next_ino.0 < limits::INO_END;
        if fits { Ok(()) } else { Err(TreeError::NoSpace) }
    }

    /// Of a reserve, what the present command may not use.
    fn kept_back<T: Default>(&self, reserve: T) -> T {
        if self.reserved { T::default() } else { reserve }
    }
}

/// The outcome of a reply, with a failure as an error.
pub fn outcome(reply: &TreeReply) -> Result<&Outcome, TreeError> {
    match &reply.outcome {
        Some(Outcome::Failed(code)) => Err(TreeError::from_code(*code)),
        Some(outcome) => Ok(outcome),
        None => Err(TreeError::Invalid),
    }
}

fn done() -> Outcome {
    Outcome::Done(Done {})
}
