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

/// `file.put-chunks`: stores chunks durably on the called node, each as [`PutChunk`] does and all with as
/// few syncs as possible; the reply is sent after the last one. One that cannot be stored does not keep
/// the others from it. A message that breaks a limit is refused as a whole.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutChunks {
    /// At most [`PUT_CHUNKS_MAX`] with at most [`PUT_CHUNKS_BYTES_MAX`] of `data`.
    #[prost(message, repeated, tag = "1")]
    pub chunks: Vec<PutChunk>,
}

/// Chunks in one message.
pub const PUT_CHUNKS_MAX: usize = 1024;

/// Bytes of the content of all chunks in one message.
pub const PUT_CHUNKS_BYTES_MAX: usize = 3 << 20;

#[derive(Clone, PartialEq, prost::Message)]
pub struct PutChunksReply {
    /// Those that are not stored.
    #[prost(message, repeated, tag = "1")]
    pub refused: Vec<RefusedChunk>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RefusedChunk {
    #[prost(message, optional, tag = "1")]
    pub chunk: Option<ChunkKey>,
    /// A code as in the header of a reply.
    #[prost(uint32, tag = "2")]
    pub code: u32,
    /// Why, as a sentence of at most [`REFUSAL_CHARS_MAX`].
    #[prost(string, tag = "3")]
    pub why: String,
}

/// Characters in the reason why one chunk was refused.
pub const REFUSAL_CHARS_MAX: usize = 256;

/// `file.get-chunk`: reads `length` bytes from `offset` of a chunk; both must lie within it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetChunk {
    #[prost(message, optional, tag = "1")]
    pub chunk: Option<ChunkKey>,
    #[prost(uint32, tag = "2")]
    pub offset: u32,
    #[prost(uint32, tag = "3")]
    pub length: u32,
    /// The hash that the chunk must have. Empty: any.
    #[prost(bytes = "bytes", tag = "4")]
    pub hash: Bytes,
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

/// `file.check-chunks`: whether the called node holds these chunks as it should.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckChunks {
    /// At most [`CHECK_CHUNKS_MAX`].
    #[prost(message, repeated, tag = "1")]
    pub chunks: Vec<crate::tree::NewChunk>,
    /// Reads the content and compares it with the hash.
    #[prost(bool, tag = "2")]
    pub deep: bool,
    /// Mends what is wrong from other replicas.
    #[prost(bool, tag = "3")]
    pub mend: bool,
}

/// Chunks in one question.
pub const CHECK_CHUNKS_MAX: usize = 1024;

#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckChunksReply {
    #[prost(message, repeated, tag = "1")]
    pub faults: Vec<ChunkFault>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ChunkFault {
    #[prost(message, optional, tag = "1")]
    pub chunk: Option<ChunkKey>,
    #[prost(enumeration = "FaultKind", tag = "2")]
    pub kind: i32,
    /// What was found, as a sentence.
    #[prost(string, tag = "3")]
    pub what: String,
    #[prost(bool, tag = "4")]
    pub mended: bool,
}

/// What is wrong with one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FaultKind {
    Unspecified = 0,
    Missing = 1,
    /// It has another length than the registry knows.
    Length = 2,
    /// Its content is not what was written.
    Rotten = 3,
}

/// `file.unknown-chunks`: what the called node holds although nobody wants it there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UnknownChunks {
    #[prost(message, optional, tag = "1")]
    pub after: Option<ChunkKey>,
    /// Deletes those that are old enough.
    #[prost(bool, tag = "2")]
    pub collect: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UnknownChunksReply {
    #[prost(message, repeated, tag = "1")]
    pub chunks: Vec<UnknownChunk>,
    /// Where to go on; absent at the end.
    #[prost(message, optional, tag = "2")]
    pub next: Option<ChunkKey>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct UnknownChunk {
    #[prost(message, optional, tag = "1")]
    pub chunk: Option<ChunkKey>,
    #[prost(uint32, tag = "2")]
    pub length: u32,
    /// It should have been deleted long ago.
    #[prost(bool, tag = "3")]
    pub overdue: bool,
    #[prost(bool, tag = "4")]
    pub deleted: bool,
}

/// `file.give-back`: another node wants to see or change these inodes. The called node drains its change
/// log and gives its write lease back.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GiveBack {
    #[prost(uint64, repeated, tag = "1")]
    pub inodes: Vec<u64>,
    /// The caller wants all that the lease may cover, so that the called node gets none for a while.
    #[prost(bool, tag = "60")]
    pub all: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GiveBackReply {
    /// The log entry behind which the called node has no write lease on them.
    #[prost(uint64, tag = "1")]
    pub index: u64,
}
