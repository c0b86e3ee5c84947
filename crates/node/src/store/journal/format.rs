//! The bytes of a journal segment, as `docs/spec/journal.md` lays them down, and how they are judged.
//!
//! Invariants: no input panics; a record counts only if both its checksums hold; the checksums are
//! salted per segment, so that no payload can pose as a record.

use bytes::{BufMut, Bytes};

use crate::store::fields::{number_of_name, salted_crc, u32_at, u64_at};

/// Length of a segment's header.
pub const SEGMENT_HEADER_BYTES: usize = 64;
/// Length of a record's header.
pub const RECORD_HEADER_BYTES: usize = 32;
/// What a disk writes wholly or not at all.
const SECTOR_BYTES: usize = 512;

const MAGIC: &[u8; 8] = b"UNUMJRNL";
const VERSION: u32 = 1;
const FLAG_RESTART: u32 = 1;
const NAME_SUFFIX: &str = ".journal";

/// The place of a record in its journal: grows by one from record to record.
pub type Seq = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub number: u64,
    /// The sequence number of the first record, were there one.
    pub first: Seq,
    pub salt: u64,
    /// Segments with a lower number are void.
    pub restart: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub body_crc: u32,
    pub len: u32,
    pub kind: u8,
    pub seq: Seq,
    /// The first record of the group that was written and synced together with this one.
    pub group: Seq,
}

pub fn segment_name(number: u64) -> String {
    format!("{number:016x}{NAME_SUFFIX}")
}

pub fn segment_number(name: &str) -> Option<u64> {
    number_of_name(name, NAME_SUFFIX)
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        bytes.put_slice(MAGIC);
        bytes.put_u32_le(VERSION);
        bytes.put_u32_le(if self.restart { FLAG_RESTART } else { 0 });
        bytes.put_u64_le(self.number);
        bytes.put_u64_le(self.first);
        bytes.put_u64_le(self.salt);
        let mut header = [0; SEGMENT_HEADER_BYTES];
        header[..bytes.len()].copy_from_slice(&bytes);
        let crc = crc32fast::hash(&header[..SEGMENT_HEADER_BYTES - 4]);
        header[SEGMENT_HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// `None` if the bytes are no header of this version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..SEGMENT_HEADER_BYTES)?;
        let crc = u32_at(header, SEGMENT_HEADER_BYTES - 4)?;
        let flags = u32_at(header, 12)?;
        let sound = crc32fast::hash(&header[..SEGMENT_HEADER_BYTES - 4]) == crc
            && header.starts_with(MAGIC)
            && u32_at(header, 8)? == VERSION
            && flags & !FLAG_RESTART == 0;
        sound.then_some(Self {
            number: u64_at(header, 16)?,
            first: u64_at(header, 24)?,
            salt: u64_at(header, 32)?,
            restart: flags & FLAG_RESTART != 0,
        })
    }
}

/// Appends one record to a group that is being made.
pub fn put_record(out: &mut Vec<u8>, salt: u64, seq: Seq, group: Seq, kind: u8, body: &[u8]) {
    let mut tail = [0; RECORD_HEADER_BYTES - 4];
    let mut fields = &mut tail[..];
    fields.put_u32_le(salted_crc(salt, &[body]));
    fields.put_u32_le(body.len() as u32);
    fields.put_u32_le(u32::from(kind));
    fields.put_u64_le(seq);
    fields.put_u64_le(group);
    out.put_u32_le(salted_crc(salt, &[&tail]));
    out.put_slice(&tail);
    out.put_slice(body);
}

impl RecordHeader {
    fn decode(bytes: &[u8], salt: u64) -> Option<Self> {
        let header = bytes.get(..RECORD_HEADER_BYTES)?;
        if u32_at(header, 0)? != salted_crc(salt, &[&header[4..]]) {
            return None;
        }
        Some(Self {
            body_crc: u32_at(header, 4)?,
            len: u32_at(header, 8)?,
            kind: u8::try_from(u32_at(header, 12)?).ok()?,
            seq: u64_at(header, 16)?,
            group: u64_at(header, 24)?,
        })
    }

    /// Length of the record with its header.
    fn span(&self) -> usize {
        RECORD_HEADER_BYTES.saturating_add(self.len as usize)
    }
}

/// A record that was read back and found sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub seq: Seq,
    pub kind: u8,
    pub bytes: Bytes,
}

