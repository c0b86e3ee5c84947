//! Calls to the leader.

use bytes::Bytes;
use prost::{Enumeration, Message};

#[derive(Clone, PartialEq, Message)]
pub struct ProposeRequest {
    /// Encoded `Proposal`s.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub proposals: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ProposeReply {
    #[prost(enumeration = "ShellOutcome", tag = "1")]
    pub outcome: i32,
    /// Encoded `Reply`s, in the order of the proposals.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub replies: Vec<Bytes>,
    /// With `NotLeader`: who leads, as far as known; 0 when unknown.
    #[prost(uint64, tag = "3")]
    pub leader: u64,
    /// The log index of the entry that holds them.
    #[prost(uint64, tag = "4")]
    pub index: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum ShellOutcome {
    Unspecified = 0,
    Ok = 1,
    NotLeader = 2,
    Overloaded = 3,
    DiskFull = 4,
    /// It cannot be told whether it was or will be committed: ask again with the same id.
    Unknown = 5,
    /// The issuer may not propose this.
    Denied = 6,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct BarrierRequest {}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct BarrierReply {
    #[prost(enumeration = "ShellOutcome", tag = "1")]
    pub outcome: i32,
    /// With `Ok`: what is committed up to here is visible to a read that began before the call.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    #[prost(uint64, tag = "3")]
    pub leader: u64,
}
