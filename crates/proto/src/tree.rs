//! Commands and replies of the file tree, which is part of the registry, and the records of its
//! snapshot. The meaning of each command and the errors it can end with: `docs/spec/tree.md`.
//!
//! Integers here are raw; whoever receives a message validates and converts.

use bytes::Bytes;

use crate::ids::{ChunkId, NodeId};

/// A point in time of a file: seconds since the Unix epoch, may be negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct Timestamp {
    #[prost(sint64, tag = "1")]
    pub secs: i64,
    #[prost(uint32, tag = "2")]
    pub nanos: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum FileKind {
    Unspecified = 0,
    Regular = 1,
    Directory = 2,
    Symlink = 3,
    Fifo = 4,
    Socket = 5,
    Character = 6,
    Block = 7,
}

/// What stat shows, and the two counters by which caches learn of change.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Attributes {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(enumeration = "FileKind", tag = "2")]
    pub kind: i32,
    /// Permission bits with setuid, setgid and sticky: 0o7777 at most.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    #[prost(uint32, tag = "6")]
    pub nlink: u32,
    #[prost(uint32, tag = "7")]
    pub rdev: u32,
    #[prost(uint64, tag = "8")]
    pub size: u64,
    /// In units of 512 bytes.
    #[prost(uint64, tag = "9")]
    pub blocks: u64,
    #[prost(message, optional, tag = "10")]
    pub atime: Option<Timestamp>,
    #[prost(message, optional, tag = "11")]
    pub mtime: Option<Timestamp>,
    #[prost(message, optional, tag = "12")]
    pub ctime: Option<Timestamp>,
    #[prost(message, optional, tag = "13")]
    pub btime: Option<Timestamp>,
    /// Grows with every change of the inode.
    #[prost(uint64, tag = "14")]
    pub version: u64,
    /// Grows with every change of content, also where a user set mtime back. Nanoseconds.
    #[prost(uint64, tag = "15")]
    pub content_time: u64,
}

/// A chunk's id on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct ChunkKey {
    #[prost(fixed64, tag = "1")]
    pub lane: u64,
    #[prost(uint64, tag = "2")]
    pub seq: u64,
}

impl From<ChunkId> for ChunkKey {
    fn from(id: ChunkId) -> Self {
        Self { lane: id.lane, seq: id.seq }
    }
}

impl From<ChunkKey> for ChunkId {
    fn from(key: ChunkKey) -> Self {
        Self { lane: key.lane, seq: key.seq }
    }
}

/// `length` bytes of a file at `offset` are those of `chunk` at `chunk_offset`; without a chunk they
/// are allocated and read as zeros (only in snapshots and replies, never in a write).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Extent {
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    #[prost(uint64, tag = "2")]
    pub length: u64,
    #[prost(message, optional, tag = "3")]
    pub chunk: Option<ChunkKey>,
    #[prost(uint32, tag = "4")]
    pub chunk_offset: u32,
}

/// A chunk that comes with a write. Its bytes are already durable on `replicas`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NewChunk {
    #[prost(message, optional, tag = "1")]
    pub id: Option<ChunkKey>,
    #[prost(uint32, tag = "2")]
    pub length: u32,
    /// blake3, 32 bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub hash: Bytes,
    #[prost(uint64, repeated, tag = "4")]
    pub replicas: Vec<u64>,
}

// ---------------------------------------------------------------------------------------------
// Commands

#[derive(Clone, PartialEq, prost::Message)]
pub struct TreeCommand {
    #[prost(
        oneof = "tree_command::Command",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 100, 101, 150"
    )]
    pub command: Option<tree_command::Command>,
}

impl From<tree_command::Command> for TreeCommand {
    fn from(command: tree_command::Command) -> Self {
        Self { command: Some(command) }
    }
}

