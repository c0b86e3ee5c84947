//! Snapshots of volumes as records, back from them, and whether they are what they should be.
//!
//! The states of a volume are written from the newest to the oldest, each as what differs from the next newer one, by
//! inode and within directories and maps of extents by entry. Read in the same order, each state begins as a clone of the
//! newer one: what did not change is shared again. Checking goes the same way: what did not change is looked at once.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use unum_proto::ids::{ChunkId, Ino, SnapshotId, VolumeId};
use unum_proto::tree::tree_record::Record;
use unum_proto::tree::{PastRecord, SnapshotRecord, WithoutRecord};

use super::Tree;
use super::check::Names;
use super::chunks::Chunk;
use super::directory::{Directory, Name, Named, valid_name};
use super::error::TreeError;
use super::extents::ExtentMap;
use super::inode::{Body, Inode, Kind};
use super::snapshot::{batches, entries_of, extents_of, inode_record};
use super::snapshots::{Changed, Snapshot, changed, chunks_in};
use super::table::Table;
use crate::limits::{SNAPSHOTS_MAX, VOLUME_SNAPSHOTS_MAX};
use crate::time::Time;

/// The snapshot whose records are being read.
#[derive(Debug)]
pub(super) struct Reading {
    pub id: SnapshotId,
    pub volume: VolumeId,
    table: Table,
}

impl Reading {
    pub fn kind_of(&self, ino: Ino) -> Kind {
        let own = self.table.get(&ino).filter(|inode| inode.volume == self.volume);
        // The root of another volume.
        own.map_or(Kind::Directory, |inode| inode.kind())
    }

    fn body(&mut self, ino: Ino) -> Result<&mut Body, TreeError> {
        let inode = self.table.get_mut(&ino).filter(|inode| inode.volume == self.volume);
        Ok(&mut inode.ok_or(TreeError::Stale)?.body)
    }

    pub fn directory(&mut self, ino: Ino) -> Result<&mut Directory, TreeError> {
        match self.body(ino)? {
            Body::Directory(directory) => Ok(directory),
            _ => Err(TreeError::NotDirectory),
        }
    }

    pub fn map(&mut self, ino: Ino) -> Result<&mut ExtentMap, TreeError> {
        match self.body(ino)? {
            Body::Regular(map) => Ok(map),
            _ => Err(TreeError::Invalid),
        }
    }

    /// What an inode was: its content begins as that of the newer state.
    pub fn put_inode(&mut self, ino: Ino, mut inode: Inode) -> Result<(), TreeError> {
        let newer = self.table.get(&ino);
        if inode.volume != self.volume
            || newer.as_ref().is_some_and(|newer| newer.volume != self.volume)
        {
            return Err(TreeError::Invalid);
        }
        match (&mut inode.body, newer.as_ref().map(|newer| &newer.body)) {
            (Body::Directory(older), Some(Body::Directory(newer))) => older.begin_as(newer),
            (Body::Regular(older), Some(Body::Regular(newer))) => *older = newer.clone(),
            _ => {}
        }
        drop(newer);
        self.table.insert(ino, inode);
        Ok(())
    }

    pub fn put_without(&mut self, record: &WithoutRecord) -> Result<(), TreeError> {
        let ino = Ino(record.ino);
        if !record.names.is_empty() {
            let directory = self.directory(ino)?;
            let gone = record.names.iter().all(|name| directory.remove(name).is_some());
            return if gone { Ok(()) } else { Err(TreeError::NotFound) };
        }
        let map = self.map(ino)?;
        for &offset in &record.offsets {
            let extent = map.overlapping(offset, offset.saturating_add(1)).next();
            let extent =
                extent.filter(|extent| extent.offset == offset).ok_or(TreeError::NotFound)?;
            map.cut(extent.offset, extent.end());
        }
        Ok(())
    }

    fn put_gone(&mut self, gone: &[u64]) -> Result<(), TreeError> {
        for &ino in gone {
            let removed = self.table.remove(&Ino(ino));
            removed.filter(|inode| inode.volume == self.volume).ok_or(TreeError::Invalid)?;
        }
        Ok(())
    }
}

impl Tree {
    pub(super) fn snapshot_records(&self) -> impl Iterator<Item = Record> {
        self.snapshots.all.iter().map(|(id, snapshot)| {
            Record::Snapshot(SnapshotRecord {
                snapshot: id.0,
                volume: snapshot.volume.0,
                slot: snapshot.slot.into(),
                name: Bytes::copy_from_slice(&snapshot.name),
                time: snapshot.time.0,
            })
        })
    }

