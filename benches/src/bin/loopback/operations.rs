//! Each call of the kernel as the same call on the directory below.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{
    AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Stat, XattrFlags,
};
use unum_sys::fuse::{
    Added, CopyFileRange, Delivery, DirectoryBuffer, Entry, Errno, Fh, Forgotten, Header, Ino,
    OpenFlags, Opened, Operation, Request, Responder, StatFs, Write,
};

use crate::attributes::{self, attr, path_of, stat};
use crate::nodes::{Handle, Handles, Name, Nodes, Place, lock};

/// The kernel keeps names and attributes until it changes them itself.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
const PERMISSIONS: u32 = 0o7777;
/// Values that linux/fs.h gives lseek's `whence`.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

pub struct Loopback {
    nodes: Nodes,
    handles: Handles,
}

impl Loopback {
    pub fn over(source: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(source, flags, Mode::empty())?;
        let below = stat(&root)?.st_ino;
        Ok(Self { nodes: Nodes::new(root, below), handles: Handles::default() })
    }

    pub fn serve(&self, request: Request) {
        let Request { header, operation, responder } = request;
        let ino = header.ino;
        match operation {
            Operation::Lookup { name } => self.lookup(ino, name, responder),
            Operation::Forget { nodes } => self.forget(&nodes),
            Operation::Getattr { .. } => {
                answer(responder, self.attributes(ino), |r, attr| r.attr(&attr, FOR_EVER))
            }
            Operation::Setattr(change) => {
                let changed = self.set_attributes(ino, &change);
                answer(responder, changed, |r, attr| r.attr(&attr, FOR_EVER));
            }
            Operation::Readlink => {
                let target =
                    self.held(ino).and_then(|fd| rustix::fs::readlinkat(&*fd, c"", Vec::new()));
                answer(responder, target, |r, target| r.content(target.as_bytes()));
            }
            Operation::Symlink { name, target } => {
                self.make(&header, name, responder, |dir, name| {
                    rustix::fs::symlinkat(c_string(target)?.as_c_str(), dir, name)
                })
            }
            Operation::Mknod { name, mode, rdev, .. } => {
                self.make(&header, name, responder, |dir, name| {
                    let kind = FileType::from_raw_mode(mode);
                    rustix::fs::mknodat(dir, name, kind, permissions(mode), rdev.into())
                });
            }
            Operation::Mkdir { name, mode, .. } => {
                self.make(&header, name, responder, |dir, name| {
                    rustix::fs::mkdirat(dir, name, permissions(mode))
                })
            }
            Operation::Link { ino: target, name } => {
                let made = self.link(ino, target, name);
                self.answer_entry(responder, made);
            }
            Operation::Unlink { name } => done(responder, self.unlink(ino, name, AtFlags::empty())),
            Operation::Rmdir { name } => {
                done(responder, self.unlink(ino, name, AtFlags::REMOVEDIR))
            }
            Operation::Rename { name, new_parent, new_name, flags } => {
                done(responder, self.rename(ino, name, new_parent, new_name, flags));
            }
            Operation::Open { flags, .. } => {
                answer(responder, self.open(ino, flags), |r, opened| r.opened(&opened));
            }
            Operation::Create { name, flags, mode, .. } => {
                self.create(&header, name, flags, mode, responder);
            }
            Operation::Read { fh, offset, size, .. } => {
                let content = self.read(fh, offset, size);
                answer(responder, content, |r, content| r.content(&content));
            }
            Operation::Write(write) => {
                answer(responder, self.write(&write), |r, count| r.written(count));
            }
            Operation::Release(release) => {
                self.handles.remove(release.fh);
                responder.ok();
            }
            Operation::Flush { .. } => drop(responder.ok()),
            Operation::Fsync { fh, datasync } => done(responder, self.sync(fh, datasync)),
            Operation::Fsyncdir { datasync, .. } => {
                done(responder, self.sync_directory(ino, datasync));
            }
            Operation::Opendir { .. } => {
                let fh = self.handles.add(Handle::Directory(Arc::default()));
                let flags = OpenFlags::KEEP_CACHE | OpenFlags::CACHE_DIR;
                responder.opened(&Opened { fh, flags, backing: None });
            }
            Operation::Readdir { fh, offset, size } => {
                let listing = self.list(ino, fh, offset, size, false);
                answer(responder, listing, |r, records| r.directory(&records));
            }
            Operation::Readdirplus { fh, offset, size } => {
                let listing = self.list(ino, fh, offset, size, true);
                answer(responder, listing, |r, records| r.directory(&records));
            }
            Operation::Releasedir { fh, .. } => {
                self.handles.remove(fh);
                responder.ok();
            }
            Operation::Statfs => answer(responder, self.statfs(ino), |r, statfs| r.statfs(&statfs)),
            Operation::Getxattr { name, size } => {
                let value = self.with_xattrs(ino, |path| {
                    let mut value = vec![0; size as usize];
                    let name = c_string(name)?;
                    let len = rustix::fs::getxattr(path, name.as_c_str(), &mut value)?;
                    Ok((value, len))
                });
                answer_xattr(responder, size, value);
            }
            Operation::Listxattr { size } => {
                let names = self.with_xattrs(ino, |path| {
                    let mut names = vec![0; size as usize];
                    let len = rustix::fs::listxattr(path, &mut names)?;
                    Ok((names, len))
                });
                answer_xattr(responder, size, names);
            }
            Operation::Setxattr { name, value, flags, .. } => {
                let set = self.with_xattrs(ino, |path| {
                    let flags = XattrFlags::from_bits_retain(flags);
                    rustix::fs::setxattr(path, c_string(name)?.as_c_str(), &value, flags)
                });
                done(responder, set);
            }
            Operation::Removexattr { name } => {
                let removed = self.with_xattrs(ino, |path| {
                    rustix::fs::removexattr(path, c_string(name)?.as_c_str())
                });
                done(responder, removed);
            }
            Operation::Fallocate { fh, offset, length, mode } => {
                let allocated = self.handles.file(fh).and_then(|file| {
                    let mode = FallocateFlags::from_bits_retain(mode);
                    rustix::fs::fallocate(&*file, mode, offset, length)
                });
                done(responder, allocated);
            }
            Operation::Lseek { fh, offset, whence } => {
                answer(responder, self.seek(fh, offset, whence), |r, offset| r.position(offset));
            }
            Operation::CopyFileRange(copy) => {
                answer(responder, self.copy(&copy), |r, count| r.copied(count as u64));
            }
            // The kernel asks once, notes that there is no such call, and does without.
            _ => drop(responder.error(Errno::NOSYS)),
        }
    }