pub mod tree_command {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Command {
        #[prost(message, tag = "1")]
        Create(super::Create),
        #[prost(message, tag = "2")]
        Link(super::Link),
        #[prost(message, tag = "3")]
        Unlink(super::Unlink),
        #[prost(message, tag = "4")]
        Rmdir(super::Rmdir),
        #[prost(message, tag = "5")]
        Rename(super::Rename),
        #[prost(message, tag = "6")]
        SetAttributes(super::SetAttributes),
        #[prost(message, tag = "7")]
        Write(super::Write),
        #[prost(message, tag = "8")]
        Fallocate(super::Fallocate),
        #[prost(message, tag = "9")]
        SetXattr(super::SetXattr),
        #[prost(message, tag = "10")]
        RemoveXattr(super::RemoveXattr),
        #[prost(message, tag = "11")]
        SetReplicas(super::SetReplicas),
        #[prost(message, tag = "12")]
        Hold(super::Hold),
        #[prost(message, tag = "13")]
        Release(super::Release),
        #[prost(message, tag = "14")]
        ReleaseNode(super::ReleaseNode),
        #[prost(message, tag = "15")]
        Reap(super::Reap),
        #[prost(message, tag = "16")]
        Lock(super::Lock),
        #[prost(message, tag = "17")]
        Unlock(super::Unlock),
        #[prost(message, tag = "18")]
        CancelWait(super::CancelWait),
        #[prost(message, tag = "19")]
        ReleaseOwner(super::ReleaseOwner),
        #[prost(message, tag = "20")]
        CreateUnnamed(super::CreateUnnamed),
        #[prost(message, tag = "21")]
        AcquireLease(super::AcquireLease),
        #[prost(message, tag = "22")]
        ReleaseLease(super::ReleaseLease),
        #[prost(message, tag = "23")]
        Drain(super::Drain),
        #[prost(message, tag = "100")]
        CreateVolume(super::CreateVolume),
        #[prost(message, tag = "101")]
        SetVolume(super::SetVolume),
        #[prost(message, tag = "150")]
        CopyRange(super::CopyRange),
    }
}

/// open(O_CREAT), mkdir, symlink, mknod.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Create {
    #[prost(uint64, tag = "1")]
    pub parent: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
    #[prost(enumeration = "FileKind", tag = "3")]
    pub kind: i32,
    #[prost(uint32, tag = "4")]
    pub mode: u32,
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    #[prost(uint32, tag = "6")]
    pub gid: u32,
    /// Of character and block devices.
    #[prost(uint32, tag = "7")]
    pub rdev: u32,
    /// Of a symbolic link.
    #[prost(bytes = "bytes", tag = "8")]
    pub target: Bytes,
    /// Fail if the name exists. Without it an existing inode is the reply (`created` = false), if
    /// it is no directory.
    #[prost(bool, tag = "9")]
    pub exclusive: bool,
    /// The number of the new inode, from the range of the issuer's write lease; 0: the next of all.
    #[prost(uint64, tag = "10")]
    pub ino: u64,
    /// Taken from the mode unless the parent has a default access control list, which goes before it.
    #[prost(uint32, tag = "50")]
    pub umask: u32,
}

