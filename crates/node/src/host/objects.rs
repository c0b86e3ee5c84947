//! One file of this machine, and what is done to it.
//!
//! An [`Object`] is open as a place only (O_PATH): having it is no right. What needs a right is done with the
//! caller's; the daemon's own are used for finding a file by handle, for looking at its attributes, and for what
//! a warrant says was allowed at open.
//!
//! Invariants: one component at a time, none of them `.` or `..`, no symbolic link; a mount is judged before it
//! is entered; whatever leaves with a handle was judged.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{
    Access, AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Statx, Timespec,
    Timestamps, Uid, XattrFlags, accessat, chmodat, chownat, fstatvfs, linkat, mkdirat, mknodat,
    openat, openat2, readlinkat, removexattr, renameat_with, setxattr, statx, symlinkat, unlinkat,
    utimensat,
};
use rustix::fs::{FileType, StatxAttributes, StatxFlags, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;
use unum_proto::host as wire;
use unum_sys::credentials::{User, act_for};
use unum_sys::file_handles::FileHandle;

use super::places::{Places, Way, device, identity, status};
use super::seal::{File, Grant, Place};

/// The umask of calls that make nothing.
const NO_UMASK: u32 = 0o22;
/// The kernel's mark of an open for execution (`__FMODE_EXEC`).
const OPEN_FOR_EXEC: u32 = 0x20;
/// What open(2)'s flags may say of an existing file here. The client's kernel does the rest.
const OPEN_FLAGS: OFlags = OFlags::RDWR.union(OFlags::WRONLY).union(OFlags::DIRECTORY);
const ACCESS_MODE: u32 = libc::O_ACCMODE as u32;
const PATH_FLAGS: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One component, no link, no way out.
fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// A file, a directory, or whatever else has a name.
pub struct Object {
    kind: Kind,
}

enum Kind {
    Real {
        fd: OwnedFd,
        place: Place,
    },
    /// A directory above what is exported.
    Above {
        path: Vec<u8>,
    },
}

/// A file that was opened.
pub struct Opening {
    pub fd: OwnedFd,
    pub grant: Grant,
}

impl Object {
    pub fn root(places: &Places) -> Result<Self, Errno> {
        Self::on_the_way(places, b"/".to_vec())
    }

    /// What a handle of this node says.
    pub fn find(places: &Places, place: Place) -> Result<Self, Errno> {
        match place {
            Place::Above { path } => Self::on_the_way(places, path),
            place => {
                let fd = reach(places, &place, OFlags::PATH)?;
                Ok(Self { kind: Kind::Real { fd, place } })
            }
        }
    }

    fn on_the_way(places: &Places, path: Vec<u8>) -> Result<Self, Errno> {
        match places.way(Path::new(std::ffi::OsStr::from_bytes(&path)))? {
            Way::Above => Ok(Self { kind: Kind::Above { path } }),
            Way::Exported(fd) => Self::judged(places, fd),
        }
    }

    /// `fd` is on a mount that was judged.
    fn judged(places: &Places, fd: OwnedFd) -> Result<Self, Errno> {
        let status = status(&fd)?;
        Self::known(places, fd, &status)
    }

    fn known(places: &Places, fd: OwnedFd, status: &Statx) -> Result<Self, Errno> {
        places.judge(identity(status))?;
        let place = place_of(&fd, status)?;
        Ok(Self { kind: Kind::Real { fd, place } })
    }

    pub fn place(&self) -> Place {
        match &self.kind {
            Kind::Real { place, .. } => place.clone(),
            Kind::Above { path } => Place::Above { path: path.clone() },
        }
    }

    /// By what others may be told of its changes.
    pub fn watched_by(&self) -> Option<(&Place, &OwnedFd)> {
        match &self.kind {
            Kind::Real { fd, place } => Some((place, fd)),
            Kind::Above { .. } => None,
        }
    }

    /// Opens the place alone, as to mark it.
    pub fn reach_place(places: &Places, place: &Place) -> Option<OwnedFd> {
        reach(places, place, OFlags::PATH).ok()
    }

    /// Nothing is done to directories above the exports.
    fn real(&self) -> Result<&OwnedFd, Errno> {
        match &self.kind {
            Kind::Real { fd, .. } => Ok(fd),
            Kind::Above { .. } => Err(Errno::ACCESS),
        }
    }

    pub fn attributes(&self) -> Result<wire::Attributes, Errno> {
        match &self.kind {
            Kind::Real { fd, .. } => Ok(attributes(&status(fd)?)),
            Kind::Above { path } => {
                let path = std::ffi::OsStr::from_bytes(path);
                let open =
                    openat2(CWD, path, PATH_FLAGS, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
                let real = attributes(&status(open)?);
                Ok(wire::Attributes { mode: libc::S_IFDIR | 0o555, ..real })
            }
        }
    }

    pub fn lookup(&self, places: &Places, user: &User, name: &[u8]) -> Result<Self, Errno> {
        check_name(name)?;
        match &self.kind {
            Kind::Real { fd, .. } => {
                let child = acting(user, || open_child(places, fd, name))??;
                Self::judged(places, child)
            }
            Kind::Above { path } => {
                let mut below = path.clone();
                if !below.ends_with(b"/") {
                    below.push(b'/');
                }
                below.extend(name);
                Self::on_the_way(places, below)
            }
        }
    }

    pub fn read_link(&self) -> Result<Vec<u8>, Errno> {
        Ok(readlinkat(self.real()?, c"", Vec::new())?.into_bytes())
    }

    /// Opens it with the caller's rights.
    pub fn open(&self, user: &User, flags: u32) -> Result<Opening, Errno> {
        let fd = self.real()?;
        // Devices, FIFOs and sockets act where they are opened, which is the client's kernel.
        let kind = FileType::from_raw_mode(status(fd)?.stx_mode.into());
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Err(Errno::NXIO);
        }
        let access = flags & ACCESS_MODE;
        let open = OFlags::from_bits_retain(flags) & OPEN_FLAGS;
        let fd = match flags & OPEN_FOR_EXEC {
            0 => acting(user, || reopen(fd, open))??,
            _ => {
                acting(user, || may_execute(fd))??;
                reopen(fd, OFlags::RDONLY)?
            }
        };
        Ok(Opening { fd, grant: Grant { place: self.place(), access } })
    }

    pub fn space(&self) -> Result<wire::Space, Errno> {
        let space = match &self.kind {
            Kind::Real { fd, .. } => fstatvfs(fd)?,
            Kind::Above { .. } => rustix::fs::statvfs(c"/")?,
        };
        Ok(wire::Space {
            blocks: space.f_blocks,
            blocks_free: space.f_bfree,
            blocks_available: space.f_bavail,
            files: space.f_files,
            files_free: space.f_ffree,
            block_size: space.f_bsize as u32,
            fragment_size: space.f_frsize as u32,
            name_length_max: space.f_namemax as u32,
        })
    }

    pub fn xattr(&self, user: &User, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let path = path_to(self.real()?);
        acting(user, || {
            let mut value = Vec::with_capacity(wire::XATTR_SIZE_MAX);
            rustix::fs::getxattr(&path, name, rustix::buffer::spare_capacity(&mut value))?;
            Ok(value)
        })?
    }

    pub fn xattr_names(&self, user: &User) -> Result<Vec<u8>, Errno> {
        let path = path_to(self.real()?);
        acting(user, || {
            let mut names = Vec::with_capacity(wire::XATTR_SIZE_MAX);
            rustix::fs::listxattr(&path, rustix::buffer::spare_capacity(&mut names))?;
            Ok(names)
        })?
    }

    pub fn set_xattr(&self, user: &User, set: &wire::SetXattr) -> Result<(), Errno> {
        let path = path_to(self.real()?);
        let flags = XattrFlags::from_bits(set.flags).ok_or(Errno::INVAL)?;
        acting(user, || setxattr(&path, &set.name[..], &set.value, flags))?
    }

    pub fn remove_xattr(&self, user: &User, name: &[u8]) -> Result<(), Errno> {
        let path = path_to(self.real()?);
        acting(user, || removexattr(&path, name))?
    }

    /// Makes a regular file if there is none under this name, and opens it.
    pub fn create(
        &self,
        places: &Places,
        user: &User,
        make: &wire::Make,
    ) -> Result<(Self, Opening), Errno> {
        check_name(&make.name)?;
        let dir = self.real()?;
        let flags = create_flags(make.flags) | OFlags::CREATE | OFlags::NOFOLLOW;
        let resolve = beneath() | ResolveFlags::NO_XDEV;
        let made = acting_with(user, make.umask, || {
            openat2(dir, &make.name[..], flags, permissions(make.mode), resolve)
        });
        self.made(places, made??, make.flags)
    }

    pub fn create_unnamed(
        &self,
        places: &Places,
        user: &User,
        make: &wire::Make,
    ) -> Result<(Self, Opening), Errno> {
        let dir = path_to(self.real()?);
        let flags = create_flags(make.flags) | OFlags::TMPFILE;
        let made =
            acting_with(user, make.umask, || openat(CWD, &dir, flags, permissions(make.mode)));
        self.made(places, made??, make.flags)
    }

    fn made(&self, places: &Places, fd: OwnedFd, flags: u32) -> Result<(Self, Opening), Errno> {
        let status = status(&fd)?;
        // Somebody else was quicker with something else.
        if FileType::from_raw_mode(status.stx_mode.into()) != FileType::RegularFile {
            return Err(Errno::EXIST);
        }
        let object = Self::known(places, reopen_path(&fd)?, &status)?;
        let grant = Grant { place: object.place(), access: flags & ACCESS_MODE };
        Ok((object, Opening { fd, grant }))
    }

    pub fn make_directory(
        &self,
        places: &Places,
        user: &User,
        make: &wire::Make,
    ) -> Result<Self, Errno> {
        check_name(&make.name)?;
        let dir = self.real()?;
        acting_with(user, make.umask, || {
            mkdirat(dir, &make.name[..], Mode::from_bits_truncate(make.mode))
        })??;
        self.child(places, &make.name)
    }

    pub fn make_node(
        &self,
        places: &Places,
        user: &User,
        make: &wire::Make,
    ) -> Result<Self, Errno> {
        check_name(&make.name)?;
        let dir = self.real()?;
        let kind = match make.mode & libc::S_IFMT {
            0 => FileType::RegularFile,
            bits => FileType::from_raw_mode(bits),
        };
        let mode = Mode::from_bits_truncate(make.mode);
        acting_with(user, make.umask, || {
            mknodat(dir, &make.name[..], kind, mode, make.rdev.into())
        })??;
        self.child(places, &make.name)
    }

    pub fn make_link(
        &self,
        places: &Places,
        user: &User,
        link: &wire::MakeLink,
    ) -> Result<Self, Errno> {
        check_name(&link.name)?;
        let dir = self.real()?;
        acting(user, || symlinkat(&link.target[..], dir, &link.name[..]))??;
        self.child(places, &link.name)
    }

    /// What was just made here. The caller may have no right to look.
    fn child(&self, places: &Places, name: &[u8]) -> Result<Self, Errno> {
        Self::judged(places, open_child(places, self.real()?, name)?)
    }

    pub fn unlink(&self, user: &User, name: &[u8]) -> Result<(), Errno> {
        check_name(name)?;
        let dir = self.real()?;
        acting(user, || unlinkat(dir, name, AtFlags::empty()))?
    }

    pub fn remove_directory(&self, places: &Places, user: &User, name: &[u8]) -> Result<(), Errno> {
        check_name(name)?;
        let dir = self.real()?;
        judge_name(places, dir, name)?;
        acting(user, || unlinkat(dir, name, AtFlags::REMOVEDIR))?
    }

    pub fn rename(
        &self,
        places: &Places,
        user: &User,
        name: &[u8],
        to: &Object,
        new_name: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        check_name(name)?;
        check_name(new_name)?;
        let (from, to) = (self.real()?, to.real()?);
        judge_name(places, from, name)?;
        judge_name(places, to, new_name)?;
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        acting(user, || renameat_with(from, name, to, new_name, flags))?
    }

    /// A further name, in this directory, for `target`.
    pub fn link(&self, user: &User, target: &Object, name: &[u8]) -> Result<(), Errno> {
        check_name(name)?;
        let (dir, target) = (self.real()?, path_to(target.real()?));
        acting(user, || linkat(CWD, &target, dir, name, AtFlags::SYMLINK_FOLLOW))?
    }

    /// `open`: what the size is set through.
    pub fn set_attributes(
        &self,
        user: &User,
        set: &wire::SetAttributes,
        open: Option<&OwnedFd>,
    ) -> Result<(), Errno> {
        let fd = self.real()?;
        let path = path_to(fd);
        acting(user, || {
            if let Some(size) = set.size {
                match open {
                    Some(open) => rustix::fs::ftruncate(open, size)?,
                    None => truncate(&path, size)?,
                }
            }
            if set.uid.is_some() || set.gid.is_some() {
                let uid = set.uid.map(Uid::from_raw);
                let gid = set.gid.map(Gid::from_raw);
                chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
            }
            if let Some(mode) = set.mode {
                chmodat(CWD, &path, Mode::from_bits_truncate(mode), AtFlags::empty())?;
            }
            if set.atime.is_some() || set.mtime.is_some() {
                let times = Timestamps {
                    last_access: new_time(set.atime),
                    last_modification: new_time(set.mtime),
                };
                utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
            }
            Ok(())
        })?
    }
}

/// Opens what a grant allows, with nobody's rights asked: they were, when it was given.
pub fn open_granted(places: &Places, grant: &Grant) -> Result<OwnedFd, Errno> {
    let flags = OFlags::from_bits_retain(grant.access & ACCESS_MODE);
    let fd = reach(places, &grant.place, OFlags::PATH)?;
    reopen(&fd, flags)
}

/// The entries of an open directory behind `offset`.
pub fn list(directory: impl AsFd, offset: u64, size: usize) -> Result<Vec<wire::Entry>, Errno> {
    // A description of its own has a position of its own.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = openat(directory, c".", flags, Mode::empty())?;
    if offset != 0 {
        rustix::fs::seek(&own, rustix::fs::SeekFrom::Start(offset))?;
    }
    let mut buffer = Vec::with_capacity(size);
    let mut entries = Vec::new();
    let mut names = rustix::fs::RawDir::new(&own, buffer.spare_capacity_mut());
    while let Some(entry) = names.next() {
        let entry = entry?;
        entries.push(wire::Entry {
            name: Bytes::copy_from_slice(entry.file_name().to_bytes()),
            inode: entry.ino(),
            kind: entry.file_type().as_raw_mode(),
            next: entry.next_entry_cookie(),
        });
        if names.is_buffer_empty() {
            break;
        }
    }
    Ok(entries)
}

/// The names below a directory above the exports, behind `offset`.
pub fn list_above(places: &Places, path: &[u8], offset: u64) -> Vec<wire::Entry> {
    let names = places.names_above(Path::new(std::ffi::OsStr::from_bytes(path)));
    let entry = |(at, name): (usize, Vec<u8>)| wire::Entry {
        name: name.into(),
        inode: at as u64 + 2,
        kind: libc::S_IFDIR,
        next: at as u64 + 1,
    };
    let behind = usize::try_from(offset).unwrap_or(usize::MAX);
    names.into_iter().enumerate().skip(behind).map(entry).collect()
}

/// Runs `work` with the caller's rights.
pub fn acting<T>(user: &User, work: impl FnOnce() -> T) -> Result<T, Errno> {
    acting_with(user, NO_UMASK, work)
}

fn acting_with<T>(user: &User, umask: u32, work: impl FnOnce() -> T) -> Result<T, Errno> {
    act_for(user, umask, work).map_err(|error| {
        tracing::error!(%error, "this daemon cannot act for a user of another node");
        Errno::PERM
    })
}

/// Opens by handle, or by path if it is still the same file there.
fn reach(places: &Places, place: &Place, flags: OFlags) -> Result<OwnedFd, Errno> {
    match place {
        Place::Inode { mount, handle } => {
            let anchor = places.anchor(*mount)?;
            let opened = handle.open(&*anchor, flags.bits() as i32);
            opened.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
        Place::Path { path, file } => {
            let path = std::ffi::OsStr::from_bytes(path);
            let resolve = ResolveFlags::NO_SYMLINKS;
            let gone = |_| Errno::STALE;
            let fd = openat2(CWD, path, PATH_FLAGS, Mode::empty(), resolve).map_err(gone)?;
            places.judge_mount(&fd)?;
            match file_of(&status(&fd)?) == *file {
                true => Ok(fd),
                false => Err(Errno::STALE),
            }
        }
        Place::Above { .. } => Err(Errno::ACCESS),
    }
}

fn place_of(fd: &OwnedFd, status: &Statx) -> Result<Place, Errno> {
    match FileHandle::of(fd) {
        Ok(handle) => Ok(Place::Inode { mount: status.stx_mnt_id, handle }),
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            let path = readlinkat(CWD, path_to(fd), Vec::new())?.into_bytes();
            if path.len() + 64 > wire::HANDLE_SIZE_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            Ok(Place::Path { path, file: file_of(status) })
        }
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

fn file_of(status: &Statx) -> File {
    let born = status.stx_btime;
    let born = (born.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(born.tv_nsec.into());
    File { device: device(status), inode: status.stx_ino, born }
}

/// A name in a directory; what is mounted there, if that may be entered.
fn open_child(places: &Places, dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let here = beneath() | ResolveFlags::NO_XDEV;
    match openat2(dir, name, PATH_FLAGS, Mode::empty(), here) {
        Err(Errno::XDEV) => {
            let child = openat2(dir, name, PATH_FLAGS, Mode::empty(), beneath())?;
            places.judge_mount(&child)?;
            Ok(child)
        }
        opened => opened,
    }
}

/// Refuses to touch the name of what is never exported.
fn judge_name(places: &Places, dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    match statx(dir, name, flags, StatxFlags::INO) {
        // The kernel refuses it as busy.
        Ok(status) if status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) => Ok(()),
        Ok(status) => places.judge(identity(&status)),
        Err(_) => Ok(()),
    }
}

/// The path by which the kernel gives the very file that `fd` is open on.
fn path_to(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// An open file description of its own of what was opened so.
pub fn opened_again(fd: &OwnedFd, access: u32) -> Result<OwnedFd, Errno> {
    reopen(fd, OFlags::from_bits_retain(access & ACCESS_MODE))
}

fn reopen(fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(CWD, path_to(fd), flags, Mode::empty())
}

fn reopen_path(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    openat(CWD, path_to(fd), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

fn may_execute(fd: &OwnedFd) -> Result<(), Errno> {
    accessat(CWD, path_to(fd), Access::EXEC_OK, AtFlags::EACCESS)
}

fn truncate(path: &str, size: u64) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::ftruncate(openat(CWD, path, flags, Mode::empty())?, size)
}

fn create_flags(flags: u32) -> OFlags {
    let kept = OFlags::from_bits_retain(flags) & (OFlags::RDWR | OFlags::WRONLY | OFlags::EXCL);
    kept | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}

/// One component of a path.
fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > wire::NAME_SIZE_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let odd = name.is_empty() || name == b"." || name == b"..";
    if odd || name.contains(&b'/') || name.contains(&0) { Err(Errno::INVAL) } else { Ok(()) }
}

fn new_time(time: Option<wire::NewTime>) -> Timespec {
    let odd = |nanos| Timespec { tv_sec: 0, tv_nsec: nanos };
    match time {
        None => odd(UTIME_OMIT),
        Some(wire::NewTime { at: None }) => odd(UTIME_NOW),
        Some(wire::NewTime { at: Some(at) }) => {
            Timespec { tv_sec: at.secs, tv_nsec: i64::from(at.nanos.min(999_999_999)) }
        }
    }
}

pub fn attributes(status: &Statx) -> wire::Attributes {
    let time = |time: rustix::fs::StatxTimestamp| {
        Some(wire::Timestamp { secs: time.tv_sec, nanos: time.tv_nsec })
    };
    wire::Attributes {
        device: device(status),
        inode: status.stx_ino,
        mode: status.stx_mode.into(),
        nlink: status.stx_nlink,
        uid: status.stx_uid,
        gid: status.stx_gid,
        size: status.stx_size,
        blocks: status.stx_blocks,
        block_size: status.stx_blksize,
        rdev: rustix::fs::makedev(status.stx_rdev_major, status.stx_rdev_minor) as u32,
        atime: time(status.stx_atime),
        mtime: time(status.stx_mtime),
        ctime: time(status.stx_ctime),
        btime: time(status.stx_btime),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::places::{Exports, Policy};
    use std::path::PathBuf;

    fn places(exports: &Path, never: &[PathBuf]) -> Places {
        Places::new(Policy {
            exports: Exports::parse(exports.to_str().unwrap()).unwrap(),
            root_allowed: true,
            never: never.to_vec(),
        })
    }

    fn skipped() -> bool {
        let skipped = !rustix::process::geteuid().is_root();
        if skipped {
            println!("skipped: acting for others needs root");
        }
        skipped
    }

    fn user(uid: u32) -> User {
        User { uid, gid: uid, groups: Vec::new() }
    }

    /// The root of the exports is above this directory; walks there.
    fn walk(places: &Places, path: &Path) -> Result<Object, Errno> {
        let mut object = Object::root(places)?;
        for name in path.components().skip(1) {
            object = object.lookup(places, &user(0), name.as_os_str().as_bytes())?;
        }
        Ok(object)
    }

    #[test]
    fn nothing_leads_out_of_an_export() {
        if skipped() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (open, secret) = (dir.path().join("open"), dir.path().join("open/secret"));
        std::fs::create_dir_all(&secret).unwrap();
        std::fs::write(dir.path().join("outside"), "x").unwrap();
        std::os::unix::fs::symlink("../outside", open.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", open.join("etc")).unwrap();
        let places = places(&open, std::slice::from_ref(&secret));
        let root = walk(&places, &open).unwrap();
        let look = |name: &[u8]| root.lookup(&places, &user(0), name).map(drop);
        for name in [&b".."[..], b".", b"", b"a/b", b"../outside", b"/etc", b"nul\0"] {
            assert_eq!(look(name), Err(Errno::INVAL), "{name:?}");
        }
        assert_eq!(look(&[b'x'; 256]), Err(Errno::NAMETOOLONG));
        assert_eq!(look(b"secret"), Err(Errno::ACCESS));
        assert_eq!(root.remove_directory(&places, &user(0), b"secret"), Err(Errno::ACCESS));
        let rename = |from: &[u8], to| root.rename(&places, &user(0), from, &root, to, 0);
        assert_eq!(rename(b"secret", b"other"), Err(Errno::ACCESS));
        // A link is shown, never followed.
        let link = root.lookup(&places, &user(0), b"link").unwrap();
        assert_eq!(link.read_link().unwrap(), b"../outside");
        assert_eq!(link.attributes().unwrap().mode & libc::S_IFMT, libc::S_IFLNK);
        assert!(link.open(&user(0), 0).is_err());
        let etc = root.lookup(&places, &user(0), b"etc").unwrap();
        assert_eq!(etc.lookup(&places, &user(0), b"passwd").map(drop), Err(Errno::NOTDIR));
        // Above it there is the way and nothing else.
        let above = walk(&places, dir.path()).unwrap();
        assert_eq!(above.lookup(&places, &user(0), b"outside").map(drop), Err(Errno::NOENT));
        assert!(above.lookup(&places, &user(0), b"open").is_ok());
        assert_eq!(above.unlink(&user(0), b"outside"), Err(Errno::ACCESS));
    }

    #[test]
    fn what_the_kernel_makes_up_is_never_exported() {
        if skipped() {
            return;
        }
        let places = places(Path::new("/"), &[]);
        for path in ["/proc", "/sys", "/dev"] {
            assert_eq!(walk(&places, Path::new(path)).map(drop), Err(Errno::ACCESS), "{path}");
        }
        assert!(walk(&places, Path::new("/usr/bin")).is_ok());
    }

    #[test]
    fn a_place_finds_the_file_again_and_only_it() {
        if skipped() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let places = places(Path::new("/"), &[]);
        std::fs::write(dir.path().join("a"), "x").unwrap();
        let parent = walk(&places, dir.path()).unwrap();
        let file = parent.lookup(&places, &user(0), b"a").unwrap();
        let (status_there, place) = (file.attributes().unwrap(), file.place());
        assert_eq!(Object::find(&places, place.clone()).unwrap().attributes(), Ok(status_there));
        let path = dir.path().join("a").as_os_str().as_bytes().to_vec();
        let born = file_of(&status(file.real().unwrap()).unwrap());
        let by_path = Place::Path { path, file: born };
        assert_eq!(Object::find(&places, by_path.clone()).unwrap().attributes(), Ok(status_there));
        drop(file);
        std::fs::remove_file(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a"), "other").unwrap();
        std::fs::write(dir.path().join("b"), "other").unwrap();
        assert_eq!(Object::find(&places, place).map(drop), Err(Errno::STALE));
        assert_eq!(Object::find(&places, by_path).map(drop), Err(Errno::STALE));
    }

    #[test]
    fn a_listing_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..500 {
            std::fs::write(dir.path().join(format!("{n:032}")), "").unwrap();
        }
        let open = std::fs::File::open(dir.path()).unwrap();
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let piece = list(&open, offset, 2048).unwrap();
            let Some(last) = piece.last() else { break };
            offset = last.next;
            names.extend(piece.into_iter().map(|entry| entry.name));
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 502);
    }
}
