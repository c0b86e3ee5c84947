//! The bytes of a chunk segment, as `docs/spec/journal.md` lays them down.
//!
//! Invariants: no input panics; a head counts only if its checksum holds, and with it the block
//! checksums behind it, so that a part of a chunk can be checked without the rest.

use bytes::BufMut;
use unum_proto::ids::ChunkId;

use crate::store::fields::{number_of_name, salted_crc, u32_at, u64_at};
use crate::store::limits::{CHUNK_BLOCK_BYTES, CHUNK_SIZE_MAX};

pub const SEGMENT_HEADER_BYTES: usize = 64;
/// Length of a record's head without its block checksums.
pub const HEAD_BYTES: usize = 72;
/// Length of the longest head with its block checksums.
pub const HEAD_BYTES_MAX: usize = HEAD_BYTES + 4 * CHUNK_SIZE_MAX.div_ceil(CHUNK_BLOCK_BYTES);

const MAGIC: &[u8; 8] = b"UNUMCHNK";
const VERSION: u32 = 1;
const NAME_SUFFIX: &str = ".chunks";
const KIND_PUT: u32 = 1;
const KIND_TOMB: u32 = 2;
const KIND_VOID: u32 = 3;

pub fn segment_name(number: u64) -> String {
    format!("{number:016x}{NAME_SUFFIX}")
}

pub fn segment_number(name: &str) -> Option<u64> {
    number_of_name(name, NAME_SUFFIX)
}

pub fn encode_segment_header(number: u64, salt: u64) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    let mut fields = &mut header[..];
    fields.put_slice(MAGIC);
    fields.put_u32_le(VERSION);
    fields.put_u32_le(0);
    fields.put_u64_le(number);
    fields.put_u64_le(salt);
    let crc = crc32fast::hash(&header[..SEGMENT_HEADER_BYTES - 4]);
    header[SEGMENT_HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The salt of the segment `number`; `None` if the bytes are not its header.
pub fn decode_segment_header(bytes: &[u8], number: u64) -> Option<u64> {
    let header = bytes.get(..SEGMENT_HEADER_BYTES)?;
    let crc = u32_at(header, SEGMENT_HEADER_BYTES - 4)?;
    let sound = crc32fast::hash(&header[..SEGMENT_HEADER_BYTES - 4]) == crc
        && header.starts_with(MAGIC)
        && u32_at(header, 8)? == VERSION
        && u64_at(header, 16)? == number;
    if sound { u64_at(header, 24) } else { None }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// `len` bytes of content follow; `blocks` are the checksums of their blocks.
    Put { len: u32, hash: [u8; 32], blocks: Vec<u32> },
    /// The chunk, which is in the segment `buried`, is deleted.
    Tomb { buried: u64 },
    /// The next `len` bytes are of no use.
    Void { len: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub chunk: ChunkId,
    /// Where in the segment the group starts that was written and synced together.
    pub group: u32,
    pub body: Body,
}

impl Head {
    pub fn head_bytes(&self) -> usize {
        match &self.body {
            Body::Put { blocks, .. } => HEAD_BYTES + 4 * blocks.len(),
            Body::Tomb { .. } | Body::Void { .. } => HEAD_BYTES,
        }
    }

    pub fn content_bytes(&self) -> usize {
        match &self.body {
            Body::Put { len, .. } | Body::Void { len } => *len as usize,
            Body::Tomb { .. } => 0,
        }
    }

    pub fn span(&self) -> usize {
        self.head_bytes() + self.content_bytes()
    }

    pub fn encode(&self, salt: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.head_bytes());
        out.put_u32_le(0);
        let (kind, len, buried, hash, blocks) = match &self.body {
            Body::Put { len, hash, blocks } => (KIND_PUT, *len, 0, *hash, &blocks[..]),
            Body::Tomb { buried } => (KIND_TOMB, 0, *buried, [0; 32], &[][..]),
            Body::Void { len } => (KIND_VOID, *len, 0, [0; 32], &[][..]),
        };
        out.put_u32_le(kind);
        out.put_u64_le(self.chunk.lane);
        out.put_u64_le(self.chunk.seq);
        out.put_u32_le(len);
        out.put_u32_le(self.group);
        out.put_u64_le(buried);
        out.put_slice(&hash);
        blocks.iter().for_each(|crc| out.put_u32_le(*crc));
        let crc = salted_crc(salt, &[&out[4..]]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The head at the start of `bytes`; `None` if there is no sound one.
    pub fn decode(bytes: &[u8], salt: u64) -> Option<Self> {
        let (kind, len) = (u32_at(bytes, 4)?, u32_at(bytes, 24)?);
        // Without a checksum yet: most bytes that are no head are ruled out here.
        let blocks = match kind {
            KIND_PUT if len as usize <= CHUNK_SIZE_MAX => block_count(len),
            KIND_TOMB if len == 0 => 0,
            KIND_VOID => 0,
            _ => return None,
        };
        let head = bytes.get(..HEAD_BYTES + 4 * blocks)?;
        if u32_at(head, 0)? != salted_crc(salt, &[&head[4..]]) {
            return None;
        }
        let body = match kind {
            KIND_PUT => {
                let blocks = (HEAD_BYTES..head.len()).step_by(4).map(|at| u32_at(head, at));
                let hash = head.get(40..HEAD_BYTES)?.try_into().ok()?;
                Body::Put { len, hash, blocks: blocks.collect::<Option<_>>()? }
            }
            KIND_TOMB => Body::Tomb { buried: u64_at(head, 32)? },
            _ => Body::Void { len },
        };
        let chunk = ChunkId { lane: u64_at(head, 8)?, seq: u64_at(head, 16)? };
        Some(Self { chunk, group: u32_at(head, 28)?, body })
    }
}

pub fn block_count(len: u32) -> usize {
    (len as usize).div_ceil(CHUNK_BLOCK_BYTES)
}

pub fn block_crcs(content: &[u8]) -> Vec<u32> {
    content.chunks(CHUNK_BLOCK_BYTES).map(crc32fast::hash).collect()
}

/// Whether `content`, which starts at the block `first`, matches the block checksums.
pub fn blocks_hold(blocks: &[u32], first: usize, content: &[u8]) -> bool {
    let crcs = block_crcs(content);
    blocks.get(first..first + crcs.len()) == Some(&crcs[..])
}
