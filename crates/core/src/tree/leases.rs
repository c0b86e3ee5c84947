//! Write leases: which node may change what, and the changes that it made meanwhile.
//!
//! A node has one write lease at most, and it covers inodes one by one: each names the lease that covers
//! it. While it does, commands of other nodes that would change the inode, or depend on its names, are
//! refused with [`TreeError::Held`] when they are applied, so that nothing but the order of the log fences.
//! What is made in a covered directory is born covered. The end of a lease frees all of it at once: numbers of
//! leases are never given twice, and one that is not live covers nothing.
//!
//! The holder applies its changes to a tree of its own (see [`super::local`]) and sends them later, numbered,
//! in batches (`Drain`). Invariants: the changes of a lease are applied in order, each once, without
//! gaps; inode numbers under a lease come from a range that is its own and only grow.
//!
//! What is locked of a covered inode is its holder's to say (see [`super::leased_locks`]). Holds, reaping and
//! the places of chunks do not depend on leases.

use std::collections::{BTreeSet, VecDeque};

use imbl::{OrdMap, OrdSet};
use unum_proto::ids::{Ino, LeaseId, NodeId, VolumeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{
    AcquireLease, Create, Drain, Drained, LeaseRecord, Leased, LockState, LoggedChange,
    REFUSALS_MAX, RefusedChange, ReleaseLease, Rename, Waiter,
};

use super::Tree;
use super::error::TreeError;
use super::inode::Kind;
use super::leased_locks::gives_locks_back;
use crate::limits::{
    DRAIN_CHANGES_MAX, INO_END, INODE_BATCH_MAX, LEASE_INODES, LEASED_BELOW_LOOKS, LEASED_BELOW_MAX,
};
use crate::time::Time;

/// A live write lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteLease {
    pub node: NodeId,
    /// The numbers that inodes made under it may still get.
    pub next_ino: Ino,
    pub end_ino: Ino,
    /// The last of the holder's changes that is applied.
    pub drained: u64,
}

#[derive(Clone, Debug)]
pub(super) struct WriteLeases {
    pub live: OrdMap<LeaseId, WriteLease>,
    pub next: LeaseId,
    /// The live ones by the volumes in which they cover inodes, or did.
    volumes: OrdSet<(VolumeId, LeaseId)>,
}

impl Default for WriteLeases {
    fn default() -> Self {
        Self { live: OrdMap::new(), next: LeaseId(1), volumes: OrdSet::new() }
    }
}

impl WriteLeases {
    fn of(&self, node: NodeId) -> Option<LeaseId> {
        self.live.iter().find(|(_, lease)| lease.node == node).map(|(&id, _)| id)
    }

    /// Those that cover inodes of a volume, or did.
    pub fn in_volume(&self, volume: VolumeId) -> impl Iterator<Item = LeaseId> {
        let all = (volume, LeaseId(0))..=(volume, LeaseId(u64::MAX));
        self.volumes.range(all).map(|&(_, id)| id)
    }

    fn cover_in(&mut self, volume: VolumeId, id: LeaseId) {
        if self.live.contains_key(&id) && !self.volumes.contains(&(volume, id)) {
            self.volumes.insert((volume, id));
        }
    }

    fn volumes_of(&self, id: LeaseId) -> impl Iterator<Item = VolumeId> {
        self.volumes.iter().filter(move |(_, of)| *of == id).map(|&(volume, _)| volume)
    }

    fn end(&mut self, id: LeaseId) {
        self.live.remove(&id);
        let ended: Vec<_> = self.volumes_of(id).map(|volume| (volume, id)).collect();
        for of_volume in ended {
            self.volumes.remove(&of_volume);
        }
    }
}

impl Tree {
    /// The write lease of a node.
    pub fn lease_of(&self, node: NodeId) -> Option<(LeaseId, WriteLease)> {
        let id = self.leases.of(node)?;
        Some((id, *self.leases.live.get(&id)?))
    }

    /// Who alone may change the inode, if anybody.
    pub fn holder_of(&self, ino: Ino) -> Option<NodeId> {
        let inode = self.inodes.get(ino)?;
        self.leases.live.get(&inode.lease).map(|lease| lease.node)
    }

