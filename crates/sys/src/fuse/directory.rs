//! The reply to READDIR and READDIRPLUS: records packed into the size that was asked for.

use super::encode::Fields;
use super::types::{Attr, Entry, Ino};

/// Collects directory records until the asked size is reached.
///
/// Each record has a `next_offset`: what the kernel shows as offset to go on after that record. It
/// must not be 0.
pub struct DirectoryBuffer {
    records: Fields,
    size_max: usize,
}

/// Whether a record found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    Yes,
    /// The buffer is full: answer with what is in it; the kernel asks again from here.
    Full,
}

impl DirectoryBuffer {
    /// `size` is that of the request.
    pub fn new(size: u32) -> DirectoryBuffer {
        DirectoryBuffer { records: Fields::default(), size_max: size as usize }
    }

    /// A record for READDIR. `kind` is the file type as in the upper bits of `st_mode`, or as a
    /// whole mode.
    pub fn add(&mut self, ino: Ino, next_offset: u64, mode: u32, name: &[u8]) -> Added {
        let before = self.records.len();
        self.record(ino, next_offset, mode, name);
        self.keep_if_it_fits(before)
    }

    /// A record for READDIRPLUS. Counts as a lookup of the entry's inode, unless the name is `.` or
    /// `..`.
    pub fn add_entry(&mut self, entry: &Entry, next_offset: u64, name: &[u8]) -> Added {
        let before = self.records.len();
        self.records.entry(entry);
        self.record(entry.ino, next_offset, entry.attr.mode, name);
        self.keep_if_it_fits(before)
    }

    /// A record for READDIRPLUS without a lookup: the kernel learns the name only. To be used for
    /// `.` and `..` and where the attributes are not at hand.
    pub fn add_name(&mut self, ino: Ino, next_offset: u64, mode: u32, name: &[u8]) -> Added {
        let before = self.records.len();
        self.records.zeros(40).attr(&Attr::default());
        self.record(ino, next_offset, mode, name);
        self.keep_if_it_fits(before)
    }

    pub fn is_empty(&self) -> bool {
        self.records.len() == 0
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.records.as_slice()
    }

    /// `fuse_dirent`.
    fn record(&mut self, ino: Ino, next_offset: u64, mode: u32, name: &[u8]) {
        let kind = (mode & libc::S_IFMT) >> 12;
        self.records.u64(ino.0).u64(next_offset).u32(name.len() as u32).u32(kind);
        self.records.bytes(name).align();
    }

    fn keep_if_it_fits(&mut self, before: usize) -> Added {
        if self.records.len() <= self.size_max {
            return Added::Yes;
        }
        self.records.truncate(before);
        Added::Full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_leaves_no_trace() {
        let mut buffer = DirectoryBuffer::new(64);
        assert_eq!(buffer.add(Ino(2), 1, libc::S_IFREG | 0o644, b"12345678"), Added::Yes);
        assert_eq!(buffer.as_slice().len(), 32);
        assert_eq!(buffer.add(Ino(3), 2, libc::S_IFDIR, b"123456789"), Added::Full);
        assert_eq!(buffer.as_slice().len(), 32);
        assert_eq!(buffer.add(Ino(3), 2, libc::S_IFDIR, b"1"), Added::Yes);
        assert_eq!(buffer.as_slice().len(), 64);
        assert_eq!(buffer.as_slice()[20..24], 8u32.to_ne_bytes());
        assert_eq!(buffer.as_slice()[52..56], 4u32.to_ne_bytes());
    }
}
