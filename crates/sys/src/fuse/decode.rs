//! From the bytes of one request to a [`Header`] and an [`Operation`].
//!
//! Total: any bytes give a value or an error, never a panic. Longer structs than ours (a newer
//! kernel) are accepted, shorter ones are not.

use bytes::Bytes;
use thiserror::Error;

use super::abi::{self, opcode};
use super::operation::{
    CopyFileRange, Forgotten, Header, InitOffer, Operation, Release, SetAttr, SetTime, Write,
};
use super::types::{
    Capabilities, Fh, Ino, LockFamily, LockKind, LockOwner, LockRange, LockRequest, Timestamp,
    Unique,
};

/// A request that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Not even a header: there is nobody to answer.
    #[error("a FUSE request of {len} bytes is no request: it names no number to answer")]
    NoHeader { len: usize },
    /// The header can be read, so the request can be refused.
    #[error("FUSE request {raw_unique:#x} with opcode {opcode} is malformed")]
    Malformed { raw_unique: u64, opcode: u32 },
}

/// What the connection's agreement changes about the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// SETXATTR comes with its long struct.
    pub setxattr_ext: bool,
}

/// A decoded request; `raw_unique` is the number to answer to, with the kernel's own bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    pub raw_unique: u64,
    pub header: Header,
    pub operation: Operation,
}

/// Decodes one request. Payloads are slices of `message`, not copies.
pub fn decode(message: &Bytes, dialect: Dialect) -> Result<Decoded, DecodeError> {
    let mut fields = Fields::new(message, 0, message.len());
    let no_header = DecodeError::NoHeader { len: message.len() };
    let fixed = Fixed::read(&mut fields).ok_or(no_header)?;
    let malformed = DecodeError::Malformed { raw_unique: fixed.unique, opcode: fixed.opcode };
    decode_rest(message, fixed, dialect).ok_or(malformed)
}

/// `fuse_in_header`.
#[derive(Clone, Copy)]
struct Fixed {
    len: u32,
    opcode: u32,
    unique: u64,
    nodeid: u64,
    uid: u32,
    gid: u32,
    pid: u32,
    extension_words: u16,
}

impl Fixed {
    fn read(from: &mut Fields<'_>) -> Option<Fixed> {
        let fixed = Fixed {
            len: from.u32()?,
            opcode: from.u32()?,
            unique: from.u64()?,
            nodeid: from.u64()?,
            uid: from.u32()?,
            gid: from.u32()?,
            pid: from.u32()?,
            extension_words: from.u16()?,
        };
        from.skip(2)?;
        Some(fixed)
    }
}

fn decode_rest(message: &Bytes, fixed: Fixed, dialect: Dialect) -> Option<Decoded> {
    if fixed.len as usize != message.len() {
        return None;
    }
    let extension_len = usize::from(fixed.extension_words) * 8;
    let body_end = message.len().checked_sub(extension_len)?;
    let body_len = body_end.checked_sub(abi::IN_HEADER_SIZE)?;
    let mut header = Header {
        opcode: fixed.opcode,
        unique: Unique(fixed.unique & !abi::UNIQUE_RESEND),
        resent: fixed.unique & abi::UNIQUE_RESEND != 0,
        ino: Ino(fixed.nodeid),
        uid: fixed.uid,
        gid: fixed.gid,
        pid: fixed.pid,
        groups: Vec::new(),
        security: Vec::new(),
    };
    read_extensions(&mut Fields::new(message, body_end, extension_len), &mut header)?;
    let mut body = Fields::new(message, abi::IN_HEADER_SIZE, body_len);
    let operation = read_operation(&mut body, &header, dialect)?;
    Some(Decoded { raw_unique: fixed.unique, header, operation })
}

fn read_extensions(from: &mut Fields<'_>, header: &mut Header) -> Option<()> {
    while from.left() > 0 {
        let size = from.u32()? as usize;
        let kind = from.u32()?;
        let mut content = from.part(size.checked_sub(8)?)?;
        match kind {
            0..=abi::EXT_SECCTX_MAX => read_security(&mut content, kind, header)?,
            abi::EXT_GROUPS => read_groups(&mut content, header)?,
            _ => {}
        }
    }
    Some(())
}