/// open(O_TMPFILE): a regular file without a name, held by the issuing node.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CreateUnnamed {
    #[prost(uint64, tag = "1")]
    pub parent: u64,
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    #[prost(uint32, tag = "4")]
    pub gid: u32,
    /// A link may give it a name later (no O_EXCL).
    #[prost(bool, tag = "5")]
    pub linkable: bool,
    /// As with Create.
    #[prost(uint32, tag = "50")]
    pub umask: u32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Link {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(uint64, tag = "2")]
    pub parent: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub name: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Unlink {
    #[prost(uint64, tag = "1")]
    pub parent: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Rmdir {
    #[prost(uint64, tag = "1")]
    pub parent: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Rename {
    #[prost(uint64, tag = "1")]
    pub parent: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
    #[prost(uint64, tag = "3")]
    pub new_parent: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub new_name: Bytes,
    /// RENAME_* bits as Linux has them: 1 no replace, 2 exchange.
    #[prost(uint32, tag = "5")]
    pub flags: u32,
}

/// A time to set: now, or the value.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct NewTime {
    #[prost(message, optional, tag = "1")]
    pub value: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SetAttributes {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(uint32, optional, tag = "2")]
    pub mode: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub uid: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub gid: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub size: Option<u64>,
    /// Absent leaves the time as it is; present without a value means now.
    #[prost(message, optional, tag = "6")]
    pub atime: Option<NewTime>,
    #[prost(message, optional, tag = "7")]
    pub mtime: Option<NewTime>,
    /// FUSE_HANDLE_KILLPRIV_V2: clear setuid, and setgid if the group may execute.
    #[prost(bool, tag = "8")]
    pub kill_privileges: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Write {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    /// With `append`, offsets count from the size at apply.
    #[prost(message, repeated, tag = "2")]
    pub extents: Vec<Extent>,
    #[prost(message, repeated, tag = "3")]
    pub chunks: Vec<NewChunk>,
    #[prost(bool, tag = "4")]
    pub append: bool,
    #[prost(bool, tag = "5")]
    pub kill_privileges: bool,
    /// Refuse (stale) unless the inode is at this version.
    #[prost(uint64, optional, tag = "6")]
    pub if_version: Option<u64>,
    /// The same bytes laid out anew: no time and no size changes. Needs `if_version`.
    #[prost(bool, tag = "7")]
    pub relayout: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum FallocateMode {
    Unspecified = 0,
    Allocate = 1,
    PunchHole = 2,
    ZeroRange = 3,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Fallocate {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(enumeration = "FallocateMode", tag = "2")]
    pub mode: i32,
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    #[prost(uint64, tag = "4")]
    pub length: u64,
    /// Implied by a hole.
    #[prost(bool, tag = "5")]
    pub keep_size: bool,
    #[prost(bool, tag = "6")]
    pub kill_privileges: bool,
}

/// copy_file_range: a stretch of one file becomes that of another, or of the same one elsewhere, by taking its
/// bytes from the same chunks.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CopyRange {
    #[prost(uint64, tag = "1")]
    pub from: u64,
    #[prost(uint64, tag = "2")]
    pub from_offset: u64,
    #[prost(uint64, tag = "3")]
    pub to: u64,
    #[prost(uint64, tag = "4")]
    pub to_offset: u64,
    #[prost(uint64, tag = "5")]
    pub length: u64,
    /// Of the file that is changed.
    #[prost(bool, tag = "6")]
    pub kill_privileges: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum XattrMode {
    Any = 0,
    Create = 1,
    Replace = 2,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SetXattr {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub value: Bytes,
    #[prost(enumeration = "XattrMode", tag = "4")]
    pub mode: i32,
    /// Clear setgid if this is the access control list: who sets it is not in the file's group.
    #[prost(bool, tag = "50")]
    pub kill_setgid: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RemoveXattr {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
}

/// Repair or a move: refused as stale unless the chunk's replicas are `expected`, in any order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SetReplicas {
    #[prost(message, optional, tag = "1")]
    pub chunk: Option<ChunkKey>,
    #[prost(uint64, repeated, tag = "2")]
    pub expected: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    pub replicas: Vec<u64>,
}

/// The issuing node has these inodes open.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hold {
    #[prost(uint64, repeated, tag = "1")]
    pub inos: Vec<u64>,
}

/// The issuing node has these inodes no longer open.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Release {
    #[prost(uint64, repeated, tag = "1")]
    pub inos: Vec<u64>,
}

/// A machine is dead or was restarted: its holds, locks and waits end.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReleaseNode {
    #[prost(uint64, tag = "1")]
    pub node: u64,
}

/// Drop those of these orphans that nobody holds and whose grace is over.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Reap {
    #[prost(uint64, repeated, tag = "1")]
    pub inos: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum LockTable {
    Unspecified = 0,
    /// fcntl: byte ranges; also open file description locks, told apart by their owner.
    Record = 1,
    /// flock: the whole file.
    Flock = 2,
}

/// Who and what is locked. The node of the owner is the issuer's.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct LockRange {
    #[prost(enumeration = "LockTable", tag = "1")]
    pub table: i32,
    /// The kernel's lock owner.
    #[prost(fixed64, tag = "2")]
    pub owner: u64,
    /// First byte. Ignored by flock.
    #[prost(uint64, tag = "3")]
    pub start: u64,
    /// Last byte, inclusive; 2^63 - 1 is the end of any file. Ignored by flock.
    #[prost(uint64, tag = "4")]
    pub end: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Lock {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(message, optional, tag = "2")]
    pub range: Option<LockRange>,
    #[prost(bool, tag = "3")]
    pub exclusive: bool,
    #[prost(uint32, tag = "4")]
    pub pid: u32,
    /// Wait in the queue under this id, unique within the issuing node; absent: never wait.
    #[prost(fixed64, optional, tag = "5")]
    pub waiter: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Unlock {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(message, optional, tag = "2")]
    pub range: Option<LockRange>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CancelWait {
    #[prost(fixed64, tag = "1")]
    pub waiter: u64,
}

/// An owner of the issuing node closes the inode: its locks of that table and its waits end.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReleaseOwner {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(enumeration = "LockTable", tag = "2")]
    pub table: i32,
    #[prost(fixed64, tag = "3")]
    pub owner: u64,
}

