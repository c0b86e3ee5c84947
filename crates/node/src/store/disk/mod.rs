//! A directory that stores write to, so that the same store runs on a real disk, on the
//! playground's volatile one and on the simulator's.
//!
//! Invariants: a write is whole or an error; nothing is durable before `DiskFile::sync`, no name
//! before `Disk::sync_dir`; a name is relative to its directory and has no slash.
//!
//! Left out on purpose: asynchrony (every call blocks; callers keep a thread for it), memory maps
//! and permissions.

mod fault;
mod memory;
mod overlay;
mod real;
mod sim;
#[cfg(test)]
pub(crate) mod tests;
mod volatile;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use super::limits::FILE_NAME_BYTES_MAX;

pub use fault::Fault;
pub use real::RealDisk;
pub use sim::SimDisk;
pub use volatile::VolatileDisk;

/// One directory on a disk.
pub trait Disk: Send + Sync {
    /// Opens a file for reading and writing.
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn DiskFile>, DiskError>;
    /// Gives `from` the name `to`; a file that had this name is gone.
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError>;
    fn remove(&self, name: &str) -> Result<(), DiskError>;
    /// The names of all files, sorted; not those of directories.
    fn list(&self) -> Result<Vec<String>, DiskError>;
    /// Makes every creation, renaming and removal so far durable.
    fn sync_dir(&self) -> Result<(), DiskError>;
    /// The directory of this name, made durably if there is none.
    fn dir(&self, name: &str) -> Result<Arc<dyn Disk>, DiskError>;
    /// Takes the lock file `name` for as long as the guard lives; `Locked` if somebody has it.
    fn lock(&self, name: &str) -> Result<DiskLock, DiskError>;
    fn space(&self) -> Result<Space, DiskError>;
    /// Where this directory is, for people.
    fn path(&self) -> &str;
}

/// One open file. It stays usable when its name is removed or changed.
pub trait DiskFile: Send + Sync {
    /// Reads until `buf` is full or the file ends; says how much it read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, DiskError>;
    /// Writes all parts one after the other, extending the file; what lies between the old end and
    /// `offset` reads as zeros. After an error any part of them may be written.
    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> Result<(), DiskError>;
    /// Makes content and length durable. After an error, nothing is known about what was written
    /// since the last success, and a later success does not mend that.
    fn sync(&self) -> Result<(), DiskError>;
    fn set_len(&self, len: u64) -> Result<(), DiskError>;
    fn size(&self) -> Result<u64, DiskError>;
    /// Where this file was when it was opened, for people.
    fn path(&self) -> &str;

    /// What is read there next shall come from the disk itself, not from a copy in memory. A hint.
    fn drop_cached(&self, _offset: u64, _len: u64) {}

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), DiskError> {
        self.write_parts_at(&[bytes], offset)
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must exist.
    Existing,
    /// It must not exist.
    New,
    /// It is made if it does not exist.
    Any,
}

/// The lock of a data directory; dropping it gives it up.
pub struct DiskLock(#[allow(dead_code)] Box<dyn Send + Sync>);

impl DiskLock {
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Self(Box::new(guard))
    }
}

impl fmt::Debug for DiskLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskLock")
    }
}

/// The room on the disk that holds a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    /// What an ordinary user may still write.
    pub free_bytes: u64,
}

/// What was tried when a disk said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Open,
    Create,
    Read,
    Write,
    Sync,
    SetLen,
    Size,
    Rename,
    Remove,
    List,
    SyncDir,
    MakeDir,
    Lock,
    Space,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Open => "open",
            Op::Create => "create",
            Op::Read => "read",
            Op::Write => "write",
            Op::Sync => "sync",
            Op::SetLen => "change the length of",
            Op::Size => "ask the length of",
            Op::Rename => "rename",
            Op::Remove => "remove",
            Op::List => "list",
            Op::SyncDir => "sync the directory",
            Op::MakeDir => "make the directory",
            Op::Lock => "lock",
            Op::Space => "ask the free space of",
        })
    }
}

/// Why a disk operation failed. Each variant is a different thing to do for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    #[error("no room to {op} {path}: free some space on its disk; writes go on when there is room")]
    Full { op: Op, path: String },
    #[error("cannot {op} {path}: {errno}; see the kernel's log and check the disk")]
    Io { op: Op, path: String, errno: Errno },
    #[error("there is no {path}")]
    NotFound { path: String },
    #[error("{path} exists already")]
    Exists { path: String },
    #[error(
        "{path} is locked by {holder}: another daemon uses this data directory; stop it or choose \
         another directory"
    )]
    Locked { path: String, holder: String },
    #[error(
        "{name:?} is no name for a file in a store: it must have 1 to {FILE_NAME_BYTES_MAX} bytes \
         and no slash"
    )]
    BadName { name: String },
}

impl DiskError {
    pub fn from_errno(op: Op, path: impl Into<String>, errno: Errno) -> Self {
        let path = path.into();
        match errno {
            Errno::NOSPC | Errno::DQUOT => DiskError::Full { op, path },
            Errno::NOENT => DiskError::NotFound { path },
            Errno::EXIST => DiskError::Exists { path },
            errno => DiskError::Io { op, path, errno },
        }
    }

    pub fn is_full(&self) -> bool {
        matches!(self, DiskError::Full { .. })
    }
}

/// Refuses what is not the plain name of a file.
pub fn check_name(name: &str) -> Result<(), DiskError> {
    let plain = !name.is_empty()
        && name.len() <= FILE_NAME_BYTES_MAX
        && !name.bytes().any(|b| b == b'/' || b == 0)
        && name != "."
        && name != "..";
    if plain { Ok(()) } else { Err(DiskError::BadName { name: name.to_owned() }) }
}

/// The whole content of a file of at most `bytes_max` bytes; a longer one is an error.
pub fn read_whole(disk: &dyn Disk, name: &str, bytes_max: usize) -> Result<Vec<u8>, DiskError> {
    let file = disk.open(name, Open::Existing)?;
    let size = file.size()?;
    if size > bytes_max as u64 {
        return Err(DiskError::from_errno(Op::Read, file.path(), Errno::FBIG));
    }
    let mut bytes = vec![0; size as usize];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Replaces a small file as a whole: after a crash it has its old content or the new one. The new
/// content is durable when this returns.
pub fn replace_whole(disk: &dyn Disk, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
    let draft = format!("{name}.new");
    let file = disk.open(&draft, Open::Any)?;
    let written = file
        .set_len(0)
        .and_then(|()| file.write_at(bytes, 0))
        .and_then(|()| file.sync())
        .and_then(|()| disk.rename(&draft, name));
    if let Err(error) = written {
        // The draft is of no use; the error that counts is the first one.
        let _ = disk.remove(&draft);
        return Err(error);
    }
    disk.sync_dir()
}

/// Nothing that these locks protect is left half changed by a panic.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