    pub(super) fn restore_snapshot(&mut self, record: &SnapshotRecord) -> Result<(), TreeError> {
        let (id, volume) = (SnapshotId(record.snapshot), VolumeId(record.volume));
        let slot = u16::try_from(record.slot).map_err(|_| TreeError::Invalid)?;
        let name: Name = valid_name(&record.name)?.into();
        let root = self.volume(volume).ok_or(TreeError::Invalid)?.root;
        let snapshots = &mut self.snapshots;
        let last = snapshots.all.get_max().map_or(SnapshotId(0), |(id, _)| *id);
        let fits = id > last
            && id < snapshots.next
            && slot != 0
            && slot != u16::MAX
            && snapshots.in_slot(slot).is_none()
            && snapshots.named(volume, &name).is_none()
            && snapshots.all.len() < SNAPSHOTS_MAX
            && snapshots.of(volume).len() < VOLUME_SNAPSHOTS_MAX;
        if !fits {
            return Err(TreeError::Invalid);
        }
        snapshots.insert(id, Snapshot::new(volume, root, name, Time(record.time), slot));
        snapshots.shelve(volume, root, snapshots.changed(volume));
        Ok(())
    }

    /// What is in the snapshots.
    pub(super) fn past_records(&self) -> impl Iterator<Item = Record> {
        self.pasts().flat_map(|(id, snapshot, newer)| {
            let changes = move || changed(newer, &snapshot.table, snapshot.volume);
            let gone = changes().filter(|change| change.older.is_none()).map(|change| change.ino);
            let mut gone = batches(gone, |ino| ino.0);
            let gone = std::iter::once(gone.next().unwrap_or_default()).chain(gone);
            let gone = gone.map(move |gone| Record::Past(PastRecord { snapshot: id.0, gone }));
            let inodes = changes().filter_map(|change| {
                // Leases are about the tree of today.
                let inode = Inode { lease: Default::default(), ..change.older? };
                Some(inode_record(change.ino, &inode))
            });
            let bodies = changes().flat_map(|change| body_records(&change));
            gone.chain(inodes).chain(bodies)
        })
    }

    /// What comes next is about this snapshot. `reading`: what came before was about that one.
    pub(super) fn read_past(
        &mut self,
        reading: Option<Reading>,
        record: &PastRecord,
    ) -> Result<Reading, TreeError> {
        let id = SnapshotId(record.snapshot);
        let mut reading = match reading.filter(|reading| reading.id == id) {
            Some(reading) => reading,
            None => self.begin_past(id)?,
        };
        reading.put_gone(&record.gone)?;
        Ok(reading)
    }

    /// A state begins as the next newer one.
    fn begin_past(&mut self, id: SnapshotId) -> Result<Reading, TreeError> {
        // Blocks that are open yet would be packed once by each.
        let today = self.inodes.packed();
        let snapshot = self.snapshots.all.get(&id).ok_or(TreeError::Invalid)?;
        let volume = snapshot.volume;
        let ids = self.snapshots.of(volume);
        let newer = ids.partition_point(|other| *other <= id);
        let table = match ids.get(newer).and_then(|newer| self.snapshots.all.get(newer)) {
            None => today,
            Some(newer) => &newer.table,
        };
        // None is empty: it has at least the volume's root.
        if table.is_empty() || !snapshot.table.is_empty() {
            return Err(TreeError::Invalid);
        }
        Ok(Reading { id, volume, table: table.clone() })
    }

    pub(super) fn end_past(&mut self, reading: Reading) {
        if let Some(snapshot) = self.snapshots.all.get_mut(&reading.id) {
            snapshot.table = reading.table;
            snapshot.table.pack();
        }
    }

    /// The snapshot on whose list a chunk is; 0 is none.
    pub(super) fn dead_on(&self, id: ChunkId, chunk: &Chunk) -> SnapshotId {
        let lists = |snapshot: &Snapshot| {
            let dead = snapshot.dead.births.get(&chunk.birth);
            dead.is_some_and(|dead| dead.chunks.contains(&id))
        };
        let mut all = self.snapshots_of(chunk.volume).filter(|_| chunk.live == 0);
        all.find(|(_, snapshot)| lists(snapshot)).map_or(SnapshotId(0), |(on, _)| on)
    }

    /// Which snapshot's list each chunk without a live byte is on.
    pub(super) fn dead_chunks(&self) -> BTreeMap<ChunkId, SnapshotId> {
        let all = self.snapshots.all.iter();
        all.flat_map(|(id, snapshot)| snapshot.dead.chunks().map(|chunk| (chunk, *id))).collect()
    }

    /// What is wrong with the snapshots, and with what is kept for them.
    pub(super) fn check_snapshots(&self, faults: &mut Vec<String>) {
        self.check_shelves(faults);
        let dead = self.dead_chunks();
        self.check_kept(&dead, faults);
        let volumes: BTreeSet<VolumeId> = self.snapshots.all.values().map(|s| s.volume).collect();
        for volume in volumes {
            self.check_past_chunks(volume, &dead, faults);
            self.check_past_names(volume, faults);
        }
    }

