//! What a machine of the playground sees as its file system.
//!
//! Its root is the computer's own, so every program is there. Private to it are /proc, /run, /tmp
//! and /dev/shm, which are lost with its power, and /etc/unum and /var/lib/unum, which are its disk.
//! Mounts made inside are shared among the namespaces inside and never seen outside.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, flock};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind,
    mount_change, move_mount, open_tree,
};

use crate::failure::{Explain, Result};

pub const SETTINGS_DIR: &str = "/etc/unum";
pub const DATA_DIR: &str = "/var/lib/unum";
pub const MOUNT_POINT: &str = "/unum";
pub const HOST_MOUNT_POINT: &str = "/n";

const TMPFS: [(&str, &std::ffi::CStr); 3] =
    [("/run", c"mode=755"), ("/tmp", c"mode=1777"), ("/dev/shm", c"mode=1777")];

const MOUNT_POINTS: [&str; 4] = [SETTINGS_DIR, DATA_DIR, MOUNT_POINT, HOST_MOUNT_POINT];

/// The empty directories on the computer's own tree that machines mount over. While this is held,
/// no other playground that goes away removes them; once a machine has mounted, its mounts tell.
#[derive(Debug)]
pub struct MountPoints {
    _lock: File,
}

impl MountPoints {
    pub fn make() -> Result<Self> {
        let lock =
            lock(FlockOperation::LockShared).explain(|| "cannot lock the root directory".into())?;
        for path in MOUNT_POINTS {
            std::fs::create_dir_all(path)
                .explain(|| format!("cannot make the directory {path}"))?;
        }
        Ok(Self { _lock: lock })
    }

    /// Removes those that are empty, unless anybody on this computer may be using them: removing a
    /// directory takes away what other mount namespaces have mounted there.
    pub fn remove_unused() {
        let Ok(_lock) = lock(FlockOperation::NonBlockingLockExclusive) else { return };
        if !are_mounted() {
            // One that holds something stays.
            MOUNT_POINTS.iter().for_each(|path| drop(std::fs::remove_dir(path)));
        }
    }
}

/// A lock that leaves no file behind: that of the root directory, which nobody else locks.
fn lock(operation: FlockOperation) -> std::io::Result<File> {
    let root = File::open("/")?;
    flock(&root, operation)?;
    Ok(root)
}

/// Whether any process sees a mount on any of the mount points.
fn are_mounted() -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut seen = BTreeSet::new();
    processes
        .map(|process| process.path())
        .filter(|process| seen.insert(std::fs::read_link(process.join("ns/mnt")).ok()))
        .filter_map(|process| std::fs::read_to_string(process.join("mountinfo")).ok())
        .any(|mounts| mounts.lines().any(is_on_mount_point))
}

/// Of a line of mountinfo: the fifth word is where it is mounted.
fn is_on_mount_point(line: &str) -> bool {
    line.split(' ').nth(4).is_some_and(|at| MOUNT_POINTS.contains(&at))
}

/// Builds the machine's view. `dir` is the machine's directory in the playground; `programs` holds
/// the binaries of Unum.
pub fn set_up(dir: &Path, programs: &Path) -> Result<()> {
    let recursive = MountPropagationFlags::REC;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | recursive)
        .and_then(|()| mount_change("/", MountPropagationFlags::SHARED | recursive))
        .explain(|| "cannot part the machine's mounts from the computer's".into())?;
    let kept = keep_visible(&[dir, programs])?;
    mount(
        "proc",
        "/proc",
        "proc",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        None,
    )
    .explain(|| "cannot mount /proc".into())?;
    for (path, options) in TMPFS {
        mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options)
            .explain(|| format!("cannot mount {path}"))?;
    }
    for (path, tree) in kept {
        attach(&path, &tree).explain(|| format!("cannot keep {} visible", path.display()))?;
    }
    for (source, target) in [("etc", SETTINGS_DIR), ("data", DATA_DIR), ("hosts", "/etc/hosts")] {
        mount_bind(dir.join(source), target).explain(|| format!("cannot mount over {target}"))?;
    }
    Ok(())
}

/// Trees that a tmpfs is about to hide, to be put back on top of it.
fn keep_visible(paths: &[&Path]) -> Result<Vec<(PathBuf, OwnedFd)>> {
    let hidden = |path: &&&Path| TMPFS.iter().any(|(tmpfs, _)| path.starts_with(tmpfs));
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let open = |path: &&Path| {
        let tree = open_tree(CWD, *path, flags)
            .explain(|| format!("cannot keep {} visible", path.display()))?;
        Ok((path.to_path_buf(), tree))
    };
    paths.iter().filter(hidden).map(open).collect()
}

fn attach(path: &Path, tree: &OwnedFd) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_in_use_is_seen() {
        let at = |path: &str| format!("36 35 98:0 / {path} rw,noatime master:1 - fuse unum rw");
        assert!(MOUNT_POINTS.iter().all(|path| is_on_mount_point(&at(path))));
        assert!(!is_on_mount_point(&at("/unum/below")));
        assert!(!is_on_mount_point(""));
    }
}