/// The issuing node's write lease, made if it has none, covers these inodes, and of what is below
/// those that are directories so many more, nearest first, as nobody else has a lease on.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AcquireLease {
    #[prost(uint64, repeated, tag = "1")]
    pub inos: Vec<u64>,
    #[prost(uint32, tag = "2")]
    pub below: u32,
}

/// The issuing node gives its write lease back.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ReleaseLease {
    #[prost(uint64, tag = "1")]
    pub lease: u64,
}

/// Changes that the issuing node made under its write lease, in order and without gaps.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Drain {
    #[prost(uint64, tag = "1")]
    pub lease: u64,
    /// The number of the first of them, counted from 1 for each lease.
    #[prost(uint64, tag = "2")]
    pub first: u64,
    #[prost(message, repeated, tag = "3")]
    pub changes: Vec<LoggedChange>,
}

/// One of them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LoggedChange {
    /// When the node made it, by the cluster's clock.
    #[prost(uint64, tag = "1")]
    pub time_ns: u64,
    #[prost(message, optional, tag = "2")]
    pub command: Option<TreeCommand>,
    /// Instead of a command: a write to this inode whose bytes are part of a later change of the same
    /// drain. What is left of it here is that it happened. 0: none.
    #[prost(uint64, tag = "3")]
    pub folded: u64,
}

/// A new directory that is the root of a new volume.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CreateVolume {
    #[prost(uint64, tag = "1")]
    pub parent: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    #[prost(message, optional, tag = "6")]
    pub settings: Option<VolumeSettings>,
}

/// What is absent stays as it is.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SetVolume {
    #[prost(uint32, tag = "1")]
    pub volume: u32,
    #[prost(message, optional, tag = "2")]
    pub settings: Option<VolumeSettings>,
}

/// 0, as absence in a new volume: no limit, and as many replicas as the cluster's setting says.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct VolumeSettings {
    #[prost(uint32, optional, tag = "1")]
    pub replicas: Option<u32>,
    /// Bytes that its files may allocate, before replication.
    #[prost(uint64, optional, tag = "2")]
    pub quota_bytes: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub quota_inodes: Option<u64>,
}

// ---------------------------------------------------------------------------------------------
// Replies

#[derive(Clone, PartialEq, prost::Message)]
pub struct TreeReply {
    #[prost(oneof = "tree_reply::Outcome", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 150")]
    pub outcome: Option<tree_reply::Outcome>,
    /// Waits that this command has turned into locks.
    #[prost(message, repeated, tag = "15")]
    pub granted: Vec<Waiter>,
}

