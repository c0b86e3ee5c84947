//! What the kernel was allowed to cache without a time-out, written down so that it can be taken
//! back: by the daemon, by the next one if it died, or by whoever else has the device's descriptor.
//!
//! A deadline, and behind it records, each appended before the kernel gets the answer that it is about. It need
//! only survive the death of a process, so it belongs on a file system in memory. What the kernel has
//! dropped by itself stays in it until it is cleared. Whoever holds the descriptor besides the daemon
//! takes everything back when the deadline comes near, for then the daemon has not moved it on: it is dead,
//! or does not get to run.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::notify::{Discard, Notifier, NotifyError};
use super::types::Ino;

/// An inode's number and the length of the name that follows; none: the inode's attributes.
const HEAD_SIZE: usize = 9;
/// The deadline in nanoseconds of the machine's monotonic clock.
const DEADLINE_SIZE: usize = 8;

pub struct Ledger {
    path: PathBuf,
    file: File,
    end: u64,
}

/// How a ledger looks from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// On the machine's monotonic clock.
    pub deadline: Duration,
    pub bytes: u64,
}

impl Outline {
    pub fn is_empty(&self) -> bool {
        self.bytes <= DEADLINE_SIZE as u64
    }

    /// Until the deadline.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_sub(monotonic())
    }
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// What may be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trusted<'a> {
    Attributes(Ino),
    Name(Ino, &'a [u8]),
}

impl Ledger {
    /// Opens the file, or makes it. What it holds is kept.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).open(path);
        let file = open?;
        let end = file.metadata()?.len().max(DEADLINE_SIZE as u64);
        Ok(Self { path: path.to_owned(), file, end })
    }

    /// Whoever watches leaves everything as it is for so long.
    pub fn extend(&mut self, left: Duration) -> io::Result<()> {
        let deadline = u64::try_from((monotonic() + left).as_nanos()).unwrap_or(u64::MAX);
        self.file.write_all_at(&deadline.to_le_bytes(), 0)
    }

    /// None: there is no ledger.
    pub fn outline(path: &Path) -> io::Result<Option<Outline>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut deadline = [0; DEADLINE_SIZE];
        let bytes = file.metadata()?.len();
        if bytes >= DEADLINE_SIZE as u64 {
            file.read_exact_at(&mut deadline, 0)?;
        }
        let deadline = Duration::from_nanos(u64::from_le_bytes(deadline));
        Ok(Some(Outline { deadline, bytes }))
    }

    /// To be called before the kernel is told. Names have 255 bytes at most.
    pub fn append(&mut self, trusted: Trusted<'_>) -> io::Result<()> {
        let (ino, name) = match trusted {
            Trusted::Attributes(ino) => (ino, &b""[..]),
            Trusted::Name(parent, name) => (parent, name),
        };
        let length = u8::try_from(name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut record = [0; HEAD_SIZE + u8::MAX as usize];
        record[..8].copy_from_slice(&ino.0.to_le_bytes());
        record[8] = length;
        record[HEAD_SIZE..HEAD_SIZE + name.len()].copy_from_slice(name);
        let record = &record[..HEAD_SIZE + name.len()];
        self.file.write_all_at(record, self.end)?;
        self.end += record.len() as u64;
        Ok(())
    }

    /// Nothing is trusted any more.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(DEADLINE_SIZE as u64)?;
        self.end = DEADLINE_SIZE as u64;
        Ok(())
    }

    /// Takes everything in the file at `path` back. Names may have to wait for calls in flight. No
    /// file: nothing to take back.
    pub fn recall(path: &Path, notifier: &Notifier) -> io::Result<()> {
        let bytes = content(path)?;
        recall_attributes(&bytes, notifier);
        for trusted in records(&bytes) {
            if let Trusted::Name(parent, name) = trusted {
                // One that the kernel does not take must not save the others, and a mount that is
                // gone has no caches.
                let _ = notifier.inval_entry(parent, name, Discard::Expire);
            }
        }
        Ok(())
    }

    /// The same without waiting for anything, by having all names looked up again. What is mounted below
    /// the file system is unmounted when its path is walked next.
    pub fn recall_at_once(path: &Path, notifier: &Notifier) -> io::Result<()> {
        recall_attributes(&content(path)?, notifier);
        match notifier.expire_all_entries() {
            Ok(()) | Err(NotifyError::Disconnected) => Ok(()),
            Err(NotifyError::Refused(errno)) => Err(errno.into()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Ok(bytes) => Ok(bytes.get(DEADLINE_SIZE..).unwrap_or_default().to_vec()),
        error => error,
    }
}

fn recall_attributes(bytes: &[u8], notifier: &Notifier) {
    for trusted in records(bytes) {
        if let Trusted::Attributes(ino) = trusted {
            let _ = notifier.inval_inode(ino, -1, 0);
        }
    }
}

/// A record that a crash cut short is the last one, and the kernel was never told of it.
fn records(mut bytes: &[u8]) -> impl Iterator<Item = Trusted<'_>> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<HEAD_SIZE>()?;
        let (ino, length) = head.split_first_chunk::<8>()?;
        let ino = Ino(u64::from_le_bytes(*ino));
        let name = rest.get(..usize::from(*length.first()?))?;
        bytes = &rest[name.len()..];
        Some(if name.is_empty() { Trusted::Attributes(ino) } else { Trusted::Name(ino, name) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_records_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let long = [b'x'; 255];
        let trusted = [
            Trusted::Name(Ino(1), b"a"),
            Trusted::Attributes(Ino(7)),
            Trusted::Name(Ino(2), &long),
        ];
        let mut ledger = Ledger::open(&path).unwrap();
        for trusted in trusted {
            ledger.append(trusted).unwrap();
        }
        assert!(ledger.append(Trusted::Name(Ino(1), &[b'x'; 256])).is_err());
        drop(ledger);
        let bytes = content(&path).unwrap();
        assert_eq!(records(&bytes).collect::<Vec<_>>(), trusted);
        for cut in 0..bytes.len() {
            let whole = records(&bytes[..cut]).count();
            assert_eq!(records(&bytes[..cut]).collect::<Vec<_>>(), trusted[..whole]);
        }
        let mut ledger = Ledger::open(&path).unwrap();
        ledger.append(Trusted::Attributes(Ino(9))).unwrap();
        ledger.extend(Duration::from_secs(60)).unwrap();
        assert_eq!(records(&content(&path).unwrap()).count(), 4);
        let outline = Ledger::outline(&path).unwrap().unwrap();
        assert!(!outline.is_empty());
        assert!(outline.left() > Duration::from_secs(30));
        ledger.clear().unwrap();
        assert!(Ledger::outline(&path).unwrap().unwrap().is_empty());
        ledger.append(trusted[0]).unwrap();
        assert_eq!(records(&content(&path).unwrap()).collect::<Vec<_>>(), trusted[..1]);
    }
}