    /// The inodes that a command changes or depends on. None: the command does not
    /// depend on write leases.
    pub fn touched(&self, command: &Command) -> Option<Vec<Ino>> {
        let named = |parent: u64, name: &[u8]| {
            let child = self.lookup(Ino(parent), name).ok();
            std::iter::once(Ino(parent)).chain(child)
        };
        Some(match command {
            Command::Create(create) => named(create.parent, &create.name).collect(),
            Command::Link(link) => named(link.parent, &link.name).chain([Ino(link.ino)]).collect(),
            Command::Unlink(unlink) => named(unlink.parent, &unlink.name).collect(),
            Command::Rmdir(rmdir) => named(rmdir.parent, &rmdir.name).collect(),
            Command::Rename(rename) => named(rename.parent, &rename.name)
                .chain(named(rename.new_parent, &rename.new_name))
                .collect(),
            Command::SetAttributes(set) => vec![Ino(set.ino)],
            Command::Write(write) => vec![Ino(write.ino)],
            Command::Fallocate(fallocate) => vec![Ino(fallocate.ino)],
            Command::CopyRange(copy) => vec![Ino(copy.from), Ino(copy.to)],
            Command::SetXattr(set) => vec![Ino(set.ino)],
            Command::RemoveXattr(remove) => vec![Ino(remove.ino)],
            Command::CreateUnnamed(create) => vec![Ino(create.parent)],
            Command::CreateVolume(create) => named(create.parent, &create.name).collect(),
            Command::Lock(lock) => vec![Ino(lock.ino)],
            Command::Unlock(unlock) => vec![Ino(unlock.ino)],
            Command::ReleaseOwner(release) => vec![Ino(release.ino)],
            Command::SetReplicas(_)
            | Command::Hold(_)
            | Command::Release(_)
            | Command::ReleaseNode(_)
            | Command::Reap(_)
            | Command::CancelWait(_)
            | Command::AcquireLease(_)
            | Command::ReleaseLease(_)
            | Command::Drain(_)
            | Command::SetVolume(_)
            | Command::CreateSnapshot(_)
            | Command::DeleteSnapshot(_) => return None,
        })
    }

    /// Whether the outcome of a change depends on nothing but the inodes that it touches. A directory that
    /// goes to another parent must not come below itself, which others may bring about meanwhile.
    pub fn is_confined(&self, command: &Command) -> bool {
        let Command::Rename(rename) = command else { return true };
        rename.parent == rename.new_parent || !self.moves_directory(rename)
    }

    fn moves_directory(&self, rename: &Rename) -> bool {
        let is_directory = |parent: u64, name: &[u8]| {
            let ino = self.lookup(Ino(parent), name);
            ino.and_then(|ino| self.inode(ino)).is_ok_and(|inode| inode.kind() == Kind::Directory)
        };
        is_directory(rename.parent, &rename.name)
            || is_directory(rename.new_parent, &rename.new_name)
    }

    pub(super) fn refuse_held(&self, node: NodeId, command: &Command) -> Result<(), TreeError> {
        if self.leases.live.is_empty() || gives_locks_back(command) {
            return Ok(());
        }
        let touched = self.touched(command).unwrap_or_default();
        let others = |ino: &Ino| self.holder_of(*ino).is_some_and(|holder| holder != node);
        if touched.iter().any(others) { Err(TreeError::Held) } else { Ok(()) }
    }

    pub(super) fn acquire_lease(
        &mut self,
        now: Time,
        node: NodeId,
        command: &AcquireLease,
    ) -> Result<Outcome, TreeError> {
        let fits = command.inos.len() <= INODE_BATCH_MAX && !command.inos.is_empty();
        if node == NodeId(0) || !fits || command.below > LEASED_BELOW_MAX {
            return Err(TreeError::Invalid);
        }
        for &ino in &command.inos {
            self.inode(Ino(ino))?;
            if self.holder_of(Ino(ino)).is_some_and(|holder| holder != node) {
                return Err(TreeError::Held);
            }
        }
        let lease = match self.leases.of(node) {
            Some(lease) => lease,
            None => self.new_lease(node)?,
        };
        let inos = self.covered_next(command);
        for &ino in &inos {
            self.cover(ino, lease);
        }
        let inos = inos.into_iter().map(|ino| ino.0).collect();
        Ok(Outcome::Leased(Leased { lease: lease.0, time_ns: now.0, inos }))
    }