fn read_groups(from: &mut Fields<'_>, header: &mut Header) -> Option<()> {
    for _ in 0..from.u32()? {
        header.groups.push(from.u32()?);
    }
    Some(())
}

/// The type of a security extension is the number of labels in it.
fn read_security(from: &mut Fields<'_>, labels: u32, header: &mut Header) -> Option<()> {
    for _ in 0..labels {
        let value_len = from.u32()? as usize;
        from.skip(4)?;
        let name = from.name()?;
        let value = from.take(value_len)?.to_vec();
        header.security.push((name, value));
    }
    Some(())
}

fn read_operation(from: &mut Fields<'_>, header: &Header, dialect: Dialect) -> Option<Operation> {
    Some(match header.opcode {
        opcode::LOOKUP => Operation::Lookup { name: from.name()? },
        opcode::FORGET => {
            Operation::Forget { nodes: vec![Forgotten { ino: header.ino, lookups: from.u64()? }] }
        }
        opcode::BATCH_FORGET => read_batch_forget(from)?,
        opcode::GETATTR => {
            let flags = from.u32()?;
            from.skip(4)?;
            let fh = Fh(from.u64()?);
            Operation::Getattr { fh: (flags & abi::GETATTR_FH != 0).then_some(fh) }
        }
        opcode::STATX => read_statx(from)?,
        opcode::SETATTR => Operation::Setattr(read_setattr(from)?),
        opcode::READLINK => Operation::Readlink,
        opcode::SYMLINK => Operation::Symlink { name: from.name()?, target: from.name()? },
        opcode::MKNOD => {
            let (mode, rdev, umask) = (from.u32()?, from.u32()?, from.u32()?);
            from.skip(4)?;
            Operation::Mknod { name: from.name()?, mode, rdev, umask }
        }
        opcode::MKDIR => {
            let (mode, umask) = (from.u32()?, from.u32()?);
            Operation::Mkdir { name: from.name()?, mode, umask }
        }
        opcode::UNLINK => Operation::Unlink { name: from.name()? },
        opcode::RMDIR => Operation::Rmdir { name: from.name()? },
        opcode::RENAME => {
            let new_parent = Ino(from.u64()?);
            read_rename(from, new_parent, 0)?
        }
        opcode::RENAME2 => {
            let (new_parent, flags) = (Ino(from.u64()?), from.u32()?);
            from.skip(4)?;
            read_rename(from, new_parent, flags)?
        }
        opcode::LINK => Operation::Link { ino: Ino(from.u64()?), name: from.name()? },
        opcode::OPEN => {
            let (flags, open_flags) = (from.u32()?, from.u32()?);
            Operation::Open { flags, kill_suidgid: open_flags & abi::OPEN_KILL_SUIDGID != 0 }
        }
        opcode::CREATE => read_create(from)?,
        opcode::TMPFILE => {
            let (flags, mode, umask) = (from.u32()?, from.u32()?, from.u32()?);
            Operation::Tmpfile { flags, mode, umask }
        }
        opcode::READ => {
            let args = ReadArgs::read(from)?;
            let owned = args.read_flags & abi::READ_LOCKOWNER != 0;
            Operation::Read {
                fh: args.fh,
                offset: args.offset,
                size: args.size,
                flags: args.flags,
                lock_owner: owned.then_some(args.lock_owner),
            }
        }
        opcode::WRITE => Operation::Write(read_write(from)?),
        opcode::STATFS => Operation::Statfs,
        opcode::SYNCFS => Operation::Syncfs,
        opcode::FLUSH => {
            let fh = Fh(from.u64()?);
            from.skip(8)?;
            Operation::Flush { fh, lock_owner: LockOwner(from.u64()?) }
        }
        opcode::RELEASE => Operation::Release(read_release(from)?),
        opcode::RELEASEDIR => {
            let release = read_release(from)?;
            Operation::Releasedir { fh: release.fh, flags: release.flags }
        }
        opcode::FSYNC => {
            let (fh, datasync) = read_fsync(from)?;
            Operation::Fsync { fh, datasync }
        }
        opcode::FSYNCDIR => {
            let (fh, datasync) = read_fsync(from)?;
            Operation::Fsyncdir { fh, datasync }
        }
        opcode::SETXATTR => read_setxattr(from, dialect)?,
        opcode::GETXATTR => {
            let size = from.u32()?;
            from.skip(4)?;
            Operation::Getxattr { name: from.name()?, size }
        }
        opcode::LISTXATTR => Operation::Listxattr { size: from.u32()? },
        opcode::REMOVEXATTR => Operation::Removexattr { name: from.name()? },
        opcode::OPENDIR => Operation::Opendir { flags: from.u32()? },
        opcode::READDIR => {
            let args = ReadArgs::read(from)?;
            Operation::Readdir { fh: args.fh, offset: args.offset, size: args.size }
        }
        opcode::READDIRPLUS => {
            let args = ReadArgs::read(from)?;
            Operation::Readdirplus { fh: args.fh, offset: args.offset, size: args.size }
        }
        opcode::GETLK => Operation::Getlk(read_lock(from)?),
        opcode::SETLK => Operation::Setlk { lock: read_lock(from)?, wait: false },
        opcode::SETLKW => Operation::Setlk { lock: read_lock(from)?, wait: true },
        opcode::ACCESS => Operation::Access { mask: from.u32()? },
        opcode::FALLOCATE => Operation::Fallocate {
            fh: Fh(from.u64()?),
            offset: from.u64()?,
            length: from.u64()?,
            mode: from.u32()?,
        },
        opcode::LSEEK => {
            Operation::Lseek { fh: Fh(from.u64()?), offset: from.u64()?, whence: from.u32()? }
        }
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            Operation::CopyFileRange(read_copy(from)?)
        }
        opcode::BMAP => Operation::Bmap { block: from.u64()?, block_size: from.u32()? },
        opcode::IOCTL => read_ioctl(from)?,
        opcode::POLL => read_poll(from)?,
        opcode::NOTIFY_REPLY => {
            from.skip(8)?;
            let (offset, size) = (from.u64()?, from.u32()? as usize);
            from.skip(20)?;
            Operation::NotifyReply { offset, content: from.payload(size)? }
        }
        opcode::INTERRUPT => {
            let raw = from.u64()?;
            Operation::Interrupt {
                target: Unique(raw & !abi::UNIQUE_RESEND),
                resent: raw & abi::UNIQUE_RESEND != 0,
            }
        }
        opcode::INIT => Operation::Init(read_init(from)?),
        opcode::DESTROY => Operation::Destroy,
        opcode => Operation::Unknown { opcode },
    })
}

