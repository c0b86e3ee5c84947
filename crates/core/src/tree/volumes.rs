//! Volumes: parts of the tree with settings and limits of their own, and what is in use in each.
//!
//! A volume is a directory, its root, and what is below it, down to the roots of other volumes. An inode
//! has the volume of the directory that it was made in, for life; so no name leads from one volume into
//! another, except the name of a root, which belongs to the volume around it.
//!
//! Invariants: what is in use is exact, inodes without a name included; a volume is gone with the last of its
//! inodes, except the first, and its number is never given again. Limits refuse what would add to what is in
//! use, unless it was promised before (see [`super::local`]): so a volume may be beyond its limits by what several
//! nodes had pending at once, and if its limits were lowered.
//!
//! Leaves out on purpose: sums over nested volumes.

use std::collections::{BTreeMap, BTreeSet};

use imbl::OrdMap;
use unum_proto::ids::{Ino, NodeId, VolumeId};
use unum_proto::tree::tree_record::Record;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{CreateVolume, SetVolume, VolumeRecord, VolumeSettings};

use super::directory::{Directory, Name, valid_name};
use super::error::TreeError;
use super::extents::{Extent, ExtentMap};
use super::inode::{Body, Inode, Kind};
use super::namespace::valid_owner;
use super::{ROOT, Tree};
use crate::limits::{VOLUME_REPLICAS_MAX, VOLUMES_MAX};
use crate::time::Time;

/// What belongs to no other volume.
pub const ROOT_VOLUME: VolumeId = VolumeId(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    pub root: Ino,
    /// None: as many as the cluster's setting says.
    pub replicas: Option<u8>,
    pub quota_bytes: Option<u64>,
    pub quota_inodes: Option<u64>,
    /// Bytes that its files have allocated, before replication.
    pub used_bytes: u64,
    pub used_inodes: u64,
}

impl Volume {
    fn new(root: Ino) -> Self {
        Self {
            root,
            replicas: None,
            quota_bytes: None,
            quota_inodes: None,
            used_bytes: 0,
            used_inodes: 0,
        }
    }

    fn with(self, settings: Option<&VolumeSettings>) -> Result<Self, TreeError> {
        let Some(settings) = settings else { return Ok(self) };
        let replicas = match settings.replicas {
            None => self.replicas,
            Some(0) => None,
            Some(replicas) => match u8::try_from(replicas) {
                Ok(replicas) if replicas <= VOLUME_REPLICAS_MAX => Some(replicas),
                Ok(_) | Err(_) => return Err(TreeError::Invalid),
            },
        };
        let limit = |new: Option<u64>, old| new.map_or(old, |new| Some(new).filter(|new| *new > 0));
        Ok(Self {
            replicas,
            quota_bytes: limit(settings.quota_bytes, self.quota_bytes),
            quota_inodes: limit(settings.quota_inodes, self.quota_inodes),
            ..self
        })
    }

