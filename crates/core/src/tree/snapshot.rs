//! A tree as a stream of records of bounded size, and back.
//!
//! Each record is at most `RECORD_SIZE_MAX` bytes encoded. The stream is a function of the state
//! alone, so equal trees give equal streams. Absorbing checks each record for itself and, at the end,
//! the whole by `Tree::check`: a rotten or foreign snapshot is refused, never half believed.

use std::sync::Arc;

use bytes::Bytes;
use unum_proto::ids::{Ino, LeaseId, NodeId, SnapshotId, VolumeId};
use unum_proto::tree::tree_record::Record;
use unum_proto::tree::{
    Attributes, ChunkRecord, ChunksRecord, EndRecord, EntriesRecord, EntryRecord, ExtentsRecord,
    HeaderRecord, InodeRecord, LocksRecord, OrphanRecord, PastRecord, TreeRecord, WaitRecord,
    WaitsRecord, Xattr,
};

use super::Tree;
use super::attributes::valid_xattr_name;
use super::chunks::Chunk;
use super::content::{valid_extent, within_chunk};
use super::directory::{Directory, Entry, Name, Named, valid_name};
use super::error::TreeError;
use super::extents::{Extent, ExtentMap};
use super::inode::{Body, Inode, Kind, Xattrs, valid_timestamp};
use super::locks::{HeldLock, InodeLocks, Wait};
use super::namespace::valid_target;
use super::orphans::Orphan;
use super::past::Reading;
use crate::limits::{
    COUNTER_MAX, FILE_SIZE_MAX, RECORD_ITEMS_MAX, XATTR_TOTAL_SIZE_MAX, XATTR_VALUE_SIZE_MAX,
};
use crate::packed::Finder;
use crate::time::Time;

const FORMAT: u32 = 1;
/// With snapshots of volumes.
const FORMAT_SNAPSHOTS: u32 = 2;

/// Why a snapshot was not taken over. Fetch another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error(
        "the snapshot has format {0}, this version reads formats up to {FORMAT_SNAPSHOTS}: upgrade this node"
    )]
    Format(u32),
    #[error("record {at} of the snapshot is malformed: {why}")]
    Malformed { at: u64, why: TreeError },
    #[error("the snapshot ends early, after {0} records")]
    Truncated(u64),
    #[error("the snapshot contradicts itself: {}", .0.join("; "))]
    Inconsistent(Vec<String>),
}

impl Tree {
    /// The whole tree, lazily. Clone the tree first to go on changing it meanwhile.
    pub fn records(&self) -> impl Iterator<Item = TreeRecord> {
        let head = std::iter::once(Record::Header(self.header()));
        let inodes = self.inodes.iter().map(|(ino, inode)| inode_record(ino, &inode));
        let entries = self.inodes.iter().flat_map(|(ino, inode)| entry_records(ino, inode));
        let chunks = batches(self.chunks.iter_after(None), move |(id, chunk)| ChunkRecord {
            chunk: Some(chunk.to_proto(id)),
            volume: chunk.volume.0,
            birth: self.snapshots.newest_until(chunk.volume, chunk.birth).0,
            dead: self.dead_on(id, &chunk).0,
        });
        let chunks = chunks.map(|chunks| Record::Chunks(ChunksRecord { chunks }));
        let extents = self.inodes.iter().flat_map(|(ino, inode)| extent_records(ino, &inode));
        let orphans = self.orphan_records();
        let locks = self.locks.iter().flat_map(|(ino, locks)| lock_records(ino, locks));
        let body = head
            .chain(self.volume_records())
            .chain(self.snapshot_records())
            .chain(inodes)
            .chain(entries)
            .chain(chunks)
            .chain(extents)
            .chain(orphans)
            .chain(locks)
            .chain(self.lease_records().map(Record::Lease))
            .chain(self.past_records());
        ended(body)
    }

    fn header(&self) -> HeaderRecord {
        HeaderRecord {
            format: if self.snapshots.all.is_empty() { FORMAT } else { FORMAT_SNAPSHOTS },
            next_ino: self.next_ino.0,
            lock_version: self.locks.version(),
            next_orphan: self.orphans.next_sequence,
            next_lease: self.leases.next.0,
            next_volume: self.volumes.next.0,
            next_snapshot: self.snapshots.next.0,
            last_slot: self.snapshots.last_slot.into(),
        }
    }

