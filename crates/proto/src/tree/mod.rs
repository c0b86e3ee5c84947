//! Commands and replies of the file tree, which is part of the registry, and the records of its
//! snapshot. The meaning of each command and the errors it can end with: `docs/spec/tree.md`.
//!
//! Integers here are raw; whoever receives a message validates and converts.

mod commands;
mod records;
mod replies;

use bytes::Bytes;

use crate::ids::{ChunkId, NodeId};
pub use commands::*;
pub use records::*;
pub use replies::*;

/// A point in time of a file: seconds since the Unix epoch, may be negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct Timestamp {
    #[prost(sint64, tag = "1")]
    pub secs: i64,
    #[prost(uint32, tag = "2")]
    pub nanos: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum FileKind {
    Unspecified = 0,
    Regular = 1,
    Directory = 2,
    Symlink = 3,
    Fifo = 4,
    Socket = 5,
    Character = 6,
    Block = 7,
}

/// What stat shows, and the two counters by which caches learn of change.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Attributes {
    #[prost(uint64, tag = "1")]
    pub ino: u64,
    #[prost(enumeration = "FileKind", tag = "2")]
    pub kind: i32,
    /// Permission bits with setuid, setgid and sticky: 0o7777 at most.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    #[prost(uint32, tag = "6")]
    pub nlink: u32,
    #[prost(uint32, tag = "7")]
    pub rdev: u32,
    #[prost(uint64, tag = "8")]
    pub size: u64,
    /// In units of 512 bytes.
    #[prost(uint64, tag = "9")]
    pub blocks: u64,
    #[prost(message, optional, tag = "10")]
    pub atime: Option<Timestamp>,
    #[prost(message, optional, tag = "11")]
    pub mtime: Option<Timestamp>,
    #[prost(message, optional, tag = "12")]
    pub ctime: Option<Timestamp>,
    #[prost(message, optional, tag = "13")]
    pub btime: Option<Timestamp>,
    /// Grows with every change of the inode.
    #[prost(uint64, tag = "14")]
    pub version: u64,
    /// Grows with every change of content, also where a user set mtime back. Nanoseconds.
    #[prost(uint64, tag = "15")]
    pub content_time: u64,
}

/// A chunk's id on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct ChunkKey {
    #[prost(fixed64, tag = "1")]
    pub lane: u64,
    #[prost(uint64, tag = "2")]
    pub seq: u64,
}

impl From<ChunkId> for ChunkKey {
    fn from(id: ChunkId) -> Self {
        Self { lane: id.lane, seq: id.seq }
    }
}

impl From<ChunkKey> for ChunkId {
    fn from(key: ChunkKey) -> Self {
        Self { lane: key.lane, seq: key.seq }
    }
}

/// `length` bytes of a file at `offset` are those of `chunk` at `chunk_offset`; without a chunk they
/// are allocated and read as zeros (only in snapshots and replies, never in a write).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Extent {
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    #[prost(uint64, tag = "2")]
    pub length: u64,
    #[prost(message, optional, tag = "3")]
    pub chunk: Option<ChunkKey>,
    #[prost(uint32, tag = "4")]
    pub chunk_offset: u32,
}

/// A chunk that comes with a write. Its bytes are already durable on `replicas`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NewChunk {
    #[prost(message, optional, tag = "1")]
    pub id: Option<ChunkKey>,
    #[prost(uint32, tag = "2")]
    pub length: u32,
    /// blake3, 32 bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub hash: Bytes,
    #[prost(uint64, repeated, tag = "4")]
    pub replicas: Vec<u64>,
}

/// The ids of a list of nodes.
pub fn nodes(raw: &[u64]) -> Vec<NodeId> {
    raw.iter().copied().map(NodeId).collect()
}
