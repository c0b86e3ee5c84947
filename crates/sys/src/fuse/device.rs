//! The transport: one open `/dev/fuse`, and the system calls on it.
//!
//! Everything above reads requests and writes replies through this type only, so that another
//! transport (io_uring) can take its place. A reply must be written to the device that the request
//! was read from.
//!
//! What a *clone* has read is answered ECONNABORTED by the kernel once the clone's last descriptor
//! is closed. So whoever wants to live on after a crash reads through the one descriptor that is
//! kept elsewhere, or has every clone kept too.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use super::notify::Notifier;
use super::types::BackingId;

const DEVICE_PATH: &str = "/dev/fuse";

// _IOR(229, 0, u32), _IOW(229, 1, fuse_backing_map), _IOW(229, 2, u32).
const IOC_CLONE: u64 = 0x8004_e500;
const IOC_BACKING_OPEN: u64 = 0x4010_e501;
const IOC_BACKING_CLOSE: u64 = 0x4004_e502;

/// `fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// An open `/dev/fuse`. Clones of this value share the descriptor.
#[derive(Clone, Debug)]
pub struct Device {
    file: Arc<File>,
}

impl Device {
    /// Opens the device, not yet bound to a mount.
    pub(super) fn open() -> io::Result<Device> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(DEVICE_PATH)
            .map_err(|error| {
                io::Error::new(error.kind(), format!("cannot open {DEVICE_PATH}: {error}"))
            })?;
        Ok(Device { file: Arc::new(file) })
    }

    /// Takes a descriptor that was opened, and perhaps mounted, by somebody else.
    pub fn from_fd(fd: OwnedFd) -> Device {
        Device { file: Arc::new(File::from(fd)) }
    }

    /// For whoever serves nothing itself.
    pub fn notifier(&self) -> Notifier {
        Notifier::new(self.clone())
    }

    /// A second queue end of the same connection; see the module's words on its lifetime.
    pub fn clone_channel(&self) -> io::Result<Device> {
        let clone = Device::open()?;
        let source = self.file.as_raw_fd() as u32;
        // SAFETY: the kernel reads one u32 at the pointer, which outlives the call. No safe
        // wrapper knows this ioctl.
        let result =
            unsafe { libc::ioctl(clone.file.as_raw_fd(), IOC_CLONE as _, &raw const source) };
        check(result).map(|_| clone)
    }

    /// Registers `file` as the target of passthrough opens. Needs CAP_SYS_ADMIN and the PASSTHROUGH
    /// capability. `file` may be closed afterwards.
    pub fn backing_open(&self, file: BorrowedFd<'_>) -> io::Result<BackingId> {
        let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: the kernel reads one fuse_backing_map at the pointer, which outlives the call
        // and has the kernel's layout. No safe wrapper knows this ioctl.
        let result =
            unsafe { libc::ioctl(self.file.as_raw_fd(), IOC_BACKING_OPEN as _, &raw const map) };
        check(result).map(BackingId)
    }

    /// Ends a registration. Files that are open through it go on.
    pub fn backing_close(&self, backing: BackingId) -> io::Result<()> {
        let id = backing.0 as u32;
        // SAFETY: the kernel reads one u32 at the pointer, which outlives the call. No safe
        // wrapper knows this ioctl.
        let result =
            unsafe { libc::ioctl(self.file.as_raw_fd(), IOC_BACKING_CLOSE as _, &raw const id) };
        check(result).map(|_| ())
    }

    /// Waits for one request and reads it whole.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &*self.file, buffer)
    }

    /// Writes one message; the kernel takes all of it or nothing.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        io::Write::write_vectored(&mut &*self.file, parts).map(|_| ())
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
