//! What the kernel asks for: every request of the protocol as a typed, owned value.
//!
//! Names are raw bytes without the closing zero; they never hold a zero, may hold a `/` only if the
//! kernel is broken, and are not UTF-8 in general.

use bytes::Bytes;

use super::types::{Capabilities, Fh, Ino, LockOwner, LockRequest, Timestamp, Unique};

/// Who asks, and about what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub opcode: u32,
    /// The same for the first sending and all later ones.
    pub unique: Unique,
    /// The request was read before: perhaps it was carried out already, and only its answer is
    /// missing.
    pub resent: bool,
    pub ino: Ino,
    /// The caller's file system ids. `u32::MAX` for requests of the kernel itself on idmapped mounts.
    pub uid: u32,
    pub gid: u32,
    /// In the PID namespace of the mount's maker; 0 if it has no number there.
    pub pid: u32,
    /// Supplementary groups, so far as the kernel sent them: at most the parent directory's group,
    /// only with operations that create, and only if CREATE_SUPP_GROUP was agreed.
    pub groups: Vec<u32>,
    /// Security labels for a new inode, if SECURITY_CTX was agreed: name and value.
    pub security: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgotten {
    pub ino: Ino,
    /// How many of the entries given to the kernel it has dropped.
    pub lookups: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Timestamp),
}

/// Attributes to change; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    pub fh: Option<Fh>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub ctime: Option<Timestamp>,
    pub lock_owner: Option<LockOwner>,
    /// Clear setuid and (if group-executable) setgid with it.
    pub kill_suidgid: bool,
}

/// The offer that opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitOffer {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub capabilities: Capabilities,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Lookup {
        name: Vec<u8>,
    },
    /// FORGET and BATCH_FORGET. Wants no reply.
    Forget {
        nodes: Vec<Forgotten>,
    },
    Getattr {
        fh: Option<Fh>,
    },
    Statx {
        fh: Option<Fh>,
        flags: u32,
        mask: u32,
    },
    Setattr(SetAttr),
    Readlink,
    Symlink {
        name: Vec<u8>,
        target: Vec<u8>,
    },
    Mknod {
        name: Vec<u8>,
        mode: u32,
        rdev: u32,
        umask: u32,
    },
    Mkdir {
        name: Vec<u8>,
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: Vec<u8>,
    },
    Rmdir {
        name: Vec<u8>,
    },
    /// `flags` are those of renameat2.
    Rename {
        name: Vec<u8>,
        new_parent: Ino,
        new_name: Vec<u8>,
        flags: u32,
    },
    /// A new `name` in the header's directory for the inode `ino`.
    Link {
        ino: Ino,
        name: Vec<u8>,
    },
    /// `flags` are those of open(2).
    Open {
        flags: u32,
        kill_suidgid: bool,
    },
    Create {
        name: Vec<u8>,
        flags: u32,
        mode: u32,
        umask: u32,
        kill_suidgid: bool,
    },
    /// A file without a name, in the header's directory.
    Tmpfile {
        flags: u32,
        mode: u32,
        umask: u32,
    },
    Read {
        fh: Fh,
        offset: u64,
        size: u32,
        flags: u32,
        lock_owner: Option<LockOwner>,
    },
    Write(Write),
    Statfs,
    Syncfs,
    Flush {
        fh: Fh,
        lock_owner: LockOwner,
    },
    /// The last close of an open file. Ends the fcntl locks that were set through `fh`: those of a
    /// process have ended at its FLUSH, but the kernel tells of no end of an OFD lock.
    Release(Release),
    Fsync {
        fh: Fh,
        datasync: bool,
    },
    Setxattr {
        name: Vec<u8>,
        value: Bytes,
        flags: u32,
        acl_kill_sgid: bool,
    },
    /// `size` 0 asks for the size only.
    Getxattr {
        name: Vec<u8>,
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: Vec<u8>,
    },
    Opendir {
        flags: u32,
    },
    Readdir {
        fh: Fh,
        offset: u64,
        size: u32,
    },
    Readdirplus {
        fh: Fh,
        offset: u64,
        size: u32,
    },
    Releasedir {
        fh: Fh,
        flags: u32,
    },
    Fsyncdir {
        fh: Fh,
        datasync: bool,
    },
    Getlk(LockRequest),
    Setlk {
        lock: LockRequest,
        wait: bool,
    },
    Access {
        mask: u32,
    },
    Fallocate {
        fh: Fh,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        fh: Fh,
        offset: u64,
        whence: u32,
    },
    CopyFileRange(CopyFileRange),
    Bmap {
        block: u64,
        block_size: u32,
    },
    Ioctl {
        fh: Fh,
        flags: u32,
        command: u32,
        arg: u64,
        out_size: u32,
        input: Bytes,
    },
    Poll {
        fh: Fh,
        kh: u64,
        notify: bool,
        events: u32,
    },
    /// The answer to a retrieve notification. Wants no reply.
    NotifyReply {
        offset: u64,
        content: Bytes,
    },
    /// The caller of `target` got a signal. Answered by the session itself.
    Interrupt {
        target: Unique,
        resent: bool,
    },
    /// Answered by the session itself.
    Init(InitOffer),
    Destroy,
    /// An opcode without a meaning here. Answered ENOSYS by the session itself.
    Unknown {
        opcode: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub fh: Fh,
    pub offset: u64,
    pub content: Bytes,
    /// Those of open(2) of the file written through.
    pub flags: u32,
    /// It comes from the page cache: uid, gid, pid and `fh` are a guess.
    pub cached: bool,
    pub kill_suidgid: bool,
    pub lock_owner: Option<LockOwner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    pub fh: Fh,
    pub flags: u32,
    pub lock_owner: LockOwner,
    pub flush: bool,
    /// The flock that `lock_owner` holds ends here.
    pub flock_unlock: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFileRange {
    pub fh_in: Fh,
    pub offset_in: u64,
    pub ino_out: Ino,
    pub fh_out: Fh,
    pub offset_out: u64,
    pub length: u64,
    pub flags: u64,
}

impl Operation {
    /// Whether the kernel waits for an answer.
    pub fn wants_reply(&self) -> bool {
        !matches!(
            self,
            Operation::Forget { .. } | Operation::Interrupt { .. } | Operation::NotifyReply { .. }
        )
    }
}
