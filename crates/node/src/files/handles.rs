//! The open files of this node's mount, kept where a crash of the daemon does not reach.
//!
//! The kernel names an open file by the number it was given at open and never says again what that
//! number meant. So each open and close is appended to a journal under the run directory (tmpfs: it
//! lives as long as the machine, and so do the open files) *before* the kernel is answered. The next
//! daemon reads it and goes on.
//!
//! What is left out on purpose: syncing. The journal only has to survive the death of a process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use unum_proto::ids::Ino;

/// Open files of one mount, at most. More are refused with ENFILE.
pub const HANDLES_MAX: usize = 1 << 20;

/// The journal is written anew when it holds this many records more than twice the open files.
const RECORDS_SLACK_MAX: usize = 4096;

const RECORD_SIZE: usize = 24;
const OPENED: u32 = 0x4f50_454e;
const CLOSED: u32 = 0x434c_4f53;

/// The number by which the kernel names an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HandleId(pub u64);

/// What an open file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    pub ino: Ino,
    /// The flags of open(2).
    pub flags: u32,
}

/// The open files, and the journal that remembers them.
pub struct Handles {
    path: PathBuf,
    journal: File,
    records: usize,
    next: u64,
    open: BTreeMap<HandleId, Handle>,
    per_inode: BTreeMap<Ino, usize>,
    /// Through which it has not been told yet that changes were lost.
    failed: BTreeSet<HandleId>,
}

impl Handles {
    /// Reads the journal at `path`, if there is one, and goes on with the files that it says are
    /// open. `fresh`: the mount is new, so whatever was open is not any more.
    pub fn restore(path: &Path, fresh: bool) -> io::Result<Self> {
        let mut handles = Self {
            path: path.to_owned(),
            journal: OpenOptions::new().create(true).append(true).open(path)?,
            records: 0,
            next: 1,
            open: BTreeMap::new(),
            per_inode: BTreeMap::new(),
            failed: BTreeSet::new(),
        };
        if !fresh {
            handles.replay(&std::fs::read(path)?);
        }
        handles.rewrite()?;
        Ok(handles)
    }

    /// Opens a file; the kernel may be told of it once this has returned.
    pub fn open(&mut self, handle: Handle) -> io::Result<HandleId> {
        if self.open.len() >= HANDLES_MAX {
            return Err(io::Error::from_raw_os_error(libc_errno::ENFILE));
        }
        let id = HandleId(self.next);
        self.append(OPENED, id, handle)?;
        self.next += 1;
        self.insert(id, handle);
        Ok(id)
    }

    /// Closes a file. Tells what it was and whether it was the inode's last open file here.
    pub fn close(&mut self, id: HandleId) -> io::Result<Option<(Handle, bool)>> {
        let Some(handle) = self.remove(id) else { return Ok(None) };
        self.append(CLOSED, id, handle)?;
        if self.records > 2 * self.open.len() + RECORDS_SLACK_MAX {
            self.rewrite()?;
        }
        Ok(Some((handle, !self.is_open(handle.ino))))
    }

    /// Changes of these inodes were lost: each file that is open on one of them is to be told once.
    pub fn fail(&mut self, inodes: &BTreeSet<Ino>) {
        let open = self.open.iter().filter(|(_, handle)| inodes.contains(&handle.ino));
        self.failed.extend(open.map(|(id, _)| *id));
    }

    /// Whether an open file is to be told that changes were lost; from now on it has been.
    pub fn take_failure(&mut self, id: HandleId) -> bool {
        self.failed.remove(&id)
    }

    /// The same, for a close of one of several descriptors: whoever has another one is still to be told.
    pub fn has_failed(&self, id: HandleId) -> bool {
        self.failed.contains(&id)
    }

    pub fn is_open(&self, ino: Ino) -> bool {
        self.per_inode.contains_key(&ino)
    }

    /// The flags that it was opened with.
    pub fn flags(&self, id: HandleId) -> Option<u32> {
        self.open.get(&id).map(|handle| handle.flags)
    }

    /// Whether its inode is open only as this file.
    pub fn is_last(&self, id: HandleId) -> bool {
        let handle = self.open.get(&id);
        handle.is_some_and(|handle| self.per_inode.get(&handle.ino) == Some(&1))
    }

