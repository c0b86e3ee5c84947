//! Locks of other nodes' programs on this machine's files.
//!
//! Each owner has a descriptor of its own for a file, and this kernel's locks on it: of the open file description, or
//! flock. So they meet those of this machine's own programs, and each other, with no table here. unum-init keeps a
//! copy of each descriptor, so the locks outlive this daemon, and nobody gets in between.
//!
//! A client that is taken for dead loses its locks, and its *fence* goes up: what it sends afterwards for files that had
//! locks is refused, for others may have had these since. All fences go up when unum-init, and so all locks, are new.
//!
//! Invariants: unum-init has an owner's descriptor before there is a lock on it; a fence is on the tmpfs of the run
//! directory before the locks that it ends are gone.
//!
//! Leaves out on purpose: finding deadlocks (OFD locks know none, see fcntl(2)), and an order among those who wait.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::Notify;
use tokio::time::Instant;
use unum_proto::host as wire;
use unum_proto::ids::NodeId;
use unum_sys::locks::{self as records, Kind, Range};

use crate::world::World;

/// Owners at once, of all clients and of each. More are refused with ENOLCK.
pub const OWNERS_MAX: usize = 1024;
const OWNERS_OF_CLIENT_MAX: usize = OWNERS_MAX / 4;
/// A lock of a program of this machine ends without a word, so who waits looks again: soon, then less often.
const LOOK_AGAIN_FIRST: Duration = Duration::from_millis(2);
const LOOK_AGAIN_LAST: Duration = Duration::from_millis(50);
/// Under such names, with a number, unum-init keeps the descriptors.
const KEPT_PREFIX: &str = "host-lock-";
/// Under this name it keeps something as long as it has lost no lock.
const MARK: &str = "host-locks";

/// An owner's locks of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub client: NodeId,
    pub owner: wire::LockOwner,
}

/// What holds an owner's locks.
#[derive(Clone)]
pub struct Holder {
    file: Arc<OwnedFd>,
    slot: usize,
}

pub struct Locks {
    /// Protects who holds what. Never held across a call that may wait.
    owners: Mutex<Owners>,
    /// Held while a new owner is brought to unum-init: one owner never gets two descriptors.
    beginning: tokio::sync::Mutex<()>,
    fences: Mutex<Fences>,
    world: World,
    /// Told when a lock of a client ends.
    ended: Notify,
}

struct Owners {
    held: HashMap<Owner, Holder>,
    /// Numbers of names that are not in use.
    free: BTreeSet<usize>,
}

/// How often each client was taken for dead while it had locks here, and one more.
struct Fences {
    path: PathBuf,
    past: HashMap<NodeId, u64>,
}

/// Among the fences: what counts for all clients.
const ALL: NodeId = NodeId(0);

impl Locks {
    /// Goes on with what an earlier daemon of this machine left with unum-init, and in `fences`.
    pub async fn restore(world: World, fences: &Path) -> io::Result<Self> {
        let mut fences = Fences::read(fences)?;
        if world.fetch(MARK).await.map_err(io::Error::other)?.is_none() {
            fences.raise(ALL)?;
            let mark = std::fs::File::open("/dev/null")?.into();
            world.keep(MARK, Vec::new(), mark, Path::new("")).await.map_err(io::Error::other)?;
        }
        let mut owners = Owners { held: HashMap::new(), free: (0..OWNERS_MAX).collect() };
        for name in world.kept().await.map_err(io::Error::other)? {
            let slot = name.strip_prefix(KEPT_PREFIX).and_then(|slot| slot.parse().ok());
            let Some(slot) = slot.filter(|slot| *slot < OWNERS_MAX) else { continue };
            let kept = world.fetch(&name).await.map_err(io::Error::other)?;
            let known = kept.and_then(|(note, file)| {
                let note = wire::LockNote::decode(note).ok()?;
                let owner = Owner { client: NodeId(note.client), owner: note.owner? };
                Some((owner, Holder { file: Arc::new(file), slot }))
            });
            match known {
                Some((owner, holder)) if !owners.held.contains_key(&owner) => {
                    owners.held.insert(owner, holder);
                    owners.free.remove(&slot);
                }
                _ => world.release(&name).await.map_err(io::Error::other)?,
            }
        }
        Ok(Self {
            owners: Mutex::new(owners),
            beginning: tokio::sync::Mutex::default(),
            fences: Mutex::new(fences),
            world,
            ended: Notify::new(),
        })
    }

