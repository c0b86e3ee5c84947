//! Building the index when the store is opened, from the heads of all records.
//!
//! Invariants: memory is bounded by the index and one segment; only the last group's content is
//! read; damage costs the chunks that it hit and no others; what is kept of the last group is
//! durable when this returns.

use std::sync::Arc;

use unum_proto::ids::ChunkId;

use super::format::{
    Body, HEAD_BYTES, HEAD_BYTES_MAX, Head, SEGMENT_HEADER_BYTES, blocks_hold,
    decode_segment_header, segment_number,
};
use super::{ChunkError, Index, Place, Segment};
use crate::store::disk::{Disk, DiskError, DiskFile, Open};

/// How much is read at once while heads are looked for.
const WINDOW_BYTES: usize = 256 << 10;

/// A part of a segment that is of no use. What was in it is missing on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub file: String,
    pub offset: u64,
    pub bytes: u64,
    /// It held data that had been acknowledged. If not, a power cut in the middle of a write may
    /// have left it.
    pub acknowledged: bool,
}

pub(super) struct Found {
    pub index: Index,
    pub next_number: u64,
    pub damage: Vec<Damage>,
}

struct Scanned {
    records: Vec<(u32, Head)>,
    gaps: Vec<(u32, u32)>,
    end: u32,
}

pub(super) fn recover(disk: &dyn Disk) -> Result<Found, ChunkError> {
    // What a crashed daemon created or removed may be known to the kernel only.
    disk.sync_dir()?;
    let mut names: Vec<_> =
        disk.list()?.into_iter().filter_map(|name| Some((segment_number(&name)?, name))).collect();
    names.sort();
    let next_number = names.last().map_or(1, |(number, _)| number.saturating_add(1));
    let mut found = Found { index: Index::default(), next_number, damage: Vec::new() };
    let mut sound = Vec::new();
    for (number, name) in names {
        let file = disk.open(&name, Open::Existing)?;
        match read_salt(&*file, number)? {
            Salt::Sound(salt) => sound.push((number, salt, file)),
            Salt::TornCreation => disk.remove(&name)?,
            Salt::Damaged { bytes } => found.report(&*file, 0, bytes, true),
        }
    }
    disk.sync_dir()?;
    // The last sound one is the one that was written to.
    let last = sound.last().map(|(number, _, _)| *number);
    for (number, salt, file) in sound {
        found.add(number, salt, file, last == Some(number))?;
    }
    Ok(found)
}

enum Salt {
    Sound(u64),
    TornCreation,
    Damaged { bytes: u64 },
}

fn read_salt(file: &dyn DiskFile, number: u64) -> Result<Salt, DiskError> {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    let read = file.read_at(&mut header, 0)?;
    let size = file.size()?;
    Ok(match decode_segment_header(&header[..read], number) {
        Some(salt) if size <= u64::from(u32::MAX) => Salt::Sound(salt),
        None if size <= SEGMENT_HEADER_BYTES as u64 => Salt::TornCreation,
        Some(_) | None => Salt::Damaged { bytes: size },
    })
}

impl Found {
    fn add(
        &mut self,
        number: u64,
        salt: u64,
        file: Arc<dyn DiskFile>,
        is_last: bool,
    ) -> Result<(), ChunkError> {
        let size = file.size()?;
        let mut scanned = scan(&*file, salt, size as u32)?;
        if is_last {
            settle_last_group(&*file, &mut scanned)?;
        }
        self.report_damage(&*file, &scanned, size, is_last);
        if is_last {
            make_durable(&*file, salt, &scanned, size)?;
        }
        let end = if is_last { scanned.end } else { size as u32 };
        let segment = Segment { salt, file, end, live_bytes: 0, tombs: Vec::new() };
        self.index.segments.insert(number, segment);
        for (at, head) in &scanned.records {
            self.index.enter_found(number, *at, head);
        }
        Ok(())
    }

    fn report_damage(&mut self, file: &dyn DiskFile, scanned: &Scanned, size: u64, is_last: bool) {
        for (from, to) in &scanned.gaps {
            let later = scanned.records.iter().any(|(_, head)| head.group > *from);
            self.report(file, u64::from(*from), u64::from(to - from), later || !is_last);
        }
        let rest = size.saturating_sub(u64::from(scanned.end));
        if rest > 0 {
            self.report(file, u64::from(scanned.end), rest, !is_last);
        }
    }

    fn report(&mut self, file: &dyn DiskFile, offset: u64, bytes: u64, acknowledged: bool) {
        let file = file.path().to_owned();
        self.damage.push(Damage { file, offset, bytes, acknowledged });
    }
}

impl Index {
    fn enter_found(&mut self, number: u64, at: u32, head: &Head) {
        match &head.body {
            Body::Put { len, .. } => {
                let place = Place { segment: number, at, len: *len, stamp: 0, rotten: false };
                self.set(head.chunk, place);
            }
            Body::Tomb { buried } => {
                // One that was carried along does not hit a chunk that was put since.
                let tomb = self.bury(head.chunk, *buried);
                self.add_tomb(number, tomb);
            }
            Body::Void { .. } => {}
        }
    }
}