fn read_batch_forget(from: &mut Fields<'_>) -> Option<Operation> {
    let count = from.u32()?;
    from.skip(4)?;
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(Forgotten { ino: Ino(from.u64()?), lookups: from.u64()? });
    }
    Some(Operation::Forget { nodes })
}

fn read_statx(from: &mut Fields<'_>) -> Option<Operation> {
    let getattr_flags = from.u32()?;
    from.skip(4)?;
    let (fh, flags, mask) = (Fh(from.u64()?), from.u32()?, from.u32()?);
    let fh = (getattr_flags & abi::GETATTR_FH != 0).then_some(fh);
    Some(Operation::Statx { fh, flags, mask })
}

fn read_setattr(from: &mut Fields<'_>) -> Option<SetAttr> {
    let valid = from.u32()?;
    from.skip(4)?;
    let (fh, size, lock_owner) = (from.u64()?, from.u64()?, from.u64()?);
    let (atime, mtime, ctime) = (from.i64()?, from.i64()?, from.i64()?);
    let (atime_nanos, mtime_nanos, ctime_nanos) = (from.u32()?, from.u32()?, from.u32()?);
    let mode = from.u32()?;
    from.skip(4)?;
    let (uid, gid) = (from.u32()?, from.u32()?);
    from.skip(4)?;
    let has = |bit: u32| valid & bit != 0;
    let time = |bit, now_bit, secs, nanos| match (has(bit), has(now_bit)) {
        (false, _) => None,
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(Timestamp { secs, nanos })),
    };
    use abi::fattr;
    Some(SetAttr {
        fh: has(fattr::FH).then_some(Fh(fh)),
        mode: has(fattr::MODE).then_some(mode),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nanos),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nanos),
        ctime: has(fattr::CTIME).then_some(Timestamp { secs: ctime, nanos: ctime_nanos }),
        lock_owner: has(fattr::LOCKOWNER).then_some(LockOwner(lock_owner)),
        kill_suidgid: has(fattr::KILL_SUIDGID),
    })
}

