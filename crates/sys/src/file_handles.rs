//! The kernel's own names for files, good for as long as the file is there: `name_to_handle_at` and
//! `open_by_handle_at`.
//!
//! A handle opens a file without walking a path, so whoever may use one needs no right on the directories
//! above it: the caller decides whose handles are to be trusted.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The longest handle of any file system, in bytes (MAX_HANDLE_SZ).
pub const HANDLE_SIZE_MAX: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle {
    pub kind: i32,
    bytes: Vec<u8>,
}

/// The kernel's `struct file_handle` with room for the longest handle.
#[repr(C)]
struct Raw {
    size: libc::c_uint,
    kind: libc::c_int,
    bytes: [u8; HANDLE_SIZE_MAX],
}

impl FileHandle {
    /// None: too long to be one.
    pub fn new(kind: i32, bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= HANDLE_SIZE_MAX).then(|| Self { kind, bytes: bytes.to_vec() })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Of what `fd` is open on. `Unsupported`: its file system has no handles that can be opened.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let mut raw = Raw { size: HANDLE_SIZE_MAX as _, kind: 0, bytes: [0; HANDLE_SIZE_MAX] };
        let mut mount = 0;
        const EMPTY: &CStr = c"";
        // SAFETY: `raw` is a file_handle followed by as much room as its `size` says, and lives through the call,
        // as do the empty path and `mount`. No other crate here has the call.
        let result = unsafe {
            libc::name_to_handle_at(
                fd.as_fd().as_raw_fd(),
                EMPTY.as_ptr(),
                (&raw mut raw).cast(),
                &mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::EOVERFLOW) => io::ErrorKind::Unsupported.into(),
                _ => error,
            });
        }
        let bytes = raw.bytes.get(..raw.size as usize).ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { kind: raw.kind, bytes: bytes.to_vec() })
    }

    /// Opens it. `mount` is open on anything of the mount that it shall be opened on. Needs
    /// CAP_DAC_READ_SEARCH. `StaleNetworkFileHandle`: there is no such file any more.
    pub fn open(&self, mount: impl AsFd, flags: i32) -> io::Result<OwnedFd> {
        let mut raw = Raw {
            size: self.bytes.len() as libc::c_uint,
            kind: self.kind,
            bytes: [0; HANDLE_SIZE_MAX],
        };
        raw.bytes[..self.bytes.len()].copy_from_slice(&self.bytes);
        // SAFETY: `raw` is a file_handle whose `size` bytes follow it, and lives through the call. No other crate
        // here has the call.
        let fd = unsafe {
            libc::open_by_handle_at(
                mount.as_fd().as_raw_fd(),
                (&raw mut raw).cast(),
                flags | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave this descriptor to us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

const _: () = assert!(size_of::<Raw>() == 8 + HANDLE_SIZE_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn a_handle_opens_its_file_under_any_name_and_is_stale_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "content").unwrap();
        let handle = match FileHandle::of(File::open(&path).unwrap()) {
            Ok(handle) => handle,
            Err(error) => return println!("skipped: no file handles here: {error}"),
        };
        let mount = File::open(dir.path()).unwrap();
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: opening by handle needs root");
        }
        std::fs::rename(&path, dir.path().join("b")).unwrap();
        let mut text = String::new();
        let open = || handle.open(&mount, libc::O_RDONLY);
        File::from(open().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        std::fs::remove_file(dir.path().join("b")).unwrap();
        assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::ESTALE));
        assert_eq!(FileHandle::new(handle.kind, handle.bytes()), Some(handle));
        assert_eq!(FileHandle::new(1, &[0; HANDLE_SIZE_MAX + 1]), None);
    }
}