    fn check_shelves(&self, faults: &mut Vec<String>) {
        for (id, snapshot) in self.snapshots.all.iter() {
            let root = self.volume(snapshot.volume).map(|volume| volume.root);
            let found = root.and_then(|root| snapshot.table.get(&root));
            if !found.is_some_and(|root| root.is_directory() && root.volume == snapshot.volume) {
                faults.push(format!("{id}: {} has no root in it", snapshot.volume));
            }
            let known = self.snapshots.in_slot(snapshot.slot) == Some(*id)
                && self.snapshots.named(snapshot.volume, &snapshot.name) == Some(*id);
            if !known || *id >= self.snapshots.next {
                faults.push(format!("{id}: its number, slot or name cannot be"));
            }
        }
        for (id, volume) in self.volumes() {
            let shelf = self.shelf_of(volume.root, super::SNAPSHOTS_NAME);
            if shelf.is_some_and(|shelf| self.inode(shelf).is_err()) {
                faults.push(format!("{id}: it has no directory of snapshots"));
            }
        }
    }

    /// Dead lists and the chunk table agree.
    fn check_kept(&self, dead: &BTreeMap<ChunkId, SnapshotId>, faults: &mut Vec<String>) {
        for (id, snapshot) in self.snapshots.all.iter() {
            for (birth, list) in snapshot.dead.births.iter() {
                let mut bytes = 0;
                for chunk in list.chunks.iter() {
                    let Some(known) = self.chunks.get(*chunk) else {
                        faults.push(format!("chunk {chunk} is kept for {id}, but unknown"));
                        continue;
                    };
                    bytes += u64::from(known.length);
                    let twice = dead.get(chunk) != Some(id);
                    if twice || known.birth != *birth || known.volume != snapshot.volume {
                        faults.push(format!("chunk {chunk}: kept for {id}, but not by what it is"));
                    }
                }
                if bytes != list.bytes {
                    faults.push(format!("{id}: {} bytes kept, {bytes} in chunks", list.bytes));
                }
            }
        }
    }

    /// Each chunk is as old as the oldest snapshot that uses it demands, and is kept for the newest.
    fn check_past_chunks(
        &self,
        volume: VolumeId,
        dead: &BTreeMap<ChunkId, SnapshotId>,
        faults: &mut Vec<String>,
    ) {
        let states: Vec<(SnapshotId, &Snapshot, &Table)> =
            self.pasts().filter(|(_, snapshot, _)| snapshot.volume == volume).collect();
        let none = Table::default();
        let mut newest = BTreeMap::new();
        for (id, snapshot, newer) in &states {
            for change in changed(newer, &snapshot.table, volume) {
                for chunk in self.past_chunks(*id, change.older.as_ref(), change.ino, faults) {
                    newest.entry(chunk).or_insert(*id);
                }
            }
        }
        let mut oldest = BTreeMap::new();
        let mut before = &none;
        for (id, snapshot, _) in states.iter().rev() {
            for change in changed(before, &snapshot.table, volume) {
                for chunk in change.older.iter().flat_map(chunks_in) {
                    oldest.entry(chunk).or_insert(*id);
                }
            }
            before = &snapshot.table;
        }
        for (chunk, known) in self.chunks.iter_after(None).filter(|(_, c)| c.volume == volume) {
            let birth = self.snapshots.newest_until(volume, known.birth);
            let expected = match oldest.get(&chunk) {
                Some(oldest) => self.snapshots.before(volume, *oldest),
                None => self.snapshots.newest(volume),
            };
            if birth != expected {
                faults.push(format!("chunk {chunk}: born after {birth}, should be {expected}"));
            }
            if known.live == 0 && newest.get(&chunk) != dead.get(&chunk) {
                let (kept, used) = (dead.get(&chunk), newest.get(&chunk));
                faults.push(format!(
                    "chunk {chunk}: kept for {kept:?}, {used:?} is the last to use it"
                ));
            }
        }
    }

    /// The chunks of an inode of a snapshot, which must be there and be large enough.
    fn past_chunks(
        &self,
        id: SnapshotId,
        inode: Option<&Inode>,
        ino: Ino,
        faults: &mut Vec<String>,
    ) -> BTreeSet<ChunkId> {
        let Some(inode) = inode else { return BTreeSet::new() };
        let Body::Regular(map) = &inode.body else { return BTreeSet::new() };
        for extent in map.iter() {
            let Some(source) = extent.source else { continue };
            let end = u64::from(source.offset) + extent.length;
            let chunk = self.chunks.get(source.chunk);
            let fits = chunk.is_some_and(|chunk| {
                chunk.volume == inode.volume && end <= u64::from(chunk.length)
            });
            if !fits {
                let chunk = source.chunk;
                faults
                    .push(format!("{id}: {ino}: chunk {chunk} is unknown, too short, or not its"));
            }
        }
        chunks_in(inode).collect()
    }

