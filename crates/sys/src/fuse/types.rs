//! The values that requests and replies are made of.
//!
//! Invariant: a bit that the kernel sends and that has no name here is kept, never dropped.

use std::fmt;
use std::time::Duration;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// The kernel's name of an inode on this mount ("nodeid"). The root is 1.
    Ino(u64)
);
number!(
    /// What `open` answered and the kernel shows again with each use of that open file.
    Fh(u64)
);
number!(
    /// Number of a request on its connection. The kernel never gives it twice, so it names a
    /// request across daemons, also when it is sent again.
    Unique(u64)
);
number!(
    /// Who holds a lock: an opaque number that stands for a process (fcntl) or an open file (flock).
    LockOwner(u64)
);
number!(
    /// A backing file registered for passthrough. Positive.
    BackingId(i32)
);

impl Ino {
    pub const ROOT: Ino = Ino(1);
}

/// A set of bits whose unknown members are kept.
macro_rules! bits {
    ($(#[$doc:meta])* $name:ident($int:ty) { $($(#[$bit_doc:meta])* $bit:ident = $shift:expr;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$bit_doc])* pub const $bit: $name = $name(1 << $shift);)*
            pub const NONE: $name = $name(0);

            pub const fn contains(self, other: $name) -> bool {
                self.0 & other.0 == other.0
            }

            #[must_use]
            pub const fn with(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }

            #[must_use]
            pub const fn without(self, other: $name) -> $name {
                $name(self.0 & !other.0)
            }
        }

        impl std::ops::BitOr for $name {
            type Output = $name;
            fn bitor(self, other: $name) -> $name {
                self.with(other)
            }
        }

        impl std::ops::BitAnd for $name {
            type Output = $name;
            fn bitand(self, other: $name) -> $name {
                $name(self.0 & other.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut left = self.0;
                let mut set = f.debug_set();
                $(if left & (1 << $shift) != 0 {
                    left &= !(1 << $shift);
                    set.entry(&format_args!(stringify!($bit)));
                })*
                if left != 0 {
                    set.entry(&format_args!("{left:#x}"));
                }
                set.finish()
            }
        }
    };
}

bits!(
    /// What kernel and daemon agree on at INIT.
    Capabilities(u64) {
        ASYNC_READ = 0;
        /// fcntl locks are asked of the daemon instead of being kept by the kernel.
        POSIX_LOCKS = 1;
        /// O_TRUNC comes with OPEN instead of as a SETATTR after it.
        ATOMIC_O_TRUNC = 3;
        EXPORT_SUPPORT = 4;
        BIG_WRITES = 5;
        /// The umask is not applied by the kernel but sent with the request.
        DONT_MASK = 6;
        SPLICE_WRITE = 7;
        SPLICE_MOVE = 8;
        SPLICE_READ = 9;
        /// flock locks are asked of the daemon instead of being kept by the kernel.
        FLOCK_LOCKS = 10;
        IOCTL_DIR = 11;
        /// Cached pages are dropped when mtime or size of a fetched attribute changed.
        AUTO_INVAL_DATA = 12;
        READDIRPLUS = 13;
        READDIRPLUS_AUTO = 14;
        ASYNC_DIO = 15;
        WRITEBACK_CACHE = 16;
        NO_OPEN_SUPPORT = 17;
        /// Lookups and readdirs of one directory may run at the same time.
        PARALLEL_DIROPS = 18;
        HANDLE_KILLPRIV = 19;
        POSIX_ACL = 20;
        ABORT_ERROR = 21;
        MAX_PAGES = 22;
        CACHE_SYMLINKS = 23;
        NO_OPENDIR_SUPPORT = 24;
        EXPLICIT_INVAL_DATA = 25;
        MAP_ALIGNMENT = 26;
        SUBMOUNTS = 27;
        /// The daemon clears setuid, setgid and capabilities on write, chown and truncate.
        HANDLE_KILLPRIV_V2 = 28;
        /// SETXATTR comes with its longer struct.
        SETXATTR_EXT = 29;
        INIT_EXT = 30;
        SECURITY_CTX = 32;
        HAS_INODE_DAX = 33;
        /// Create, mkdir, mknod, symlink and tmpfile carry the caller's group if it matters.
        CREATE_SUPP_GROUP = 34;
        HAS_EXPIRE_ONLY = 35;
        /// mmap(MAP_SHARED) is allowed on files opened with DIRECT_IO.
        DIRECT_IO_ALLOW_MMAP = 36;
        PASSTHROUGH = 37;
        NO_EXPORT_SUPPORT = 38;
        /// The kernel understands the notification that sends in-flight requests again.
        HAS_RESEND = 39;
        ALLOW_IDMAP = 40;
        OVER_IO_URING = 41;
        REQUEST_TIMEOUT = 42;
    }
);

bits!(
    /// How the kernel shall treat an open file: the reply to OPEN, CREATE, OPENDIR and TMPFILE.
    OpenFlags(u32) {
        /// Bypass the page cache.
        DIRECT_IO = 0;
        /// Keep the pages that are cached from earlier opens.
        KEEP_CACHE = 1;
        NONSEEKABLE = 2;
        /// Cache the listing of this directory.
        CACHE_DIR = 3;
        STREAM = 4;
        /// No FLUSH at close.
        NOFLUSH = 5;
        PARALLEL_DIRECT_WRITES = 6;
        /// Read and write go to the backing file named in the reply.
        PASSTHROUGH = 7;
    }
);

bits!(
    /// Properties of an inode in [`Attr::flags`].
    AttrFlags(u32) {
        SUBMOUNT = 0;
        DAX = 1;
    }
);

/// A point in time as the kernel counts it. `nanos` is below 1,000,000,000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    pub secs: i64,
    pub nanos: u32,
}

/// An inode's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// File type and permission bits, as in `st_mode`.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
    pub flags: AttrFlags,
}

/// A name resolved: the reply to LOOKUP and to everything that makes a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub ino: Ino,
    /// With `ino` unique for as long as the mount lives.
    pub generation: u64,
    pub attr: Attr,
    /// How long the kernel may trust the name without asking.
    pub entry_ttl: Duration,
    /// How long the kernel may trust the attributes without asking.
    pub attr_ttl: Duration,
}

/// An open file: the reply to OPEN, OPENDIR, CREATE and TMPFILE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    pub fh: Fh,
    pub flags: OpenFlags,
    /// Must be there exactly when `flags` has PASSTHROUGH.
    pub backing: Option<BackingId>,
}

/// What `statx` tells beyond [`Attr`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statx {
    /// Which fields of `attr` and `btime` are filled (`STATX_*`).
    pub mask: u32,
    pub attributes: u64,
    pub attributes_mask: u64,
    pub attr: Attr,
    pub btime: Timestamp,
    pub attr_ttl: Duration,
}

/// The reply to STATFS, as in `statvfs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
    pub fragment_size: u32,
    pub name_len_max: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockKind {
    Read,
    Write,
    Unlock,
}

/// The two families of locks, which do not see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockFamily {
    /// `flock`: of the whole file, owned by an open file.
    Flock,
    /// `fcntl`: of a range, owned by a process or (OFD) by an open file.
    Fcntl,
}

/// A range and what is wanted of or known about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    pub start: u64,
    /// Inclusive; `i64::MAX` is the end of the file wherever it goes.
    pub end: u64,
    pub kind: LockKind,
    /// The process that asks for it or holds it; 0 if it lives elsewhere.
    pub pid: u32,
}

/// The arguments of GETLK and SETLK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    pub fh: Fh,
    pub owner: LockOwner,
    pub family: LockFamily,
    pub range: LockRange,
}
