//! An append-only log of records in segment files: what raft's log and other journals stand on.
//!
//! A *group* of records is written by one write and made durable by one sync; `append` returns when
//! that is done. A segment is sealed when it is long enough; only the last one is written to.
//!
//! Invariants:
//! - What `append` acknowledged is there after a crash, in order and without a gap.
//! - What it did not acknowledge is there after a crash as a prefix of the group, or not at all.
//! - A group is written only when the one before it was synced, and no byte is overwritten unless
//!   the cut before it was synced: so a bad record with a later group behind it is rot.
//! - After a failed sync nothing is written until the journal was opened again: the kernel may take
//!   unwritten pages for clean. Opening writes the last group once more for the same reason.
//!
//! Left out on purpose: what records mean, compression, and the repair of rot (the owner has
//! replicas).

mod format;
mod queue;
mod reader;
mod recover;
#[cfg(test)]
mod tests;

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::disk::{Disk, DiskError, DiskFile, Open};
use super::limits::{
    JOURNAL_GROUP_BYTES_MAX, JOURNAL_GROUP_RECORDS_MAX, JOURNAL_SEGMENT_BYTES, RECORD_BYTES_MAX,
};
use format::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, put_record, segment_name};

pub use format::{Entry, Seq};
pub use queue::{JournalQueue, OwnedRecord, Pending};
pub use reader::JournalReader;

/// A record to append. The kind is the owner's.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub kind: u8,
    pub bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    /// The sequence number of the first record of a journal that does not exist yet.
    pub first: Seq,
    pub segment_bytes: u64,
    /// Makes the checksums of this journal unlike those of any other. Not secret from the node's
    /// owner, but nothing that a client could know.
    pub salt: u64,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self { first: 1, segment_bytes: JOURNAL_SEGMENT_BYTES, salt: rand::random() }
    }
}

/// How the end of the journal was found when it was opened. Whatever was not sound is cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    Clean,
    /// The file ended within a record: it had never been acknowledged.
    Torn {
        file: String,
        offset: u64,
        bytes: u64,
    },
    /// The last group had its full length and was not sound: torn by a power cut, or acknowledged
    /// and gone rotten since. The owner must not act as if it knew all that it acknowledged.
    /// `zeroed`: a part reads as zeros, which speaks for a power cut.
    Suspect {
        file: String,
        offset: u64,
        bytes: u64,
        zeroed: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Nothing of the group is kept; the same call may succeed when there is room.
    #[error(transparent)]
    Full(DiskError),
    #[error(transparent)]
    Disk(DiskError),
    #[error(
        "{file} is damaged at byte {offset}: {what}. The disk has lost what it had acknowledged: \
         check it, then remove this node from the cluster and let it join again with an empty \
         data directory"
    )]
    Rotten { file: String, offset: u64, what: &'static str },
    #[error(
        "the journal does nothing more because its disk failed ({by}): what it holds can be \
         trusted only after it is opened again; restart the daemon when the disk is sound"
    )]
    Poisoned { by: DiskError },
    #[error(
        "a group of {records} records and {bytes} bytes is more than the journal takes at once"
    )]
    TooLarge { records: usize, bytes: usize },
    #[error("record {seq} is not in the journal, which holds {first} to before {next}")]
    OutOfRange { seq: Seq, first: Seq, next: Seq },
    #[error("the journal's writer has stopped")]
    Stopped,
}

impl From<DiskError> for JournalError {
    fn from(error: DiskError) -> Self {
        if error.is_full() { JournalError::Full(error) } else { JournalError::Disk(error) }
    }
}

/// The one writer of a journal.
pub struct Journal {
    disk: Arc<dyn Disk>,
    options: JournalOptions,
    index: Arc<Index>,
    next_number: u64,
    group: Vec<u8>,
    poison: Option<DiskError>,
}

/// Where the records are; shared with the readers.
struct Index(RwLock<Segments>);

/// Never empty once the journal is open; the last one is written to.
struct Segments(Vec<Segment>);

struct Segment {
    header: SegmentHeader,
    file: Arc<dyn DiskFile>,
    /// Where each record starts.
    offsets: Vec<u32>,
    end: u32,
}

impl Segment {
    fn next(&self) -> Seq {
        self.header.first.saturating_add(self.offsets.len() as u64)
    }
}

impl Segments {
    fn first(&self) -> Seq {
        self.0.first().map_or(0, |segment| segment.header.first)
    }

    fn next(&self) -> Seq {
        self.0.last().map_or(0, Segment::next)
    }