    fn orphan_records(&self) -> impl Iterator<Item = Record> {
        let nameless = self.orphans.since.iter().map(|(&ino, orphan)| OrphanRecord {
            ino: ino.0,
            since: Some(orphan.since.0),
            holders: self.raw_holders(ino),
            sequence: orphan.sequence,
        });
        let held = self.orphans.holders.keys().filter(|&&ino| !self.is_orphan(ino));
        let named = held.map(|&ino| OrphanRecord {
            ino: ino.0,
            since: None,
            holders: self.raw_holders(ino),
            sequence: 0,
        });
        nameless.chain(named).map(Record::Orphan)
    }

    fn raw_holders(&self, ino: Ino) -> Vec<u64> {
        self.orphans.holders_of(ino).iter().map(|node| node.0).collect()
    }
}

/// Wraps records and puts the end behind them.
fn ended(records: impl Iterator<Item = Record>) -> impl Iterator<Item = TreeRecord> {
    let mut records = records;
    let mut count = Some(0);
    std::iter::from_fn(move || {
        let record = match records.next() {
            Some(record) => {
                count = count.map(|count| count + 1);
                record
            }
            None => Record::End(EndRecord { records: count.take()? }),
        };
        Some(TreeRecord { record: Some(record) })
    })
}

pub(super) fn batches<T, U>(
    items: impl Iterator<Item = T>,
    convert: impl Fn(T) -> U,
) -> impl Iterator<Item = Vec<U>> {
    let mut items = items;
    std::iter::from_fn(move || {
        let batch: Vec<U> = items.by_ref().take(RECORD_ITEMS_MAX).map(&convert).collect();
        (!batch.is_empty()).then_some(batch)
    })
}

pub(super) fn inode_record(ino: Ino, inode: &Inode) -> Record {
    let (parent, next_cookie) = match &inode.body {
        Body::Directory(directory) => (directory.parent.0, directory.next_cookie()),
        _ => (0, 0),
    };
    let target = match &inode.body {
        Body::Symlink(target) => Bytes::copy_from_slice(target),
        _ => Bytes::new(),
    };
    let xattr = |(name, value): (&Arc<[u8]>, &Arc<[u8]>)| Xattr {
        name: Bytes::copy_from_slice(name),
        value: Bytes::copy_from_slice(value),
    };
    Record::Inode(InodeRecord {
        attributes: Some(inode.attributes(ino)),
        target,
        xattrs: inode.xattrs.iter().flat_map(|xattrs| xattrs.iter()).map(xattr).collect(),
        parent,
        next_cookie,
        linkable: inode.linkable,
        lease: inode.lease.0,
        strict: inode.strict,
        volume: inode.volume.0,
    })
}

fn entry_records(ino: Ino, inode: Inode) -> impl Iterator<Item = Record> {
    let directory = match inode.body {
        Body::Directory(directory) => Some(directory),
        _ => None,
    };
    let mut after = Some(0);
    // Record by record: a directory may be large.
    let records = std::iter::from_fn(move || {
        let entries = directory.as_ref()?.after(after?).take(RECORD_ITEMS_MAX);
        let entries: Named = entries.collect();
        after = entries.last().map(|(_, entry)| entry.cookie);
        entries_of(ino, entries.into_iter()).next()
    });
    records.fuse()
}

pub(super) fn entries_of(
    ino: Ino,
    entries: impl Iterator<Item = (Name, Entry)>,
) -> impl Iterator<Item = Record> {
    let entries = batches(entries, |(name, entry)| EntryRecord {
        name: Bytes::copy_from_slice(&name),
        ino: entry.ino.0,
        cookie: entry.cookie,
    });
    entries.map(move |entries| Record::Entries(EntriesRecord { directory: ino.0, entries }))
}

fn extent_records(ino: Ino, inode: &Inode) -> Vec<Record> {
    let map = inode.extents().ok().into_iter();
    extents_of(ino, map.flat_map(|map| map.iter())).collect()
}

pub(super) fn extents_of(
    ino: Ino,
    extents: impl Iterator<Item = Extent>,
) -> impl Iterator<Item = Record> {
    let extents = batches(extents, |extent| unum_proto::tree::Extent {
        offset: extent.offset,
        length: extent.length,
        chunk: extent.source.map(|source| source.chunk.into()),
        chunk_offset: extent.source.map_or(0, |source| source.offset),
    });
    extents.map(move |extents| Record::Extents(ExtentsRecord { ino: ino.0, extents }))
}

