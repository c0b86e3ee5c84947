//! Snapshot files: the whole state at one log index, with checksums, described in
//! `docs/spec/registry.md`.
//!
//! Invariants: a snapshot has its final name only once it is complete and durable; the older ones
//! are removed after that; a file that fails a checksum is never loaded.

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use prost::Message;
use unum_core::registry::State;
use unum_core::registry::snapshot::{Restore, SnapshotFault, records};
use unum_proto::ids::NodeId;
use unum_proto::registry as wire;
use unum_proto::registry::snapshot_record::Kind;

use super::limits::SNAPSHOT_RECORD_BYTES_MAX;
use crate::store::disk::{Disk, DiskError, DiskFile, Open};

const MAGIC: &[u8; 8] = b"UNUMSNAP";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 16;
/// Length and checksum before each record.
const FRAME_BYTES: usize = 8;
const BUFFER_BYTES: usize = 256 << 10;
const DRAFT: &str = "draft";
const INCOMING: &str = "incoming";
const PREFIX: &str = "snapshot-";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{file} is damaged at byte {offset}: {what}")]
    Damaged { file: String, offset: u64, what: &'static str },
    #[error(transparent)]
    Fault(#[from] SnapshotFault),
}

/// A complete snapshot, readable as long as this lives, even when its name is gone.
#[derive(Clone)]
pub struct SnapshotFile {
    file: Arc<dyn DiskFile>,
    size: u64,
}

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.file.path(), self.size)
    }
}

impl SnapshotFile {
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read(&self, offset: u64, bytes_max: usize) -> Result<Bytes, DiskError> {
        let left = self.size.saturating_sub(offset).min(bytes_max as u64) as usize;
        let mut bytes = BytesMut::zeroed(left);
        let read = self.file.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        Ok(bytes.freeze())
    }

    /// Names the transfer of this file by this sender in this term.
    pub fn transfer_id(&self, sender: NodeId, vote: wire::Vote) -> u64 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.file.path().as_bytes());
        hasher.update(&self.size.to_le_bytes());
        hasher.update(&sender.0.to_le_bytes());
        (vote.term << 32) | u64::from(hasher.finalize())
    }
}

/// A snapshot that was read back whole.
pub struct Loaded {
    pub head: wire::SnapshotHead,
    pub state: State,
}

/// The directory of snapshots.
#[derive(Clone)]
pub struct Snapshots {
    disk: Arc<dyn Disk>,
}

impl Snapshots {
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk }
    }

    /// Writes a snapshot durably and removes the older ones.
    pub fn write(
        &self,
        head: &wire::SnapshotHead,
        state: &State,
    ) -> Result<SnapshotFile, SnapshotError> {
        let file = self.disk.open(DRAFT, Open::Any)?;
        file.set_len(0)?;
        let mut out = Writer::new(&*file);
        out.header()?;
        out.record(&Kind::Head(head.clone()).into())?;
        for record in records(state) {
            out.record(&record)?;
        }
        let size = out.finish()?;
        file.sync()?;
        self.publish(DRAFT, head)?;
        Ok(SnapshotFile { file, size })
    }

    /// The newest snapshot that is sound. `rotten` counts those that are not.
    pub fn latest(&self) -> Result<(Option<(SnapshotFile, Loaded)>, usize), SnapshotError> {
        let mut names: Vec<String> = self.disk.list()?;
        names.retain(|name| name.starts_with(PREFIX));
        names.sort();
        let mut rotten = 0;
        for name in names.iter().rev() {
            let file = self.disk.open(name, Open::Existing)?;
            let file = SnapshotFile { size: file.size()?, file };
            match load(&file) {
                Ok(loaded) => return Ok((Some((file, loaded)), rotten)),
                Err(SnapshotError::Disk(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(%error, "a snapshot is unusable");
                    rotten += 1;
                }
            }
        }
        Ok((None, rotten))
    }

    /// A place for a snapshot that comes from the leader.
    pub fn receive(&self) -> Result<Arc<dyn DiskFile>, DiskError> {
        let file = self.disk.open(INCOMING, Open::Any)?;
        file.set_len(0)?;
        Ok(file)
    }

    /// Makes what was received a snapshot of its own, if it is whole.
    pub fn accept(&self, file: Arc<dyn DiskFile>) -> Result<(SnapshotFile, Loaded), SnapshotError> {
        let file = SnapshotFile { size: file.size()?, file };
        let loaded = load(&file)?;
        file.file.sync()?;
        self.publish(INCOMING, &loaded.head)?;
        Ok((file, loaded))
    }

    fn publish(&self, draft: &str, head: &wire::SnapshotHead) -> Result<(), DiskError> {
        let name = name_of(head);
        self.disk.rename(draft, &name)?;
        self.disk.sync_dir()?;
        for other in self.disk.list()? {
            if other.starts_with(PREFIX) && other < name {
                self.disk.remove(&other)?;
            }
        }
        Ok(())
    }
}

