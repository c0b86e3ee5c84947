//! The records of a snapshot.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::{CertificateIssued, Description, LogId, Membership, NodeState, Role};
use crate::tree::TreeRecord;

#[derive(Clone, PartialEq, Eq, Message)]
pub struct SnapshotHead {
    #[prost(message, optional, tag = "1")]
    pub last: Option<LogId>,
    #[prost(message, optional, tag = "2")]
    pub membership_at: Option<LogId>,
    #[prost(message, optional, tag = "3")]
    pub membership: Option<Membership>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct IdentityRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: Bytes,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, repeated, tag = "3")]
    pub authorities_pem: Vec<String>,
    #[prost(uint64, tag = "4")]
    pub founded_ns: u64,
}

/// The counters of the state, so that ids and versions are never given twice.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CountersRecord {
    #[prost(uint64, tag = "1")]
    pub node_next: u64,
    #[prost(uint64, tag = "2")]
    pub version_last: u64,
    #[prost(uint64, tag = "3")]
    pub use_last: u64,
    #[prost(uint32, tag = "4")]
    pub block_next: u32,
    #[prost(uint32, repeated, tag = "5")]
    pub blocks_freed: Vec<u32>,
    #[prost(bytes = "bytes", tag = "6")]
    pub history: Bytes,
    /// The time of the last entry.
    #[prost(fixed64, tag = "7")]
    pub time_ns: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeRecord {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(enumeration = "Role", tag = "3")]
    pub role: i32,
    #[prost(enumeration = "NodeState", tag = "4")]
    pub state: i32,
    #[prost(uint64, tag = "5")]
    pub epoch: u64,
    #[prost(message, optional, tag = "6")]
    pub description: Option<Description>,
    #[prost(message, optional, tag = "7")]
    pub certificate: Option<CertificateIssued>,
    #[prost(uint64, tag = "8")]
    pub since_ns: u64,
    #[prost(uint64, tag = "9")]
    pub joined_ns: u64,
    #[prost(string, tag = "10")]
    pub why: String,
    #[prost(bytes = "bytes", tag = "11")]
    pub boot: Bytes,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct TokenRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub hash: Bytes,
    #[prost(enumeration = "Role", tag = "2")]
    pub role: i32,
    #[prost(uint64, tag = "3")]
    pub expires_ns: u64,
    #[prost(uint64, tag = "4")]
    pub creator_node: u64,
    #[prost(uint32, tag = "5")]
    pub creator_uid: u32,
    /// The node that it let in; 0 while unused.
    #[prost(uint64, tag = "6")]
    pub used_by: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct PidBlockRecord {
    #[prost(uint32, tag = "1")]
    pub block: u32,
    #[prost(uint64, tag = "2")]
    pub node: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ValueRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    #[prost(uint64, tag = "3")]
    pub version: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct LaneRecord {
    #[prost(fixed64, tag = "1")]
    pub lane: u64,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(uint64, tag = "3")]
    pub used: u64,
    /// Requests up to this one are forgotten; absent when none is.
    #[prost(uint64, optional, tag = "4")]
    pub forgotten: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReplyRecord {
    #[prost(fixed64, tag = "1")]
    pub lane: u64,
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub reply: Bytes,
}

/// One record of a snapshot. The head comes first, a lane before its replies.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotRecord {
    #[prost(oneof = "snapshot_record::Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 16")]
    pub kind: Option<snapshot_record::Kind>,
}

pub mod snapshot_record {
    use super::*;

    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        #[prost(message, tag = "1")]
        Head(SnapshotHead),
        #[prost(message, tag = "2")]
        Identity(IdentityRecord),
        #[prost(message, tag = "3")]
        Counters(CountersRecord),
        #[prost(message, tag = "4")]
        Node(NodeRecord),
        #[prost(message, tag = "5")]
        Token(TokenRecord),
        #[prost(message, tag = "6")]
        PidBlock(PidBlockRecord),
        #[prost(message, tag = "7")]
        Value(ValueRecord),
        #[prost(message, tag = "8")]
        Lane(LaneRecord),
        #[prost(message, tag = "9")]
        Reply(ReplyRecord),
        #[prost(message, tag = "16")]
        Tree(TreeRecord),
    }
}

impl From<snapshot_record::Kind> for SnapshotRecord {
    fn from(kind: snapshot_record::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}
