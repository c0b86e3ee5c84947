//! Record locks of open file descriptions (fcntl(2), F_OFD_SETLK): owned by a descriptor and its copies, in whatever
//! process, until the last of them is closed. They meet the locks that processes hold on the same file.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
}

/// Bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    /// Inclusive; `i64::MAX` is the file's end, wherever it goes.
    pub end: u64,
}

/// Sets a lock, or with None takes away what the description has in the range. Never waits: `WouldBlock`, if
/// somebody else's lock is in the way.
pub fn set(fd: impl AsFd, kind: Option<Kind>, range: Range) -> io::Result<()> {
    let mut lock = raw(kind, range)?;
    match call(fd, libc::F_OFD_SETLK, &mut lock) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            Err(io::ErrorKind::WouldBlock.into())
        }
        done => done,
    }
}

/// A lock that is in the way of this one.
pub fn test(fd: impl AsFd, kind: Kind, range: Range) -> io::Result<Option<(Kind, Range)>> {
    let mut lock = raw(Some(kind), range)?;
    call(fd, libc::F_OFD_GETLK, &mut lock)?;
    let kind = match i32::from(lock.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_WRLCK => Kind::Write,
        _ => Kind::Read,
    };
    let start = lock.l_start as u64;
    let end = match lock.l_len {
        0 => i64::MAX as u64,
        length => start + length as u64 - 1,
    };
    Ok(Some((kind, Range { start, end })))
}

fn raw(kind: Option<Kind>, range: Range) -> io::Result<libc::flock> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let start = i64::try_from(range.start).map_err(|_| invalid())?;
    let end = i64::try_from(range.end).map_err(|_| invalid())?;
    let kind = match kind {
        None => libc::F_UNLCK,
        Some(Kind::Read) => libc::F_RDLCK,
        Some(Kind::Write) => libc::F_WRLCK,
    };
    let l_len = match end {
        i64::MAX => 0,
        end if end < start => return Err(invalid()),
        end => end - start + 1,
    };
    let (l_type, l_whence) = (kind as i16, libc::SEEK_SET as i16);
    // A description has no PID, and the kernel wants 0.
    Ok(libc::flock { l_type, l_whence, l_start: start, l_len, l_pid: 0 })
}

fn call(fd: impl AsFd, command: i32, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open for the time of the call, and `lock` is a struct flock of this kernel that the
    // call reads and writes. rustix has the locks of processes only.
    match unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), command, lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    const ALL: Range = Range { start: 0, end: i64::MAX as u64 };

    fn range(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    #[test]
    fn descriptions_stand_in_each_others_way_until_the_last_copy_is_closed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (a, b) = (open(), open());
        set(&a, Some(Kind::Write), range(10, 19)).unwrap();
        set(&b, Some(Kind::Write), range(20, u64::MAX / 2)).unwrap();
        let refused = set(&b, Some(Kind::Read), range(0, 10)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(test(&b, Kind::Read, range(0, 15)).unwrap(), Some((Kind::Write, range(10, 19))));
        assert_eq!(test(&a, Kind::Read, ALL).unwrap(), Some((Kind::Write, range(20, ALL.end))));
        assert_eq!(test(&a, Kind::Read, range(0, 19)).unwrap(), None);
        let copy = a.try_clone().unwrap();
        drop(a);
        assert!(set(&b, Some(Kind::Read), range(10, 10)).is_err());
        set(&copy, None, range(10, 10)).unwrap();
        set(&b, Some(Kind::Read), range(10, 10)).unwrap();
        assert!(set(&b, Some(Kind::Read), range(11, 11)).is_err());
        drop(copy);
        set(&b, Some(Kind::Read), range(11, 11)).unwrap();
    }

    #[test]
    fn what_is_no_range_is_refused() {
        let file = tempfile::tempfile().unwrap();
        for wrong in [range(5, 4), range(u64::MAX, u64::MAX), range(0, u64::MAX)] {
            let refused = set(&file, Some(Kind::Read), wrong).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{wrong:?}");
        }
    }
}