    /// The client's fence.
    pub fn fence(&self, client: NodeId) -> u64 {
        self.fences().of(client)
    }

    /// Whether a call may go on that was sent under this fence; 0 stands for no lock.
    pub fn admits(&self, client: NodeId, fence: u64) -> Result<(), Errno> {
        match fence == 0 || fence == self.fence(client) {
            true => Ok(()),
            false => Err(Errno::IO),
        }
    }

    pub fn holder(&self, owner: &Owner) -> Option<Holder> {
        self.owners().held.get(owner).cloned()
    }

    /// Has an owner's locks held by `file`, an open file description that is nobody else's, unless they have a holder.
    pub async fn begin(&self, owner: Owner, file: OwnedFd) -> Result<Holder, Errno> {
        let _turn = self.beginning.lock().await;
        if let Some(holder) = self.holder(&owner) {
            return Ok(holder);
        }
        self.end_other_mounts(&owner).await;
        let slot = self.owners().slot_for(owner.client).ok_or(Errno::NOLCK)?;
        let kept = match file.try_clone() {
            Ok(copy) => {
                let note = wire::LockNote { client: owner.client.0, owner: Some(owner.owner) };
                let note = note.encode_to_vec();
                self.world
                    .keep(&name(slot), note, copy, Path::new(""))
                    .await
                    .map_err(|error| io::Error::other(error.to_string()))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "a lock is refused, since unum-init would not keep it");
            self.owners().free.insert(slot);
            return Err(Errno::NOLCK);
        }
        let holder = Holder { file: Arc::new(file), slot };
        self.owners().held.insert(owner, holder.clone());
        Ok(holder)
    }

    /// A mount that calls under another lane is a new one: its kernel knows of no lock of the old.
    async fn end_other_mounts(&self, owner: &Owner) {
        self.end(|held| held.client == owner.client && held.owner.lane != owner.owner.lane).await;
    }

    /// Sets a lock or takes it away; one that others are in the way of is tried until EAGAIN at that time. EAGAIN also if all
    /// of the owner's locks were ended meanwhile.
    pub async fn set(
        &self,
        owner: &Owner,
        holder: &Holder,
        kind: Option<Kind>,
        range: Range,
        until: Instant,
    ) -> Result<(), Errno> {
        let mut pause = LOOK_AGAIN_FIRST;
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let (setting, flock) = (holder.clone(), owner.owner.flock);
            // The file system may be one that asks others, too.
            let set = tokio::task::spawn_blocking(move || setting.set(flock, kind, range));
            let set = set.await.unwrap_or(Err(Errno::IO));
            if !self.holder(owner).is_some_and(|held| Arc::ptr_eq(&held.file, &holder.file)) {
                holder.clone().clear().await;
                return Err(Errno::AGAIN);
            }
            match set {
                Err(Errno::AGAIN) if Instant::now() < until => {}
                // What it had may have been more.
                Ok(()) if kind != Some(Kind::Write) => {
                    self.ended.notify_waiters();
                    return Ok(());
                }
                done => return done,
            }
            let again = (Instant::now() + pause).min(until);
            let _ = tokio::time::timeout_at(again, ended).await;
            pause = (pause * 2).min(LOOK_AGAIN_LAST);
        }
    }

    /// Ends the locks of clients that are gone.
    pub async fn keep_only(&self, lives: impl Fn(NodeId) -> bool) {
        let clients: BTreeSet<_> = self.owners().held.keys().map(|owner| owner.client).collect();
        for client in clients.into_iter().filter(|client| !lives(*client)) {
            // Whoever cannot be fenced off keeps its locks.
            let raised = self.fences().raise(client);
            match raised {
                Ok(()) => {
                    tracing::warn!(%client, "a node is down: its locks on this machine's files end");
                    self.end(|held| held.client == client).await;
                }
                Err(error) => {
                    tracing::error!(%client, %error, "a node is down, but its locks cannot be ended");
                }
            }
        }
    }

    async fn end(&self, which: impl Fn(&Owner) -> bool) {
        let ended: Vec<Owner> =
            self.owners().held.keys().filter(|owner| which(owner)).copied().collect();
        for owner in ended {
            self.end_of(&owner).await;
        }
    }

    /// Ends all locks of an owner.
    pub async fn end_of(&self, owner: &Owner) {
        let Some(holder) = self.owners().held.remove(owner) else { return };
        let slot = holder.slot;
        // unum-init's copy would hold them.
        holder.clear().await;
        if let Err(error) = self.world.release(&name(slot)).await {
            tracing::warn!(%error, "unum-init keeps the descriptor of locks that have ended");
        }
        self.owners().free.insert(slot);
        self.ended.notify_waiters();
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fences(&self) -> MutexGuard<'_, Fences> {
        self.fences.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owners {
    fn slot_for(&mut self, client: NodeId) -> Option<usize> {
        let of_client = self.held.keys().filter(|owner| owner.client == client).count();
        if of_client >= OWNERS_OF_CLIENT_MAX { None } else { self.free.pop_first() }
    }
}

impl Holder {
    /// Sets a lock or takes one away, without waiting.
    pub fn set(&self, is_flock: bool, kind: Option<Kind>, range: Range) -> Result<(), Errno> {
        if is_flock {
            let operation = match kind {
                None => FlockOperation::NonBlockingUnlock,
                Some(Kind::Read) => FlockOperation::NonBlockingLockShared,
                Some(Kind::Write) => FlockOperation::NonBlockingLockExclusive,
            };
            return flock(&*self.file, operation);
        }
        match records::set(&*self.file, kind, range).map_err(errno) {
            // The owner has the file open in another way, too, and began with this one.
            Err(Errno::BADF) => {
                tracing::debug!("a lock is refused: its owner's first was of another access mode");
                Err(Errno::NOLCK)
            }
            done => done,
        }
    }

    async fn clear(self) {
        // The file system may be one that asks others, too, also when the file is closed.
        let _ = tokio::task::spawn_blocking(move || self.clear_now()).await;
    }

    fn clear_now(self) {
        let all = Range { start: 0, end: i64::MAX as u64 };
        for failed in [
            records::set(&*self.file, None, all).map_err(errno),
            flock(&*self.file, FlockOperation::Unlock),
        ] {
            if let Err(error) = failed {
                tracing::warn!(%error, "a lock that has ended cannot be taken away");
            }
        }
    }

    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }
}

