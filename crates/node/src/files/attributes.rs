//! What stat, chmod, chown, truncate, utimes, the xattr calls and statfs ask for.

use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use unum_core::tree::{ACL_ACCESS, ACL_DEFAULT};
use unum_proto::ids::Ino;
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::{
    Attributes, FileKind, NewTime, RemoveXattr, SetAttributes, SetXattr, Timestamp, XattrMode,
};
use unum_sys::fuse::{
    Attr, AttrFlags, Ino as Nodeid, SetAttr, SetTime, StatFs, Statx, Timestamp as FuseTime,
};

use super::Call;
use super::errno::FileError;

/// What `st_blksize` says, in bytes. C's stdio buffers that much, and each of its writes is a
/// commit.
const BLOCK_SIZE: u32 = 128 << 10;
const STATFS_BLOCK_SIZE: u64 = 4096;

/// Every field of statx(2) that is filled here: STATX_BASIC_STATS and STATX_BTIME.
const STATX_FILLED: u32 = 0x0fff;

impl Call<'_> {
    /// With how long the kernel may keep them.
    pub(super) async fn getattr(&self) -> Result<(Attr, Duration), FileError> {
        let (attributes, ttl) = self.attributes().await?;
        Ok((attr(&attributes), ttl))
    }

    pub(super) async fn statx(&self) -> Result<Statx, FileError> {
        let (attributes, ttl) = self.attributes().await?;
        Ok(Statx {
            mask: STATX_FILLED,
            attributes: 0,
            attributes_mask: 0,
            attr: attr(&attributes),
            btime: fuse_time(attributes.btime),
            attr_ttl: ttl,
        })
    }

    async fn attributes(&self) -> Result<(Attributes, Duration), FileError> {
        let seen = self.see_own(|tree, trust| {
            let ttl = self.files.caches.trust_attributes(trust, tree, self.ino);
            tree.attributes(self.ino).map(|attributes| (attributes, ttl))
        });
        Ok(seen.await??)
    }

    pub(super) async fn setattr(&self, set: SetAttr) -> Result<Attr, FileError> {
        let command = SetAttributes {
            ino: self.ino.0,
            mode: set.mode.map(|mode| mode & 0o7777),
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: set.atime.map(new_time),
            mtime: set.mtime.map(new_time),
            kill_privileges: set.kill_suidgid,
        };
        if set.size.is_some() {
            self.keeps_locks(self.ino)?;
        }
        Ok(attr(&self.inode_change(Command::SetAttributes(command), self.ino).await?))
    }

    pub(super) async fn truncate(&self, ino: Ino) -> Result<Attributes, FileError> {
        let command = SetAttributes { ino: ino.0, size: Some(0), ..SetAttributes::default() };
        self.inode_change(Command::SetAttributes(command), ino).await
    }

    pub(super) async fn setxattr(
        &self,
        name: Vec<u8>,
        value: Bytes,
        flags: u32,
        kill_setgid: bool,
    ) -> Result<(), FileError> {
        self.check_xattr(&name)?;
        let mode = match flags as i32 {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            0 => XattrMode::Any,
            _ => return Err(Errno::INVAL.into()),
        };
        let ino = self.ino.0;
        let mode = mode as i32;
        let command = SetXattr { ino, name: name.into(), value, mode, kill_setgid };
        self.change_seen(Command::SetXattr(command), [self.ino; 2]).await.map(drop)
    }

    pub(super) async fn removexattr(&self, name: Vec<u8>) -> Result<(), FileError> {
        self.check_xattr(&name)?;
        let command = RemoveXattr { ino: self.ino.0, name: name.into() };
        self.change_seen(Command::RemoveXattr(command), [self.ino; 2]).await.map(drop)
    }

    pub(super) async fn getxattr(&self, name: &[u8], size: u32) -> Result<Vec<u8>, FileError> {
        self.check_xattr(name)?;
        let value = self.see_own(|tree, _| tree.xattr(self.ino, name).map(<[u8]>::to_vec)).await?;
        fits(value?, size)
    }

    /// The kernel keeps access control lists beside an inode's attributes, and drops them with these. What it
    /// is not trusted with is to be dropped once it is answered, which is told by `false`.
    pub(super) async fn getacl(
        &self,
        name: &[u8],
        size: u32,
    ) -> (Result<Vec<u8>, FileError>, bool) {
        if let Err(error) = self.check_xattr(name) {
            return (Err(error), true);
        }
        let seen = self.see_own(|tree, trust| {
            let ttl = self.files.caches.trust_attributes(trust, tree, self.ino);
            (tree.xattr(self.ino, name).map(<[u8]>::to_vec), ttl != Duration::ZERO)
        });
        match seen.await {
            Ok((value, trusted)) => {
                (value.map_err(FileError::from).and_then(|value| fits(value, size)), trusted)
            }
            Err(error) => (Err(error), false),
        }
    }

    /// Access control lists that nobody obeys are worse than none.
    fn check_xattr(&self, name: &[u8]) -> Result<(), FileError> {
        match is_acl(name) && !self.files.parts.obeys_acls {
            true => Err(Errno::OPNOTSUPP.into()),
            false => Ok(()),
        }
    }

    pub(super) async fn listxattr(&self, size: u32) -> Result<Vec<u8>, FileError> {
        let names = self.see_own(|tree, _| {
            let names = tree.xattr_names(self.ino)?;
            Ok::<_, FileError>(names.flat_map(|name| [name, b"\0"]).flatten().copied().collect())
        });
        fits(names.await??, size)
    }

    pub(super) async fn statfs(&self) -> Result<StatFs, FileError> {
        let seen =
            self.see_own(|tree, _| (tree.usage(), tree.volume_of(self.ino).ok().map(|(_, v)| *v)));
        let (usage, volume) = seen.await?;
        let space = self.files.replicas().store().store().usage().map_err(|_| Errno::IO)?.disk;
        let room = super::volumes::room(&usage, volume.as_ref(), space.free_bytes);
        let free = room.free_bytes / STATFS_BLOCK_SIZE;
        Ok(StatFs {
            blocks: room.used_bytes.div_ceil(STATFS_BLOCK_SIZE) + free,
            blocks_free: free,
            blocks_available: free,
            files: room.inodes_max,
            files_free: room.inodes_max.saturating_sub(room.used_inodes),
            block_size: STATFS_BLOCK_SIZE as u32,
            fragment_size: STATFS_BLOCK_SIZE as u32,
            name_len_max: usage.name_length_max,
        })
    }
}

