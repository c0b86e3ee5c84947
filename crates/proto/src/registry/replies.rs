//! What the registry answers to a command.

use prost::{Message, Oneof};

use crate::tree::TreeReply;

/// Why the registry did not do what a command asked. The numbers are the wire form of
/// `unum_core::registry::Refused`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Refusal {
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// Numbers that belong to the code: an epoch, a version, a limit.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// A name that belongs to the code.
    #[prost(string, tag = "3")]
    pub text: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct Done {}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeEpoch {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct PidBlock {
    #[prost(uint32, tag = "1")]
    pub block: u32,
    #[prost(uint32, tag = "2")]
    pub first: u32,
    #[prost(uint32, tag = "3")]
    pub count: u32,
}

/// The version that a value has after the command; 0 when there is none.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Version {
    #[prost(uint64, tag = "1")]
    pub version: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Reply {
    #[prost(oneof = "reply::Kind", tags = "1, 2, 3, 4, 5, 20")]
    pub kind: Option<reply::Kind>,
}

pub mod reply {
    use super::*;

    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        #[prost(message, tag = "1")]
        Refused(Refusal),
        #[prost(message, tag = "2")]
        Done(Done),
        #[prost(message, tag = "3")]
        Node(NodeEpoch),
        #[prost(message, tag = "4")]
        Pids(PidBlock),
        #[prost(message, tag = "5")]
        Version(Version),
        #[prost(message, tag = "20")]
        Tree(TreeReply),
    }
}

impl From<reply::Kind> for Reply {
    fn from(kind: reply::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}
