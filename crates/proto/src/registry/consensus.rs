//! Calls of consensus from node to node.

use bytes::Bytes;
use prost::{Enumeration, Message};

use super::{Entry, LeaseMark, LogId, Membership, SnapshotHead, Vote};

#[derive(Clone, PartialEq, Message)]
pub struct AppendRequest {
    #[prost(message, optional, tag = "1")]
    pub vote: Option<Vote>,
    #[prost(message, optional, tag = "2")]
    pub previous: Option<LogId>,
    #[prost(message, optional, tag = "3")]
    pub leader_commit: Option<LogId>,
    #[prost(message, repeated, tag = "4")]
    pub entries: Vec<Entry>,
    /// A mark of the receiver that the leader brings back: its read lease is renewed.
    #[prost(message, optional, tag = "5")]
    pub renewal: Option<LeaseMark>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct AppendReply {
    #[prost(enumeration = "AppendOutcome", tag = "1")]
    pub outcome: i32,
    /// With `Partial`: the last entry that matches.
    #[prost(message, optional, tag = "2")]
    pub matching: Option<LogId>,
    /// With `HigherVote`.
    #[prost(message, optional, tag = "3")]
    pub vote: Option<Vote>,
    /// The sender wants a read lease.
    #[prost(message, optional, tag = "4")]
    pub mark: Option<LeaseMark>,
    /// With a mark: the entries up to this one are applied, and no cache shows what was before them.
    #[prost(uint64, tag = "5")]
    pub confirmed: u64,
    /// Unless `HigherVote`: nanoseconds since the sender last heard a leader of an earlier term, or since
    /// it started. Absent: not known.
    #[prost(fixed64, optional, tag = "6")]
    pub former_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum AppendOutcome {
    Unspecified = 0,
    Success = 1,
    Partial = 2,
    Conflict = 3,
    HigherVote = 4,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct VoteRequest {
    #[prost(message, optional, tag = "1")]
    pub vote: Option<Vote>,
    #[prost(message, optional, tag = "2")]
    pub last: Option<LogId>,
    #[prost(bool, tag = "3")]
    pub leadership_transfer: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct VoteReply {
    #[prost(message, optional, tag = "1")]
    pub vote: Option<Vote>,
    #[prost(bool, tag = "2")]
    pub granted: bool,
    #[prost(message, optional, tag = "3")]
    pub last: Option<LogId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct TransferRequest {
    #[prost(message, optional, tag = "1")]
    pub from: Option<Vote>,
    #[prost(uint64, tag = "2")]
    pub to: u64,
    #[prost(message, optional, tag = "3")]
    pub last: Option<LogId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct TransferReply {
    #[prost(bool, tag = "1")]
    pub accepted: bool,
}

/// A piece of a snapshot file. Pieces come in order; the last one asks for the installation.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotPiece {
    /// Tells one transfer from another of the same sender.
    #[prost(fixed64, tag = "1")]
    pub transfer: u64,
    #[prost(message, optional, tag = "2")]
    pub vote: Option<Vote>,
    #[prost(message, optional, tag = "3")]
    pub head: Option<SnapshotHead>,
    #[prost(uint64, tag = "4")]
    pub offset: u64,
    #[prost(bytes = "bytes", tag = "5")]
    pub bytes: Bytes,
    #[prost(bool, tag = "6")]
    pub last: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SnapshotReply {
    /// The receiver's vote once the snapshot is installed or refused.
    #[prost(message, optional, tag = "1")]
    pub vote: Option<Vote>,
    /// Where the receiver expects the next piece.
    #[prost(uint64, tag = "2")]
    pub next: u64,
}

/// Asks a member how far its log reaches.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct RollRequest {}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct RollReply {
    #[prost(message, optional, tag = "1")]
    pub last: Option<LogId>,
    /// It lost something that it may have acknowledged, and has not caught up yet.
    #[prost(bool, tag = "2")]
    pub lost: bool,
    #[prost(message, optional, tag = "3")]
    pub membership: Option<Membership>,
}