/// What stands at one place of a segment.
enum Found {
    Record(RecordHeader),
    /// Nothing: the segment ends here.
    End,
    /// A record that the file is too short for: its write was never completed.
    Short,
    Bad,
}

fn look(bytes: &[u8], at: usize, salt: u64, seq: Seq) -> Found {
    let rest = bytes.get(at..).unwrap_or_default();
    if rest.is_empty() {
        return Found::End;
    }
    if rest.len() < RECORD_HEADER_BYTES {
        return Found::Short;
    }
    match RecordHeader::decode(rest, salt) {
        None => Found::Bad,
        Some(header) if header.seq != seq || header.group > seq => Found::Bad,
        Some(header) if rest.len() < header.span() => Found::Short,
        Some(header) if body_holds(rest, &header, salt) => Found::Record(header),
        Some(_) => Found::Bad,
    }
}

fn body_holds(rest: &[u8], header: &RecordHeader, salt: u64) -> bool {
    rest.get(RECORD_HEADER_BYTES..header.span())
        .is_some_and(|body| salted_crc(salt, &[body]) == header.body_crc)
}

/// Reads the record `seq` at the start of `bytes`; `None` unless it is there and sound.
pub fn take_record(bytes: &Bytes, salt: u64, seq: Seq) -> Option<(Entry, usize)> {
    match look(bytes, 0, salt, seq) {
        Found::Record(header) => {
            let body = bytes.slice(RECORD_HEADER_BYTES..header.span());
            Some((Entry { seq, kind: header.kind, bytes: body }, header.span()))
        }
        Found::End | Found::Short | Found::Bad => None,
    }
}

/// How the sound part of a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    End,
    /// The file ends within a record.
    Short,
    /// A record is bad, and a sound one behind it proves that it had been synced.
    Rotten,
    /// A record of the last group is bad. `zeroed`: a part of it was never written.
    Ambiguous {
        zeroed: bool,
    },
}

/// The sound part of a segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// Where each record starts.
    pub offsets: Vec<u32>,
    pub end: u32,
    /// Where the last group starts.
    pub last_group: u32,
    pub stop: Stop,
}

/// Judges the records of one segment, whose bytes start with a sound header.
pub fn scan(bytes: &[u8], header: &SegmentHeader) -> Scan {
    let mut at = SEGMENT_HEADER_BYTES.min(bytes.len());
    let mut group = (header.first, at as u32);
    let mut offsets = Vec::new();
    let stop = loop {
        let seq = header.first.saturating_add(offsets.len() as u64);
        match look(bytes, at, header.salt, seq) {
            Found::Record(record) => {
                if record.group != group.0 {
                    group = (record.group, at as u32);
                }
                offsets.push(at as u32);
                at += record.span();
            }
            Found::End => break Stop::End,
            Found::Short => break Stop::Short,
            Found::Bad => break judge_bad(bytes, at, header.salt, seq),
        }
    };
    Scan { offsets, end: at as u32, last_group: group.1, stop }
}

/// A group is written only after the one before it was synced: a sound record of a later group
/// proves that the bad one was durable once.
fn judge_bad(bytes: &[u8], bad_at: usize, salt: u64, bad: Seq) -> Stop {
    let later = (bad_at..bytes.len()).any(|at| is_of_later_group(&bytes[at..], salt, bad));
    if later { Stop::Rotten } else { Stop::Ambiguous { zeroed: has_unwritten(bytes, bad_at) } }
}

fn is_of_later_group(rest: &[u8], salt: u64, bad: Seq) -> bool {
    // Most places are ruled out by the three bytes that are always zero, without a checksum.
    if rest.get(13..16) != Some(&[0, 0, 0]) || u64_at(rest, 24).is_none_or(|group| group <= bad) {
        return false;
    }
    RecordHeader::decode(rest, salt)
        .is_some_and(|header| header.seq >= header.group && body_holds(rest, &header, salt))
}

/// Whether a sector from `from` on is all zeros, as one that a power cut kept from being written.
fn has_unwritten(bytes: &[u8], from: usize) -> bool {
    let mut at = from;
    while at < bytes.len() {
        let end = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(bytes.len());
        if bytes[at..end].iter().all(|b| *b == 0) {
            return true;
        }
        at = end;
    }
    false
}
