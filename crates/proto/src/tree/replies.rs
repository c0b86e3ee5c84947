//! What a command ends with: its outcome or an error, and the waits that it ended.

use super::{Attributes, LockRange};

#[derive(Clone, PartialEq, prost::Message)]
pub struct TreeReply {
    #[prost(oneof = "tree_reply::Outcome", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 150, 160")]
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
        #[prost(message, tag = "160")]
        Snapshot(super::SnapshotReply),
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

/// A snapshot that was taken.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SnapshotReply {
    #[prost(uint32, tag = "1")]
    pub snapshot: u32,
    /// What its root has as inode number.
    #[prost(uint64, tag = "2")]
    pub root: u64,
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
    ReadOnly = 160,
    HasSnapshots = 161,
    TooManySnapshots = 162,
}
