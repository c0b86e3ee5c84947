//! The bytes of the journal's records.
//!
//! A record is a frame (CRC-32 of all that follows, kind, length of the body, little-endian 32 bits each) and
//! a body. A change: lease, number, call, time in nanoseconds (64 bits each), then the command and the
//! reply, each a message behind its length. A chunk: lane and counter of its id (64 bits each), then its
//! bytes. A kind stands for one layout: another layout gets another kind.
//!
//! Invariant: no input panics.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use unum_core::time::Time;
use unum_proto::ids::{ChunkId, LeaseId};
use unum_proto::tree::{TreeCommand, TreeReply};

use super::Record;
use crate::store::fields::{u32_at, u64_at};

pub const FRAME_BYTES: usize = 12;
/// What comes before the bytes of a chunk in its record.
pub const CHUNK_HEAD_BYTES: usize = 16;
const CHANGE_HEAD_BYTES: usize = 32;

const NAME_SUFFIX: &str = ".log";
const NAME_DIGITS_MIN: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Change = 1,
    Chunk = 2,
}

#[derive(Debug, PartialEq)]
pub enum Entry {
    Change(Box<Record>),
    /// A chunk of this length.
    Chunk(ChunkId, usize),
}

/// Why there is no record at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    End,
    /// The file ends within the record.
    Torn,
    Broken,
}

pub fn segment_name(number: u64) -> String {
    format!("{number:0width$}{NAME_SUFFIX}", width = NAME_DIGITS_MIN)
}

pub fn segment_number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(NAME_SUFFIX)?.parse().ok()?;
    // Others than those that the journal gives are not its own.
    (number < u64::MAX && name == segment_name(number)).then_some(number)
}

pub fn chunk_head(id: ChunkId) -> [u8; CHUNK_HEAD_BYTES] {
    let mut head = [0; CHUNK_HEAD_BYTES];
    head[..8].copy_from_slice(&id.lane.to_le_bytes());
    head[8..].copy_from_slice(&id.seq.to_le_bytes());
    head
}

pub fn encode_change(record: &Record) -> Vec<u8> {
    let Record { lease, number, call, time, command, reply } = record;
    let lengths = command.encoded_len() + reply.encoded_len();
    let mut body = Vec::with_capacity(CHANGE_HEAD_BYTES + lengths + 20);
    for field in [lease.0, *number, *call, time.0] {
        body.put_u64_le(field);
    }
    body.put_slice(&command.encode_length_delimited_to_vec());
    body.put_slice(&reply.encode_length_delimited_to_vec());
    body
}

pub fn frame(kind: Kind, body: &[&[u8]]) -> [u8; FRAME_BYTES] {
    let length: usize = body.iter().map(|part| part.len()).sum();
    let mut frame = [0; FRAME_BYTES];
    frame[4..8].copy_from_slice(&(kind as u32).to_le_bytes());
    frame[8..].copy_from_slice(&(length as u32).to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&frame[4..]);
    body.iter().for_each(|part| crc.update(part));
    frame[..4].copy_from_slice(&crc.finalize().to_le_bytes());
    frame
}

/// The record at a place of a segment, and its length with its frame.
pub fn take(segment: &Bytes, at: usize) -> Result<(Entry, usize), Stop> {
    let rest = segment.get(at..).unwrap_or_default();
    if rest.is_empty() {
        return Err(Stop::End);
    }
    let field = |at| u32_at(rest, at).ok_or(Stop::Torn);
    let (crc, kind, length) = (field(0)?, field(4)?, field(8)? as usize);
    let span = FRAME_BYTES.saturating_add(length);
    if span > super::RECORD_BYTES_MAX {
        return Err(Stop::Broken);
    }
    let framed = rest.get(4..span).ok_or(Stop::Torn)?;
    if crc32fast::hash(framed) != crc {
        return Err(Stop::Broken);
    }
    let body = segment.slice(at + FRAME_BYTES..at + span);
    let entry = match kind {
        kind if kind == Kind::Change as u32 => decode_change(body),
        kind if kind == Kind::Chunk as u32 => decode_chunk(&body),
        _ => None,
    };
    entry.map(|entry| (entry, span)).ok_or(Stop::Broken)
}

fn decode_change(mut body: Bytes) -> Option<Entry> {
    let field = |at| u64_at(&body, at);
    let (lease, number, call, time) = (field(0)?, field(8)?, field(16)?, field(24)?);
    body.advance(CHANGE_HEAD_BYTES);
    // Not slices of the segment, which they would keep in memory.
    let mut body = body.as_ref();
    let command = TreeCommand::decode_length_delimited(&mut body).ok()?;
    let reply = TreeReply::decode_length_delimited(&mut body).ok()?;
    if !body.is_empty() {
        return None;
    }
    let (lease, time) = (LeaseId(lease), Time(time));
    Some(Entry::Change(Box::new(Record { lease, number, call, time, command, reply })))
}

fn decode_chunk(body: &[u8]) -> Option<Entry> {
    let id = ChunkId { lane: u64_at(body, 0)?, seq: u64_at(body, 8)? };
    Some(Entry::Chunk(id, body.len() - CHUNK_HEAD_BYTES))
}