fn lock_records(ino: Ino, locks: &InodeLocks) -> impl Iterator<Item = Record> {
    let held = batches(locks.held.iter(), HeldLock::to_proto)
        .map(move |locks| Record::Locks(LocksRecord { ino: ino.0, locks }));
    let waits = batches(locks.waits.iter(), |wait| WaitRecord {
        lock: Some(wait.lock.to_proto()),
        waiter: wait.waiter,
    });
    held.chain(waits.map(move |waits| Record::Waits(WaitsRecord { ino: ino.0, waits })))
}

/// Builds a tree from its records, in their order.
#[derive(Debug)]
pub struct TreeLoader {
    tree: Tree,
    /// The snapshot of a volume that records are about by now.
    past: Option<Reading>,
    records: u64,
    begun: bool,
    ended: bool,
}

impl Default for TreeLoader {
    fn default() -> Self {
        Self::new()
    }
}

impl TreeLoader {
    pub fn new() -> Self {
        Self { tree: Tree::bare(), past: None, records: 0, begun: false, ended: false }
    }

    /// Takes the next record. After an error the loader is good for nothing more.
    pub fn absorb(&mut self, record: &TreeRecord) -> Result<(), SnapshotError> {
        let at = self.records;
        let malformed = |why| SnapshotError::Malformed { at, why };
        let record = record.record.as_ref().ok_or(malformed(TreeError::Invalid))?;
        if self.ended || self.begun == matches!(record, Record::Header(_)) {
            return Err(malformed(TreeError::Invalid));
        }
        if let Record::Header(header) = record
            && header.format != FORMAT
            && header.format != FORMAT_SNAPSHOTS
        {
            return Err(SnapshotError::Format(header.format));
        }
        self.put(record).map_err(malformed)?;
        // What is read is no change.
        self.tree.take_changes();
        self.records += 1;
        Ok(())
    }

    /// The tree, if all its records came and agree with each other.
    pub fn finish(self) -> Result<Tree, SnapshotError> {
        if !self.ended {
            return Err(SnapshotError::Truncated(self.records));
        }
        let mut tree = self.tree;
        tree.restore_covered();
        let faults = tree.check();
        if faults.is_empty() { Ok(tree) } else { Err(SnapshotError::Inconsistent(faults)) }
    }

    fn put(&mut self, record: &Record) -> Result<(), TreeError> {
        match record {
            Record::Header(header) => self.put_header(header),
            Record::Volume(volume) => self.tree.restore_volume(volume),
            Record::Snapshot(snapshot) => self.tree.restore_snapshot(snapshot),
            Record::Past(past) => self.put_past(past),
            Record::Without(without) => {
                self.past.as_mut().ok_or(TreeError::Invalid)?.put_without(without)
            }
            Record::Inode(inode) => self.put_inode(inode),
            Record::Entries(entries) => self.put_entries(entries),
            Record::Chunks(chunks) => self.put_chunks(chunks),
            Record::Extents(extents) => self.put_extents(extents),
            Record::Orphan(orphan) => self.put_orphan(orphan),
            Record::Locks(locks) => self.put_locks(locks),
            Record::Waits(waits) => self.put_waits(waits),
            Record::Lease(lease) => self.tree.restore_lease(lease),
            Record::End(end) => self.put_end(end),
        }
    }

    fn put_header(&mut self, header: &HeaderRecord) -> Result<(), TreeError> {
        self.begun = true;
        let counters =
            [header.next_ino, header.lock_version, header.next_orphan, header.next_lease];
        if counters.iter().any(|&counter| counter > COUNTER_MAX) {
            return Err(TreeError::Invalid);
        }
        self.tree.next_ino = Ino(header.next_ino);
        self.tree.locks.restore_version(header.lock_version);
        self.tree.orphans.next_sequence = header.next_orphan;
        self.tree.leases.next = LeaseId(header.next_lease.max(1));
        let volumes = &mut self.tree.volumes;
        volumes.next = volumes.next.max(VolumeId(header.next_volume));
        let snapshots = &mut self.tree.snapshots;
        snapshots.next = SnapshotId(header.next_snapshot.max(1));
        snapshots.last_slot = u16::try_from(header.last_slot).map_err(|_| TreeError::Invalid)?;
        Ok(())
    }

