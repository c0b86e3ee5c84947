//! What the kernel was allowed to cache without a time-out, written down so that it can be taken
//! back: by the daemon, by the next one if it died, or by whoever else has the device's descriptor.
//!
//! A file of records, each appended before the kernel gets the answer that it is about. It need
//! only survive the death of a process, so it belongs on a file system in memory. What the kernel has
//! dropped by itself stays in it until it is cleared.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::notify::{Discard, Notifier, NotifyError};
use super::types::Ino;

/// An inode's number and the length of the name that follows; none: the inode's attributes.
const HEAD_SIZE: usize = 9;

pub struct Ledger {
    path: PathBuf,
    file: File,
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
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { path: path.to_owned(), file })
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
        self.file.write_all(&record[..HEAD_SIZE + name.len()])
    }

    /// Nothing is trusted any more.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// Takes everything in the file at `path` back, attributes first, for only names may have to wait for
    /// calls in flight. No file: nothing to take back.
    pub fn recall(path: &Path, notifier: &Notifier) -> io::Result<Result<(), NotifyError>> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(())),
            bytes => bytes?,
        };
        for names in [false, true] {
            for trusted in records(&bytes) {
                let told = match trusted {
                    Trusted::Attributes(ino) if !names => notifier.inval_inode(ino, -1, 0),
                    Trusted::Name(parent, name) if names => {
                        notifier.inval_entry(parent, name, Discard::Expire)
                    }
                    Trusted::Attributes(_) | Trusted::Name(..) => continue,
                };
                match told {
                    Err(NotifyError::Disconnected) => return Ok(Err(NotifyError::Disconnected)),
                    // One name that the kernel does not take must not save all others.
                    Ok(_) | Err(NotifyError::Refused(_)) => {}
                }
            }
        }
        Ok(Ok(()))
    }

    pub fn path(&self) -> &Path {
        &self.path
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
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(records(&bytes).collect::<Vec<_>>(), trusted);
        for cut in 0..bytes.len() {
            let whole = records(&bytes[..cut]).count();
            assert_eq!(records(&bytes[..cut]).collect::<Vec<_>>(), trusted[..whole]);
        }
        Ledger::open(&path).unwrap().clear().unwrap();
        assert_eq!(records(&std::fs::read(&path).unwrap()).count(), 0);
    }
}
