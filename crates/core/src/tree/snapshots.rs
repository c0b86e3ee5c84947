//! Snapshots of volumes: what a volume was at one moment, to be read for as long as somebody wants it.
//!
//! A snapshot has the inode table of its moment, a clone that shares all that has not changed since. It is the table
//! of the whole tree; only the inodes of the volume count. Files without a name are not part of it, but for those that
//! the snapshot before has, too: these are left in it, though nobody finds them.
//! Its inodes are read like others, by numbers that have the snapshot's *slot* in their upper 16 bits (see
//! [`is_past`]). They are found through `.snapshot` in the root of the volume, which is a directory that nothing
//! lists. The root of a volume within the volume is an empty directory there.
//!
//! Chunks live as blocks do in ZFS (Bonwick and Ahrens, "The Zettabyte File System", 2003, section 3): a chunk
//! knows the newest snapshot of its volume at its birth. When its last live byte goes while a newer one exists, it
//! stays in the chunk table and is put on the *dead list* of the newest one; else it leaves the table. When a snapshot is
//! deleted, what is on its list and younger than the next older one goes, and the next older one gets the rest.
//!
//! Invariants: nothing ever changes an inode of a snapshot; a chunk on a dead list is never taken bytes from again,
//! since a write names chunks that it brings or that its file uses, and copies take from files of today; so the chunk
//! table has exactly what the tree of today or any snapshot uses. No write lease covers an inode of the
//! volume when a snapshot is taken: nothing is pending in it. A volume with snapshots keeps its root.
//!
//! Leaves out on purpose: locks, leases, and who holds what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use unum_proto::ids::{ChunkId, Ino, NodeId, SnapshotId, VolumeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{CreateSnapshot, DeleteSnapshot, LockState, Locked, SnapshotReply};

use super::directory::{COOKIE_FIRST, Directory, Entry, Name, valid_name};
use super::error::TreeError;
use super::extents::ExtentMap;
use super::inode::{Body, Inode, Kind};
use super::table::Table;
use super::{Tree, done};
use crate::limits::{INO_END, SNAPSHOTS_MAX, VOLUME_SNAPSHOTS_MAX};
use crate::time::Time;

/// Where the snapshots of a volume are found, in its root.
pub const SNAPSHOTS_NAME: &[u8] = b".snapshot";
/// The slot of the directories of that name: the rest of their number is the root that they are in.
const SHELF: u16 = u16::MAX;
const SLOT_SHIFT: u32 = INO_END.trailing_zeros();
/// Everybody may look, nobody may change.
const MODE: u32 = 0o555;

/// Whether an inode is a snapshot's, or the directory that they are found in.
pub fn is_past(ino: Ino) -> bool {
    ino.0 >= INO_END
}

/// Whether two inodes are of the same snapshot.
pub fn in_one_snapshot(one: Ino, other: Ino) -> bool {
    is_past(one) && split(one).0 == split(other).0
}

fn past(slot: u16, ino: Ino) -> Ino {
    Ino(u64::from(slot) << SLOT_SHIFT | ino.0)
}

fn split(ino: Ino) -> (u16, Ino) {
    ((ino.0 >> SLOT_SHIFT) as u16, Ino(ino.0 & (INO_END - 1)))
}

#[derive(Clone, Debug)]
pub struct Snapshot {
    pub volume: VolumeId,
    pub name: Name,
    pub time: Time,
    /// The upper bits of its inodes' numbers: unique among the snapshots that there are, and given again only after all
    /// others.
    pub slot: u16,
    pub(super) table: Table,
    pub(super) dead: DeadList,
    /// What the roots of other volumes are in it.
    border: Arc<Inode>,
}

impl Snapshot {
    pub(super) fn new(volume: VolumeId, root: Ino, name: Name, time: Time, slot: u16) -> Self {
        let border = closed_directory(volume, Directory::new(root), time);
        Self {
            volume,
            name,
            time,
            slot,
            table: Table::default(),
            dead: DeadList::default(),
            border,
        }
    }

    /// Bytes of the chunks of which this is the newest snapshot that needs them, and which the volume
    /// does not need any more.
    pub fn kept_bytes(&self) -> u64 {
        self.dead.bytes()
    }
}

