//! The real thing: a directory of a mounted file system.
//!
//! Everything is relative to a directory descriptor, so that a move of the directory or a change of
//! the working directory does no harm.

use std::io::IoSlice;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{Disk, DiskError, DiskFile, DiskLock, Op, Open, Space, check_name};

/// More parts than this do not fit into one pwritev (IOV_MAX).
const PARTS_MAX: usize = 1024;

#[derive(Debug)]
pub struct RealDisk {
    dir: OwnedFd,
    path: String,
}

impl RealDisk {
    /// Opens the directory, making it and its parents (mode 0700) if they do not exist.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DiskError> {
        let path = path.as_ref();
        let shown = path.display().to_string();
        make_dirs(path)?;
        let dir = fs::open(path, DIR_FLAGS, Mode::empty())
            .map_err(|e| DiskError::from_errno(Op::Open, &shown, e))?;
        Ok(Self { dir, path: shown })
    }

    fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    fn failed(&self, op: Op, name: &str) -> impl FnOnce(Errno) -> DiskError {
        let path = self.shown(name);
        move |errno| DiskError::from_errno(op, path, errno)
    }
}

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

fn make_dirs(path: &Path) -> Result<(), DiskError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| {
        let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
        DiskError::from_errno(Op::MakeDir, path.display().to_string(), errno)
    })
}

impl Disk for RealDisk {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn DiskFile>, DiskError> {
        check_name(name)?;
        let (op, extra) = match how {
            Open::Existing => (Op::Open, OFlags::empty()),
            Open::New => (Op::Create, OFlags::CREATE | OFlags::EXCL),
            Open::Any => (Op::Create, OFlags::CREATE),
        };
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | extra;
        let fd = retry(|| fs::openat(&self.dir, name, flags, FILE_MODE))
            .map_err(self.failed(op, name))?;
        Ok(Arc::new(RealFile { fd, path: self.shown(name) }))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        check_name(from)?;
        check_name(to)?;
        fs::renameat(&self.dir, from, &self.dir, to).map_err(self.failed(Op::Rename, from))
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        check_name(name)?;
        fs::unlinkat(&self.dir, name, AtFlags::empty()).map_err(self.failed(Op::Remove, name))
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        let failed = |e| DiskError::from_errno(Op::List, &self.path, e);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if self.is_file(name, entry.file_type())? {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        retry(|| fs::fsync(&self.dir))
            .map_err(|e| DiskError::from_errno(Op::SyncDir, &self.path, e))
    }

    fn dir(&self, name: &str) -> Result<Arc<dyn Disk>, DiskError> {
        check_name(name)?;
        match fs::mkdirat(&self.dir, name, Mode::RWXU) {
            Ok(()) => self.sync_dir()?,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(self.failed(Op::MakeDir, name)(e)),
        }
        let dir = fs::openat(&self.dir, name, DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty())
            .map_err(self.failed(Op::Open, name))?;
        Ok(Arc::new(RealDisk { dir, path: self.shown(name) }))
    }

    fn lock(&self, name: &str) -> Result<DiskLock, DiskError> {
        check_name(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = retry(|| fs::openat(&self.dir, name, flags, FILE_MODE))
            .map_err(self.failed(Op::Lock, name))?;
        match fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(self.locked(name, &fd)),
            Err(e) => return Err(self.failed(Op::Lock, name)(e)),
        }
        note_holder(&fd);
        Ok(DiskLock::new(fd))
    }

    fn space(&self) -> Result<Space, DiskError> {
        let stat =
            fs::fstatvfs(&self.dir).map_err(|e| DiskError::from_errno(Op::Space, &self.path, e))?;
        Ok(Space {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn path(&self) -> &str {
        &self.path
    }
}

impl RealDisk {
    /// Some file systems do not tell the type with the name.
    fn is_file(&self, name: &str, told: FileType) -> Result<bool, DiskError> {
        if told != FileType::Unknown {
            return Ok(told == FileType::RegularFile);
        }
        match fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(self.failed(Op::List, name)(e)),
        }
    }

    fn locked(&self, name: &str, fd: &OwnedFd) -> DiskError {
        let mut note = [0; 32];
        let read = rustix::io::pread(fd, &mut note, 0).unwrap_or(0);
        let digits: String =
            note[..read].iter().map(|b| char::from(*b)).take_while(char::is_ascii_digit).collect();
        let holder =
            if digits.is_empty() { "a process".to_owned() } else { format!("process {digits}") };
        DiskError::Locked { path: self.shown(name), holder }
    }
}

/// The holder's PID helps people only; the lock is the flock, so a failure here is no matter.
fn note_holder(fd: &OwnedFd) {
    let note = format!("{}\n", std::process::id());
    let _ = fs::ftruncate(fd, 0).and_then(|()| rustix::io::pwrite(fd, note.as_bytes(), 0));
}

#[derive(Debug)]
struct RealFile {
    fd: OwnedFd,
    path: String,
}

impl RealFile {
    fn failed(&self, op: Op, errno: Errno) -> DiskError {
        DiskError::from_errno(op, &self.path, errno)
    }

    /// One pwritev after the other until all is written: the kernel may write less than asked.
    fn write_batch(&self, parts: &[&[u8]], mut offset: u64) -> Result<u64, DiskError> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let written = retry(|| rustix::io::pwritev(&self.fd, rest, offset))
                .map_err(|e| self.failed(Op::Write, e))?;
            if written == 0 {
                return Err(self.failed(Op::Write, Errno::NOSPC));
            }
            offset += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(offset)
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, DiskError> {
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            let read = retry(|| rustix::io::pread(&self.fd, &mut *rest, offset + done as u64))
                .map_err(|e| self.failed(Op::Read, e))?;
            if read == 0 {
                break;
            }
            done += read;
        }
        Ok(done)
    }

    fn write_parts_at(&self, parts: &[&[u8]], mut offset: u64) -> Result<(), DiskError> {
        for batch in parts.chunks(PARTS_MAX) {
            offset = self.write_batch(batch, offset)?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        retry(|| fs::fdatasync(&self.fd)).map_err(|e| self.failed(Op::Sync, e))
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        retry(|| fs::ftruncate(&self.fd, len)).map_err(|e| self.failed(Op::SetLen, e))
    }

    fn size(&self) -> Result<u64, DiskError> {
        let stat = fs::fstat(&self.fd).map_err(|e| self.failed(Op::Size, e))?;
        Ok(stat.st_size as u64)
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn drop_cached(&self, offset: u64, len: u64) {
        // A kernel that does not take the hint reads from memory: no harm.
        let _ = fs::fadvise(&self.fd, offset, NonZeroU64::new(len), fs::Advice::DontNeed);
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