    fn out_of_range(&self, seq: Seq) -> JournalError {
        JournalError::OutOfRange { seq, first: self.first(), next: self.next() }
    }
}

impl Index {
    fn read(&self) -> RwLockReadGuard<'_, Segments> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Segments> {
        self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Journal {
    /// Opens the journal in this directory, or makes an empty one, and says how its end was found.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: JournalOptions,
    ) -> Result<(Self, Tail), JournalError> {
        let found = recover::recover(&*disk)?;
        let mut journal = Self {
            disk,
            options,
            index: Arc::new(Index(RwLock::new(Segments(found.segments)))),
            next_number: found.next_number,
            group: Vec::new(),
            poison: None,
        };
        if journal.index.read().0.is_empty() {
            journal.add_segment(options.first, false)?;
        }
        Ok((journal, found.tail))
    }

    /// The oldest record that is still there, if there is one.
    pub fn first(&self) -> Seq {
        self.index.read().first()
    }

    /// The number that the next record will get.
    pub fn next(&self) -> Seq {
        self.index.read().next()
    }

    /// The length of all segments.
    pub fn bytes(&self) -> u64 {
        self.index.read().0.iter().map(|segment| u64::from(segment.end)).sum()
    }

    /// A reader that works while the writer writes.
    pub fn reader(&self) -> JournalReader {
        JournalReader::new(self.index.clone())
    }