fn read_rename(from: &mut Fields<'_>, new_parent: Ino, flags: u32) -> Option<Operation> {
    Some(Operation::Rename { name: from.name()?, new_parent, new_name: from.name()?, flags })
}

fn read_create(from: &mut Fields<'_>) -> Option<Operation> {
    let (flags, mode, umask, open_flags) = (from.u32()?, from.u32()?, from.u32()?, from.u32()?);
    let kill_suidgid = open_flags & abi::OPEN_KILL_SUIDGID != 0;
    Some(Operation::Create { name: from.name()?, flags, mode, umask, kill_suidgid })
}

/// `fuse_read_in`, which READDIR shares.
struct ReadArgs {
    fh: Fh,
    offset: u64,
    size: u32,
    read_flags: u32,
    lock_owner: LockOwner,
    flags: u32,
}

impl ReadArgs {
    fn read(from: &mut Fields<'_>) -> Option<ReadArgs> {
        let args = ReadArgs {
            fh: Fh(from.u64()?),
            offset: from.u64()?,
            size: from.u32()?,
            read_flags: from.u32()?,
            lock_owner: LockOwner(from.u64()?),
            flags: from.u32()?,
        };
        from.skip(4)?;
        Some(args)
    }
}

fn read_write(from: &mut Fields<'_>) -> Option<Write> {
    let (fh, offset, size) = (Fh(from.u64()?), from.u64()?, from.u32()? as usize);
    let (write_flags, lock_owner, flags) = (from.u32()?, LockOwner(from.u64()?), from.u32()?);
    from.skip(4)?;
    Some(Write {
        fh,
        offset,
        content: from.payload(size)?,
        flags,
        cached: write_flags & abi::WRITE_CACHE != 0,
        kill_suidgid: write_flags & abi::WRITE_KILL_SUIDGID != 0,
        lock_owner: (write_flags & abi::WRITE_LOCKOWNER != 0).then_some(lock_owner),
    })
}

fn read_release(from: &mut Fields<'_>) -> Option<Release> {
    let (fh, flags, release_flags) = (Fh(from.u64()?), from.u32()?, from.u32()?);
    Some(Release {
        fh,
        flags,
        lock_owner: LockOwner(from.u64()?),
        flush: release_flags & abi::RELEASE_FLUSH != 0,
        flock_unlock: release_flags & abi::RELEASE_FLOCK_UNLOCK != 0,
    })
}

fn read_fsync(from: &mut Fields<'_>) -> Option<(Fh, bool)> {
    Some((Fh(from.u64()?), from.u32()? & abi::FSYNC_FDATASYNC != 0))
}

fn read_setxattr(from: &mut Fields<'_>, dialect: Dialect) -> Option<Operation> {
    let (size, flags) = (from.u32()? as usize, from.u32()?);
    let mut more = 0;
    if dialect.setxattr_ext {
        more = from.u32()?;
        from.skip(4)?;
    }
    let acl_kill_sgid = more & abi::SETXATTR_ACL_KILL_SGID != 0;
    Some(Operation::Setxattr {
        name: from.name()?,
        value: from.payload(size)?,
        flags,
        acl_kill_sgid,
    })
}