    fn settings(&self) -> VolumeSettings {
        VolumeSettings {
            replicas: self.replicas.map(u32::from),
            quota_bytes: self.quota_bytes,
            quota_inodes: self.quota_inodes,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Volumes {
    all: OrdMap<VolumeId, Volume>,
    pub next: VolumeId,
}

impl Default for Volumes {
    /// The first volume, with nothing in it.
    fn default() -> Self {
        let all = OrdMap::unit(ROOT_VOLUME, Volume::new(ROOT));
        Self { all, next: VolumeId(ROOT_VOLUME.0 + 1) }
    }
}

impl Volumes {
    fn account(&mut self, id: VolumeId, change: impl FnOnce(&mut Volume)) {
        if let Some(volume) = self.all.get_mut(&id) {
            change(volume);
        }
    }

    /// An inode is new.
    pub fn add_inode(&mut self, id: VolumeId) {
        self.account(id, |volume| volume.used_inodes += 1);
    }

    pub fn add_bytes(&mut self, id: VolumeId, bytes: u64) {
        self.account(id, |volume| volume.used_bytes = volume.used_bytes.saturating_add(bytes));
    }

    pub fn take_bytes(&mut self, id: VolumeId, bytes: u64) {
        self.account(id, |volume| volume.used_bytes = volume.used_bytes.saturating_sub(bytes));
    }

    /// An inode is gone, and with the last one its volume.
    pub fn remove_inode(&mut self, id: VolumeId, bytes: u64) {
        self.take_bytes(id, bytes);
        self.account(id, |volume| volume.used_inodes = volume.used_inodes.saturating_sub(1));
        let empty = self.all.get(&id).is_some_and(|volume| volume.used_inodes == 0);
        if empty && id != ROOT_VOLUME {
            self.all.remove(&id);
        }
    }
}

impl Tree {
    /// All volumes in the order of their numbers; also those that are removed while files of theirs are open.
    pub fn volumes(&self) -> impl Iterator<Item = (VolumeId, &Volume)> {
        self.volumes.all.iter().map(|(&id, volume)| (id, volume))
    }

    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.all.get(&id)
    }

    /// The volume that an inode belongs to.
    pub fn volume_of(&self, ino: Ino) -> Result<(VolumeId, &Volume), TreeError> {
        let id = self.inode(ino)?.volume;
        Ok((id, self.volumes.all.get(&id).ok_or(TreeError::Stale)?))
    }

    /// Replicas that chunks of this inode should have, where `usual` is the cluster's setting.
    pub fn wanted_replicas(&self, ino: Ino, usual: usize) -> usize {
        self.inode(ino).map_or(usual, |inode| self.wanted_in(inode.volume, usual))
    }

    /// The same for the chunks of a volume.
    pub fn wanted_in(&self, volume: VolumeId, usual: usize) -> usize {
        let replicas = self.volumes.all.get(&volume).and_then(|volume| volume.replicas);
        replicas.map_or(usual, usize::from)
    }

    /// Where the roots of the volumes are, as names from the root of the tree on; the first volume has none.
    /// Volumes whose root is removed are not among them. Looks through each directory on the way once.
    pub fn volume_paths(&self) -> BTreeMap<VolumeId, Vec<Name>> {
        let mut wanted: BTreeMap<Ino, BTreeSet<Ino>> = BTreeMap::new();
        for (_, volume) in self.volumes() {
            let mut at = volume.root;
            while let Ok(directory) = self.directory(at) {
                let parent = directory.parent;
                if parent == at || !wanted.entry(parent).or_default().insert(at) {
                    break;
                }
                at = parent;
            }
        }
        let mut names: BTreeMap<Ino, (Ino, Name)> = BTreeMap::new();
        for (parent, children) in &wanted {
            let Ok(directory) = self.directory(*parent) else { continue };
            let found = directory.after(0).filter(|(_, entry)| children.contains(&entry.ino));
            names.extend(found.map(|(name, entry)| (entry.ino, (*parent, name.clone()))));
        }
        let path = |root: Ino| {
            let mut path = Vec::new();
            let mut at = root;
            while at != ROOT {
                let (parent, name) = names.get(&at)?;
                path.push(name.clone());
                at = *parent;
            }
            path.reverse();
            Some(path)
        };
        self.volumes().filter_map(|(id, volume)| Some((id, path(volume.root)?))).collect()
    }

    /// An empty directory that is the root of a new volume.
    pub(super) fn create_volume(
        &mut self,
        now: Time,
        command: &CreateVolume,
    ) -> Result<Outcome, TreeError> {
        let parent = Ino(command.parent);
        let name = valid_name(&command.name)?;
        if self.directory(parent)?.get(name).is_some() {
            return Err(TreeError::Exists);
        }
        valid_owner(command.uid, command.gid)?;
        self.room_for_inode()?;
        let id = self.volumes.next;
        let next = id.0.checked_add(1).filter(|_| self.volumes.all.len() < VOLUMES_MAX);
        let next = VolumeId(next.ok_or(TreeError::NoSpace)?);
        let ino = self.next_ino;
        let volume = Volume::new(ino).with(command.settings.as_ref())?;
        let (mode, gid) = self.inherited(parent, Kind::Directory, command.mode, command.gid)?;
        let body = Body::Directory(Directory::new(parent));
        let inode = Inode {
            strict: self.inode(parent)?.strict,
            volume: id,
            ..Inode::new(now, mode, command.uid, gid, body)
        };
        // No call of a kernel makes it, so that no node's kernel knows of it already.
        self.changes.by(NodeId(0));
        self.next_ino = Ino(ino.0 + 1);
        self.volumes.next = next;
        self.volumes.all.insert(id, volume);
        self.volumes.add_inode(id);
        self.snapshots.shelve(id, ino, Time::ZERO);
        self.inodes.insert(ino, inode);
        self.cover_newborn(parent, ino);
        self.add_name(now, parent, name, ino, Kind::Directory);
        self.inode_reply(ino, true)
    }

    pub(super) fn set_volume(&mut self, command: &SetVolume) -> Result<(), TreeError> {
        let volume = self.volumes.all.get_mut(&VolumeId(command.volume));
        let volume = volume.ok_or(TreeError::Stale)?;
        *volume = volume.with(command.settings.as_ref())?;
        Ok(())
    }

    /// Names lead only to inodes of their own volume.
    pub(super) fn refuse_crossing(&self, from: Ino, to: Ino) -> Result<(), TreeError> {
        match self.inode(from)?.volume == self.inode(to)?.volume {
            true => Ok(()),
            false => Err(TreeError::CrossesVolumes),
        }
    }

    /// Whether the volume of `ino` may have one more inode.
    pub(super) fn quota_for_inode(&self, ino: Ino) -> Result<(), TreeError> {
        let (_, volume) = self.volume_of(ino)?;
        let full = |quota| volume.used_inodes >= quota;
        match !self.reserved && volume.quota_inodes.is_some_and(full) {
            true => Err(TreeError::QuotaExceeded),
            false => Ok(()),
        }
    }

    /// Whether the volume of `ino` may allocate so much more. `growth` is asked if there is a limit.
    pub(super) fn quota_for_bytes(
        &self,
        ino: Ino,
        growth: impl FnOnce() -> u64,
    ) -> Result<(), TreeError> {
        let (_, volume) = self.volume_of(ino)?;
        let Some(quota) = volume.quota_bytes.filter(|_| !self.reserved) else { return Ok(()) };
        let growth = growth();
        match growth > 0 && volume.used_bytes.saturating_add(growth) > quota {
            true => Err(TreeError::QuotaExceeded),
            false => Ok(()),
        }
    }

    pub(super) fn limits_bytes(&self, ino: Ino) -> bool {
        self.volume_of(ino).is_ok_and(|(_, volume)| volume.quota_bytes.is_some())
    }

    pub(super) fn volume_records(&self) -> impl Iterator<Item = Record> {
        self.volumes().map(|(id, volume)| {
            let settings = Some(volume.settings());
            let snapshots_changed = self.snapshots.changed(id).0;
            Record::Volume(VolumeRecord {
                volume: id.0,
                root: volume.root.0,
                settings,
                snapshots_changed,
            })
        })
    }

    /// Puts a volume of a snapshot back, with nothing in it yet.
    pub(super) fn restore_volume(&mut self, record: &VolumeRecord) -> Result<(), TreeError> {
        let (id, root) = (VolumeId(record.volume), Ino(record.root));
        let first = (id == ROOT_VOLUME) == (root == ROOT);
        let known = id != ROOT_VOLUME && self.volumes.all.contains_key(&id);
        if id.0 == 0 || id >= self.volumes.next || !first || known {
            return Err(TreeError::Invalid);
        }
        let volume = Volume::new(root).with(record.settings.as_ref())?;
        self.volumes.all.insert(id, volume);
        self.snapshots.shelve(id, root, Time(record.snapshots_changed));
        Ok(())
    }

    /// The volume of an inode of a snapshot.
    pub(super) fn restored_volume(&self, raw: u32) -> Result<VolumeId, TreeError> {
        let id = if raw == 0 { ROOT_VOLUME } else { VolumeId(raw) };
        self.volumes.all.get(&id).map(|_| id).ok_or(TreeError::Invalid)
    }

    /// What is wrong with the volumes, everything counted anew. Names are looked at elsewhere.
    pub(super) fn check_volumes(&self, faults: &mut Vec<String>) {
        let mut used: BTreeMap<VolumeId, (u64, u64)> = BTreeMap::new();
        for (ino, inode) in self.inodes.iter() {
            let (inodes, bytes) = used.entry(inode.volume).or_default();
            *inodes += 1;
            *bytes += inode.allocated();
            if !self.volumes.all.contains_key(&inode.volume) {
                faults.push(format!("{ino}: {} is unknown", inode.volume));
            }
        }
        for (id, volume) in self.volumes() {
            let found = used.get(&id).copied().unwrap_or_default();
            if found != (volume.used_inodes, volume.used_bytes) || found.0 == 0 {
                let (inodes, bytes) = found;
                faults.push(format!("{id}: {inodes} inodes and {bytes} bytes, not {volume:?}"));
            }
            if id >= self.volumes.next || (id == ROOT_VOLUME) != (volume.root == ROOT) {
                faults.push(format!("{id}: its number or root cannot be"));
            }
            // The root may be gone before files of the volume that are open.
            let root = self.inode(volume.root);
            if root.is_ok_and(|root| root.volume != id || !root.is_directory()) {
                faults.push(format!("{id}: {} is not its root", volume.root));
            }
        }
        if !self.volumes.all.contains_key(&ROOT_VOLUME) {
            faults.push("there is no first volume".to_owned());
        }
    }

    /// Whether an inode may have a name in this directory, as far as volumes go.
    pub(super) fn may_be_named(&self, directory: VolumeId, ino: Ino, volume: VolumeId) -> bool {
        let root = self.volumes.all.get(&volume).map(|volume| volume.root);
        (directory == volume) != (root == Some(ino))
    }
}

/// Bytes that become allocated where these extents cover holes. They may cover each other.
pub(super) fn growth(map: &ExtentMap, extents: &[Extent]) -> u64 {
    let mut spans: Vec<(u64, u64)> = extents.iter().map(|e| (e.offset, e.end())).collect();
    spans.sort_unstable();
    let mut grown = 0;
    let mut done = 0;
    for (start, end) in spans {
        let start = start.max(done);
        if start < end {
            grown += holes(map, start, end);
            done = end;
        }
    }
    grown
}

/// Bytes of `start..end` that are not allocated.
pub(super) fn holes(map: &ExtentMap, start: u64, end: u64) -> u64 {
    map.holes(start, end).iter().map(|(_, length)| length).sum()
}