    fn put_past(&mut self, record: &PastRecord) -> Result<(), TreeError> {
        if self.past.as_ref().is_some_and(|past| past.id.0 != record.snapshot) {
            self.end_past();
        }
        self.past = Some(self.tree.read_past(self.past.take(), record)?);
        Ok(())
    }

    fn end_past(&mut self) {
        if let Some(past) = self.past.take() {
            self.tree.end_past(past);
        }
    }

    fn put_inode(&mut self, record: &InodeRecord) -> Result<(), TreeError> {
        let attributes = record.attributes.as_ref().ok_or(TreeError::Invalid)?;
        let ino = Ino(attributes.ino);
        let volume = self.tree.restored_volume(record.volume)?;
        let inode = restored_inode(attributes, record, volume)?;
        if let Some(past) = &mut self.past {
            return past.put_inode(ino, inode);
        }
        self.tree.volumes.add_inode(volume);
        match self.tree.inodes.insert(ino, inode) {
            None => Ok(()),
            Some(_) => Err(TreeError::Exists),
        }
    }

    fn put_entries(&mut self, record: &EntriesRecord) -> Result<(), TreeError> {
        let mut targets = Finder::new(self.tree.inodes.table());
        let entries = record.entries.iter().map(|entry| {
            let ino = Ino(entry.ino);
            let kind = match &self.past {
                None => targets.get(&ino).ok_or(TreeError::Stale)?.kind(),
                Some(past) => past.kind_of(ino),
            };
            Ok((valid_name(&entry.name)?, Entry { ino, kind, cookie: entry.cookie }))
        });
        let entries = entries.collect::<Result<Vec<_>, TreeError>>()?;
        let directory = match &mut self.past {
            None => directory_of(self.tree.inode_mut(Ino(record.directory))?)?,
            Some(past) => past.directory(Ino(record.directory))?,
        };
        let fits = entries.into_iter().all(|(name, entry)| directory.restore(name, entry));
        if fits { Ok(()) } else { Err(TreeError::Exists) }
    }

    fn put_chunks(&mut self, record: &ChunksRecord) -> Result<(), TreeError> {
        for proto_of in &record.chunks {
            let proto = proto_of.chunk.as_ref().ok_or(TreeError::Invalid)?;
            let volume = self.tree.restored_volume(proto_of.volume)?;
            let (id, chunk) = Chunk::from_proto(volume, proto)?;
            if self.tree.chunks.contains(id) {
                return Err(TreeError::Exists);
            }
            let (birth, dead) = (SnapshotId(proto_of.birth), SnapshotId(proto_of.dead));
            let length = chunk.length;
            self.tree.chunks.add(id, Chunk { birth, ..chunk });
            if dead != SnapshotId(0) && !self.tree.snapshots.put_dead(dead, birth, id, length) {
                return Err(TreeError::Invalid);
            }
        }
        Ok(())
    }

    fn put_extents(&mut self, record: &ExtentsRecord) -> Result<(), TreeError> {
        let ino = Ino(record.ino);
        for raw in &record.extents {
            let extent = valid_extent(raw, 0)?;
            if let Some(source) = extent.source {
                let chunk = self.tree.chunks.get(source.chunk).ok_or(TreeError::Stale)?;
                if !within_chunk(&extent, &chunk) {
                    return Err(TreeError::Invalid);
                }
                if self.past.is_none() {
                    self.tree.chunks.acquire(source.chunk, extent.length);
                }
            }
            self.put_extent(ino, extent)?;
        }
        Ok(())
    }

    fn put_extent(&mut self, ino: Ino, extent: Extent) -> Result<(), TreeError> {
        if let Some(past) = &mut self.past {
            return insert_extent(past.map(ino)?, extent);
        }
        let inode = self.tree.inode_mut(ino)?;
        let volume = inode.volume;
        let Body::Regular(map) = &mut inode.body else {
            return Err(TreeError::Invalid);
        };
        insert_extent(map, extent)?;
        self.tree.allocated = self.tree.allocated.saturating_add(extent.length);
        self.tree.volumes.add_bytes(volume, extent.length);
        Ok(())
    }

