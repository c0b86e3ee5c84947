//! What changes the tree: the commands that go through the log.

use bytes::Bytes;

use super::{ChunkKey, Extent, FileKind, NewChunk, Timestamp};

#[derive(Clone, PartialEq, prost::Message)]
pub struct TreeCommand {
    #[prost(
        oneof = "tree_command::Command",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 100, 101, 150, 160, 161"
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
        #[prost(message, tag = "160")]
        CreateSnapshot(super::CreateSnapshot),
        #[prost(message, tag = "161")]
        DeleteSnapshot(super::DeleteSnapshot),
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
    /// Instead of a command: a change of locks that a later one of the same drain undid. Nothing is left of it.
    #[prost(bool, tag = "180")]
    pub undone: bool,
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

/// Keeps what the volume has now, readable as `.snapshot/NAME` of its root.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CreateSnapshot {
    #[prost(uint32, tag = "1")]
    pub volume: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DeleteSnapshot {
    #[prost(uint32, tag = "1")]
    pub volume: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
}