fn read_lock(from: &mut Fields<'_>) -> Option<LockRequest> {
    let (fh, owner) = (Fh(from.u64()?), LockOwner(from.u64()?));
    let (start, end, kind, pid) = (from.u64()?, from.u64()?, from.u32()?, from.u32()?);
    let flags = from.u32()?;
    let family = match flags & abi::LK_FLOCK {
        0 => LockFamily::Fcntl,
        _ => LockFamily::Flock,
    };
    let range = LockRange { start, end, kind: lock_kind(kind)?, pid };
    Some(LockRequest { fh, owner, family, range })
}

fn lock_kind(number: u32) -> Option<LockKind> {
    match i32::try_from(number).ok()? {
        libc::F_RDLCK => Some(LockKind::Read),
        libc::F_WRLCK => Some(LockKind::Write),
        libc::F_UNLCK => Some(LockKind::Unlock),
        _ => None,
    }
}

fn read_copy(from: &mut Fields<'_>) -> Option<CopyFileRange> {
    Some(CopyFileRange {
        fh_in: Fh(from.u64()?),
        offset_in: from.u64()?,
        ino_out: Ino(from.u64()?),
        fh_out: Fh(from.u64()?),
        offset_out: from.u64()?,
        length: from.u64()?,
        flags: from.u64()?,
    })
}

fn read_ioctl(from: &mut Fields<'_>) -> Option<Operation> {
    let (fh, flags, command) = (Fh(from.u64()?), from.u32()?, from.u32()?);
    let (arg, in_size, out_size) = (from.u64()?, from.u32()? as usize, from.u32()?);
    Some(Operation::Ioctl { fh, flags, command, arg, out_size, input: from.payload(in_size)? })
}

fn read_poll(from: &mut Fields<'_>) -> Option<Operation> {
    let (fh, kh, flags, events) = (Fh(from.u64()?), from.u64()?, from.u32()?, from.u32()?);
    Some(Operation::Poll { fh, kh, notify: flags & abi::POLL_SCHEDULE_NOTIFY != 0, events })
}

fn read_init(from: &mut Fields<'_>) -> Option<InitOffer> {
    let (major, minor, max_readahead) = (from.u32()?, from.u32()?, from.u32()?);
    let mut capabilities = u64::from(from.u32()?);
    if capabilities & abi::INIT_EXT != 0 {
        capabilities |= u64::from(from.u32()?) << 32;
    }
    Some(InitOffer { major, minor, max_readahead, capabilities: Capabilities(capabilities) })
}

/// A cursor over a part of the message. Every step says whether there was enough.
struct Fields<'a> {
    message: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Fields<'a> {
    /// `start` and `start + len` must lie in the message; if not, the cursor is empty.
    fn new(message: &'a Bytes, start: usize, len: usize) -> Fields<'a> {
        let end = start.saturating_add(len).min(message.len());
        Fields { message, at: start.min(end), end }
    }

    fn left(&self) -> usize {
        self.end - self.at
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.end)?;
        let taken = self.message.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn skip(&mut self, len: usize) -> Option<()> {
        self.take(len).map(|_| ())
    }

    fn part(&mut self, len: usize) -> Option<Fields<'a>> {
        let start = self.at;
        self.skip(len)?;
        Some(Fields::new(self.message, start, len))
    }

    fn payload(&mut self, len: usize) -> Option<Bytes> {
        let start = self.at;
        self.skip(len)?;
        Some(self.message.slice(start..start + len))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_ne_bytes)
    }

    /// Bytes up to a zero, which is consumed. An empty name is no name.
    fn name(&mut self) -> Option<Vec<u8>> {
        let rest = self.message.get(self.at..self.end)?;
        let len = rest.iter().position(|byte| *byte == 0).filter(|len| *len > 0)?;
        let name = rest.get(..len)?.to_vec();
        self.skip(len + 1)?;
        Some(name)
    }
}