    fn put_orphan(&mut self, record: &OrphanRecord) -> Result<(), TreeError> {
        let ino = Ino(record.ino);
        self.tree.inode(ino)?;
        if let Some(since) = record.since {
            let orphan = Orphan { since: Time(since), sequence: record.sequence };
            self.tree.orphans.restore(ino, orphan);
        }
        for &holder in &record.holders {
            self.tree.orphans.hold(NodeId(holder), ino);
        }
        Ok(())
    }

    fn put_locks(&mut self, record: &LocksRecord) -> Result<(), TreeError> {
        let held = record.locks.iter().map(restored_lock).collect::<Result<Vec<_>, _>>()?;
        self.tree.locks.restore_held(Ino(record.ino), held.into_iter());
        Ok(())
    }

    fn put_waits(&mut self, record: &WaitsRecord) -> Result<(), TreeError> {
        for wait in &record.waits {
            let lock = restored_lock(wait.lock.as_ref().ok_or(TreeError::Invalid)?)?;
            let wait = Wait { waiter: wait.waiter, lock };
            self.tree.locks.restore_wait(Ino(record.ino), wait);
        }
        Ok(())
    }

    fn put_end(&mut self, end: &EndRecord) -> Result<(), TreeError> {
        self.end_past();
        self.ended = end.records == self.records;
        if self.ended { Ok(()) } else { Err(TreeError::Invalid) }
    }
}

fn directory_of(inode: &mut Inode) -> Result<&mut Directory, TreeError> {
    match &mut inode.body {
        Body::Directory(directory) => Ok(directory),
        _ => Err(TreeError::NotDirectory),
    }
}

fn insert_extent(map: &mut ExtentMap, extent: Extent) -> Result<(), TreeError> {
    if map.overlapping(extent.offset, extent.end()).next().is_some() {
        return Err(TreeError::Invalid);
    }
    map.insert(extent);
    Ok(())
}

fn restored_lock(raw: &unum_proto::tree::HeldLock) -> Result<HeldLock, TreeError> {
    HeldLock::from_proto(NodeId(raw.node), raw.range.as_ref(), raw.exclusive, raw.pid)
}

fn restored_inode(
    attributes: &Attributes,
    record: &InodeRecord,
    volume: VolumeId,
) -> Result<Inode, TreeError> {
    let time = |time: Option<_>| valid_timestamp(time.ok_or(TreeError::Invalid)?);
    let body = match Kind::from_proto(attributes.kind)? {
        Kind::Regular => Body::Regular(ExtentMap::default()),
        Kind::Directory => {
            Body::Directory(Directory::restored(Ino(record.parent), record.next_cookie))
        }
        Kind::Symlink => Body::Symlink(valid_target(&record.target)?.into()),
        Kind::Fifo => Body::Fifo,
        Kind::Socket => Body::Socket,
        Kind::Character => Body::Character(attributes.rdev),
        Kind::Block => Body::Block(attributes.rdev),
    };
    let length = if matches!(body, Body::Regular(_)) { attributes.size } else { 0 };
    if length > FILE_SIZE_MAX {
        return Err(TreeError::FileTooBig);
    }
    if record.next_cookie > COUNTER_MAX || attributes.version > COUNTER_MAX {
        return Err(TreeError::Invalid);
    }
    Ok(Inode {
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        nlink: attributes.nlink,
        length,
        atime: time(attributes.atime)?,
        mtime: time(attributes.mtime)?,
        ctime: time(attributes.ctime)?,
        btime: time(attributes.btime)?,
        content_time: Time(attributes.content_time),
        version: attributes.version,
        xattrs: restored_xattrs(&record.xattrs)?,
        body,
        linkable: record.linkable,
        lease: LeaseId(record.lease),
        strict: record.strict,
        volume,
    })
}

fn restored_xattrs(raw: &[Xattr]) -> Result<Option<Arc<Xattrs>>, TreeError> {
    let mut xattrs = Xattrs::new();
    let mut total = 0;
    for xattr in raw {
        let name = valid_xattr_name(&xattr.name)?;
        total += name.len() + xattr.value.len();
        if xattr.value.len() > XATTR_VALUE_SIZE_MAX || total > XATTR_TOTAL_SIZE_MAX {
            return Err(TreeError::AttributeTooBig);
        }
        xattrs.insert(name.into(), xattr.value.as_ref().into());
    }
    Ok((!xattrs.is_empty()).then(|| Arc::new(xattrs)))
}
