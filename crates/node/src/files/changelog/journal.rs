//! Where a node keeps the changes that it made under its write lease until they are drained, and the
//! bytes that they name.
//!
//! A change and its new chunks are appended to segment files in a directory on tmpfs before the kernel is
//! answered, so a daemon that is killed loses none of them: the next one reads them back. Nothing is synced.
//! What a machine's death takes is what had not been drained, and the class of the directory allows that.
//!
//! Invariants:
//! - What `append` and `put_chunk` acknowledged is given back by the next `open`, in order and without a
//!   gap behind what is not drained. What they refused is not there.
//! - A record is one write of its own; one that a kill cut short is the last, and is dropped.
//! - A segment goes when nothing that is not drained needs it, and never while it is one of the newest
//!   two: drained changes are kept that long to answer calls that the kernel repeats after a daemon's death.
//! - A chunk is needed by the changes that name it and by the first change that follows it. One of a change
//!   that was refused goes with its segment.
//! - Where a write failed, the file is cut back to its last whole record before anything else is
//!   written.
//!
//! Leaves out on purpose: what was drained is not written down (the registry knows, and the caller tells it
//! again after `open`), and the checksum of a chunk when it is read (it never left memory).

mod format;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use unum_core::time::Time;
use unum_proto::file::CHUNK_SIZE_MAX;
use unum_proto::ids::{ChunkId, LeaseId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::{TreeCommand, TreeReply};

use crate::buffers::Buffers;
use format::{CHUNK_HEAD_BYTES, Entry, FRAME_BYTES, Kind, Stop};

/// A segment is followed by a new one when the next record would make it longer than this, in bytes.
pub const SEGMENT_BYTES: u64 = 16 << 20;

/// One record with its frame, in bytes, at most. Larger ones are refused.
pub const RECORD_BYTES_MAX: usize = 2 << 20;

/// Segments that are kept whatever was drained.
const SEGMENTS_KEPT: usize = 2;

/// Unused buffers that are kept for reading chunks back: as many as are drained at a time.
const BUFFERS_IDLE_MAX: usize = 16;

/// Contents of all users' files: for the daemon alone.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

const _: () = assert!(CHUNK_SIZE_MAX + (64 << 10) < RECORD_BYTES_MAX);
const _: () = assert!((RECORD_BYTES_MAX as u64) < SEGMENT_BYTES);

/// One change as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub lease: LeaseId,
    /// From 1 on per lease.
    pub number: u64,
    /// The kernel's number of the call that made it. 0: none.
    pub call: u64,
    pub time: Time,
    pub command: TreeCommand,
    pub reply: TreeReply,
}

impl Record {
    /// The chunks that the change brings.
    fn chunks(&self) -> impl Iterator<Item = ChunkId> {
        let chunks = match &self.command.command {
            Some(Command::Write(write)) => write.chunks.as_slice(),
            _ => &[],
        };
        chunks.iter().filter_map(|chunk| chunk.id).map(ChunkId::from)
    }
}

/// The bytes of a chunk. They can be read as long as this is held, whatever the journal gives up meanwhile.
#[derive(Clone, Debug)]
pub struct Kept {
    file: Arc<File>,
    at: u64,
    length: u32,
    buffers: Buffers,
}

impl Kept {
    /// A part of the chunk, which must lie within it.
    pub fn read(&self, offset: u32, length: u32) -> io::Result<Bytes> {
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            let what = format!("{length} bytes at {offset} of a chunk of {}", self.length);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let at = self.at + u64::from(offset);
        self.buffers.filled(length as usize, |bytes| self.file.read_exact_at(bytes, at))
    }
}

/// The journal of one mount.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    /// By number. Only the last one is written to.
    segments: BTreeMap<u64, Segment>,
    next: u64,
    chunks: HashMap<ChunkId, (u64, Kept)>,
    buffers: Buffers,
    /// Segments with chunks that no change has followed yet.
    loose: BTreeSet<u64>,
    bytes: u64,
}

#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    /// Where its last whole record ends.
    end: u64,
    /// A failed write left something behind `end` that could not be cut off.
    ragged: bool,
    /// The last change of each lease that needs this segment.
    needed: BTreeMap<LeaseId, u64>,
    chunks: Vec<ChunkId>,
}