    fn lookup(&self, parent: Ino, name: Vec<u8>, responder: Responder) {
        let found = self.nodes.directory(parent).and_then(|dir| self.entry(&dir, c_string(name)?));
        match found {
            Err(Errno::NOENT) => drop(responder.no_entry(FOR_EVER)),
            found => self.answer_entry(responder, found),
        }
    }

    /// Finds a name; counts as a lookup of its inode.
    fn entry(&self, dir: &Arc<OwnedFd>, name: CString) -> Result<Entry, Errno> {
        let stat = stat_at(dir, &name)?;
        let place = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Place::Held(Arc::new(hold(dir, &name)?)),
            _ => Place::at(dir, name),
        };
        Ok(self.looked_up(&stat, place))
    }

    fn looked_up(&self, stat: &Stat, place: Place) -> Entry {
        let ino = self.nodes.number(stat.st_ino);
        self.nodes.looked_up(ino, place);
        let attr = attr(ino, stat);
        Entry { ino, generation: 0, attr, entry_ttl: FOR_EVER, attr_ttl: FOR_EVER }
    }

    /// Any inode by a descriptor.
    fn held(&self, ino: Ino) -> Result<Arc<OwnedFd>, Errno> {
        match self.nodes.place(ino)? {
            Place::Held(fd) => Ok(fd),
            Place::At(dir, name) => hold(&dir, &name).map(Arc::new),
        }
    }

    fn answer_entry(&self, responder: Responder, made: Result<Entry, Errno>) {
        match made {
            Ok(entry) => self.unless_delivered(responder.entry(&entry), entry.ino),
            Err(errno) => drop(responder.error(errno)),
        }
    }

    fn unless_delivered(&self, delivery: Delivery, ino: Ino) {
        if delivery != Delivery::Accepted {
            self.nodes.forget(ino, 1);
        }
    }

    fn forget(&self, nodes: &[Forgotten]) {
        nodes.iter().for_each(|node| self.nodes.forget(node.ino, node.lookups));
    }

    fn attributes(&self, ino: Ino) -> Result<unum_sys::fuse::Attr, Errno> {
        let stat = match self.nodes.place(ino)? {
            Place::Held(fd) => stat(&*fd)?,
            Place::At(dir, name) => stat_at(&dir, &name)?,
        };
        Ok(attr(ino, &stat))
    }

    fn set_attributes(
        &self,
        ino: Ino,
        change: &unum_sys::fuse::SetAttr,
    ) -> Result<unum_sys::fuse::Attr, Errno> {
        let open = change.fh.map(|fh| self.handles.file(fh)).transpose()?;
        attributes::set(&*self.held(ino)?, open.as_deref(), change)?;
        self.attributes(ino)
    }

    /// Makes something at a name, for the caller.
    fn make(
        &self,
        header: &Header,
        name: Vec<u8>,
        responder: Responder,
        make: impl FnOnce(&OwnedFd, &CStr) -> Result<(), Errno>,
    ) {
        let made = self.nodes.directory(header.ino).and_then(|dir| {
            let name = c_string(name)?;
            make(&dir, &name)?;
            let mut entry = self.entry(&dir, name)?;
            self.give(header, &dir, &mut entry)?;
            Ok(entry)
        });
        self.answer_entry(responder, made);
    }

    /// What was just made belongs to the caller.
    fn give(&self, header: &Header, dir: &OwnedFd, entry: &mut Entry) -> Result<(), Errno> {
        if (header.uid, header.gid) == (entry.attr.uid, entry.attr.gid) {
            return Ok(());
        }
        // A directory's setgid bit decides the group.
        let inherits = stat(dir)?.st_mode & 0o2000 != 0;
        let gid = (!inherits).then_some(header.gid);
        attributes::chown(&*self.held(entry.ino)?, Some(header.uid), gid)?;
        entry.attr = self.attributes(entry.ino)?;
        Ok(())
    }

    fn link(&self, parent: Ino, target: Ino, name: Vec<u8>) -> Result<Entry, Errno> {
        let (dir, target) = (self.nodes.directory(parent)?, self.held(target)?);
        let name = c_string(name)?;
        rustix::fs::linkat(&*target, c"", &*dir, name.as_c_str(), AtFlags::EMPTY_PATH)?;
        self.entry(&dir, name)
    }

    fn unlink(&self, parent: Ino, name: Vec<u8>, flags: AtFlags) -> Result<(), Errno> {
        let (dir, name) = (self.nodes.directory(parent)?, c_string(name)?);
        self.hold_named(&dir, &name)?;
        rustix::fs::unlinkat(&*dir, name.as_c_str(), flags)
    }

    /// Before a name goes away or means another inode: what it means is held.
    fn hold_named(&self, dir: &OwnedFd, name: &CStr) -> Result<(Ino, bool), Errno> {
        let fd = hold(dir, name)?;
        let stat = stat(&fd)?;
        let ino = self.nodes.number(stat.st_ino);
        self.nodes.moved(ino, Place::Held(Arc::new(fd)));
        Ok((ino, FileType::from_raw_mode(stat.st_mode) == FileType::Directory))
    }

    fn rename(
        &self,
        parent: Ino,
        name: Vec<u8>,
        new_parent: Ino,
        new_name: Vec<u8>,
        flags: u32,
    ) -> Result<(), Errno> {
        let (from, to) = (self.nodes.directory(parent)?, self.nodes.directory(new_parent)?);
        let (name, new_name) = (c_string(name)?, c_string(new_name)?);
        let flags = RenameFlags::from_bits_retain(flags);
        let moving = self.hold_named(&from, &name)?;
        let replaced = match self.hold_named(&to, &new_name) {
            Ok(replaced) => Some(replaced),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno),
        };
        rustix::fs::renameat_with(&*from, name.as_c_str(), &*to, new_name.as_c_str(), flags)?;
        // One inode under both names: nothing has moved, and it stays held.
        if replaced != Some(moving) {
            self.let_go(moving, Place::at(&to, new_name));
            if let Some(replaced) = replaced.filter(|_| flags.contains(RenameFlags::EXCHANGE)) {
                self.let_go(replaced, Place::at(&from, name));
            }
        }
        Ok(())
    }

    /// Directories stay held.
    fn let_go(&self, (ino, is_directory): (Ino, bool), place: Place) {
        if !is_directory {
            self.nodes.moved(ino, place);
        }
    }

    fn open(&self, ino: Ino, flags: u32) -> Result<Opened, Errno> {
        let file = match self.nodes.place(ino)? {
            Place::Held(fd) => rustix::fs::open(path_of(&*fd), below(flags), Mode::empty())?,
            Place::At(dir, name) => rustix::fs::openat(dir, &*name, below(flags), Mode::empty())?,
        };
        Ok(self.opened(file))
    }

    fn opened(&self, file: OwnedFd) -> Opened {
        let fh = self.handles.add(Handle::File(Arc::new(File::from(file))));
        Opened { fh, flags: OpenFlags::KEEP_CACHE | OpenFlags::NOFLUSH, backing: None }
    }

    fn create(&self, header: &Header, name: Vec<u8>, flags: u32, mode: u32, responder: Responder) {
        let made = self.nodes.directory(header.ino).and_then(|dir| {
            let name = c_string(name)?;
            let flags = below(flags) | OFlags::CREATE | OFlags::NOFOLLOW;
            let file = rustix::fs::openat(&*dir, name.as_c_str(), flags, permissions(mode))?;
            let mut entry = self.looked_up(&stat(&file)?, Place::at(&dir, name));
            self.give(header, &dir, &mut entry)?;
            Ok((entry, self.opened(file)))
        });
        match made {
            Ok((entry, opened)) => {
                let delivery = responder.created(&entry, &opened);
                if delivery != Delivery::Accepted {
                    self.handles.remove(opened.fh);
                }
                self.unless_delivered(delivery, entry.ino);
            }
            Err(errno) => drop(responder.error(errno)),
        }
    }

    fn read(&self, fh: Fh, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let file = self.handles.file(fh)?;
        let mut content = vec![0; size as usize];
        let mut len = 0;
        while len < content.len() {
            match file.read_at(&mut content[len..], offset + len as u64).map_err(errno)? {
                0 => break,
                count => len += count,
            }
        }
        content.truncate(len);
        Ok(content)
    }

    fn write(&self, write: &Write) -> Result<u32, Errno> {
        let file = self.handles.file(write.fh)?;
        file.write_all_at(&write.content, write.offset).map_err(errno)?;
        if write.kill_suidgid {
            attributes::kill_suidgid(&*file)?;
        }
        Ok(write.content.len() as u32)
    }

    fn sync(&self, fh: Fh, datasync: bool) -> Result<(), Errno> {
        let file = self.handles.file(fh)?;
        if datasync { rustix::fs::fdatasync(&*file) } else { rustix::fs::fsync(&*file) }
    }

    fn sync_directory(&self, ino: Ino, datasync: bool) -> Result<(), Errno> {
        let dir = open_directory(&*self.nodes.directory(ino)?)?;
        if datasync { rustix::fs::fdatasync(dir) } else { rustix::fs::fsync(dir) }
    }

    fn list(
        &self,
        ino: Ino,
        fh: Fh,
        offset: u64,
        size: u32,
        with_attributes: bool,
    ) -> Result<DirectoryBuffer, Errno> {
        let dir = self.nodes.directory(ino)?;
        let handle = self.handles.directory(fh)?;
        let mut names = lock(&handle);
        if offset == 0 {
            *names = read_names(&dir)?;
        }
        let mut records = DirectoryBuffer::new(size);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, name) in names.iter().enumerate().skip(from) {
            let next_offset = index as u64 + 1;
            let added = if with_attributes {
                self.add_entry(&dir, name, next_offset, &mut records)
            } else {
                records.add(self.nodes.number(name.below), next_offset, name.kind, &name.name)
            };
            if added == Added::Full {
                break;
            }
        }
        Ok(records)
    }

    fn add_entry(
        &self,
        dir: &Arc<OwnedFd>,
        name: &Name,
        next_offset: u64,
        records: &mut DirectoryBuffer,
    ) -> Added {
        let is_dots = name.name == b"." || name.name == b"..";
        let found = if is_dots {
            Err(Errno::INVAL)
        } else {
            c_string(name.name.clone()).and_then(|c_name| self.entry(dir, c_name))
        };
        let Ok(entry) = found else {
            let ino = self.nodes.number(name.below);
            return records.add_name(ino, next_offset, name.kind, &name.name);
        };
        let added = records.add_entry(&entry, next_offset, &name.name);
        if added == Added::Full {
            self.nodes.forget(entry.ino, 1);
        }
        added
    }

    fn statfs(&self, ino: Ino) -> Result<StatFs, Errno> {
        let dir = self.held(ino)?;
        let statfs = rustix::fs::fstatvfs(&*dir)?;
        Ok(StatFs {
            blocks: statfs.f_blocks,
            blocks_free: statfs.f_bfree,
            blocks_available: statfs.f_bavail,
            files: statfs.f_files,
            files_free: statfs.f_ffree,
            block_size: statfs.f_bsize as u32,
            fragment_size: statfs.f_frsize as u32,
            name_len_max: statfs.f_namemax as u32,
        })
    }

    /// Symbolic links have no attributes of users, and the path of one would lead to its target.
    fn with_xattrs<T>(
        &self,
        ino: Ino,
        call: impl FnOnce(&str) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let fd = self.held(ino)?;
        match FileType::from_raw_mode(stat(&*fd)?.st_mode) {
            FileType::RegularFile | FileType::Directory => call(&path_of(&*fd)),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn seek(&self, fh: Fh, offset: u64, whence: u32) -> Result<u64, Errno> {
        let to = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(&*self.handles.file(fh)?, to)
    }

    fn copy(&self, copy: &CopyFileRange) -> Result<usize, Errno> {
        let (from, to) = (self.handles.file(copy.fh_in)?, self.handles.file(copy.fh_out)?);
        let (mut offset_in, mut offset_out) = (copy.offset_in, copy.offset_out);
        let length = usize::try_from(copy.length).unwrap_or(usize::MAX);
        rustix::fs::copy_file_range(
            &*from,
            Some(&mut offset_in),
            &*to,
            Some(&mut offset_out),
            length,
        )
    }
}

fn answer<T>(
    responder: Responder,
    result: Result<T, Errno>,
    tell: impl FnOnce(Responder, T) -> Delivery,
) {
    match result {
        Ok(value) => tell(responder, value),
        Err(errno) => responder.error(errno),
    };
}

fn done(responder: Responder, result: Result<(), Errno>) {
    answer(responder, result, |responder, ()| responder.ok());
}

fn answer_xattr(responder: Responder, size: u32, value: Result<(Vec<u8>, usize), Errno>) {
    answer(responder, value, |responder, (value, len)| match size {
        0 => responder.xattr_size(len as u32),
        _ => responder.content(&value[..len.min(value.len())]),
    });
}

fn stat_at(dir: &OwnedFd, name: &CStr) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn hold(dir: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn read_names(dir: &OwnedFd) -> Result<Vec<Name>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(open_directory(dir)?)? {
        let entry = entry?;
        names.push(Name {
            below: entry.ino(),
            kind: entry.file_type().as_raw_mode(),
            name: entry.file_name().to_bytes().to_vec(),
        });
    }
    Ok(names)
}

fn open_directory(dir: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, c".", flags, Mode::empty())
}

/// The flags for the file below: the kernel above has found the end of an append and does direct
/// I/O as it likes.
fn below(flags: u32) -> OFlags {
    let flags = OFlags::from_bits_retain(flags);
    flags.difference(OFlags::APPEND | OFlags::DIRECT | OFlags::NOFOLLOW) | OFlags::CLOEXEC
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & PERMISSIONS)
}

fn c_string(bytes: Vec<u8>) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::INVAL)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