pub(super) fn attr(attributes: &Attributes) -> Attr {
    Attr {
        ino: Nodeid(attributes.ino),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: fuse_time(attributes.atime),
        mtime: fuse_time(attributes.mtime),
        ctime: fuse_time(attributes.ctime),
        mode: kind_bits(attributes.kind()) | attributes.mode,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: BLOCK_SIZE,
        flags: AttrFlags::NONE,
    }
}

/// The upper bits of `st_mode`.
pub(super) fn kind_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::Unspecified => 0,
        FileKind::Regular => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::Character => libc::S_IFCHR,
        FileKind::Block => libc::S_IFBLK,
    }
}

/// The kind that a mode's upper bits name. mknod(2) without any makes a regular file.
pub(super) fn kind_of(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::Regular),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::Character),
        libc::S_IFBLK => Some(FileKind::Block),
        _ => None,
    }
}

fn fuse_time(time: Option<Timestamp>) -> FuseTime {
    let time = time.unwrap_or_default();
    FuseTime { secs: time.secs, nanos: time.nanos }
}

fn new_time(time: SetTime) -> NewTime {
    match time {
        SetTime::Now => NewTime { value: None },
        SetTime::At(at) => NewTime { value: Some(Timestamp { secs: at.secs, nanos: at.nanos }) },
    }
}

pub(super) fn is_acl(name: &[u8]) -> bool {
    name == ACL_ACCESS || name == ACL_DEFAULT
}

fn fits(bytes: Vec<u8>, size: u32) -> Result<Vec<u8>, FileError> {
    if size != 0 && bytes.len() > size as usize { Err(Errno::RANGE.into()) } else { Ok(bytes) }
}