/// Finds the heads of all records. Where there is none, the next sound one is looked for.
fn scan(file: &dyn DiskFile, salt: u64, size: u32) -> Result<Scanned, DiskError> {
    let mut window = Window::over(file, size);
    let mut scanned =
        Scanned { records: Vec::new(), gaps: Vec::new(), end: SEGMENT_HEADER_BYTES as u32 };
    let mut at = scanned.end;
    while at < size {
        let head = Head::decode(window.at(at)?, salt).filter(|head| fits(head, at, size));
        match head {
            Some(head) => {
                let next = at + head.span() as u32;
                scanned.records.push((at, head));
                at = next;
                scanned.end = next;
            }
            None => match next_head(file, salt, at + 1, size)? {
                Some(next) => {
                    scanned.gaps.push((at, next));
                    at = next;
                }
                None => break,
            },
        }
    }
    Ok(scanned)
}

fn fits(head: &Head, at: u32, size: u32) -> bool {
    u64::from(at) + head.span() as u64 <= u64::from(size) && head.group <= at
}

fn next_head(
    file: &dyn DiskFile,
    salt: u64,
    from: u32,
    size: u32,
) -> Result<Option<u32>, DiskError> {
    let mut window = Window::over(file, size);
    for at in from..size {
        if Head::decode(window.at(at)?, salt).is_some_and(|head| fits(&head, at, size)) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

struct Window<'a> {
    file: &'a dyn DiskFile,
    size: u32,
    start: u32,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    fn over(file: &'a dyn DiskFile, size: u32) -> Self {
        Self { file, size, start: 0, bytes: Vec::new() }
    }

    /// What is in the file from `at` on: enough for any head, or up to the end.
    fn at(&mut self, at: u32) -> Result<&[u8], DiskError> {
        let skip = at.wrapping_sub(self.start) as usize;
        if at < self.start || (skip + HEAD_BYTES_MAX > self.bytes.len() && self.end() < self.size) {
            self.fill(at)?;
        }
        Ok(self.bytes.get((at - self.start) as usize..).unwrap_or_default())
    }

    fn fill(&mut self, at: u32) -> Result<(), DiskError> {
        self.bytes.resize(WINDOW_BYTES.min(self.size.saturating_sub(at) as usize), 0);
        let read = self.file.read_at(&mut self.bytes, u64::from(at))?;
        self.bytes.truncate(read);
        self.start = at;
        Ok(())
    }

    fn end(&self) -> u32 {
        self.start.saturating_add(self.bytes.len() as u32)
    }
}

/// The last group may be torn: what of it does not match its checksums is dropped.
fn settle_last_group(file: &dyn DiskFile, scanned: &mut Scanned) -> Result<(), ChunkError> {
    let Some(group) = scanned.records.last().map(|(_, head)| head.group) else { return Ok(()) };
    let first = scanned.records.partition_point(|(at, _)| *at < group);
    for (at, head) in scanned.records.split_off(first) {
        let span = head.span() as u32;
        if content_holds(file, at, &head)? {
            scanned.records.push((at, head));
        } else {
            scanned.gaps.push((at, at + span));
        }
    }
    scanned.end = scanned
        .records
        .last()
        .map_or(SEGMENT_HEADER_BYTES as u32, |(at, head)| at + head.span() as u32);
    let end = scanned.end;
    scanned.gaps.retain(|(from, _)| *from < end);
    scanned.gaps.sort_unstable();
    Ok(())
}

fn content_holds(file: &dyn DiskFile, at: u32, head: &Head) -> Result<bool, ChunkError> {
    let Body::Put { len, blocks, .. } = &head.body else { return Ok(true) };
    let mut content = vec![0; *len as usize];
    let read = file.read_at(&mut content, u64::from(at) + head.head_bytes() as u64)?;
    Ok(read == content.len() && blocks_hold(blocks, 0, &content))
}

/// Cuts what is no record and writes the last group once more: after a failed sync the kernel may
/// hold it as clean though the disk never got it. Gaps in the last group become void records, so
/// that they are not taken for rot when groups follow.
fn make_durable(
    file: &dyn DiskFile,
    salt: u64,
    scanned: &Scanned,
    size: u64,
) -> Result<(), ChunkError> {
    if u64::from(scanned.end) < size {
        file.set_len(u64::from(scanned.end))?;
    }
    let group = scanned.records.last().map_or(0, |(_, head)| head.group);
    let mut last = vec![0; scanned.end.saturating_sub(group) as usize];
    let read = file.read_at(&mut last, u64::from(group))?;
    last.truncate(read);
    file.write_at(&last, u64::from(group))?;
    for (from, to) in scanned.gaps.iter().filter(|(from, _)| *from >= group) {
        let len = (to - from).saturating_sub(HEAD_BYTES as u32);
        let void = Head { chunk: ChunkId::default(), group, body: Body::Void { len } };
        file.write_at(&void.encode(salt), u64::from(*from))?;
    }
    Ok(file.sync()?)
}