impl Journal {
    /// Opens the journal in a directory (made if missing) and returns what it holds, in order. `fresh`:
    /// the mount is new, forget what is there.
    ///
    /// Drained changes are returned as well as long as they are kept, and all count as not drained
    /// until [`Self::drained`] is told.
    pub fn open(dir: &Path, fresh: bool) -> io::Result<(Self, Vec<Record>)> {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(dir)?;
        let numbers = segment_numbers(dir)?;
        let mut journal = Self {
            dir: dir.to_owned(),
            segments: BTreeMap::new(),
            next: numbers.last().map_or(1, |last| last + 1),
            chunks: HashMap::new(),
            buffers: Buffers::new(CHUNK_SIZE_MAX, BUFFERS_IDLE_MAX),
            loose: BTreeSet::new(),
            bytes: 0,
        };
        if fresh {
            journal.remove_files(&numbers)?;
            return Ok((journal, Vec::new()));
        }
        let mut records = Vec::new();
        for (at, &number) in numbers.iter().enumerate() {
            let later = &numbers[at + 1..];
            if let Some(stop) = journal.load(number, &mut records)? {
                journal.cut(number, &stop, later)?;
                break;
            }
        }
        Ok((journal, records))
    }

    /// Keeps the bytes of a new chunk, before the change that names it. Putting it again is no error.
    pub fn put_chunk(&mut self, id: ChunkId, data: &[u8]) -> io::Result<()> {
        let (number, at) = self.write(Kind::Chunk, &[&format::chunk_head(id), data])?;
        self.note_chunk(number, id, at + CHUNK_HEAD_BYTES as u64, data.len());
        Ok(())
    }

