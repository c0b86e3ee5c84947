//! The world of a node: who speaks, its PIDs, its end, and what it keeps across daemons.

use bytes::Bytes;
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub struct HelloAsk {
    #[prost(uint32, tag = "1")]
    pub version: u32,
}

/// PIDs lo..hi, hi excluded.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PidBlock {
    #[prost(uint32, tag = "1")]
    pub lo: u32,
    #[prost(uint32, tag = "2")]
    pub hi: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SetBlocks {
    #[prost(message, repeated, tag = "1")]
    pub blocks: Vec<PidBlock>,
}

/// Longest note beside a kept descriptor, in bytes.
pub const NOTE_SIZE_MAX: usize = 64 << 10;

/// How many names `Keep` holds at once: the daemon's mounts, and the descriptors that hold locks of other nodes.
pub const KEPT_MAX: usize = 1088;

#[derive(Clone, PartialEq, Message)]
pub struct Keep {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub note: Bytes,
    /// A descriptor comes with this frame.
    #[prost(bool, tag = "3")]
    pub descriptor: bool,
    /// The descriptor is of a FUSE device. What its kernel may cache is written in this file, with a
    /// deadline; when it comes near, unum-init takes all back. Empty: there is no such file.
    #[prost(bytes = "bytes", tag = "4")]
    pub ledger: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct Fetch {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Release {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Shutdown {
    #[prost(uint64, tag = "1")]
    pub grace_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StatusAsk {}

#[derive(Clone, PartialEq, Message)]
pub struct Graft {
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Random, made when the world started: another value is another world.
    #[prost(bytes = "vec", tag = "2")]
    pub world: Vec<u8>,
    /// What this kernel or machine cannot do, a sentence each.
    #[prost(string, repeated, tag = "3")]
    pub missing: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Kept {
    #[prost(bytes = "bytes", tag = "1")]
    pub note: Bytes,
    /// A descriptor comes with this frame.
    #[prost(bool, tag = "2")]
    pub descriptor: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(message, repeated, tag = "1")]
    pub blocks: Vec<PidBlock>,
    /// Programs that have not exited.
    #[prost(uint32, tag = "2")]
    pub running: u32,
    /// Processes and threads of the world at the last count.
    #[prost(uint32, tag = "3")]
    pub tasks: u32,
    /// Times that the PID cursor was found outside the blocks. Anything but 0 is a fault.
    #[prost(uint64, tag = "4")]
    pub strayed: u64,
    /// Names that `Keep` holds.
    #[prost(string, repeated, tag = "5")]
    pub kept: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    pub missing: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PidsLow {
    /// PIDs of the blocks that are in use.
    #[prost(uint32, tag = "1")]
    pub used: u32,
    #[prost(uint32, tag = "2")]
    pub total: u32,
}
