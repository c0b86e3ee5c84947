//! The entries of the log, and what consensus keeps beside them.

use bytes::Bytes;
use prost::Message;

use super::Command;

/// A command on its way to the log.
#[derive(Clone, PartialEq, Message)]
pub struct Proposal {
    #[prost(fixed64, tag = "1")]
    pub lane: u64,
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    /// The node that issues it; 0 is the cluster itself (never accepted from another node).
    #[prost(uint64, tag = "3")]
    pub node: u64,
    /// The issuer's epoch.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    #[prost(message, optional, tag = "5")]
    pub command: Option<Command>,
}

/// The payload of one log entry, as the state machine reads it.
#[derive(Clone, PartialEq, Message)]
pub struct Batch {
    /// The leader's clock when it closed the batch, in ns since 1970, never less than before.
    #[prost(fixed64, tag = "1")]
    pub time_ns: u64,
    #[prost(message, repeated, tag = "2")]
    pub proposals: Vec<Proposal>,
}

/// The same payload, as the leader writes it.
#[derive(Clone, PartialEq, Message)]
pub struct RawBatch {
    #[prost(fixed64, tag = "1")]
    pub time_ns: u64,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub proposals: Vec<Bytes>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LogId {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub index: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Vote {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(bool, tag = "3")]
    pub committed: bool,
}

/// Who votes and who only listens. Two voter sets while one replaces the other.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Membership {
    #[prost(message, repeated, tag = "1")]
    pub voters: Vec<VoterSet>,
    /// All members, voters included.
    #[prost(uint64, repeated, tag = "2")]
    pub members: Vec<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct VoterSet {
    #[prost(uint64, repeated, tag = "1")]
    pub nodes: Vec<u64>,
}

/// An entry of the log, on the wire and on disk. Neither payload: a blank entry.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    #[prost(message, optional, tag = "1")]
    pub id: Option<LogId>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub batch: Option<Bytes>,
    #[prost(message, optional, tag = "3")]
    pub membership: Option<Membership>,
}

/// The last entry that is left; absent when none is.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LogPosition {
    #[prost(message, optional, tag = "1")]
    pub last: Option<LogId>,
}