    /// Keeps a change.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        let (number, _) = self.write(Kind::Change, &[&format::encode_change(record)])?;
        self.note_change(number, record);
        Ok(())
    }

    /// Where the bytes of a chunk are kept, for reading without the journal's lock.
    pub fn chunk(&self, id: ChunkId) -> Option<Kept> {
        self.chunks.get(&id).map(|(_, kept)| kept.clone())
    }

    /// The changes of this lease up to this number are drained: what only they needed is given up. A lease
    /// that is lost has all of them drained (`u64::MAX`).
    pub fn drained(&mut self, lease: LeaseId, number: u64) -> io::Result<()> {
        for segment in self.segments.values_mut() {
            segment.needed.retain(|of, last| *of != lease || *last > number);
        }
        let old = self.segments.iter().rev().skip(SEGMENTS_KEPT);
        let given_up = old
            .filter(|(number, segment)| segment.needed.is_empty() && !self.loose.contains(number));
        let mut given_up: Vec<u64> = given_up.map(|(number, _)| *number).collect();
        given_up.reverse();
        given_up.into_iter().try_for_each(|number| self.remove(number))
    }

    /// Bytes kept, those of drained changes in the newest segments included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets everything. The newest goes first: changes are never kept without those before them.
    pub fn clear(&mut self) -> io::Result<()> {
        while let Some((&number, _)) = self.segments.last_key_value() {
            self.remove(number)?;
        }
        Ok(())
    }

    /// Appends a record and tells its segment and where its body is in it.
    fn write(&mut self, kind: Kind, body: &[&[u8]]) -> io::Result<(u64, u64)> {
        let span = FRAME_BYTES + body.iter().map(|part| part.len()).sum::<usize>();
        if span > RECORD_BYTES_MAX {
            let what = format!("a record of {span} bytes exceeds {RECORD_BYTES_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let (number, segment) = match self.segments.last_entry() {
            Some(last) if last.get().has_room(span) => (*last.key(), last.into_mut()),
            Some(_) | None => self.add_segment()?,
        };
        let at = segment.end;
        segment.write(&format::frame(kind, body), body)?;
        self.bytes += span as u64;
        Ok((number, at + FRAME_BYTES as u64))
    }

    fn add_segment(&mut self) -> io::Result<(u64, &mut Segment)> {
        let number = self.next;
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(self.path(number))?;
        self.next = number + 1;
        Ok((number, self.segments.entry(number).or_insert(Segment::new(file, 0))))
    }

    fn note_chunk(&mut self, number: u64, id: ChunkId, at: u64, length: usize) {
        let Some(segment) = self.segments.get_mut(&number) else { return };
        segment.chunks.push(id);
        let (file, buffers) = (segment.file.clone(), self.buffers.clone());
        let kept = Kept { file, at, length: length as u32, buffers };
        self.chunks.insert(id, (number, kept));
        self.loose.insert(number);
    }

    fn note_change(&mut self, number: u64, record: &Record) {
        let mut needed = std::mem::take(&mut self.loose);
        needed.insert(number);
        needed.extend(record.chunks().filter_map(|id| Some(self.chunks.get(&id)?.0)));
        for number in needed {
            if let Some(segment) = self.segments.get_mut(&number) {
                let last = segment.needed.entry(record.lease).or_default();
                *last = record.number.max(*last);
            }
        }
    }

    /// Reads a segment. Some: it is sound up to there only.
    fn load(&mut self, number: u64, records: &mut Vec<Record>) -> io::Result<Option<Unsound>> {
        let path = self.path(number);
        let file = OpenOptions::new().read(true).append(true).open(&path)?;
        let bytes = Bytes::from(std::fs::read(&path)?);
        let mut at = 0;
        // What is noted needs the segment to be there.
        self.segments.insert(number, Segment::new(file, 0));
        let stop = loop {
            match format::take(&bytes, at) {
                Ok((Entry::Change(record), span)) => {
                    self.note_change(number, &record);
                    records.push(*record);
                    at += span;
                }
                Ok((Entry::Chunk(id, length), span)) => {
                    let start = at + FRAME_BYTES + CHUNK_HEAD_BYTES;
                    self.note_chunk(number, id, start as u64, length);
                    at += span;
                }
                Err(stop) => break stop,
            }
        };
        self.bytes += at as u64;
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.end = at as u64;
        }
        let left = bytes.len() - at;
        Ok((stop != Stop::End).then_some(Unsound { stop, at: at as u64, left: left as u64 }))
    }

    /// Cuts off what is not sound, and with it what comes later: nothing may follow a gap. The later
    /// segments go first, or a death between the two would leave just that.
    fn cut(&mut self, number: u64, unsound: &Unsound, later: &[u64]) -> io::Result<()> {
        let Unsound { stop, at, left } = unsound;
        let file = self.path(number);
        if *stop == Stop::Torn && later.is_empty() {
            tracing::info!(file = %file.display(), at, left, "dropped a change that was cut short");
        } else {
            tracing::warn!(
                file = %file.display(), at, left, segments = later.len(),
                "the journal of changes is damaged: what comes after that byte is lost"
            );
        }
        self.remove_files(later)?;
        match self.segments.get(&number) {
            Some(segment) => segment.file.set_len(segment.end),
            None => Ok(()),
        }
    }

    fn remove(&mut self, number: u64) -> io::Result<()> {
        self.remove_files(&[number])?;
        self.loose.remove(&number);
        let Some(segment) = self.segments.remove(&number) else { return Ok(()) };
        self.bytes -= segment.end;
        for id in segment.chunks {
            if self.chunks.get(&id).is_some_and(|(place, _)| *place == number) {
                self.chunks.remove(&id);
            }
        }
        Ok(())
    }

    /// The newest first.
    fn remove_files(&self, numbers: &[u64]) -> io::Result<()> {
        for &number in numbers.iter().rev() {
            match std::fs::remove_file(self.path(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format::segment_name(number))
    }
}

/// Where a segment stops being sound.
struct Unsound {
    stop: Stop,
    at: u64,
    /// Bytes from there on.
    left: u64,
}

impl Segment {
    fn new(file: File, end: u64) -> Self {
        let (needed, chunks) = (BTreeMap::new(), Vec::new());
        Self { file: Arc::new(file), end, ragged: false, needed, chunks }
    }

    fn has_room(&self, span: usize) -> bool {
        self.end == 0 || self.end + span as u64 <= SEGMENT_BYTES
    }

    fn write(&mut self, frame: &[u8], body: &[&[u8]]) -> io::Result<()> {
        if self.ragged {
            self.trim()?;
        }
        let mut parts: Vec<IoSlice<'_>> = vec![IoSlice::new(frame)];
        parts.extend(body.iter().map(|part| IoSlice::new(part)));
        let span: usize = parts.iter().map(|part| part.len()).sum();
        if let Err(error) = write_parts(&self.file, &mut parts) {
            self.ragged = true;
            // If this fails, too, the next write tries it again first.
            let _ = self.trim();
            return Err(error);
        }
        self.end += span as u64;
        Ok(())
    }

    fn trim(&mut self) -> io::Result<()> {
        self.file.set_len(self.end)?;
        self.ragged = false;
        Ok(())
    }
}

/// One system call, unless it was interrupted or the file system is almost full.
fn write_parts(mut file: &File, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !parts.is_empty() {
        match file.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut parts, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The segments in a directory, oldest first.
fn segment_numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        numbers.extend(entry?.file_name().to_str().and_then(format::segment_number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}
