//! Calls on another node's own file system.
//!
//! The caller's uid, gid and groups travel with the call (see `rpc.rs`). Handles and warrants are bytes
//! that only the home understands. A refusal by the home's kernel is an errno in the answer; a status is
//! for what goes wrong besides.

use bytes::Bytes;

/// The longest handle that is taken from a home, in bytes: one that holds a path.
pub const HANDLE_SIZE_MAX: usize = 4096 + 64;
/// The longest name, in bytes.
pub const NAME_SIZE_MAX: usize = 255;
/// Bytes in one read or write.
pub const CONTENT_SIZE_MAX: usize = 1 << 20;
/// Bytes of names in one piece of a listing.
pub const LISTING_SIZE_MAX: u32 = 128 << 10;
/// The longest value of an extended attribute, as in Linux.
pub const XATTR_SIZE_MAX: usize = 64 << 10;

/// `host.look`: a call that changes nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Look {
    /// What it is about; empty: the root of what is exported.
    #[prost(bytes = "bytes", tag = "1")]
    pub handle: Bytes,
    #[prost(oneof = "look::Call", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub call: Option<look::Call>,
    /// The lease under which the client would keep the answer; 0: it would not.
    #[prost(fixed64, tag = "12")]
    pub lease: u64,
}

pub mod look {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Call {
        #[prost(message, tag = "2")]
        Lookup(super::Named),
        #[prost(message, tag = "3")]
        Attributes(super::Nothing),
        #[prost(message, tag = "4")]
        ReadLink(super::Nothing),
        /// Gives a warrant.
        #[prost(message, tag = "5")]
        Open(super::Open),
        #[prost(message, tag = "6")]
        List(super::List),
        #[prost(message, tag = "7")]
        Space(super::Nothing),
        #[prost(message, tag = "8")]
        Xattr(super::Named),
        #[prost(message, tag = "9")]
        XattrNames(super::Nothing),
        #[prost(message, tag = "10")]
        Seek(super::Seek),
        /// By warrant: the attributes of an open file, which may have no name any more.
        #[prost(message, tag = "11")]
        OpenAttributes(super::Warrant),
    }
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Named {
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Warrant {
    #[prost(bytes = "bytes", tag = "1")]
    pub warrant: Bytes,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Open {
    /// Those of open(2): the access mode, O_DIRECTORY, and the kernel's mark of an exec.
    #[prost(uint32, tag = "1")]
    pub flags: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct List {
    #[prost(bytes = "bytes", tag = "1")]
    pub warrant: Bytes,
    /// 0, or the `next` of an entry.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// About so many bytes of entries.
    #[prost(uint32, tag = "3")]
    pub size: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Seek {
    #[prost(bytes = "bytes", tag = "1")]
    pub warrant: Bytes,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// SEEK_DATA or SEEK_HOLE.
    #[prost(uint32, tag = "3")]
    pub whence: u32,
}

/// `host.change`: a call that changes something. Repeated under its number, it gets its first answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Change {
    #[prost(bytes = "bytes", tag = "1")]
    pub handle: Bytes,
    /// Names the mount that the call comes from; with `number` it names the call.
    #[prost(fixed64, tag = "2")]
    pub lane: u64,
    #[prost(uint64, tag = "3")]
    pub number: u64,
    #[prost(oneof = "change::Call", tags = "4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16")]
    pub call: Option<change::Call>,
}

pub mod change {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Call {
        /// Makes the file if there is none, and opens it.
        #[prost(message, tag = "4")]
        Create(super::Make),
        #[prost(message, tag = "5")]
        MakeDirectory(super::Make),
        #[prost(message, tag = "6")]
        MakeNode(super::Make),
        #[prost(message, tag = "7")]
        MakeLink(super::MakeLink),
        #[prost(message, tag = "8")]
        Unlink(super::Named),
        #[prost(message, tag = "9")]
        RemoveDirectory(super::Named),
        #[prost(message, tag = "10")]
        Rename(super::Rename),
        /// A further name for the inode of another handle.
        #[prost(message, tag = "11")]
        Link(super::Link),
        #[prost(message, tag = "12")]
        SetAttributes(super::SetAttributes),
        #[prost(message, tag = "13")]
        SetXattr(super::SetXattr),
        #[prost(message, tag = "14")]
        RemoveXattr(super::Named),
        #[prost(message, tag = "15")]
        Allocate(super::Allocate),
        /// A file without a name in this directory, opened.
        #[prost(message, tag = "16")]
        MakeUnnamed(super::Make),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Make {
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    #[prost(uint32, tag = "3")]
    pub umask: u32,
    /// Of mknod(2).
    #[prost(uint32, tag = "4")]
    pub rdev: u32,
    /// Of open(2).
    #[prost(uint32, tag = "5")]
    pub flags: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MakeLink {
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub target: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Rename {
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub new_parent: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub new_name: Bytes,
    /// Of renameat2(2).
    #[prost(uint32, tag = "4")]
    pub flags: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Link {
    #[prost(bytes = "bytes", tag = "1")]
    pub target: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SetAttributes {
    /// Of the file that is open, if the size is set through one.
    #[prost(bytes = "bytes", tag = "1")]
    pub warrant: Bytes,
    #[prost(uint32, optional, tag = "2")]
    pub mode: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub uid: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub gid: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub size: Option<u64>,
    #[prost(message, optional, tag = "6")]
    pub atime: Option<NewTime>,
    #[prost(message, optional, tag = "7")]
    pub mtime: Option<NewTime>,
    /// As in [`Read`].
    #[prost(uint64, tag = "8")]
    pub fence: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct NewTime {
    /// Absent: the home's now.
    #[prost(message, optional, tag = "1")]
    pub at: Option<Timestamp>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Timestamp {
    #[prost(sint64, tag = "1")]
    pub secs: i64,
    #[prost(uint32, tag = "2")]
    pub nanos: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SetXattr {
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    /// Of setxattr(2).
    #[prost(uint32, tag = "3")]
    pub flags: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Allocate {
    #[prost(bytes = "bytes", tag = "1")]
    pub warrant: Bytes,
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    #[prost(uint64, tag = "4")]
    pub length: u64,
    /// As in [`Read`].
    #[prost(uint64, tag = "5")]
    pub fence: u64,
}

/// The answer to `host.look` and `host.change`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    /// Not 0: the call was refused so, and nothing else is set.
    #[prost(uint32, tag = "1")]
    pub errno: u32,
    /// What was asked about, or found, or made.
    #[prost(bytes = "bytes", tag = "2")]
    pub handle: Bytes,
    #[prost(message, optional, tag = "3")]
    pub attributes: Option<Attributes>,
    /// Of what was opened.
    #[prost(bytes = "bytes", tag = "4")]
    pub warrant: Bytes,
    /// A link's target, an xattr's value, the names of xattrs each with a zero behind it.
    #[prost(bytes = "bytes", tag = "5")]
    pub content: Bytes,
    #[prost(message, repeated, tag = "6")]
    pub entries: Vec<Entry>,
    #[prost(message, optional, tag = "7")]
    pub space: Option<Space>,
    /// Of a seek.
    #[prost(uint64, tag = "8")]
    pub position: u64,
    /// What was asked about may be kept under the lease until it is recalled: attributes, xattrs, a
    /// link's target, names, content.
    #[prost(bool, tag = "9")]
    pub granted: bool,
    /// The same of what `handle` names.
    #[prost(bool, tag = "10")]
    pub granted_found: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Attributes {
    /// The home's number of the file system.
    #[prost(uint64, tag = "1")]
    pub device: u64,
    #[prost(uint64, tag = "2")]
    pub inode: u64,
    /// As `st_mode`.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    #[prost(uint32, tag = "4")]
    pub nlink: u32,
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    #[prost(uint32, tag = "6")]
    pub gid: u32,
    #[prost(uint64, tag = "7")]
    pub size: u64,
    /// Of 512 bytes.
    #[prost(uint64, tag = "8")]
    pub blocks: u64,
    #[prost(uint32, tag = "9")]
    pub block_size: u32,
    #[prost(uint32, tag = "10")]
    pub rdev: u32,
    #[prost(message, optional, tag = "11")]
    pub atime: Option<Timestamp>,
    #[prost(message, optional, tag = "12")]
    pub mtime: Option<Timestamp>,
    #[prost(message, optional, tag = "13")]
    pub ctime: Option<Timestamp>,
    #[prost(message, optional, tag = "14")]
    pub btime: Option<Timestamp>,
}

/// A name in a listing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    #[prost(uint64, tag = "2")]
    pub inode: u64,
    /// The type bits of `st_mode`; 0: not known.
    #[prost(uint32, tag = "3")]
    pub kind: u32,
    /// Where to go on after it.
    #[prost(uint64, tag = "4")]
    pub next: u64,
}

/// As statvfs(3).
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Space {
    #[prost(uint64, tag = "1")]
    pub blocks: u64,
    #[prost(uint64, tag = "2")]
    pub blocks_free: u64,
    #[prost(uint64, tag = "3")]
    pub blocks_available: u64,
    #[prost(uint64, tag = "4")]
    pub files: u64,
    #[prost(uint64, tag = "5")]
    pub files_free: u64,
    #[prost(uint32, tag = "6")]
    pub block_size: u32,
    #[prost(uint32, tag = "7")]
    pub fragment_size: u32,
    #[prost(uint32, tag = "8")]
    pub name_length_max: u32,
}

/// `host.read`: at most [`CONTENT_SIZE_MAX`] bytes. Fewer come only at the file's end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Read {
    #[prost(bytes = "bytes", tag = "1")]
    pub warrant: Bytes,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    #[prost(uint32, tag = "3")]
    pub size: u32,
    /// Of the locks that the open file has (see [`Locked`]); 0: it has none. With one that is past, the call
    /// is refused with EIO: others may have had the locks since.
    #[prost(uint64, tag = "4")]
    pub fence: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadReply {
    #[prost(uint32, tag = "1")]
    pub errno: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub content: Bytes,
}

/// `host.write`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Write {
    #[prost(bytes = "bytes", tag = "1")]
    pub warrant: Bytes,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub content: Bytes,
    /// At the file's end, wherever that is.
    #[prost(bool, tag = "4")]
    pub append: bool,
    /// As in [`Change`].
    #[prost(fixed64, tag = "5")]
    pub lane: u64,
    #[prost(uint64, tag = "6")]
    pub number: u64,
    /// As in [`Read`].
    #[prost(uint64, tag = "7")]
    pub fence: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteReply {
    #[prost(uint32, tag = "1")]
    pub errno: u32,
    #[prost(uint32, tag = "2")]
    pub written: u32,
}

/// Whose lock it is: what the kernel of a mount calls the owner, and the mount's number of the file. An owner's locks
/// of one file begin and end together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct LockOwner {
    #[prost(fixed64, tag = "1")]
    pub lane: u64,
    #[prost(uint64, tag = "2")]
    pub file: u64,
    #[prost(fixed64, tag = "3")]
    pub owner: u64,
    /// Of flock(2), which is of the whole file and meets no lock of fcntl(2).
    #[prost(bool, tag = "4")]
    pub flock: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum LockKind {
    Unlock = 0,
    Read = 1,
    Write = 2,
}

/// `host.lock`: sets a lock, or takes it away. A lock that others are in the way of is refused with EAGAIN after
/// `wait_ms`. Twice is as good as once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Lock {
    #[prost(bytes = "bytes", tag = "1")]
    pub warrant: Bytes,
    #[prost(message, optional, tag = "2")]
    pub owner: Option<LockOwner>,
    #[prost(enumeration = "LockKind", tag = "3")]
    pub kind: i32,
    #[prost(uint64, tag = "4")]
    pub start: u64,
    /// Inclusive; `i64::MAX` is the file's end, wherever it goes.
    #[prost(uint64, tag = "5")]
    pub end: u64,
    /// At most [`LOCK_WAIT_MS_MAX`].
    #[prost(uint32, tag = "6")]
    pub wait_ms: u32,
    /// Of the locks that the open file has already, or 0. As in [`Read`].
    #[prost(uint64, tag = "7")]
    pub fence: u64,
    /// Nothing is set: the answer is what is in the way.
    #[prost(bool, tag = "8")]
    pub test: bool,
}

/// The longest time that a home waits for a lock before it answers.
pub const LOCK_WAIT_MS_MAX: u32 = 1_000;

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Locked {
    #[prost(uint32, tag = "1")]
    pub errno: u32,
    /// Goes up when a node is taken for dead and so loses its locks here. Never 0.
    #[prost(uint64, tag = "2")]
    pub fence: u64,
    /// To a test: what is in the way, or `Unlock`.
    #[prost(enumeration = "LockKind", tag = "3")]
    pub kind: i32,
    #[prost(uint64, tag = "4")]
    pub start: u64,
    #[prost(uint64, tag = "5")]
    pub end: u64,
}

/// `host.unlock`: all locks of an owner end.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct EndLocks {
    #[prost(message, optional, tag = "1")]
    pub owner: Option<LockOwner>,
}

/// What the home has unum-init keep beside the descriptor that holds an owner's locks.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct LockNote {
    #[prost(uint64, tag = "1")]
    pub client: u64,
    #[prost(message, optional, tag = "2")]
    pub owner: Option<LockOwner>,
}

/// `host.sync`: what was written through the warrant, and not only through it, is durable.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sync {
    #[prost(bytes = "bytes", tag = "1")]
    pub warrant: Bytes,
    #[prost(bool, tag = "2")]
    pub content_only: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct SyncReply {
    #[prost(uint32, tag = "1")]
    pub errno: u32,
}

/// `host.release`: these were closed, once for each time that they stand here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Release {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub warrants: Vec<Bytes>,
}

/// `host.renew`: prolongs the client's lease on what it keeps of the called node, or begins one.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Renew {
    /// The lease that it holds; 0: none.
    #[prost(fixed64, tag = "1")]
    pub lease: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct RenewReply {
    /// Another number than that asked for: a new lease, under which nothing is granted yet.
    #[prost(fixed64, tag = "1")]
    pub lease: u64,
    /// It ends so long after the request was sent.
    #[prost(uint32, tag = "2")]
    pub term_ms: u32,
    /// The client's root is root there.
    #[prost(bool, tag = "3")]
    pub root_allowed: bool,
}

/// `host.recall`: what the called node keeps of the caller's files under a lease is not so any more. Answered
/// when it is shown no longer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Recall {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub handles: Vec<Bytes>,
    /// All that it keeps.
    #[prost(bool, tag = "2")]
    pub all: bool,
}