    pub(super) fn new_lease(&mut self, node: NodeId) -> Result<LeaseId, TreeError> {
        let id = self.leases.next;
        let next_ino = self.next_ino;
        let end_ino = next_ino.0.checked_add(LEASE_INODES).filter(|end| *end <= INO_END);
        let end_ino = Ino(end_ino.ok_or(TreeError::NoSpace)?);
        self.next_ino = end_ino;
        self.leases.next = LeaseId(id.0 + 1);
        self.leases.live.insert(id, WriteLease { node, next_ino, end_ino, drained: 0 });
        Ok(id)
    }

    /// What the command has covered that is not: the inodes it names, and what is below them.
    fn covered_next(&self, command: &AcquireLease) -> Vec<Ino> {
        let free = |ino: &Ino| self.holder_of(*ino).is_none();
        let named: BTreeSet<Ino> = command.inos.iter().copied().map(Ino).filter(free).collect();
        let mut covered: Vec<Ino> = named.iter().copied().collect();
        let mut seen = named;
        let mut left = command.below as usize;
        let mut looks = left.saturating_mul(LEASED_BELOW_LOOKS);
        let mut directories: VecDeque<Ino> = command.inos.iter().copied().map(Ino).collect();
        while let Some(ino) = directories.pop_front() {
            let Ok(directory) = self.directory(ino) else { continue };
            for (_, entry) in directory.after(0) {
                if left == 0 || looks == 0 {
                    return covered;
                }
                looks -= 1;
                if !seen.insert(entry.ino) {
                    continue;
                }
                // Below what is covered already there may be what is not.
                if entry.kind == Kind::Directory {
                    directories.push_back(entry.ino);
                }
                if free(&entry.ino) {
                    left -= 1;
                    covered.push(entry.ino);
                }
            }
        }
        covered
    }

    /// No attribute of the inode changes, but nobody else may show it unasked from now on.
    pub(super) fn cover(&mut self, ino: Ino, lease: LeaseId) {
        self.changes.covered(ino);
        if let Some(inode) = self.inodes.get_mut(ino) {
            inode.lease = lease;
            self.leases.cover_in(inode.volume, lease);
        }
    }

    /// What is made in a covered directory is covered; nobody else has seen it.
    pub(super) fn cover_newborn(&mut self, parent: Ino, ino: Ino) {
        let Some(lease) = self.inodes.get(parent).map(|inode| inode.lease) else { return };
        if self.leases.live.contains_key(&lease)
            && let Some(inode) = self.inodes.get_mut(ino)
        {
            inode.lease = lease;
            self.leases.cover_in(inode.volume, lease);
        }
    }

    pub(super) fn release_lease(
        &mut self,
        node: NodeId,
        command: &ReleaseLease,
    ) -> Result<(), TreeError> {
        let id = LeaseId(command.lease);
        match self.leases.live.get(&id) {
            Some(lease) if lease.node == node => {
                self.leases.end(id);
                Ok(())
            }
            Some(_) | None => Err(TreeError::Stale),
        }
    }

    /// The node is gone or fenced, and with it what it had not drained.
    pub(super) fn end_lease(&mut self, node: NodeId) {
        if let Some(id) = self.leases.of(node) {
            self.leases.end(id);
            self.changes.fenced();
        }
    }

    /// Changes that were applied before are left out, so that sending them again does no harm. One that
    /// is refused does not keep the others from being applied.
    pub(super) fn drain(
        &mut self,
        node: NodeId,
        command: &Drain,
        granted: &mut Vec<Waiter>,
    ) -> Result<Outcome, TreeError> {
        let id = LeaseId(command.lease);
        let lease = *self.leases.live.get(&id).ok_or(TreeError::Stale)?;
        if lease.node != node {
            return Err(TreeError::Stale);
        }
        let gap = command.first == 0 || command.first > lease.drained + 1;
        if gap || command.changes.len() > DRAIN_CHANGES_MAX {
            return Err(TreeError::Invalid);
        }
        let mut refused = Vec::new();
        let mut last = lease.drained;
        for (number, change) in (command.first..).zip(&command.changes) {
            if number <= lease.drained {
                continue;
            }
            last = number;
            let done = self.drain_one(node, change, granted);
            if let Err(why) = done
                && refused.len() < REFUSALS_MAX
            {
                refused.push(RefusedChange { number, why: why.code() as i32 });
            }
        }
        if let Some(lease) = self.leases.live.get_mut(&id) {
            lease.drained = last;
        }
        Ok(Outcome::Drained(Drained { last, refused }))
    }

