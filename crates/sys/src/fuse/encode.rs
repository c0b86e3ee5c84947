//! From reply values to the kernel's structs.

use std::time::Duration;

use super::abi;
use super::types::{Attr, Entry, LockKind, LockRange, Opened, StatFs, Statx, Timestamp};

/// A struct being laid out field by field in the machine's byte order.
#[derive(Default)]
pub(super) struct Fields(Vec<u8>);

impl Fields {
    pub fn with_capacity(len: usize) -> Fields {
        Fields(Vec::with_capacity(len))
    }

    pub fn u16(&mut self, value: u16) -> &mut Fields {
        self.bytes(&value.to_ne_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Fields {
        self.bytes(&value.to_ne_bytes())
    }

    pub fn i32(&mut self, value: i32) -> &mut Fields {
        self.bytes(&value.to_ne_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Fields {
        self.bytes(&value.to_ne_bytes())
    }

    pub fn i64(&mut self, value: i64) -> &mut Fields {
        self.bytes(&value.to_ne_bytes())
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Fields {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn zeros(&mut self, len: usize) -> &mut Fields {
        self.0.resize(self.0.len() + len, 0);
        self
    }

    /// Zeros up to the next multiple of eight.
    pub fn align(&mut self) -> &mut Fields {
        let len = self.0.len().next_multiple_of(8);
        self.0.resize(len, 0);
        self
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    pub fn attr(&mut self, attr: &Attr) -> &mut Fields {
        self.u64(attr.ino.0).u64(attr.size).u64(attr.blocks);
        self.i64(attr.atime.secs).i64(attr.mtime.secs).i64(attr.ctime.secs);
        self.u32(attr.atime.nanos).u32(attr.mtime.nanos).u32(attr.ctime.nanos);
        self.u32(attr.mode).u32(attr.nlink).u32(attr.uid).u32(attr.gid);
        self.u32(attr.rdev).u32(attr.blksize).u32(attr.flags.0)
    }

    pub fn entry(&mut self, entry: &Entry) -> &mut Fields {
        self.u64(entry.ino.0).u64(entry.generation);
        self.u64(entry.entry_ttl.as_secs()).u64(entry.attr_ttl.as_secs());
        self.u32(entry.entry_ttl.subsec_nanos()).u32(entry.attr_ttl.subsec_nanos());
        self.attr(&entry.attr)
    }

    /// "There is no such name, and you may remember that for `ttl`."
    pub fn no_entry(&mut self, ttl: Duration) -> &mut Fields {
        self.zeros(16).u64(ttl.as_secs()).u64(0).u32(ttl.subsec_nanos()).u32(0);
        self.attr(&Attr::default())
    }

    pub fn attr_out(&mut self, attr: &Attr, ttl: Duration) -> &mut Fields {
        self.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).u32(0).attr(attr)
    }

    pub fn statx_out(&mut self, statx: &Statx) -> &mut Fields {
        let attr = &statx.attr;
        self.u64(statx.attr_ttl.as_secs()).u32(statx.attr_ttl.subsec_nanos()).u32(0).zeros(16);
        self.u32(statx.mask).u32(attr.blksize).u64(statx.attributes);
        self.u32(attr.nlink).u32(attr.uid).u32(attr.gid).u16(attr.mode as u16).u16(0);
        self.u64(attr.ino.0).u64(attr.size).u64(attr.blocks).u64(statx.attributes_mask);
        self.time(attr.atime).time(statx.btime).time(attr.ctime).time(attr.mtime);
        let rdev = libc::dev_t::from(attr.rdev);
        self.u32(libc::major(rdev)).u32(libc::minor(rdev)).u32(0).u32(0).zeros(14 * 8)
    }

    fn time(&mut self, time: Timestamp) -> &mut Fields {
        self.i64(time.secs).u32(time.nanos).u32(0)
    }

    pub fn opened(&mut self, opened: &Opened) -> &mut Fields {
        let backing = opened.backing.map_or(0, |id| id.0);
        self.u64(opened.fh.0).u32(opened.flags.0).i32(backing)
    }

    pub fn statfs(&mut self, fs: &StatFs) -> &mut Fields {
        self.u64(fs.blocks).u64(fs.blocks_free).u64(fs.blocks_available);
        self.u64(fs.files).u64(fs.files_free);
        self.u32(fs.block_size).u32(fs.name_len_max).u32(fs.fragment_size).zeros(4 + 24)
    }

    pub fn lock(&mut self, range: &LockRange) -> &mut Fields {
        let kind = match range.kind {
            LockKind::Read => libc::F_RDLCK,
            LockKind::Write => libc::F_WRLCK,
            LockKind::Unlock => libc::F_UNLCK,
        };
        self.u64(range.start).u64(range.end).i32(kind).u32(range.pid)
    }
}

/// `fuse_out_header` for a message with `body_len` bytes after it.
pub(super) fn out_header(body_len: usize, error: i32, unique: u64) -> [u8; abi::OUT_HEADER_SIZE] {
    let mut header = [0; abi::OUT_HEADER_SIZE];
    let len = (abi::OUT_HEADER_SIZE + body_len) as u32;
    header[..4].copy_from_slice(&len.to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}