/// Chunks that have no live byte, by the newest snapshot that was there at their birth.
#[derive(Clone, Debug, Default)]
pub(super) struct DeadList {
    pub births: OrdMap<SnapshotId, Dead>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Dead {
    pub chunks: OrdSet<ChunkId>,
    pub bytes: u64,
}

impl DeadList {
    fn add(&mut self, birth: SnapshotId, id: ChunkId, length: u32) {
        let mut dead = self.births.remove(&birth).unwrap_or_default();
        if dead.chunks.insert(id).is_none() {
            dead.bytes += u64::from(length);
        }
        self.births.insert(birth, dead);
    }

    /// Takes over another list; the smaller one of each birth is walked through.
    fn join(&mut self, other: impl IntoIterator<Item = (SnapshotId, Dead)>) {
        for (birth, mut joined) in other {
            let mut own = self.births.remove(&birth).unwrap_or_default();
            if own.chunks.len() > joined.chunks.len() {
                std::mem::swap(&mut own, &mut joined);
            }
            joined.bytes += own.bytes;
            joined.chunks.extend(own.chunks);
            self.births.insert(birth, joined);
        }
    }

    fn bytes(&self) -> u64 {
        self.births.values().map(|dead| dead.bytes).sum()
    }

    fn bytes_since(&self, birth: SnapshotId) -> u64 {
        self.births.range(birth..).map(|(_, dead)| dead.bytes).sum()
    }

    pub fn chunks(&self) -> impl Iterator<Item = ChunkId> {
        self.births.values().flat_map(|dead| dead.chunks.iter().copied())
    }
}

/// What a volume has of snapshots.
#[derive(Clone, Debug)]
struct Shelf {
    /// The oldest first.
    ids: Arc<[SnapshotId]>,
    /// The directory that leads to them.
    directory: Arc<Inode>,
    changed: Time,
}

#[derive(Clone, Debug)]
pub(super) struct Snapshots {
    pub all: OrdMap<SnapshotId, Snapshot>,
    slots: OrdMap<u16, SnapshotId>,
    /// Of every volume.
    shelves: OrdMap<VolumeId, Shelf>,
    pub next: SnapshotId,
    pub last_slot: u16,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            all: OrdMap::new(),
            slots: OrdMap::new(),
            shelves: OrdMap::new(),
            next: SnapshotId(1),
            last_slot: 0,
        }
    }
}

impl Snapshots {
    /// A volume's, the oldest first.
    pub fn of(&self, volume: VolumeId) -> &[SnapshotId] {
        self.shelves.get(&volume).map_or(&[], |shelf| &shelf.ids)
    }

    pub fn newest(&self, volume: VolumeId) -> SnapshotId {
        self.of(volume).last().copied().unwrap_or_default()
    }

    /// The newest of the volume that is not newer than this one, which may be gone.
    pub fn newest_until(&self, volume: VolumeId, id: SnapshotId) -> SnapshotId {
        let ids = self.of(volume);
        let until = ids.partition_point(|other| *other <= id);
        ids.get(until.wrapping_sub(1)).copied().unwrap_or_default()
    }

    /// The next older one of the volume; 0 is none.
    pub fn before(&self, volume: VolumeId, id: SnapshotId) -> SnapshotId {
        self.newest_until(volume, SnapshotId(id.0.saturating_sub(1)))
    }

    pub fn named(&self, volume: VolumeId, name: &[u8]) -> Option<SnapshotId> {
        let mut ids = self.of(volume).iter().copied();
        ids.find(|id| self.all.get(id).is_some_and(|snapshot| snapshot.name.as_ref() == name))
    }

    pub fn changed(&self, volume: VolumeId) -> Time {
        self.shelves.get(&volume).map_or(Time::ZERO, |shelf| shelf.changed)
    }

    /// A volume is new, or one of its snapshots is, or is gone.
    pub fn shelve(&mut self, volume: VolumeId, root: Ino, changed: Time) {
        let of_volume = self.all.iter().filter(|(_, snapshot)| snapshot.volume == volume);
        let mut directory = Directory::restored(root, COOKIE_FIRST + u64::from(self.next.0));
        for (id, snapshot) in of_volume.clone() {
            let cookie = COOKIE_FIRST + u64::from(id.0);
            let entry = Entry { ino: past(snapshot.slot, root), kind: Kind::Directory, cookie };
            directory.restore(&snapshot.name, entry);
        }
        let ids = of_volume.map(|(&id, _)| id).collect();
        let directory = closed_directory(volume, directory, changed);
        self.shelves.insert(volume, Shelf { ids, directory, changed });
    }