    fn drain_one(
        &mut self,
        node: NodeId,
        change: &LoggedChange,
        granted: &mut Vec<Waiter>,
    ) -> Result<(), TreeError> {
        let time = Time(change.time_ns);
        if change.undone && change.command.is_none() {
            return Ok(());
        }
        if change.folded != 0 && change.command.is_none() {
            return self.drain_folded(time, node, Ino(change.folded));
        }
        let command = change.command.as_ref().and_then(|c| c.command.as_ref());
        let command = command.ok_or(TreeError::Invalid)?;
        // Only changes of inodes are made under a lease.
        self.touched(command).ok_or(TreeError::Invalid)?;
        // Who waits for a lock asks the registry.
        if matches!(command, Command::Lock(lock) if lock.waiter.is_some()) {
            return Err(TreeError::Invalid);
        }
        self.refuse_held(node, command)?;
        let outer = std::mem::replace(&mut self.reserved, true);
        let done = self.dispatch(time, node, command, granted);
        self.reserved = outer;
        match done? {
            // The lease kept others from locking what its holder had looked at.
            Outcome::Locked(locked) if locked.state() != LockState::Granted => Err(TreeError::Held),
            _ => Ok(()),
        }
    }

    /// Of a write whose bytes come with a later one only the time is left.
    fn drain_folded(&mut self, time: Time, node: NodeId, ino: Ino) -> Result<(), TreeError> {
        self.inode(ino)?.extents()?;
        if self.holder_of(ino) != Some(node) {
            return Err(TreeError::Held);
        }
        self.inode_mut(ino)?.touch_content(time);
        Ok(())
    }

    /// The number of an inode that is made in `parent`: the one that its lease's holder chose, or the
    /// next of all. Nothing may fail behind this.
    pub(super) fn number(&mut self, parent: Ino, command: &Create) -> Result<Ino, TreeError> {
        if command.ino == 0 {
            let ino = self.next_ino;
            self.next_ino = Ino(ino.0 + 1);
            return Ok(ino);
        }
        let lease = self.inode(parent)?.lease;
        let lease = self.leases.live.get_mut(&lease).ok_or(TreeError::Invalid)?;
        let ino = Ino(command.ino);
        if ino < lease.next_ino || ino >= lease.end_ino {
            return Err(TreeError::Invalid);
        }
        lease.next_ino = Ino(ino.0 + 1);
        Ok(ino)
    }

    /// A stream from before there were snapshots does not tell in which volumes leases cover inodes.
    pub(super) fn restore_covered(&mut self) {
        for inode in self.inodes.values() {
            self.leases.cover_in(inode.volume, inode.lease);
        }
    }

    pub(super) fn lease_records(&self) -> impl Iterator<Item = LeaseRecord> {
        self.leases.live.iter().map(|(id, lease)| LeaseRecord {
            lease: id.0,
            node: lease.node.0,
            next_ino: lease.next_ino.0,
            end_ino: lease.end_ino.0,
            drained: lease.drained,
            volumes: self.leases.volumes_of(*id).map(|volume| volume.0).collect(),
        })
    }

    /// Puts a lease of a snapshot back.
    pub(super) fn restore_lease(&mut self, record: &LeaseRecord) -> Result<(), TreeError> {
        let (id, node) = (LeaseId(record.lease), NodeId(record.node));
        let range = Ino(record.next_ino)..=Ino(record.end_ino);
        let fits = id.0 != 0
            && id < self.leases.next
            && node != NodeId(0)
            && !range.is_empty()
            && *range.end() <= self.next_ino
            && record.drained < crate::limits::COUNTER_MAX;
        if !fits || self.leases.of(node).is_some() || self.leases.live.contains_key(&id) {
            return Err(TreeError::Invalid);
        }
        let (next_ino, end_ino) = range.into_inner();
        let lease = WriteLease { node, next_ino, end_ino, drained: record.drained };
        self.leases.live.insert(id, lease);
        for &volume in &record.volumes {
            self.leases.cover_in(VolumeId(volume), id);
        }
        Ok(())
    }
}
