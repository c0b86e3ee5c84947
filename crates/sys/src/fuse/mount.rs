//! Mounting, unmounting, and cutting a connection.
//!
//! Left out on purpose: fusermount (the node runs as root), and any policy on nosuid and nodev,
//! which the caller sets.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create, fsmount,
    fsopen,
};

use super::device::Device;

const CONNECTIONS_DIR: &str = "/sys/fs/fuse/connections";
/// Where the kernel shows the caches of file systems without a block device, by device number.
const CACHES_DIR: &str = "/sys/class/bdi";

/// How a mount looks to the system.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// First column of `/proc/mounts`.
    pub source: String,
    /// Shown in the type as `fuse.SUBTYPE`.
    pub subtype: Option<String>,
    /// Users other than `uid` may use the mount.
    pub allow_other: bool,
    /// The kernel checks permissions by mode, owner and group.
    pub default_permissions: bool,
    /// Limit of one READ in bytes; it must match the agreement at INIT. Normally none.
    pub max_read: Option<u32>,
    /// Type and permission bits of the root until its attributes are fetched.
    pub root_mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub flags: MountFlags,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            source: "unum".into(),
            subtype: Some("unum".into()),
            allow_other: true,
            default_permissions: true,
            max_read: None,
            root_mode: libc::S_IFDIR | 0o755,
            uid: 0,
            gid: 0,
            flags: MountFlags::empty(),
        }
    }
}

impl MountOptions {
    fn text(&self, device: &Device) -> String {
        let mut text = format!(
            "fd={},rootmode={:o},user_id={},group_id={}",
            device.as_fd().as_raw_fd(),
            self.root_mode,
            self.uid,
            self.gid
        );
        if self.allow_other {
            text.push_str(",allow_other");
        }
        if self.default_permissions {
            text.push_str(",default_permissions");
        }
        if let Some(max) = self.max_read {
            text.push_str(&format!(",max_read={max}"));
        }
        text
    }

    fn kind(&self) -> String {
        self.subtype.as_ref().map_or_else(|| "fuse".into(), |sub| format!("fuse.{sub}"))
    }
}

/// Opens a device and mounts it on the directory `at`. Whoever looks into it waits until a session
/// has started on the device.
pub fn mount(at: &Path, options: &MountOptions) -> io::Result<Device> {
    let device = Device::open()?;
    let text = CString::new(options.text(&device))?;
    rustix::mount::mount(
        options.source.as_str(),
        at,
        options.kind().as_str(),
        options.flags,
        text.as_c_str(),
    )
    .map_err(|errno| {
        let kind = io::Error::from(errno).kind();
        io::Error::new(kind, format!("cannot mount FUSE on {}: {errno}", at.display()))
    })?;
    Ok(device)
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Refused with EBUSY while something on it is open.
    IfUnused,
    /// Out of the tree now; the connection ends when the last open file on it is closed.
    Lazy,
}

pub fn unmount(at: &Path, how: Unmount) -> io::Result<()> {
    let flags = match how {
        Unmount::IfUnused => UnmountFlags::empty(),
        Unmount::Lazy => UnmountFlags::DETACH,
    };
    Ok(rustix::mount::unmount(at, flags | UnmountFlags::NOFOLLOW)?)
}

/// The kernel's number of a FUSE connection. Unlike a path, it can be used when nothing answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u32);

impl ConnectionId {
    /// The connection mounted at exactly `at` (the topmost if several are), in the calling
    /// thread's mount namespace. Asks nothing of it.
    pub fn of_mount(at: &Path) -> io::Result<Option<ConnectionId>> {
        let table = std::fs::read("/proc/thread-self/mountinfo")?;
        Ok(table.split(|byte| *byte == b'\n').rev().find_map(|line| connection_of(line, at)))
    }

    /// All that are mounted in a process's mount namespace.
    pub fn all_of(pid: i32) -> io::Result<BTreeSet<ConnectionId>> {
        let table = std::fs::read(format!("/proc/{pid}/mountinfo"))?;
        let lines = table.split(|byte| *byte == b'\n');
        Ok(lines.filter_map(connection_and_place).map(|(id, _)| id).collect())
    }

    /// Lets the kernel read so many KiB ahead of who reads a file from one end to the other. What is agreed on
    /// at INIT can only lessen what the machine grants every file system, which is 128 KiB; so to
    /// be called after that.
    pub fn read_ahead(self, kib: u32) -> io::Result<()> {
        std::fs::write(format!("{CACHES_DIR}/0:{}/read_ahead_kb", self.0), kib.to_string())
    }

    /// Ends the connection: callers in flight get ECONNABORTED, later ones ENOTCONN. Works with a
    /// stopped or dead daemon. One that has ended is left so.
    pub fn abort(self) -> io::Result<()> {
        let path = format!("{CONNECTIONS_DIR}/{}/abort", self.0);
        match std::fs::OpenOptions::new().write(true).open(path) {
            Ok(mut file) => file.write_all(b"1"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.abort_unmounted(),
            Err(error) => Err(error),
        }
    }

    /// Through an instance of the control file system that appears nowhere in the tree.
    fn abort_unmounted(self) -> io::Result<()> {
        let fs = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(fs.as_fd())?;
        let root = fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let path = format!("{}/abort", self.0);
        match rustix::fs::openat(&root, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => rustix::io::write(file, b"1").map(|_| ()).map_err(Into::into),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn connection_of(line: &[u8], at: &Path) -> Option<ConnectionId> {
    let (connection, mount_point) = connection_and_place(line)?;
    (mount_point == at.as_os_str().as_bytes()).then_some(connection)
}

/// `36 35 0:51 / /mnt rw,.. - fuse.unum ..`: the minor device number is the connection's.
fn connection_and_place(line: &[u8]) -> Option<(ConnectionId, Vec<u8>)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let mount_point = fields.nth(1)?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let fuse = kind == b"fuse" || kind.starts_with(b"fuse.");
    let number = device.split_once(':')?.1.parse().ok()?;
    fuse.then(|| (ConnectionId(number), unescape(mount_point)))
}

/// A field of the mount table as it is meant: blanks, tabs, newlines and backslashes are written there as `\`
/// and three octal digits (proc_pid_mountinfo(5)).
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (byte, code) {
            (b'\\', Some(code)) => {
                plain.push(code);
                rest = &after[3..];
            }
            _ => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_names_the_connection() {
        let line = br"36 35 0:51 / /a\040b rw,relatime shared:7 - fuse.unum unum rw,user_id=0";
        assert_eq!(connection_of(line, Path::new("/a b")), Some(ConnectionId(51)));
        assert_eq!(connection_of(line, Path::new("/a")), None);
        assert_eq!(connection_of(b"36 35 0:51 / /a rw - ext4 x rw", Path::new("/a")), None);
        assert_eq!(connection_of(b"36 35", Path::new("/a")), None);
        let control = b"36 35 0:52 / /sys/fs/fuse/connections rw - fusectl none rw";
        assert_eq!(connection_and_place(control), None);
    }
}
