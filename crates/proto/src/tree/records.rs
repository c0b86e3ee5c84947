//! The records of the registry's snapshot that the tree is written to.

use bytes::Bytes;

use super::{Attributes, Extent, HeldLock, NewChunk, VolumeSettings};

/// One piece of a tree's snapshot, of bounded size. The header comes first, volumes before inodes, an inode before its
/// entries and extents, chunks before extents, locks, holds and leases after inodes. Of the snapshots of volumes it has
/// what they are behind the volumes, and what is in them at the end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TreeRecord {
    #[prost(
        oneof = "tree_record::Record",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 100, 160, 161, 162"
    )]
    pub record: Option<tree_record::Record>,
}

pub mod tree_record {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Record {
        #[prost(message, tag = "1")]
        Header(super::HeaderRecord),
        #[prost(message, tag = "2")]
        Inode(super::InodeRecord),
        #[prost(message, tag = "3")]
        Entries(super::EntriesRecord),
        #[prost(message, tag = "4")]
        Chunks(super::ChunksRecord),
        #[prost(message, tag = "5")]
        Extents(super::ExtentsRecord),
        #[prost(message, tag = "6")]
        Orphan(super::OrphanRecord),
        #[prost(message, tag = "7")]
        Locks(super::LocksRecord),
        #[prost(message, tag = "8")]
        Waits(super::WaitsRecord),
        #[prost(message, tag = "9")]
        End(super::EndRecord),
        #[prost(message, tag = "10")]
        Lease(super::LeaseRecord),
        #[prost(message, tag = "100")]
        Volume(super::VolumeRecord),
        #[prost(message, tag = "160")]
        Snapshot(super::SnapshotRecord),
        #[prost(message, tag = "161")]
        Past(super::PastRecord),
        #[prost(message, tag = "162")]
        Without(super::WithoutRecord),
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HeaderRecord {
    /// 1, or 2 if any volume has snapshots.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    #[prost(uint64, tag = "2")]
    pub next_ino: u64,
    #[prost(uint64, tag = "3")]
    pub lock_version: u64,
    #[prost(uint64, tag = "4")]
    pub next_orphan: u64,
    #[prost(uint64, tag = "5")]
    pub next_lease: u64,
    /// 0 in a tree from before there were volumes.
    #[prost(uint32, tag = "40")]
    pub next_volume: u32,
    #[prost(uint32, tag = "60")]
    pub next_snapshot: u32,
    /// The slot that a snapshot got last.
    #[prost(uint32, tag = "61")]
    pub last_slot: u32,
}

/// A volume's settings. What is in use is counted by whoever reads the snapshot.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct VolumeRecord {
    #[prost(uint32, tag = "1")]
    pub volume: u32,
    #[prost(uint64, tag = "2")]
    pub root: u64,
    #[prost(message, optional, tag = "3")]
    pub settings: Option<VolumeSettings>,
    /// When a snapshot of it was taken or deleted last, in nanoseconds.
    #[prost(uint64, tag = "60")]
    pub snapshots_changed: u64,
}

/// A snapshot of a volume. What is in it comes with Past.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SnapshotRecord {
    #[prost(uint32, tag = "1")]
    pub snapshot: u32,
    #[prost(uint32, tag = "2")]
    pub volume: u32,
    /// The upper 16 bits of its inodes' numbers.
    #[prost(uint32, tag = "3")]
    pub slot: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub name: Bytes,
    /// Nanoseconds.
    #[prost(uint64, tag = "5")]
    pub time: u64,
}

/// Inode, Without, Entries and Extents records from here on are about this snapshot: what differs from the next
/// newer snapshot of the volume, or from the volume as it is now if there is none newer. Newer ones come first.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PastRecord {
    #[prost(uint32, tag = "1")]
    pub snapshot: u32,
    /// Inodes of the newer state that this one does not have.
    #[prost(uint64, repeated, tag = "2")]
    pub gone: Vec<u64>,
}