    /// Every state of a volume is a tree.
    fn check_past_names(&self, volume: VolumeId, faults: &mut Vec<String>) {
        let mut names = Names::default();
        for (ino, inode) in self.inodes.iter().filter(|(_, inode)| inode.volume == volume) {
            if let Body::Directory(directory) = &inode.body {
                directory.after(0).for_each(|(_, entry)| names.add(ino, entry));
            }
        }
        if let Some(root) = self.volume(volume).map(|volume| volume.root)
            && root != super::ROOT
        {
            // Its name is in another volume.
            names.links.insert(root, 1);
        }
        for (id, snapshot, newer) in self.pasts().filter(|(_, s, _)| s.volume == volume) {
            let mut touched = BTreeSet::new();
            for change in changed(newer, &snapshot.table, volume) {
                touched.insert(change.ino);
                let differs = NameChanges::of(&change);
                for (_, entry) in &differs.gone {
                    names.remove(change.ino, *entry);
                    touched.insert(entry.ino);
                }
                for (name, entry) in &differs.added {
                    names.add(change.ino, *entry);
                    touched.insert(entry.ino);
                    let own = snapshot.table.get(&entry.ino).filter(|i| i.volume == volume);
                    if own.map_or(Kind::Directory, |inode| inode.kind()) != entry.kind {
                        let shown = String::from_utf8_lossy(name);
                        faults.push(format!("{id}: {}: {shown} has the wrong kind", change.ino));
                    }
                }
                if let Some(Body::Directory(directory)) =
                    change.older.as_ref().map(|inode| &inode.body)
                {
                    let wrong = directory.faults().into_iter();
                    faults.extend(wrong.map(|fault| format!("{id}: {}: {fault}", change.ino)));
                }
            }
            for ino in touched {
                let own = |table: &Table| table.get(&ino).is_some_and(|i| i.volume == volume);
                match snapshot.table.get(&ino).filter(|inode| inode.volume == volume) {
                    Some(inode) => {
                        let wrong = self.inode_faults(ino, &inode, &names).into_iter();
                        faults.extend(wrong.map(|fault| format!("{id}: {ino}: {fault}")));
                    }
                    None if own(newer) && names.links.get(&ino).is_some_and(|links| *links > 0) => {
                        faults.push(format!("{id}: a name leads to {ino}, which is missing"));
                    }
                    None => {}
                }
            }
        }
    }
}

/// What differs between the names of a directory in two states.
#[derive(Default)]
struct NameChanges {
    gone: Named,
    added: Named,
}

impl NameChanges {
    fn of(change: &Changed) -> Self {
        let directory = |inode: &'_ Option<Inode>| inode.as_ref()?.directory().ok().cloned();
        match (directory(&change.newer), directory(&change.older)) {
            (None, None) => Self::default(),
            (Some(newer), None) => Self { gone: newer.after(0).collect(), added: Vec::new() },
            (None, Some(older)) => Self { gone: Vec::new(), added: older.after(0).collect() },
            (Some(newer), Some(older)) => {
                let (gone, added) = newer.differences(&older);
                Self { gone, added }
            }
        }
    }
}

/// How the content of an inode differs from that of the newer state.
fn body_records(change: &Changed) -> Vec<Record> {
    let ino = change.ino;
    let without = |names, offsets| Record::Without(WithoutRecord { ino: ino.0, names, offsets });
    let mut records = Vec::new();
    match change.older.as_ref().map(|inode| &inode.body) {
        Some(Body::Directory(_)) => {
            let differs = NameChanges::of(change);
            let gone = batches(differs.gone.iter(), |(name, _)| Bytes::copy_from_slice(name));
            records.extend(gone.map(|names| without(names, Vec::new())));
            records.extend(entries_of(ino, differs.added.into_iter()));
        }
        Some(Body::Regular(older)) => {
            let none = ExtentMap::default();
            let newer = match change.newer.as_ref().map(|inode| &inode.body) {
                Some(Body::Regular(newer)) => newer,
                _ => &none,
            };
            let (gone, added) = newer.differences(older);
            let gone = batches(gone.iter(), |extent| extent.offset);
            records.extend(gone.map(|offsets| without(Vec::new(), offsets)));
            records.extend(extents_of(ino, added.into_iter()));
        }
        _ => {}
    }
    records
}
