//! One inode: attributes, the kind's own body, and the rules by which its times grow.
//!
//! Invariants: `content_time` strictly grows with each change of content; the mtime set by a change
//! of content is `content_time`, so it differs from every mtime that an earlier change of content
//! set. Only a user can set mtime to anything else. `version` grows with every change.

use std::collections::BTreeMap;
use std::sync::Arc;

use unum_proto::ids::{Ino, LeaseId, VolumeId};
use unum_proto::tree::{Attributes, FileKind, Timestamp};

use super::acl::{self, Acl};
use super::directory::Directory;
use super::error::TreeError;
use super::extents::ExtentMap;
use super::volumes::ROOT_VOLUME;
use crate::time::{NANOS_PER_SEC, Time};

pub const MODE_MASK: u32 = 0o7777;
pub const SETUID: u32 = 0o4000;
pub const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o0010;
const CAPABILITIES: &[u8] = b"security.capability";
const BLOCK_SIZE: u64 = 512;

pub type Xattrs = BTreeMap<Arc<[u8]>, Arc<[u8]>>;

/// The kinds of files; what a message calls unspecified is none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    Character,
    Block,
}

impl Kind {
    pub fn from_proto(raw: i32) -> Result<Self, TreeError> {
        match FileKind::try_from(raw) {
            Ok(FileKind::Regular) => Ok(Self::Regular),
            Ok(FileKind::Directory) => Ok(Self::Directory),
            Ok(FileKind::Symlink) => Ok(Self::Symlink),
            Ok(FileKind::Fifo) => Ok(Self::Fifo),
            Ok(FileKind::Socket) => Ok(Self::Socket),
            Ok(FileKind::Character) => Ok(Self::Character),
            Ok(FileKind::Block) => Ok(Self::Block),
            Ok(FileKind::Unspecified) | Err(_) => Err(TreeError::Invalid),
        }
    }

    pub fn to_proto(self) -> FileKind {
        match self {
            Self::Regular => FileKind::Regular,
            Self::Directory => FileKind::Directory,
            Self::Symlink => FileKind::Symlink,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
            Self::Character => FileKind::Character,
            Self::Block => FileKind::Block,
        }
    }
}

/// What only one kind of file has.
#[derive(Clone, Debug)]
pub enum Body {
    Regular(ExtentMap),
    Directory(Directory),
    Symlink(Arc<[u8]>),
    Fifo,
    Socket,
    Character(u32),
    Block(u32),
}

/// Cheap to clone: everything large in it is shared until changed.
#[derive(Clone, Debug)]
pub struct Inode {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// Of a regular file; the others derive theirs.
    pub length: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
    pub content_time: Time,
    pub version: u64,
    pub xattrs: Option<Arc<Xattrs>>,
    pub body: Body,
    /// Has no name yet and may get one.
    pub linkable: bool,
    /// The write lease that covers it, if that is live.
    pub lease: LeaseId,
    /// Each change is durable before its call returns.
    pub strict: bool,
    /// Where it was made; never another.
    pub volume: VolumeId,
}

/// Of one inode: two states of it are the same if their versions are. Which lease covers it is no part of it.
impl PartialEq for Inode {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.version == other.version
    }
}

impl Inode {
    pub fn new(now: Time, mode: u32, uid: u32, gid: u32, body: Body) -> Self {
        let time = timestamp(now);
        Self {
            mode: mode & MODE_MASK,
            uid,
            gid,
            nlink: if matches!(body, Body::Directory(_)) { 2 } else { 1 },
            length: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            content_time: now,
            version: 1,
            xattrs: None,
            body,
            linkable: false,
            lease: LeaseId(0),
            strict: false,
            volume: ROOT_VOLUME,
        }
    }