pub mod tree_reply {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Outcome {
        /// A `TreeErrorCode`.
        #[prost(enumeration = "super::TreeErrorCode", tag = "1")]
        Failed(i32),
        #[prost(message, tag = "2")]
        Done(super::Done),
        /// Create, link, setattr, fallocate.
        #[prost(message, tag = "3")]
        Inode(super::InodeReply),
        #[prost(message, tag = "4")]
        Written(super::Written),
        #[prost(message, tag = "5")]
        Locked(super::Locked),
        #[prost(message, tag = "6")]
        WaitEnded(super::WaitEnded),
        #[prost(message, tag = "7")]
        Reaped(super::Reaped),
        #[prost(message, tag = "8")]
        Leased(super::Leased),
        #[prost(message, tag = "9")]
        Drained(super::Drained),
        #[prost(message, tag = "150")]
        Copied(super::Copied),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Done {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InodeReply {
    #[prost(message, optional, tag = "1")]
    pub attributes: Option<Attributes>,
    /// False where an existing inode was found instead.
    #[prost(bool, tag = "2")]
    pub created: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Written {
    /// What the extents' offsets counted from: the old size with append, else 0.
    #[prost(uint64, tag = "1")]
    pub base: u64,
    #[prost(message, optional, tag = "2")]
    pub attributes: Option<Attributes>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Copied {
    /// Fewer than were asked for where the source ends, or has more extents than one command takes.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
    /// Of the file that was changed.
    #[prost(message, optional, tag = "2")]
    pub attributes: Option<Attributes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum LockState {
    Unspecified = 0,
    Granted = 1,
    Queued = 2,
    /// Not granted, and the request did not want to wait.
    Conflict = 3,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Locked {
    #[prost(enumeration = "LockState", tag = "1")]
    pub state: i32,
    /// The lock in the way, unless granted.
    #[prost(message, optional, tag = "2")]
    pub conflict: Option<HeldLock>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WaitEnded {
    /// False: the wait was not in a queue any more; it had been granted before.
    #[prost(bool, tag = "1")]
    pub cancelled: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Reaped {
    #[prost(uint64, repeated, tag = "1")]
    pub inos: Vec<u64>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Leased {
    #[prost(uint64, tag = "1")]
    pub lease: u64,
    /// The time of the log entry, by which the holder sets the times of its changes.
    #[prost(uint64, tag = "2")]
    pub time_ns: u64,
    /// What the lease covers that it did not before.
    #[prost(uint64, repeated, tag = "3")]
    pub inos: Vec<u64>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Drained {
    /// The last change that is done.
    #[prost(uint64, tag = "1")]
    pub last: u64,
    /// Those of this command that were refused, at most [`REFUSALS_MAX`] of them.
    #[prost(message, repeated, tag = "2")]
    pub refused: Vec<RefusedChange>,
}

/// Refused changes that one reply names.
pub const REFUSALS_MAX: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct RefusedChange {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(enumeration = "TreeErrorCode", tag = "2")]
    pub why: i32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct Waiter {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(fixed64, tag = "2")]
    pub waiter: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HeldLock {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(message, optional, tag = "2")]
    pub range: Option<LockRange>,
    #[prost(bool, tag = "3")]
    pub exclusive: bool,
    #[prost(uint32, tag = "4")]
    pub pid: u32,
}

/// Why a command changed nothing. The errno of each is in `docs/spec/tree.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum TreeErrorCode {
    Unspecified = 0,
    NotFound = 1,
    Exists = 2,
    NotDirectory = 3,
    IsDirectory = 4,
    NotEmpty = 5,
    NameTooLong = 6,
    TooManyLinks = 7,
    Invalid = 8,
    CrossesItself = 9,
    Unsupported = 10,
    NoAttribute = 11,
    FileTooBig = 12,
    NoSpace = 13,
    Stale = 14,
    Deadlock = 15,
    TooManyLocks = 16,
    NotPermitted = 17,
    AttributeTooBig = 18,
    BeyondEnd = 19,
    Held = 20,
    QuotaExceeded = 100,
    CrossesVolumes = 101,
}

// ---------------------------------------------------------------------------------------------
// Snapshot

/// One piece of a tree's snapshot, of bounded size. The header comes first, volumes before inodes, an inode before its
/// entries and extents, chunks before extents, locks, holds and leases after inodes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TreeRecord {
    #[prost(oneof = "tree_record::Record", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 100")]
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
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HeaderRecord {
    /// 1 is the only format so far.
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
}

/// A node's write lease.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
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

/// The ids of a list of nodes.
pub fn nodes(raw: &[u64]) -> Vec<NodeId> {
    raw.iter().copied().map(NodeId).collect()
}