    pub fn forget(&mut self, volume: VolumeId) {
        self.shelves.remove(&volume);
    }

    pub fn insert(&mut self, id: SnapshotId, snapshot: Snapshot) {
        self.slots.insert(snapshot.slot, id);
        self.all.insert(id, snapshot);
    }

    pub fn in_slot(&self, slot: u16) -> Option<SnapshotId> {
        self.slots.get(&slot).copied()
    }

    /// The first free one behind the last that was given, all around.
    fn free_slot(&self) -> Option<u16> {
        let behind = self.last_slot.saturating_add(1)..SHELF;
        let mut slots = behind.chain(1..=self.last_slot);
        slots.find(|slot| !self.slots.contains_key(slot))
    }

    /// A chunk has no live byte any more. False: no snapshot needs it.
    fn keep(&mut self, volume: VolumeId, birth: SnapshotId, id: ChunkId, length: u32) -> bool {
        let newest = self.newest(volume);
        newest > birth && self.put_dead(newest, birth, id, length)
    }

    pub fn put_dead(
        &mut self,
        snapshot: SnapshotId,
        birth: SnapshotId,
        id: ChunkId,
        length: u32,
    ) -> bool {
        let Some(snapshot) = self.all.get_mut(&snapshot) else { return false };
        snapshot.dead.add(birth, id, length);
        true
    }
}

/// A directory that is nobody's to change.
fn closed_directory(volume: VolumeId, directory: Directory, time: Time) -> Arc<Inode> {
    let below = directory.len() as u32;
    let inode = Inode::new(time, MODE, 0, 0, Body::Directory(directory));
    Arc::new(Inode { volume, nlink: 2 + below, ..inode })
}

impl Tree {
    /// The snapshots of a volume, the oldest first.
    pub fn snapshots_of(&self, volume: VolumeId) -> impl Iterator<Item = (SnapshotId, &Snapshot)> {
        let ids = self.snapshots.of(volume).iter();
        ids.filter_map(|id| Some((*id, self.snapshots.all.get(id)?)))
    }

    /// How many there are in the whole tree.
    pub fn snapshots_count(&self) -> usize {
        self.snapshots.all.len()
    }

    /// Bytes of the chunks that would go with this one snapshot.
    pub fn alone_bytes(&self, id: SnapshotId) -> u64 {
        let Some(snapshot) = self.snapshots.all.get(&id) else { return 0 };
        snapshot.dead.bytes_since(self.snapshots.before(snapshot.volume, id))
    }

    /// Bytes of the chunks that only snapshots of this volume need.
    pub fn kept_bytes(&self, volume: VolumeId) -> u64 {
        self.snapshots_of(volume).map(|(_, snapshot)| snapshot.kept_bytes()).sum()
    }

    /// Tells apart the inodes of one number: a slot is given again.
    pub fn generation(&self, ino: Ino) -> u64 {
        let (slot, _) = split(ino);
        self.snapshots.in_slot(slot).map_or(0, |id| u64::from(id.0))
    }

    /// Whether an inode is a snapshot's that there is: it is what it is for as long as there is that.
    pub fn is_frozen(&self, ino: Ino) -> bool {
        self.snapshots.in_slot(split(ino).0).is_some()
    }

    /// The name of the snapshot that an inode is in, and the inode that it was.
    pub fn snapshot_of(&self, ino: Ino) -> Option<(&Name, Ino)> {
        let (slot, plain) = split(ino);
        let id = self.snapshots.in_slot(slot)?;
        Some((&self.snapshots.all.get(&id)?.name, plain))
    }

    /// The nodes whose write leases cover inodes of a volume.
    pub fn holders_in(&self, volume: VolumeId) -> Vec<NodeId> {
        self.leases
            .in_volume(volume)
            .filter_map(|id| Some(self.leases.live.get(&id)?.node))
            .collect()
    }

    /// An inode of a snapshot, or a directory of snapshots.
    pub(super) fn past_inode(&self, ino: Ino) -> Option<&Inode> {
        let (slot, plain) = split(ino);
        if slot == SHELF {
            let volume = self.inodes.get(plain)?.volume;
            let shelf = self.snapshots.shelves.get(&volume)?;
            return self.is_volume_root(plain).then_some(&*shelf.directory);
        }
        let snapshot = self.snapshots.all.get(&self.snapshots.in_slot(slot)?)?;
        let found = self.lent_past.get(ino, &snapshot.table, plain);
        Some(found.filter(|inode| inode.volume == snapshot.volume).unwrap_or(&snapshot.border))
    }

