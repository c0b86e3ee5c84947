//! Hearing of changes to single inodes, by whatever program: fanotify with inode marks.
//!
//! The mark is not evictable: the kernel keeps the inode in memory for as long as it is marked, since a mark that
//! went with its inode would miss the next change. Only who changes a marked inode pays.
//!
//! Invariant: when [`Watcher::drain`] has returned, every change whose system call had returned before is told.
//! Stores through a mapping are told when it goes away.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::file_handles::FileHandle;

/// Content, attributes, names in a directory, and the end of the inode.
const CHANGES: u64 = libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_DELETE_SELF
    | libc::FAN_MOVE_SELF
    | libc::FAN_ONDIR;
/// Bytes read at a time.
const BUFFER_SIZE: usize = 64 << 10;
/// Of `fanotify_event_metadata`.
const EVENT_HEAD_SIZE: usize = 24;
/// Of `fanotify_event_info_header`, and of the file system's id behind it.
const INFO_HEAD_SIZE: usize = 4;
const FILE_SYSTEM_SIZE: usize = 8;

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Something about this inode (of a directory: also about its names) is not as it was.
    Changed(FileHandle),
    /// More happened than the kernel could note down: anything may have changed.
    Lost,
}

/// Listens to the inodes that are marked.
#[derive(Debug)]
pub struct Watcher {
    fd: OwnedFd,
}

impl Watcher {
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_MARKS
            | libc::FAN_REPORT_FID;
        // SAFETY: a system call on plain numbers. No other crate here has it.
        let fd = unsafe { libc::fanotify_init(flags, libc::O_CLOEXEC as u32) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave this descriptor to us alone.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Listens to the inode that `fd` is open on in whatever way.
    pub fn mark(&self, fd: impl AsFd) -> io::Result<()> {
        self.change_mark(libc::FAN_MARK_ADD, fd.as_fd())
    }

    pub fn unmark(&self, fd: impl AsFd) -> io::Result<()> {
        self.change_mark(libc::FAN_MARK_REMOVE, fd.as_fd())
    }

    /// Listens to nothing any more.
    pub fn unmark_all(&self) -> io::Result<()> {
        // SAFETY: the path is a literal; with FLUSH the kernel looks at nothing but the group. No other crate here
        // has the call.
        let result = unsafe {
            libc::fanotify_mark(
                self.fd.as_raw_fd(),
                libc::FAN_MARK_FLUSH,
                0,
                libc::AT_FDCWD,
                c"/".as_ptr(),
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn change_mark(&self, how: libc::c_uint, fd: BorrowedFd<'_>) -> io::Result<()> {
        let path = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        // SAFETY: the path lives through the call; the rest are plain numbers. No other crate here has the call.
        let result = unsafe {
            libc::fanotify_mark(self.fd.as_raw_fd(), how, CHANGES, libc::AT_FDCWD, path.as_ptr())
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Everything that was heard and not told yet.
    pub fn drain(&self) -> io::Result<Vec<Heard>> {
        let mut heard = Vec::new();
        let mut buffer = Vec::new();
        loop {
            if buffer.is_empty() {
                buffer = vec![0; BUFFER_SIZE];
            }
            match rustix::io::read(&self.fd, &mut buffer[..]) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(heard),
                Ok(size) => heard.extend(events(&buffer[..size])),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// An event that is not understood may mean anything.
fn events(mut bytes: &[u8]) -> Vec<Heard> {
    let mut heard = Vec::new();
    while !bytes.is_empty() {
        let length = number(bytes, 0).map_or(0, |length| length as usize);
        let Some(event) = bytes.get(..length).filter(|event| event.len() >= EVENT_HEAD_SIZE) else {
            heard.push(Heard::Lost);
            return heard;
        };
        heard.push(inode(event).map_or(Heard::Lost, Heard::Changed));
        bytes = &bytes[length..];
    }
    heard
}

/// The inode that an event is about. None: it tells none, as when the queue ran over.
fn inode(event: &[u8]) -> Option<FileHandle> {
    let head = usize::from(u16::from_ne_bytes(event.get(6..8)?.try_into().ok()?));
    let info = event.get(head..)?;
    let length = usize::from(u16::from_ne_bytes(info.get(2..4)?.try_into().ok()?));
    let handle = info.get(INFO_HEAD_SIZE + FILE_SYSTEM_SIZE..length)?;
    let size = number(handle, 0)? as usize;
    let kind = number(handle, 4)? as i32;
    FileHandle::new(kind, handle.get(8..8usize.checked_add(size)?)?)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::{self, File};
    use std::path::Path;

    fn watcher() -> Option<Watcher> {
        match Watcher::new() {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                println!("skipped: no fanotify here: {error}");
                None
            }
        }
    }

    fn handle(path: &Path) -> FileHandle {
        FileHandle::of(File::open(path).unwrap()).unwrap()
    }

    #[test]
    fn each_kind_of_change_is_told_when_its_call_has_returned() {
        let Some(watcher) = watcher() else { return };
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("file"), dir.path().join("other"));
        fs::write(&file, "x").unwrap();
        fs::write(&other, "x").unwrap();
        for path in [dir.path(), &file] {
            if let Err(error) = watcher.mark(File::open(path).unwrap()) {
                return println!("skipped: no marks on this file system: {error}");
            }
        }
        let (in_dir, in_file) = (handle(dir.path()), handle(&file));
        let told = |change: &dyn Fn()| {
            change();
            watcher.drain().unwrap()
        };
        let of_file = |change: &dyn Fn()| {
            let told = told(change);
            assert!(told.contains(&Heard::Changed(in_file.clone())), "{told:?}");
        };
        let of_dir = |change: &dyn Fn()| {
            let told = told(change);
            assert!(told.contains(&Heard::Changed(in_dir.clone())), "{told:?}");
        };
        of_file(&|| fs::write(&file, "y").unwrap());
        of_file(&|| File::options().write(true).open(&file).unwrap().set_len(7).unwrap());
        let private = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
        of_file(&|| fs::set_permissions(&file, private.clone()).unwrap());
        of_file(&|| fs::hard_link(&file, dir.path().join("link")).unwrap());
        of_dir(&|| fs::write(dir.path().join("new"), "").unwrap());
        of_dir(&|| fs::rename(dir.path().join("new"), dir.path().join("newer")).unwrap());
        of_dir(&|| fs::remove_file(dir.path().join("newer")).unwrap());
        of_dir(&|| fs::create_dir(dir.path().join("d")).unwrap());
        // Who changes what nobody marked is not heard, nor who only looks.
        assert_eq!(told(&|| fs::write(&other, "y").unwrap()), []);
        assert_eq!(told(&|| drop(fs::read(&file).unwrap())), []);
        watcher.unmark(File::open(&file).unwrap()).unwrap();
        assert_eq!(told(&|| fs::write(&file, "y").unwrap()), []);
        watcher.unmark_all().unwrap();
        assert_eq!(told(&|| fs::write(dir.path().join("new"), "").unwrap()), []);
    }

    proptest! {
        #[test]
        fn rubbish_is_taken_for_anything(bytes: Vec<u8>) {
            let _ = events(&bytes);
        }
    }
}
