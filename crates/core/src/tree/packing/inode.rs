//! Inodes. Directories, whose names are packed by themselves, and files in many pieces stay as they are.

use std::sync::Arc;

use unum_proto::ids::{ChunkId, Ino, LeaseId, VolumeId};
use unum_proto::tree::Timestamp;

use super::super::extents::{Extent, ExtentMap, Source};
use super::super::inode::{Body, Inode, Xattrs, timestamp};
use crate::packed::Packing;
use crate::packed::bytes::{Reader, Writer};
use crate::time::{NANOS_PER_SEC, Time};

/// Mode and owner are those of the one before.
const SAME_OWNER: u64 = 1;
const SAME_PLACE: u64 = 1 << 1;
const SAME_LEASE: u64 = 1 << 2;
const ONE_LINK: u64 = 1 << 3;
const NEVER_READ: u64 = 1 << 4;
const MTIME_OF_CONTENT: u64 = 1 << 5;
const CTIME_OF_CONTENT: u64 = 1 << 6;
const XATTRS: u64 = 1 << 7;
const LINKABLE: u64 = 1 << 8;
/// Behind these are the forms of bodies.
const FORM_SHIFT: u32 = 9;

const EMPTY: u64 = 0;
/// All of a chunk is all of the file.
const CHUNK: u64 = 1;
const EXTENT: u64 = 2;
const SYMLINK: u64 = 3;
const FIFO: u64 = 4;
const SOCKET: u64 = 5;
const CHARACTER: u64 = 6;
const BLOCK: u64 = 7;

/// More of extended attributes stays as it is.
const XATTR_BYTES_MAX: usize = 1024;

#[derive(Debug, Default)]
pub struct Base {
    owner: (u32, u32, u32),
    place: (VolumeId, bool),
    lease: LeaseId,
    born: u64,
    chunk: ChunkId,
}

/// The times of an inode as nanoseconds since 1970, if they can be told so.
struct Times {
    atime: u64,
    mtime: u64,
    ctime: u64,
    btime: u64,
}

impl Times {
    fn of(inode: &Inode) -> Option<Self> {
        Some(Self {
            atime: nanos(inode.atime)?,
            mtime: nanos(inode.mtime)?,
            ctime: nanos(inode.ctime)?,
            btime: nanos(inode.btime)?,
        })
    }
}

fn nanos(time: Timestamp) -> Option<u64> {
    let secs = u64::try_from(time.secs).ok()?;
    secs.checked_mul(NANOS_PER_SEC)?.checked_add(time.nanos.into())
}

impl Packing for Inode {
    type Key = Ino;
    type Base = Base;
    const OPEN_MAX: usize = 1024;

    fn pack_key(key: &Ino, before: Option<&Ino>, to: &mut Writer) {
        to.number(key.0 - before.map_or(0, |ino| ino.0));
    }

    fn unpack_key(before: Option<&Ino>, from: &mut Reader<'_>) -> Ino {
        Ino(before.map_or(0, |ino| ino.0) + from.number())
    }

    fn pack_within(&mut self) {
        if let Body::Directory(directory) = &mut self.body {
            directory.pack();
        }
    }

    fn pack(&self, _: &Ino, base: &mut Base, to: &mut Writer) -> bool {
        let (Some(form), Some(times)) = (form(self), Times::of(self)) else { return false };
        let xattrs = self.xattrs.iter().flat_map(|xattrs| xattrs.iter());
        if xattrs.map(|(name, value)| name.len() + value.len()).sum::<usize>() > XATTR_BYTES_MAX {
            return false;
        }
        let content = self.content_time.0;
        let owner = (self.mode, self.uid, self.gid);
        let place = (self.volume, self.strict);
        let flags = [
            (SAME_OWNER, owner == base.owner),
            (SAME_PLACE, place == base.place),
            (SAME_LEASE, self.lease == base.lease),
            (ONE_LINK, self.nlink == 1),
            (NEVER_READ, times.atime == times.btime),
            (MTIME_OF_CONTENT, times.mtime == content),
            (CTIME_OF_CONTENT, times.ctime == content),
            (XATTRS, self.xattrs.is_some()),
            (LINKABLE, self.linkable),
        ];
        let flags = flags.into_iter().filter(|(_, set)| *set).fold(0, |all, (bit, _)| all | bit);
        to.number(flags | form << FORM_SHIFT);
        if flags & SAME_OWNER == 0 {
            base.owner = owner;
            [self.mode, self.uid, self.gid].into_iter().for_each(|part| to.number(part.into()));
        }
        if flags & SAME_PLACE == 0 {
            base.place = place;
            to.number(u64::from(self.volume.0) << 1 | u64::from(self.strict));
        }
        if flags & SAME_LEASE == 0 {
            base.lease = self.lease;
            to.number(self.lease.0);
        }
        if flags & ONE_LINK == 0 {
            to.number(self.nlink.into());
        }
        to.distance(base.born, times.btime);
        base.born = times.btime;
        to.distance(times.btime, content);
        if flags & NEVER_READ == 0 {
            to.distance(times.btime, times.atime);
        }
        if flags & MTIME_OF_CONTENT == 0 {
            to.distance(content, times.mtime);
        }
        if flags & CTIME_OF_CONTENT == 0 {
            to.distance(content, times.ctime);
        }
        to.number(self.version);
        if let Some(xattrs) = &self.xattrs {
            to.number(xattrs.len() as u64);
            xattrs.iter().for_each(|(name, value)| {
                to.bytes(name);
                to.bytes(value);
            });
        }
        pack_body(self, form, base, to);
        true
    }

