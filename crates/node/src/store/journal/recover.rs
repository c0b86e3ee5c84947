//! Finding out, when a journal is opened, what of it is sound.
//!
//! Invariants: nothing that proves rot is changed on the disk; what is cut was never acknowledged
//! or is reported as suspect; what is kept is durable when this returns.

use std::sync::Arc;

use super::format::{SEGMENT_HEADER_BYTES, Scan, SegmentHeader, Stop, scan, segment_number};
use super::{JournalError, Segment, Tail};
use crate::store::disk::{Disk, DiskFile, Open};

pub(super) struct Found {
    pub segments: Vec<Segment>,
    pub next_number: u64,
    pub tail: Tail,
}

/// A segment file whose header is sound.
struct Candidate {
    name: String,
    header: SegmentHeader,
    file: Arc<dyn DiskFile>,
}

pub(super) fn recover(disk: &dyn Disk) -> Result<Found, JournalError> {
    // What a crashed daemon created or removed may be known to the kernel only.
    disk.sync_dir()?;
    let names = segment_names(disk)?;
    let next_number = names.last().map_or(1, |(number, _)| number.saturating_add(1));
    let mut void = Vec::new();
    let mut candidates = Vec::new();
    for (number, name) in names {
        match candidate(disk, number, &name)? {
            Some(candidate) => candidates.push(candidate),
            None => void.push(name),
        }
    }
    void_before_restart(&mut candidates, &mut void);
    let (segments, tail) = read_all(candidates)?;
    for name in void {
        disk.remove(&name)?;
    }
    disk.sync_dir()?;
    Ok(Found { segments, next_number, tail })
}

fn segment_names(disk: &dyn Disk) -> Result<Vec<(u64, String)>, JournalError> {
    let names = disk.list()?;
    let mut numbered: Vec<_> =
        names.into_iter().filter_map(|name| Some((segment_number(&name)?, name))).collect();
    numbered.sort();
    Ok(numbered)
}

/// `None` if the creation of this segment was never completed, so that nothing can be in it.
fn candidate(disk: &dyn Disk, number: u64, name: &str) -> Result<Option<Candidate>, JournalError> {
    let file = disk.open(name, Open::Existing)?;
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let read = file.read_at(&mut bytes, 0)?;
    match SegmentHeader::decode(&bytes[..read]) {
        Some(header) if header.number == number => {
            Ok(Some(Candidate { name: name.to_owned(), header, file }))
        }
        Some(_) => Err(rotten(&*file, 0, "its header is that of another segment")),
        None if file.size()? <= SEGMENT_HEADER_BYTES as u64 => Ok(None),
        None => Err(rotten(&*file, 0, "its header is not sound, and there are records behind it")),
    }
}

fn void_before_restart(candidates: &mut Vec<Candidate>, void: &mut Vec<String>) {
    if let Some(restart) = candidates.iter().rposition(|candidate| candidate.header.restart) {
        void.extend(candidates.drain(..restart).map(|candidate| candidate.name));
    }
}

fn read_all(candidates: Vec<Candidate>) -> Result<(Vec<Segment>, Tail), JournalError> {
    let mut segments: Vec<Segment> = Vec::with_capacity(candidates.len());
    let mut tail = Tail::Clean;
    let last = candidates.len().saturating_sub(1);
    for (i, Candidate { header, file, .. }) in candidates.into_iter().enumerate() {
        let bytes = read_file(&*file)?;
        let found = scan(&bytes, &header);
        check_order(segments.last(), &header, &*file)?;
        if i == last {
            tail = settle_tail(&*file, &bytes, &found)?;
        } else {
            check_sealed(&*file, &found)?;
        }
        segments.push(Segment { header, file, offsets: found.offsets, end: found.end });
    }
    Ok((segments, tail))
}

fn read_file(file: &dyn DiskFile) -> Result<Vec<u8>, JournalError> {
    let size = file.size()?;
    if size > u64::from(u32::MAX) {
        return Err(rotten(file, u64::from(u32::MAX), "it is longer than any segment"));
    }
    let mut bytes = vec![0; size as usize];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn check_order(
    before: Option<&Segment>,
    header: &SegmentHeader,
    file: &dyn DiskFile,
) -> Result<(), JournalError> {
    match before {
        Some(before) if before.next() != header.first => {
            Err(rotten(file, 0, "it does not continue the segment before it; one is missing"))
        }
        _ => Ok(()),
    }
}

/// A sealed segment was synced as a whole before the next one was made.
fn check_sealed(file: &dyn DiskFile, found: &Scan) -> Result<(), JournalError> {
    let what = match found.stop {
        Stop::End => return Ok(()),
        Stop::Short => "it ends within a record, though later segments follow",
        Stop::Rotten | Stop::Ambiguous { .. } => {
            "a record does not match its checksum, though later segments follow"
        }
    };
    Err(rotten(file, u64::from(found.end), what))
}

fn settle_tail(file: &dyn DiskFile, bytes: &[u8], found: &Scan) -> Result<Tail, JournalError> {
    let (path, offset) = (file.path().to_owned(), u64::from(found.end));
    let cut = bytes.len() as u64 - offset.min(bytes.len() as u64);
    let tail = match found.stop {
        Stop::End => Tail::Clean,
        Stop::Short => Tail::Torn { file: path, offset, bytes: cut },
        Stop::Ambiguous { zeroed } => Tail::Suspect { file: path, offset, bytes: cut, zeroed },
        Stop::Rotten => {
            let what = "a record does not match its checksum, though a later group follows";
            return Err(rotten(file, offset, what));
        }
    };
    if cut > 0 {
        file.set_len(offset)?;
    }
    write_again(file, bytes, found)?;
    Ok(tail)
}

/// What a crashed daemon wrote last may be unsynced, and after a failed sync the kernel may hold
/// it as clean though the disk never got it: so it is written once more, byte for byte.
fn write_again(file: &dyn DiskFile, bytes: &[u8], found: &Scan) -> Result<(), JournalError> {
    let from = if found.offsets.is_empty() { 0 } else { found.last_group as usize };
    if let Some(last) = bytes.get(from..found.end as usize) {
        file.write_at(last, from as u64)?;
    }
    Ok(file.sync()?)
}

fn rotten(file: &dyn DiskFile, offset: u64, what: &'static str) -> JournalError {
    JournalError::Rotten { file: file.path().to_owned(), offset, what }
}
