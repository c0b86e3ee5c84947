//! Chunks between nodes.
//!
//! A chunk is at most [`CHUNK_SIZE_MAX`] bytes and never changes once written. Who writes it picks its
//! id; the registry learns of it when the write that uses it is committed.

use bytes::Bytes;

use crate::tree::ChunkKey;

/// Bytes in a chunk, at most. One FUSE write of the largest size fills one chunk.
pub const CHUNK_SIZE_MAX: usize = 1 << 20;

/// Bytes in a blake3 hash.
pub const HASH_SIZE: usize = 32;

/// `file.put-chunk`: stores a chunk durably on the called node; the reply is sent after the sync.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutChunk {
    #[prost(message, optional, tag = "1")]
    pub chunk: Option<ChunkKey>,
    /// blake3 of `data`; a mismatch is refused.
    #[prost(bytes = "bytes", tag = "2")]
    pub hash: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PutChunkReply {}

/// `file.get-chunk`: reads `length` bytes from `offset` of a chunk; both must lie within it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetChunk {
    #[prost(message, optional, tag = "1")]
    pub chunk: Option<ChunkKey>,
    #[prost(uint32, tag = "2")]
    pub offset: u32,
    #[prost(uint32, tag = "3")]
    pub length: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GetChunkReply {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

/// `file.held-inodes`: which of these inodes the called node has open. Asked before they are reaped.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeldInodes {
    #[prost(uint64, repeated, tag = "1")]
    pub inodes: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct HeldInodesReply {
    #[prost(uint64, repeated, tag = "1")]
    pub held: Vec<u64>,
}