/// What an inode of the newer state has and that of the present snapshot has not, or not in that way: names, or
/// where extents begin.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WithoutRecord {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub names: Vec<Bytes>,
    #[prost(uint64, repeated, tag = "3")]
    pub offsets: Vec<u64>,
}

/// A node's write lease.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LeaseRecord {
    #[prost(uint64, tag = "1")]
    pub lease: u64,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    /// The next inode number of its range, and the end of that.
    #[prost(uint64, tag = "3")]
    pub next_ino: u64,
    #[prost(uint64, tag = "4")]
    pub end_ino: u64,
    /// The last of its changes that is drained.
    #[prost(uint64, tag = "5")]
    pub drained: u64,
    /// Volumes with inodes that it covers, or did.
    #[prost(uint32, repeated, tag = "60")]
    pub volumes: Vec<u32>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Xattr {
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InodeRecord {
    #[prost(message, optional, tag = "1")]
    pub attributes: Option<Attributes>,
    /// Of a symbolic link.
    #[prost(bytes = "bytes", tag = "2")]
    pub target: Bytes,
    #[prost(message, repeated, tag = "3")]
    pub xattrs: Vec<Xattr>,
    /// Of a directory.
    #[prost(uint64, tag = "4")]
    pub parent: u64,
    #[prost(uint64, tag = "5")]
    pub next_cookie: u64,
    /// Of a file without a name that may get one.
    #[prost(bool, tag = "6")]
    pub linkable: bool,
    /// The write lease that covers it, or did.
    #[prost(uint64, tag = "7")]
    pub lease: u64,
    #[prost(bool, tag = "8")]
    pub strict: bool,
    /// 0 in a tree from before there were volumes, and means the first.
    #[prost(uint32, tag = "40")]
    pub volume: u32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EntryRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    #[prost(uint64, tag = "2")]
    pub ino: u64,
    #[prost(uint64, tag = "3")]
    pub cookie: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EntriesRecord {
    #[prost(uint64, tag = "1")]
    pub directory: u64,
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<EntryRecord>,
}

/// Tag 2 was the one inode that a chunk belonged to.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ChunkRecord {
    #[prost(message, optional, tag = "1")]
    pub chunk: Option<NewChunk>,
    /// As in an inode's record.
    #[prost(uint32, tag = "40")]
    pub volume: u32,
    /// The newest snapshot of the volume that is older than the chunk, or does not need it.
    #[prost(uint32, tag = "60")]
    pub birth: u32,
    /// Only snapshots need it, and this one is the newest of them. 0: it is in use.
    #[prost(uint32, tag = "61")]
    pub dead: u32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ChunksRecord {
    #[prost(message, repeated, tag = "1")]
    pub chunks: Vec<ChunkRecord>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExtentsRecord {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(message, repeated, tag = "2")]
    pub extents: Vec<Extent>,
}

/// An inode that nodes hold, that has no name any more, or both.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OrphanRecord {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    /// When the last name went, in nanoseconds; absent while there is a name.
    #[prost(uint64, optional, tag = "2")]
    pub since: Option<u64>,
    #[prost(uint64, repeated, tag = "3")]
    pub holders: Vec<u64>,
    /// Place in the order of orphaning, if there is no name.
    #[prost(uint64, tag = "4")]
    pub sequence: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LocksRecord {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(message, repeated, tag = "2")]
    pub locks: Vec<HeldLock>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WaitRecord {
    #[prost(message, optional, tag = "1")]
    pub lock: Option<HeldLock>,
    #[prost(fixed64, tag = "2")]
    pub waiter: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WaitsRecord {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(message, repeated, tag = "2")]
    pub waits: Vec<WaitRecord>,
}

/// Ends a snapshot, so that a cut one is noticed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EndRecord {
    /// Records before this one.
    #[prost(uint64, tag = "1")]
    pub records: u64,
}