    fn unpack(_: &Ino, base: &mut Base, from: &mut Reader<'_>) -> Self {
        let head = from.number();
        let (flags, form) = (head & ((1 << FORM_SHIFT) - 1), head >> FORM_SHIFT);
        if flags & SAME_OWNER == 0 {
            base.owner = (from.number32(), from.number32(), from.number32());
        }
        if flags & SAME_PLACE == 0 {
            let place = from.number();
            base.place = (VolumeId((place >> 1) as u32), place & 1 != 0);
        }
        if flags & SAME_LEASE == 0 {
            base.lease = LeaseId(from.number());
        }
        let nlink = if flags & ONE_LINK == 0 { from.number32() } else { 1 };
        let btime = from.distance(base.born);
        base.born = btime;
        let content = from.distance(btime);
        let atime = if flags & NEVER_READ == 0 { from.distance(btime) } else { btime };
        let mtime = if flags & MTIME_OF_CONTENT == 0 { from.distance(content) } else { content };
        let ctime = if flags & CTIME_OF_CONTENT == 0 { from.distance(content) } else { content };
        let version = from.number();
        let xattrs = (flags & XATTRS != 0).then(|| {
            let count = from.number();
            Arc::new(
                (0..count).map(|_| (from.bytes().into(), from.bytes().into())).collect::<Xattrs>(),
            )
        });
        let (length, body) = unpack_body(form, base, from);
        let (mode, uid, gid) = base.owner;
        let (volume, strict) = base.place;
        Self {
            mode,
            uid,
            gid,
            nlink,
            length,
            atime: timestamp(Time(atime)),
            mtime: timestamp(Time(mtime)),
            ctime: timestamp(Time(ctime)),
            btime: timestamp(Time(btime)),
            content_time: Time(content),
            version,
            xattrs,
            body,
            linkable: flags & LINKABLE != 0,
            lease: base.lease,
            strict,
            volume,
        }
    }
}

/// None: it is not packed.
fn form(inode: &Inode) -> Option<u64> {
    match &inode.body {
        Body::Directory(_) => None,
        Body::Regular(map) => match (map.len(), map.iter().next()) {
            (0, _) => Some(EMPTY),
            (1, Some(extent)) => {
                let whole = extent.offset == 0
                    && extent.length == inode.length
                    && extent.source.is_some_and(|source| source.offset == 0);
                Some(if whole { CHUNK } else { EXTENT })
            }
            _ => None,
        },
        Body::Symlink(_) => Some(SYMLINK),
        Body::Fifo => Some(FIFO),
        Body::Socket => Some(SOCKET),
        Body::Character(_) => Some(CHARACTER),
        Body::Block(_) => Some(BLOCK),
    }
}

fn pack_body(inode: &Inode, form: u64, base: &mut Base, to: &mut Writer) {
    match &inode.body {
        Body::Regular(map) => {
            to.number(inode.length);
            let Some(extent) = map.iter().next() else { return };
            if form == EXTENT {
                to.number(extent.offset);
                to.number(extent.length);
                // Behind the offset, so that zero is left for what only is allocated.
                to.number(extent.source.map_or(0, |source| u64::from(source.offset) + 1));
            }
            if let Some(source) = extent.source {
                to.distance(base.chunk.lane, source.chunk.lane);
                to.distance(base.chunk.seq, source.chunk.seq);
                base.chunk = source.chunk;
            }
        }
        Body::Symlink(target) => to.bytes(target),
        Body::Character(rdev) | Body::Block(rdev) => to.number((*rdev).into()),
        Body::Directory(_) | Body::Fifo | Body::Socket => {}
    }
}

/// A body, and the length of a regular file.
fn unpack_body(form: u64, base: &mut Base, from: &mut Reader<'_>) -> (u64, Body) {
    let body = match form {
        SYMLINK => Body::Symlink(from.bytes().into()),
        FIFO => Body::Fifo,
        SOCKET => Body::Socket,
        CHARACTER => Body::Character(from.number32()),
        BLOCK => Body::Block(from.number32()),
        _ => {
            let length = from.number();
            return (length, Body::Regular(unpack_map(form, length, base, from)));
        }
    };
    (0, body)
}

fn unpack_map(form: u64, file: u64, base: &mut Base, from: &mut Reader<'_>) -> ExtentMap {
    let mut map = ExtentMap::default();
    if form == EMPTY {
        return map;
    }
    let (offset, length, place) = match form {
        CHUNK => (0, file, 1),
        _ => (from.number(), from.number(), from.number()),
    };
    let source = place.checked_sub(1).map(|offset| {
        let lane = from.distance(base.chunk.lane);
        base.chunk = ChunkId { lane, seq: from.distance(base.chunk.seq) };
        Source { chunk: base.chunk, offset: offset as u32 }
    });
    map.insert(Extent { offset, length, source });
    map
}