    /// The number of what a directory names, or of the directory that it is in.
    pub(super) fn beside(&self, directory: Ino, ino: Ino) -> Ino {
        match split(directory) {
            (0, _) | (SHELF, _) => ino,
            (slot, _) => past(slot, ino),
        }
    }

    /// What `..` of a directory is, where that is told by something else than the directory.
    pub(super) fn past_parent(&self, directory: Ino) -> Option<Ino> {
        let (slot, plain) = split(directory);
        if slot == SHELF {
            return Some(plain);
        }
        let volume = self.snapshots.all.get(&self.snapshots.in_slot(slot)?)?.volume;
        let is_root = self.volume(volume)?.root == plain;
        is_root.then(|| past(SHELF, plain))
    }

    /// The directory of snapshots, if that is what the name means: one that was made before there were
    /// any stays what it is.
    pub(super) fn shelf_of(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
        let meant = name == SNAPSHOTS_NAME && self.is_volume_root(parent);
        let taken = || self.directory(parent).is_ok_and(|directory| directory.get(name).is_some());
        (meant && !taken()).then(|| past(SHELF, parent))
    }

    fn is_volume_root(&self, ino: Ino) -> bool {
        let volume = self.inodes.get(ino).map(|inode| inode.volume);
        volume.and_then(|id| self.volume(id)).is_some_and(|volume| volume.root == ino)
    }

    /// Refuses what would change a snapshot, or take the name by which they are found.
    pub fn refuse_past(&self, command: &Command) -> Result<(), TreeError> {
        let shelf = |parent: u64, name: &[u8]| self.shelf_of(Ino(parent), name).is_some();
        let (inos, removed, added): (&[u64], _, _) = match command {
            Command::Create(c) => (&[c.parent], None, Some((c.parent, &c.name))),
            Command::CreateUnnamed(c) => (&[c.parent], None, None),
            Command::CreateVolume(c) => (&[c.parent], None, Some((c.parent, &c.name))),
            Command::Link(c) => (&[c.parent, c.ino], None, Some((c.parent, &c.name))),
            Command::Unlink(c) => (&[c.parent], Some((c.parent, &c.name)), None),
            Command::Rmdir(c) => (&[c.parent], Some((c.parent, &c.name)), None),
            Command::Rename(c) => {
                let (from, to) = ((c.parent, &c.name), (c.new_parent, &c.new_name));
                (&[c.parent, c.new_parent], Some(from), Some(to))
            }
            Command::SetAttributes(c) => (&[c.ino], None, None),
            Command::Write(c) => (&[c.ino], None, None),
            Command::Fallocate(c) => (&[c.ino], None, None),
            Command::CopyRange(c) => (&[c.to], None, None),
            Command::SetXattr(c) => (&[c.ino], None, None),
            Command::RemoveXattr(c) => (&[c.ino], None, None),
            Command::AcquireLease(c) => (c.inos.as_slice(), None, None),
            Command::Hold(c) => (c.inos.as_slice(), None, None),
            Command::Lock(_)
            | Command::Unlock(_)
            | Command::CancelWait(_)
            | Command::ReleaseOwner(_)
            | Command::Release(_)
            | Command::ReleaseNode(_)
            | Command::Reap(_)
            | Command::ReleaseLease(_)
            | Command::Drain(_)
            | Command::SetReplicas(_)
            | Command::SetVolume(_)
            | Command::CreateSnapshot(_)
            | Command::DeleteSnapshot(_) => return Ok(()),
        };
        let changes_past = inos.iter().any(|&ino| is_past(Ino(ino)));
        if changes_past || removed.is_some_and(|(parent, name)| shelf(parent, name)) {
            return Err(TreeError::ReadOnly);
        }
        if added.is_some_and(|(parent, name)| shelf(parent, name)) {
            return Err(TreeError::Exists);
        }
        match command {
            // Its chunks may be on a dead list: who copies has to copy bytes.
            Command::CopyRange(c) if is_past(Ino(c.from)) => Err(TreeError::Unsupported),
            _ => Ok(()),
        }
    }

