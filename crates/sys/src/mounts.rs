//! The mounts of a world: how it receives those of its machine, its own /proc, and grafts.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags};

use crate::namespace::{self, Kind};

/// Puts the caller into a new mount namespace that receives the machine's mounts but sends none back,
/// and its future children into a new PID namespace. The next fork makes PID 1.
pub fn unshare_world() -> io::Result<()> {
    namespace::unshare(&[Kind::Mount, Kind::Pid])?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", slave)?)
}

/// Mounts a procfs of the caller's PID namespace over the inherited one.
pub fn mount_proc() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount("proc", "/proc", "proc", flags, None)?)
}

/// Attaches a detached mount (open_tree(2) with OPEN_TREE_CLONE, or fsmount(2)) at `path`.
pub fn graft(mount: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", rustix::fs::CWD, path, flags)?)
}

/// Whether mounts made on the machine from now on reach a new world: false when `/` is not shared.
pub fn root_is_shared() -> bool {
    let Ok(text) = std::fs::read_to_string("/proc/self/mountinfo") else { return false };
    // ID PARENT DEV ROOT MOUNTPOINT OPTIONS [shared:N ...] - TYPE ...; the last `/` is on top.
    let root = text.lines().rfind(|line| line.split(' ').nth(4) == Some("/"));
    root.is_some_and(|line| {
        line.split(' ').skip(6).take_while(|w| *w != "-").any(|w| w.starts_with("shared:"))
    })
}
