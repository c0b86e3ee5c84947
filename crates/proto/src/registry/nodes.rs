//! What a node is, and what it says of itself.

use prost::{Enumeration, Message};

/// What a node may do in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum Role {
    Unspecified = 0,
    /// Runs programs and stores file contents.
    Node = 1,
    /// Votes only, so that two nodes survive the loss of one.
    Witness = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum NodeState {
    Unspecified = 0,
    Joining = 1,
    Up = 2,
    Down = 3,
    Left = 4,
    Removed = 5,
}

/// What a node says of itself, refreshed each time that it comes up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Description {
    /// `host:port`, the preferred one first.
    #[prost(string, repeated, tag = "1")]
    pub addresses: Vec<String>,
    #[prost(uint32, tag = "2")]
    pub cores: u32,
    #[prost(uint64, tag = "3")]
    pub memory_bytes: u64,
    /// As in `uname -m`.
    #[prost(string, tag = "4")]
    pub architecture: String,
    /// The software version of its daemon.
    #[prost(string, tag = "5")]
    pub version: String,
}