/// What is in the way of a lock that was set through this descriptor.
pub fn conflict(file: &OwnedFd, kind: Kind, range: Range) -> Result<Option<(Kind, Range)>, Errno> {
    records::test(file, kind, range).map_err(errno)
}

impl Fences {
    fn read(path: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let past = text.lines().filter_map(|line| {
            let (client, deaths) = line.split_once(' ')?;
            Some((NodeId(client.parse().ok()?), deaths.parse().ok()?))
        });
        Ok(Self { path: path.to_owned(), past: past.collect() })
    }

    fn of(&self, client: NodeId) -> u64 {
        let past = |of| self.past.get(&of).copied().unwrap_or(0);
        past(client) + past(ALL) + 1
    }

    fn raise(&mut self, client: NodeId) -> io::Result<()> {
        let mut past = self.past.clone();
        *past.entry(client).or_default() += 1;
        let lines = past.iter().map(|(client, deaths)| format!("{} {deaths}\n", client.0));
        let fresh = self.path.with_extension("new");
        std::fs::write(&fresh, lines.collect::<String>())?;
        std::fs::rename(&fresh, &self.path)?;
        self.past = past;
        Ok(())
    }
}

fn name(slot: usize) -> String {
    format!("{KEPT_PREFIX}{slot}")
}

fn errno(error: io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::WouldBlock => Errno::AGAIN,
        io::ErrorKind::InvalidInput => Errno::INVAL,
        _ => Errno::from_io_error(&error).unwrap_or(Errno::IO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_go_up_and_are_known_to_the_next_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fences");
        let mut fences = Fences::read(&path).unwrap();
        assert_eq!(fences.of(NodeId(7)), 1);
        fences.raise(NodeId(7)).unwrap();
        fences.raise(NodeId(7)).unwrap();
        fences.raise(NodeId(8)).unwrap();
        let next = Fences::read(&path).unwrap();
        assert_eq!([7, 8, 9].map(|node| next.of(NodeId(node))), [3, 2, 1]);
        fences.raise(ALL).unwrap();
        assert_eq!([7, 8, 9].map(|node| fences.of(NodeId(node))), [4, 3, 2]);
        std::fs::write(&path, "rubbish\n7 x\n8 4\n").unwrap();
        assert_eq!([7, 8].map(|node| Fences::read(&path).unwrap().of(NodeId(node))), [1, 5]);
    }
}