    /// Every inode that is open here, in order.
    pub fn inodes(&self) -> impl Iterator<Item = Ino> + '_ {
        self.per_inode.keys().copied()
    }

    fn insert(&mut self, id: HandleId, handle: Handle) {
        self.open.insert(id, handle);
        *self.per_inode.entry(handle.ino).or_default() += 1;
    }

    fn remove(&mut self, id: HandleId) -> Option<Handle> {
        let handle = self.open.remove(&id)?;
        self.failed.remove(&id);
        if let Some(count) = self.per_inode.get_mut(&handle.ino) {
            *count -= 1;
            if *count == 0 {
                self.per_inode.remove(&handle.ino);
            }
        }
        Some(handle)
    }

    fn append(&mut self, kind: u32, id: HandleId, handle: Handle) -> io::Result<()> {
        self.journal.write_all(&encode(kind, id, handle))?;
        self.records += 1;
        Ok(())
    }

    /// A record that a crash cut short is the last one, and the kernel was never told of it.
    fn replay(&mut self, bytes: &[u8]) {
        for record in bytes.chunks_exact(RECORD_SIZE) {
            let (kind, id, handle) = decode(record);
            self.next = self.next.max(id.0.saturating_add(1));
            match kind {
                OPENED => self.insert(id, handle),
                CLOSED => {
                    self.remove(id);
                }
                _ => {}
            }
        }
    }

    /// Replaces the journal by one that holds just what is open. A closed record of the newest
    /// number keeps numbers from being given twice.
    fn rewrite(&mut self) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut bytes = Vec::with_capacity((self.open.len() + 1) * RECORD_SIZE);
        let newest = HandleId(self.next - 1);
        bytes.extend(encode(CLOSED, newest, Handle { ino: Ino(0), flags: 0 }));
        if let Some(handle) = self.open.get(&newest) {
            bytes.truncate(0);
            bytes.extend(encode(OPENED, newest, *handle));
        }
        for (id, handle) in self.open.iter().filter(|(id, _)| **id != newest) {
            bytes.extend(encode(OPENED, *id, *handle));
        }
        std::fs::write(&fresh, &bytes)?;
        std::fs::rename(&fresh, &self.path)?;
        self.journal = OpenOptions::new().append(true).open(&self.path)?;
        self.records = bytes.len() / RECORD_SIZE;
        Ok(())
    }
}

fn encode(kind: u32, id: HandleId, handle: Handle) -> [u8; RECORD_SIZE] {
    let mut record = [0; RECORD_SIZE];
    record[..4].copy_from_slice(&kind.to_le_bytes());
    record[4..8].copy_from_slice(&handle.flags.to_le_bytes());
    record[8..16].copy_from_slice(&id.0.to_le_bytes());
    record[16..].copy_from_slice(&handle.ino.0.to_le_bytes());
    record
}

fn decode(record: &[u8]) -> (u32, HandleId, Handle) {
    let word =
        |at: usize| record[at..at + 4].iter().rev().fold(0, |sum, b| sum << 8 | u32::from(*b));
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    (word(0), HandleId(long(8)), Handle { ino: Ino(long(16)), flags: word(4) })
}

mod libc_errno {
    pub const ENFILE: i32 = 23;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(ino: u64) -> Handle {
        Handle { ino: Ino(ino), flags: 2 }
    }

    #[test]
    fn what_was_open_is_open_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handles");
        let mut handles = Handles::restore(&path, true).unwrap();
        let a = handles.open(handle(10)).unwrap();
        let b = handles.open(handle(10)).unwrap();
        let c = handles.open(handle(11)).unwrap();
        assert_eq!(handles.close(a).unwrap(), Some((handle(10), false)));
        assert_eq!(handles.close(c).unwrap(), Some((handle(11), true)));
        drop(handles);

        // A record that the crash cut short.
        File::options().append(true).open(&path).unwrap().write_all(&[0x4e, 0x45]).unwrap();
        let mut handles = Handles::restore(&path, false).unwrap();
        assert_eq!(handles.open.get(&b), Some(&handle(10)));
        assert_eq!(handles.inodes().collect::<Vec<_>>(), [Ino(10)]);
        let d = handles.open(handle(12)).unwrap();
        assert!(d > c, "a number is never given twice");
        assert_eq!(handles.close(b).unwrap(), Some((handle(10), true)));
    }

    #[test]
    fn a_new_mount_forgets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handles");
        Handles::restore(&path, true).unwrap().open(handle(1)).unwrap();
        assert!(Handles::restore(&path, true).unwrap().open.is_empty());
    }

    #[test]
    fn the_journal_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handles");
        let mut handles = Handles::restore(&path, true).unwrap();
        let kept = handles.open(handle(7)).unwrap();
        for n in 0..3 * RECORDS_SLACK_MAX as u64 {
            let id = handles.open(handle(n)).unwrap();
            handles.close(id).unwrap();
        }
        let size = std::fs::metadata(&path).unwrap().len() as usize;
        assert!(size < (RECORDS_SLACK_MAX + 8) * RECORD_SIZE, "{size} bytes");
        assert_eq!(Handles::restore(&path, false).unwrap().open.get(&kept), Some(&handle(7)));
    }
}
