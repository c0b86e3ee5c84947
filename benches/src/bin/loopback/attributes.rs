//! Attributes of the files below, as FUSE wants them, and changes to them.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};
use unum_sys::fuse::{Attr, Errno, Ino, SetAttr, SetTime, Timestamp};

/// The bits of `st_mode` that chmod changes.
const PERMISSIONS: u32 = 0o7777;
const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

pub fn stat(fd: impl AsFd) -> Result<Stat, Errno> {
    rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)
}

pub fn attr(ino: Ino, stat: &Stat) -> Attr {
    Attr {
        ino,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: Timestamp { secs: stat.st_atime, nanos: stat.st_atime_nsec as u32 },
        mtime: Timestamp { secs: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
        ctime: Timestamp { secs: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
        mode: stat.st_mode,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: stat.st_blksize as u32,
        ..Attr::default()
    }
}

/// A path that leads to what `fd` names, for calls that take no O_PATH descriptor.
pub fn path_of(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// `open` is the file that the change was asked through, if any.
pub fn set(fd: &OwnedFd, open: Option<&File>, change: &SetAttr) -> Result<(), Errno> {
    if change.uid.is_some() || change.gid.is_some() {
        chown(fd, change.uid, change.gid)?;
    }
    if let Some(mode) = change.mode {
        chmod(fd, mode)?;
    }
    if let Some(size) = change.size {
        truncate(fd, open, size)?;
    }
    if change.kill_suidgid {
        kill_suidgid(fd)?;
    }
    set_times(fd, change)
}

pub fn chown(fd: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)
}

fn chmod(fd: impl AsFd, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmodat(CWD, path_of(fd), Mode::from_raw_mode(mode & PERMISSIONS), AtFlags::empty())
}

fn truncate(fd: &OwnedFd, open: Option<&File>, size: u64) -> Result<(), Errno> {
    match open {
        Some(file) => rustix::fs::ftruncate(file, size),
        None => {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::open(path_of(fd), flags, Mode::empty())?;
            rustix::fs::ftruncate(file, size)
        }
    }
}

/// The kernel below sees root write, who clears nothing.
pub fn kill_suidgid(fd: impl AsFd) -> Result<(), Errno> {
    let fd = fd.as_fd();
    let mode = stat(fd)?.st_mode;
    let setgid = if mode & GROUP_EXECUTE != 0 { SETGID } else { 0 };
    let left = mode & PERMISSIONS & !(SETUID | setgid);
    if left == mode & PERMISSIONS {
        return Ok(());
    }
    chmod(fd, left)
}

fn set_times(fd: &OwnedFd, change: &SetAttr) -> Result<(), Errno> {
    if change.atime.is_none() && change.mtime.is_none() {
        return Ok(());
    }
    let times = Timestamps {
        last_access: timespec(change.atime),
        last_modification: timespec(change.mtime),
    };
    rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW as _ },
        Some(SetTime::At(time)) => Timespec { tv_sec: time.secs, tv_nsec: time.nanos as _ },
    }
}