    /// Who reads a file that nobody can change needs no lock against anybody, and nobody gets another one.
    pub(super) fn lock_past(&self, ino: Ino, exclusive: bool) -> Result<Outcome, TreeError> {
        self.inode(ino)?;
        match exclusive {
            true => Err(TreeError::ReadOnly),
            false => {
                Ok(Outcome::Locked(Locked { state: LockState::Granted as i32, conflict: None }))
            }
        }
    }

    /// Those of `ids` of which nothing is live leave the table, unless a snapshot needs them.
    pub(super) fn bury(&mut self, ids: impl IntoIterator<Item = ChunkId>) {
        for id in ids {
            let Some(chunk) = self.chunks.get(id).filter(|chunk| chunk.live == 0) else { continue };
            let (volume, birth, length) = (chunk.volume, chunk.birth, chunk.length);
            if !self.snapshots.keep(volume, birth, id, length) {
                self.chunks.remove(id);
            }
        }
    }

    /// A volume keeps its root, by which its snapshots are found.
    pub(super) fn refuse_snapshots_lost(&self, ino: Ino) -> Result<(), TreeError> {
        let volume = self.inode(ino)?.volume;
        let lost = !self.snapshots.of(volume).is_empty() && self.is_volume_root(ino);
        if lost { Err(TreeError::HasSnapshots) } else { Ok(()) }
    }

    pub(super) fn create_snapshot(
        &mut self,
        now: Time,
        command: &CreateSnapshot,
    ) -> Result<Outcome, TreeError> {
        let volume = VolumeId(command.volume);
        let name = valid_name(&command.name)?;
        let root = self.volume(volume).ok_or(TreeError::Stale)?.root;
        self.directory(root).map_err(|_| TreeError::Stale)?;
        if self.snapshots.named(volume, name).is_some() {
            return Err(TreeError::Exists);
        }
        let (own, all) = (self.snapshots.of(volume).len(), self.snapshots.all.len());
        let id = self.snapshots.next;
        let next = id.0.checked_add(1).filter(|_| own < VOLUME_SNAPSHOTS_MAX);
        let next = next.filter(|_| all < SNAPSHOTS_MAX).ok_or(TreeError::TooManySnapshots)?;
        let slot = self.snapshots.free_slot().ok_or(TreeError::TooManySnapshots)?;
        // Its holder may have changes that nobody has heard of.
        if self.leases.in_volume(volume).next().is_some() {
            return Err(TreeError::Held);
        }
        let time = self.next_shelving(volume, now);
        let mut snapshot = Snapshot::new(volume, root, name.into(), time, slot);
        snapshot.table = self.inodes.packed().clone();
        self.leave_out_nameless(volume, id, &mut snapshot.table);
        self.snapshots.next = SnapshotId(next);
        self.snapshots.last_slot = slot;
        self.snapshots.insert(id, snapshot);
        self.shelved(volume, root, name, time);
        Ok(Outcome::Snapshot(SnapshotReply { snapshot: id.0, root: past(slot, root).0 }))
    }

    pub(super) fn delete_snapshot(
        &mut self,
        now: Time,
        command: &DeleteSnapshot,
    ) -> Result<Outcome, TreeError> {
        let volume = VolumeId(command.volume);
        let root = self.volume(volume).ok_or(TreeError::Stale)?.root;
        let id = self.snapshots.named(volume, &command.name).ok_or(TreeError::NotFound)?;
        let before = self.snapshots.before(volume, id);
        let snapshot = self.snapshots.all.remove(&id).ok_or(TreeError::NotFound)?;
        self.lent_past.clear();
        self.snapshots.slots.remove(&snapshot.slot);
        self.changes.by(NodeId(0));
        self.changes.inode(past(snapshot.slot, root));
        let (older, younger): (Vec<_>, Vec<_>) =
            snapshot.dead.births.into_iter().partition(|(birth, _)| *birth < before);
        for chunk in younger.iter().flat_map(|(_, dead)| dead.chunks.iter()) {
            self.chunks.remove(*chunk);
        }
        if let Some(heir) = self.snapshots.all.get_mut(&before) {
            heir.dead.join(older);
        }
        let time = self.next_shelving(volume, now);
        self.shelved(volume, root, &command.name, time);
        Ok(done())
    }