    /// Appends all records or none, and returns the number of the first one when they are durable.
    pub fn append(&mut self, records: &[Record<'_>]) -> Result<Seq, JournalError> {
        self.check_poison()?;
        let bytes = group_bytes(records)?;
        let first = self.next();
        if records.is_empty() {
            return Ok(first);
        }
        self.make_room(bytes)?;
        let (file, at, salt) = self.active();
        let offsets = self.encode(records, first, at, salt);
        if let Err(error) = file.write_at(&self.group, u64::from(at)) {
            return Err(self.undo_write(&*file, at, error));
        }
        file.sync().map_err(|error| self.poison(error))?;
        self.commit(&offsets, at + bytes as u32);
        Ok(first)
    }

    /// Removes the record `next` and all behind it, so that `next` is what the next record gets.
    pub fn truncate(&mut self, next: Seq) -> Result<(), JournalError> {
        self.check_poison()?;
        {
            let segments = self.index.read();
            if next >= segments.next() {
                return Ok(());
            }
            if next < segments.first() {
                return Err(segments.out_of_range(next));
            }
        }
        // From the newest on, each removal durable before the next: a crash leaves no gap.
        while let Some(number) = self.pop_segment_behind(next) {
            self.remove_segment(number)?;
        }
        self.cut_active(next)
    }

    /// Gives up the records before `below`, as far as they fill whole segments. Returns the oldest
    /// record that is left.
    pub fn release(&mut self, below: Seq) -> Result<Seq, JournalError> {
        self.check_poison()?;
        // From the oldest on, each removal durable before the next: a crash leaves no gap.
        while let Some(number) = self.pop_segment_before(below) {
            self.remove_segment(number)?;
        }
        Ok(self.first())
    }

    /// Gives up all records; the next one gets the number `next`, whatever was there before.
    pub fn restart(&mut self, next: Seq) -> Result<(), JournalError> {
        self.check_poison()?;
        self.add_segment(next, true)?;
        let void: Vec<Segment> = {
            let mut segments = self.index.write();
            let keep = segments.0.len() - 1;
            segments.0.drain(..keep).collect()
        };
        for segment in void {
            self.remove_segment(segment.header.number)?;
        }
        Ok(())
    }

    fn check_poison(&self) -> Result<(), JournalError> {
        match &self.poison {
            None => Ok(()),
            Some(by) => Err(JournalError::Poisoned { by: by.clone() }),
        }
    }

    fn poison(&mut self, by: DiskError) -> JournalError {
        self.poison = Some(by.clone());
        JournalError::Poisoned { by }
    }

    fn active(&self) -> (Arc<dyn DiskFile>, u32, u64) {
        let segments = self.index.read();
        let active = &segments.0[segments.0.len() - 1];
        (active.file.clone(), active.end, active.header.salt)
    }

    /// Fills `self.group` and returns where its records will start.
    fn encode(&mut self, records: &[Record<'_>], first: Seq, at: u32, salt: u64) -> Vec<u32> {
        self.group.clear();
        let mut offsets = Vec::with_capacity(records.len());
        for (seq, record) in (first..).zip(records) {
            offsets.push(at + self.group.len() as u32);
            put_record(&mut self.group, salt, seq, first, record.kind, record.bytes);
        }
        offsets
    }

    fn commit(&mut self, offsets: &[u32], end: u32) {
        let mut segments = self.index.write();
        if let Some(active) = segments.0.last_mut() {
            active.offsets.extend_from_slice(offsets);
            active.end = end;
        }
    }

    /// After a write that failed. The cut is synced: else what was written of this group could
    /// come back between the records of the next one.
    fn undo_write(&mut self, file: &dyn DiskFile, end: u32, error: DiskError) -> JournalError {
        if !error.is_full() {
            return self.poison(error);
        }
        match file.set_len(u64::from(end)).and_then(|()| file.sync()) {
            Ok(()) => JournalError::Full(error),
            Err(cut) => self.poison(cut),
        }
    }

    /// Seals the segment if the group would make it too long.
    fn make_room(&mut self, bytes: usize) -> Result<(), JournalError> {
        let (sealed, next) = {
            let segments = self.index.read();
            let active = &segments.0[segments.0.len() - 1];
            let len = u64::from(active.end) + bytes as u64;
            (len > self.options.segment_bytes && !active.offsets.is_empty(), active.next())
        };
        if sealed { self.add_segment(next, false) } else { Ok(()) }
    }

    /// Adds an empty segment, durably.
    fn add_segment(&mut self, first: Seq, restart: bool) -> Result<(), JournalError> {
        let number = self.next_number;
        self.next_number += 1;
        let salt = self.options.salt ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let header = SegmentHeader { number, first, salt, restart };
        let name = segment_name(number);
        let file = self.disk.open(&name, Open::New)?;
        if let Err(error) = file.write_at(&header.encode(), 0) {
            return Err(self.undo_creation(&name, error));
        }
        if let Err(error) = file.sync().and_then(|()| self.disk.sync_dir()) {
            let _ = self.disk.remove(&name);
            return Err(self.poison(error));
        }
        let segment = Segment { header, file, offsets: vec![], end: SEGMENT_HEADER_BYTES as u32 };
        self.index.write().0.push(segment);
        Ok(())
    }

    /// The file must not come back after a crash: the segment before it goes on.
    fn undo_creation(&mut self, name: &str, error: DiskError) -> JournalError {
        let undone = self.disk.remove(name).and_then(|()| self.disk.sync_dir());
        match undone {
            Ok(()) if error.is_full() => JournalError::Full(error),
            Ok(()) => self.poison(error),
            Err(undo) => self.poison(undo),
        }
    }

    fn pop_segment_behind(&mut self, next: Seq) -> Option<u64> {
        let mut segments = self.index.write();
        let behind = segments.0.len() > 1 && segments.0.last()?.header.first >= next;
        if behind { segments.0.pop().map(|segment| segment.header.number) } else { None }
    }

    fn pop_segment_before(&mut self, below: Seq) -> Option<u64> {
        let mut segments = self.index.write();
        let before = segments.0.get(1)?.header.first <= below;
        before.then(|| segments.0.remove(0).header.number)
    }

    fn remove_segment(&mut self, number: u64) -> Result<(), JournalError> {
        self.disk
            .remove(&segment_name(number))
            .and_then(|()| self.disk.sync_dir())
            .map_err(|error| self.poison(error))
    }

    fn cut_active(&mut self, next: Seq) -> Result<(), JournalError> {
        let (file, end) = {
            let mut segments = self.index.write();
            let Some(active) = segments.0.last_mut() else { return Ok(()) };
            let keep = next.saturating_sub(active.header.first) as usize;
            let Some(end) = active.offsets.get(keep).copied() else { return Ok(()) };
            active.offsets.truncate(keep);
            active.end = end;
            (active.file.clone(), end)
        };
        file.set_len(u64::from(end)).and_then(|()| file.sync()).map_err(|error| self.poison(error))
    }
}

fn group_bytes(records: &[Record<'_>]) -> Result<usize, JournalError> {
    let bytes: usize = records.iter().map(|r| RECORD_HEADER_BYTES + r.bytes.len()).sum();
    let fits = records.len() <= JOURNAL_GROUP_RECORDS_MAX
        && bytes <= JOURNAL_GROUP_BYTES_MAX
        && records.iter().all(|record| record.bytes.len() <= RECORD_BYTES_MAX);
    if fits { Ok(bytes) } else { Err(JournalError::TooLarge { records: records.len(), bytes }) }
}