    pub fn kind(&self) -> Kind {
        match self.body {
            Body::Regular(_) => Kind::Regular,
            Body::Directory(_) => Kind::Directory,
            Body::Symlink(_) => Kind::Symlink,
            Body::Fifo => Kind::Fifo,
            Body::Socket => Kind::Socket,
            Body::Character(_) => Kind::Character,
            Body::Block(_) => Kind::Block,
        }
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    pub fn size(&self) -> u64 {
        match &self.body {
            Body::Regular(_) => self.length,
            Body::Directory(directory) => directory.len() as u64,
            Body::Symlink(target) => target.len() as u64,
            Body::Fifo | Body::Socket | Body::Character(_) | Body::Block(_) => 0,
        }
    }

    /// Bytes that the content takes, before replication.
    pub fn allocated(&self) -> u64 {
        match &self.body {
            Body::Regular(extents) => extents.allocated(),
            _ => 0,
        }
    }

    pub fn rdev(&self) -> u32 {
        match self.body {
            Body::Character(rdev) | Body::Block(rdev) => rdev,
            _ => 0,
        }
    }

    pub fn directory(&self) -> Result<&Directory, TreeError> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(TreeError::NotDirectory),
        }
    }

    pub fn extents(&self) -> Result<&ExtentMap, TreeError> {
        match &self.body {
            Body::Regular(extents) => Ok(extents),
            Body::Directory(_) => Err(TreeError::IsDirectory),
            _ => Err(TreeError::Invalid),
        }
    }

    pub fn attributes(&self, ino: Ino) -> Attributes {
        Attributes {
            ino: ino.0,
            kind: self.kind().to_proto() as i32,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            rdev: self.rdev(),
            size: self.size(),
            blocks: self.allocated().div_ceil(BLOCK_SIZE),
            atime: Some(self.atime),
            mtime: Some(self.mtime),
            ctime: Some(self.ctime),
            btime: Some(self.btime),
            version: self.version,
            content_time: self.content_time.0,
        }
    }

    /// Something about the inode changed, but not its content.
    pub fn touch(&mut self, now: Time) {
        self.ctime = timestamp(now);
        self.version += 1;
    }

    /// The content changed: the mtime is one that no earlier content had.
    pub fn touch_content(&mut self, now: Time) {
        let mut next = Time(now.0.max(self.content_time.0.saturating_add(1)));
        if timestamp(next) == self.mtime {
            next = Time(next.0.saturating_add(1));
        }
        self.content_time = next;
        self.mtime = timestamp(next);
        self.ctime = self.mtime;
        self.version += 1;
    }

    /// What a write, a truncation or a change of owner does to a program's privileges.
    pub fn kill_privileges(&mut self) {
        if self.is_directory() {
            return;
        }
        self.mode &= !SETUID;
        if self.mode & GROUP_EXECUTE != 0 {
            self.mode &= !SETGID;
        }
        self.remove_xattr(CAPABILITIES);
    }

    /// chmod: the access list, if there is one, goes with the mode.
    pub fn change_mode(&mut self, mode: u32) {
        self.mode = mode & MODE_MASK;
        let acl = self.xattr(acl::ACCESS).map(|value| Acl::parse(value));
        if let Some(Ok(acl)) = acl {
            self.insert_xattr(acl::ACCESS, &acl.with_mode(mode).encode());
        }
    }

    pub fn insert_xattr(&mut self, name: &[u8], value: &[u8]) {
        Arc::make_mut(self.xattrs.get_or_insert_default()).insert(name.into(), value.into());
    }

    /// What is wrong with its access control lists.
    pub fn acl_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(value) = self.xattr(acl::ACCESS) {
            let agrees = |acl: Acl| !acl.is_mode() && acl.mode(self.mode) == self.mode;
            let fits = !matches!(self.body, Body::Symlink(_));
            if !fits || !Acl::parse(value).is_ok_and(agrees) {
                faults.push("its access list is malformed or not that of its mode".to_owned());
            }
        }
        if let Some(value) = self.xattr(acl::DEFAULT)
            && (!self.is_directory() || Acl::parse(value).is_err())
        {
            faults.push("its default access list is malformed or not a directory's".to_owned());
        }
        faults
    }

    pub fn xattr(&self, name: &[u8]) -> Option<&Arc<[u8]>> {
        self.xattrs.as_ref()?.get(name)
    }

    pub fn remove_xattr(&mut self, name: &[u8]) -> bool {
        let Some(xattrs) = &mut self.xattrs else { return false };
        if !xattrs.contains_key(name) {
            return false;
        }
        Arc::make_mut(xattrs).remove(name);
        if xattrs.is_empty() {
            self.xattrs = None;
        }
        true
    }
}

pub fn timestamp(time: Time) -> Timestamp {
    Timestamp { secs: (time.0 / NANOS_PER_SEC) as i64, nanos: (time.0 % NANOS_PER_SEC) as u32 }
}

/// A user's time, or a reason to refuse it.
pub fn valid_timestamp(time: Timestamp) -> Result<Timestamp, TreeError> {
    if u64::from(time.nanos) < NANOS_PER_SEC { Ok(time) } else { Err(TreeError::Invalid) }
}