/// Names sort by log index.
fn name_of(head: &wire::SnapshotHead) -> String {
    let last = head.last.unwrap_or_default();
    format!("{PREFIX}{:016x}-{:016x}", last.index, last.term)
}

struct Writer<'a> {
    file: &'a dyn DiskFile,
    buffer: Vec<u8>,
    offset: u64,
    whole: crc32fast::Hasher,
}

impl<'a> Writer<'a> {
    fn new(file: &'a dyn DiskFile) -> Self {
        let buffer = Vec::with_capacity(BUFFER_BYTES);
        Self { file, buffer, offset: 0, whole: crc32fast::Hasher::new() }
    }

    fn header(&mut self) -> Result<(), DiskError> {
        let mut header = [0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        self.push(&header)
    }

    fn record(&mut self, record: &wire::SnapshotRecord) -> Result<(), DiskError> {
        let bytes = record.encode_to_vec();
        self.push(&(bytes.len() as u32).to_le_bytes())?;
        self.push(&crc32fast::hash(&bytes).to_le_bytes())?;
        self.push(&bytes)
    }

    /// The end: a record of no length, whose checksum is that of the whole file before it.
    fn finish(mut self) -> Result<u64, DiskError> {
        let whole = self.whole.clone().finalize();
        self.push(&0u32.to_le_bytes())?;
        self.push(&whole.to_le_bytes())?;
        self.flush()?;
        Ok(self.offset)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.whole.update(bytes);
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.file.write_at(&self.buffer, self.offset)?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

pub fn load(file: &SnapshotFile) -> Result<Loaded, SnapshotError> {
    let mut input =
        Reader { file, offset: 0, whole: crc32fast::Hasher::new(), ahead: Bytes::new() };
    input.header()?;
    let Some(first) = input.record()? else { return Err(input.damaged("it has no head")) };
    let Some(Kind::Head(head)) = first.kind else {
        return Err(input.damaged("it does not begin with its head"));
    };
    let mut restore = Restore::default();
    while let Some(record) = input.record()? {
        restore.add(record)?;
    }
    Ok(Loaded { head, state: restore.finish()? })
}

struct Reader<'a> {
    file: &'a SnapshotFile,
    offset: u64,
    whole: crc32fast::Hasher,
    ahead: Bytes,
}

impl Reader<'_> {
    fn damaged(&self, what: &'static str) -> SnapshotError {
        let file = self.file.file.path().to_owned();
        SnapshotError::Damaged { file, offset: self.offset, what }
    }

    fn header(&mut self) -> Result<(), SnapshotError> {
        let header = self.take(HEADER_BYTES as usize)?;
        if !header.starts_with(MAGIC) {
            return Err(self.damaged("it is no snapshot"));
        }
        if header.get(8..12) != Some(&VERSION.to_le_bytes()) {
            return Err(self.damaged("it has another version"));
        }
        Ok(())
    }

    /// `None` at the sound end of the file.
    fn record(&mut self) -> Result<Option<wire::SnapshotRecord>, SnapshotError> {
        let whole = self.whole.clone().finalize();
        let frame = self.take(FRAME_BYTES)?;
        let (len, crc) = (u32_at(&frame, 0), u32_at(&frame, 4));
        if len == 0 {
            let sound = crc == whole && self.offset == self.file.size;
            return if sound { Ok(None) } else { Err(self.damaged("its end does not fit")) };
        }
        if len as usize > SNAPSHOT_RECORD_BYTES_MAX {
            return Err(self.damaged("a record is too long"));
        }
        let bytes = self.take(len as usize)?;
        if crc32fast::hash(&bytes) != crc {
            return Err(self.damaged("a record does not match its checksum"));
        }
        let record = wire::SnapshotRecord::decode(bytes);
        record.map(Some).map_err(|_| self.damaged("a record cannot be decoded"))
    }

    fn take(&mut self, len: usize) -> Result<Bytes, SnapshotError> {
        if self.ahead.len() < len {
            let read = self.file.read(self.offset, len.max(BUFFER_BYTES))?;
            self.ahead = read;
        }
        if self.ahead.len() < len {
            return Err(self.damaged("it ends too early"));
        }
        let bytes = self.ahead.split_to(len);
        self.offset += len as u64;
        self.whole.update(&bytes);
        Ok(bytes)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    if let Some(found) = bytes.get(at..at + 4) {
        word.copy_from_slice(found);
    }
    u32::from_le_bytes(word)
}