    /// What has no name is not to be read, and should not keep its room: it is taken out of the new snapshot's table,
    /// and the chunks that only it uses count as younger. That cannot be said of a chunk that an older snapshot
    /// needs; so a file with such a one stays, until this snapshot goes.
    fn leave_out_nameless(&mut self, volume: VolumeId, id: SnapshotId, table: &mut Table) {
        let newest = self.snapshots.newest(volume);
        let mut taken = BTreeMap::<ChunkId, u64>::new();
        for ino in self.orphans.since.keys() {
            let Some(inode) = self.inodes.get(*ino).filter(|inode| inode.volume == volume) else {
                continue;
            };
            let is_young = |id| self.chunks.get(id).is_none_or(|chunk| chunk.birth >= newest);
            if !bytes_in(inode).all(|(chunk, _)| is_young(chunk)) {
                continue;
            }
            for (chunk, bytes) in bytes_in(inode) {
                *taken.entry(chunk).or_default() += bytes;
            }
            table.remove(ino);
        }
        for (chunk, bytes) in taken {
            self.chunks.rejuvenate(chunk, bytes, id);
        }
    }

    /// Grows, so that who keeps the directory of snapshots in mind sees that it changed.
    fn next_shelving(&self, volume: VolumeId, now: Time) -> Time {
        now.max(Time(self.snapshots.changed(volume).0.saturating_add(1)))
    }

    fn shelved(&mut self, volume: VolumeId, root: Ino, name: &[u8], time: Time) {
        self.snapshots.shelve(volume, root, time);
        let shelf = past(SHELF, root);
        // No call of a kernel did it.
        self.changes.by(NodeId(0));
        self.changes.name(shelf, name);
        self.changes.inode(shelf);
    }

    /// The states of a volume that has snapshots, the newest first: each with the next newer one. That of the
    /// newest is the tree of today.
    pub(super) fn pasts(&self) -> impl Iterator<Item = (SnapshotId, &Snapshot, &Table)> {
        self.snapshots.shelves.values().flat_map(move |shelf| {
            let of = |id: &SnapshotId| Some((*id, self.snapshots.all.get(id)?));
            let newer = shelf.ids.iter().skip(1).filter_map(of).map(|(_, newer)| &newer.table);
            let newer: Vec<&Table> = newer.chain([self.inodes.table()]).collect();
            let all: Vec<_> = shelf.ids.iter().filter_map(of).zip(newer).collect();
            all.into_iter().rev().map(|((id, snapshot), newer)| (id, snapshot, newer))
        })
    }

    /// The inodes of snapshots whose extents take bytes from these chunks, as far as they are not the same in the next
    /// newer state.
    pub(super) fn past_users(&self, chunks: &BTreeSet<ChunkId>) -> BTreeMap<ChunkId, Vec<Ino>> {
        let mut users = BTreeMap::<ChunkId, Vec<Ino>>::new();
        for (_, snapshot, newer) in self.pasts() {
            for change in changed(newer, &snapshot.table, snapshot.volume) {
                let used = change.older.iter().flat_map(chunks_in);
                for chunk in used.filter(|chunk| chunks.contains(chunk)).collect::<BTreeSet<_>>() {
                    users.entry(chunk).or_default().push(past(snapshot.slot, change.ino));
                }
            }
        }
        users
    }
}

/// What an inode takes from chunks.
fn bytes_in(inode: &Inode) -> impl Iterator<Item = (ChunkId, u64)> {
    let extents = inode.extents().ok().into_iter().flat_map(ExtentMap::iter);
    extents.filter_map(|extent| Some((extent.source?.chunk, extent.length)))
}

/// The chunks that it takes them from; one may come more than once.
pub(super) fn chunks_in(inode: &Inode) -> impl Iterator<Item = ChunkId> {
    bytes_in(inode).map(|(chunk, _)| chunk)
}

/// An inode that is not the same in two states of a volume.
pub(super) struct Changed {
    pub ino: Ino,
    pub newer: Option<Inode>,
    pub older: Option<Inode>,
}

/// What differs between two states, of the inodes of one volume. What they share is not looked at.
pub(super) fn changed<'a>(
    newer: &'a Table,
    older: &'a Table,
    volume: VolumeId,
) -> impl Iterator<Item = Changed> + 'a {
    let all = newer.differences(older).map(|(ino, newer, older)| Changed { ino, newer, older });
    all.filter(move |change| {
        let inode = change.newer.as_ref().or(change.older.as_ref());
        inode.is_some_and(|inode| inode.volume == volume)
    })
}
