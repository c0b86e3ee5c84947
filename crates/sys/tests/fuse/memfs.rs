//! A small file system in memory: enough to exercise each kind of answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use unum_sys::fuse::{
    Added, Attr, DirectoryBuffer, Entry, Errno, Fh, Ino, LockFamily, LockKind, LockOwner,
    LockRange, LockRequest, OpenFlags, Opened, Operation, Request, Responder, SetAttr, SetTime,
    StatFs, Timestamp,
};

const PAGE: u64 = 4096;
const NO_TTL: Duration = Duration::ZERO;

#[derive(Clone, Default)]
pub struct MemFs {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<Ino, Node>,
    next_ino: u64,
    next_handle: u64,
    locks: Vec<(Ino, LockRequest)>,
    waiting: BTreeMap<u64, (Ino, LockRequest, Responder)>,
    next_waiting: u64,
}

#[derive(Default)]
struct Node {
    attr: Attr,
    children: BTreeMap<Vec<u8>, Ino>,
    pages: BTreeMap<u64, Vec<u8>>,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

type Answer<T> = Result<T, Errno>;

impl MemFs {
    /// An empty root, and in it a file `f` (inode 2) with `content`.
    pub fn with_file(content: &[u8]) -> MemFs {
        let fs = MemFs::default();
        {
            let mut state = fs.lock();
            state.next_ino = 1;
            state.make(libc::S_IFDIR | 0o755);
            let file = state.make(libc::S_IFREG | 0o644);
            state.link(Ino::ROOT, b"f", file).unwrap();
            state.write(file, 0, content).unwrap();
        }
        fs
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn content(&self, ino: Ino) -> Vec<u8> {
        let state = self.lock();
        state.read(ino, 0, state.nodes[&ino].attr.size).unwrap()
    }

    /// Locks a whole file for an owner that no mount knows.
    pub fn lock_for_a_stranger(&self, ino: Ino) {
        let range = LockRange { start: 0, end: i64::MAX as u64, kind: LockKind::Write, pid: 0 };
        let (owner, family) = (LockOwner(u64::MAX), LockFamily::Fcntl);
        self.lock().apply_lock(ino, LockRequest { fh: Fh(0), owner, family, range });
    }

    pub fn locks(&self) -> usize {
        self.lock().locks.len()
    }

    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    pub fn serve(&self, request: Request) {
        let Request { header, operation, responder } = request;
        match operation {
            Operation::Setlk { lock, wait } => self.set_lock(header.ino, lock, wait, responder),
            operation => {
                let answer = self.lock().answer(header.ino, operation);
                match answer {
                    Ok(answer) => answer(responder),
                    Err(errno) => drop(responder.error(errno)),
                }
            }
        }
        self.lock().grant_waiting();
    }

    fn set_lock(&self, ino: Ino, lock: LockRequest, wait: bool, responder: Responder) {
        let mut state = self.lock();
        if state.conflict(ino, &lock).is_none() {
            state.apply_lock(ino, lock);
            responder.ok();
        } else if !wait {
            responder.error(Errno::AGAIN);
        } else {
            let interrupts = responder.interrupts();
            let id = state.next_waiting;
            state.next_waiting += 1;
            state.waiting.insert(id, (ino, lock, responder));
            drop(state);
            let fs = self.clone();
            interrupts.on_interrupt(move || {
                let waiting = fs.lock().waiting.remove(&id);
                if let Some((_, _, responder)) = waiting {
                    responder.error(Errno::INTR);
                }
            });
        }
    }
}

type Respond = Box<dyn FnOnce(Responder)>;

fn respond<T>(answer: impl FnOnce(Responder) -> T + 'static) -> Answer<Respond> {
    Ok(Box::new(move |responder| drop(answer(responder))))
}

impl State {
    fn answer(&mut self, ino: Ino, operation: Operation) -> Answer<Respond> {
        match operation {
            Operation::Lookup { name } => {
                let child = *self.node(ino)?.children.get(&name).ok_or(Errno::NOENT)?;
                self.entry(child)
            }
            Operation::Forget { .. } => respond(|_| ()),
            Operation::Getattr { .. } => self.attr(ino),
            Operation::Setattr(set) => {
                self.set_attr(ino, &set)?;
                self.attr(ino)
            }
            Operation::Readlink => {
                let target = self.node(ino)?.target.clone();
                respond(move |to| to.content(&target))
            }
            Operation::Symlink { name, target } => {
                let made = self.make(libc::S_IFLNK | 0o777);
                self.node_mut(made)?.target = target;
                self.link(ino, &name, made)?;
                self.entry(made)
            }
            Operation::Mknod { name, mode, .. } => self.make_named(ino, &name, mode),
            Operation::Mkdir { name, mode, .. } => {
                self.make_named(ino, &name, libc::S_IFDIR | mode)
            }
            Operation::Unlink { name } | Operation::Rmdir { name } => {
                let child = self.node_mut(ino)?.children.remove(&name).ok_or(Errno::NOENT)?;
                self.node_mut(child)?.attr.nlink -= 1;
                respond(Responder::ok)
            }
            Operation::Rename { name, new_parent, new_name, flags } => {
                let exists = self.node(new_parent)?.children.contains_key(&new_name);
                if flags & libc::RENAME_NOREPLACE != 0 && exists {
                    return Err(Errno::EXIST);
                }
                let child = self.node_mut(ino)?.children.remove(&name).ok_or(Errno::NOENT)?;
                self.node_mut(new_parent)?.children.insert(new_name, child);
                respond(Responder::ok)
            }
            Operation::Link { ino: target, name } => {
                self.link(ino, &name, target)?;
                self.entry(target)
            }
            Operation::Open { .. } | Operation::Opendir { .. } => {
                let fh = self.new_handle();
                respond(move |to| to.opened(&Opened { fh, ..Opened::default() }))
            }
            Operation::Create { name, mode, .. } => {
                let made = self.make(mode);
                self.link(ino, &name, made)?;
                self.created(made)
            }
            Operation::Tmpfile { mode, .. } => {
                let made = self.make(mode);
                self.created(made)
            }
            Operation::Read { offset, size, .. } => {
                let content = self.read(ino, offset, u64::from(size))?;
                respond(move |to| to.content(&content))
            }
            Operation::Write(write) => {
                self.write(ino, write.offset, &write.content)?;
                respond(move |to| to.written(write.content.len() as u32))
            }
            Operation::Statfs => respond(|to| {
                to.statfs(&StatFs {
                    blocks: 1000,
                    blocks_free: 600,
                    blocks_available: 500,
                    files: 70,
                    files_free: 60,
                    block_size: 4096,
                    fragment_size: 512,
                    name_len_max: 200,
                })
            }),
            Operation::Flush { lock_owner, .. } => {
                self.locks.retain(|(at, lock)| {
                    (*at, lock.owner, lock.family) != (ino, lock_owner, LockFamily::Fcntl)
                });
                respond(Responder::ok)
            }
            Operation::Release(release) => {
                // Locks of the open file (OFD): the kernel names their owner at no close.
                self.locks
                    .retain(|(_, lock)| (lock.fh, lock.family) != (release.fh, LockFamily::Fcntl));
                if release.flock_unlock {
                    let flock = (ino, release.lock_owner, LockFamily::Flock);
                    self.locks.retain(|(at, lock)| (*at, lock.owner, lock.family) != flock);
                }
                respond(Responder::ok)
            }
            Operation::Releasedir { .. }
            | Operation::Fsync { .. }
            | Operation::Fsyncdir { .. }
            | Operation::Syncfs => respond(Responder::ok),
            Operation::Setxattr { name, value, .. } => {
                self.node_mut(ino)?.xattrs.insert(name, value.to_vec());
                respond(Responder::ok)
            }
            Operation::Getxattr { name, size } => {
                let value = self.node(ino)?.xattrs.get(&name).ok_or(Errno::NODATA)?.clone();
                xattr(value, size)
            }
            Operation::Listxattr { size } => {
                let names = self.node(ino)?.xattrs.keys();
                xattr(names.flat_map(|name| [name.as_slice(), b"\0"].concat()).collect(), size)
            }
            Operation::Removexattr { name } => {
                self.node_mut(ino)?.xattrs.remove(&name).ok_or(Errno::NODATA)?;
                respond(Responder::ok)
            }
            Operation::Readdir { offset, size, .. } => self.list(ino, offset, size, false),
            Operation::Readdirplus { offset, size, .. } => self.list(ino, offset, size, true),
            Operation::Getlk(lock) => {
                let found = self.conflict(ino, &lock);
                let free = LockRange { kind: LockKind::Unlock, ..lock.range };
                respond(move |to| to.lock(&found.unwrap_or(free)))
            }
            Operation::Fallocate { offset, length, mode, .. } => {
                self.allocate(ino, offset, length, mode as i32)?;
                respond(Responder::ok)
            }
            Operation::Lseek { offset, whence, .. } => {
                let position = self.seek(ino, offset, whence as i32)?;
                respond(move |to| to.position(position))
            }
            Operation::CopyFileRange(copy) => {
                let content = self.read(ino, copy.offset_in, copy.length)?;
                self.write(copy.ino_out, copy.offset_out, &content)?;
                respond(move |to| to.copied(content.len() as u64))
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn node(&self, ino: Ino) -> Answer<&Node> {
        self.nodes.get(&ino).ok_or(Errno::STALE)
    }

    fn node_mut(&mut self, ino: Ino) -> Answer<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno::STALE)
    }

    fn make(&mut self, mode: u32) -> Ino {
        let ino = Ino(self.next_ino);
        self.next_ino += 1;
        let nlink = u32::from(mode & libc::S_IFMT == libc::S_IFDIR);
        let attr = Attr { ino, mode, nlink, blksize: PAGE as u32, ..Attr::default() };
        self.nodes.insert(ino, Node { attr, ..Node::default() });
        ino
    }

    fn make_named(&mut self, parent: Ino, name: &[u8], mode: u32) -> Answer<Respond> {
        let made = self.make(mode);
        self.link(parent, name, made)?;
        self.entry(made)
    }

    fn link(&mut self, parent: Ino, name: &[u8], ino: Ino) -> Answer<()> {
        if self.node(parent)?.children.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.node_mut(parent)?.children.insert(name.to_vec(), ino);
        self.node_mut(ino)?.attr.nlink += 1;
        Ok(())
    }

    fn entry_of(&self, ino: Ino) -> Answer<Entry> {
        let attr = self.node(ino)?.attr;
        Ok(Entry { ino, generation: 0, attr, entry_ttl: NO_TTL, attr_ttl: NO_TTL })
    }

    fn entry(&self, ino: Ino) -> Answer<Respond> {
        let entry = self.entry_of(ino)?;
        respond(move |to| to.entry(&entry))
    }

    fn new_handle(&mut self) -> Fh {
        self.next_handle += 1;
        Fh(self.next_handle)
    }

    fn created(&mut self, ino: Ino) -> Answer<Respond> {
        let entry = self.entry_of(ino)?;
        let opened = Opened { fh: self.new_handle(), flags: OpenFlags::NONE, backing: None };
        respond(move |to| to.created(&entry, &opened))
    }

    fn attr(&self, ino: Ino) -> Answer<Respond> {
        let attr = self.node(ino)?.attr;
        respond(move |to| to.attr(&attr, NO_TTL))
    }

    fn set_attr(&mut self, ino: Ino, set: &SetAttr) -> Answer<()> {
        let node = self.node_mut(ino)?;
        let time = |set: Option<SetTime>, old| match set {
            None => old,
            Some(SetTime::Now) => Timestamp { secs: 1, nanos: 1 },
            Some(SetTime::At(time)) => time,
        };
        node.attr.mode = set.mode.unwrap_or(node.attr.mode);
        node.attr.uid = set.uid.unwrap_or(node.attr.uid);
        node.attr.gid = set.gid.unwrap_or(node.attr.gid);
        node.attr.atime = time(set.atime, node.attr.atime);
        node.attr.mtime = time(set.mtime, node.attr.mtime);
        if let Some(size) = set.size {
            node.attr.size = size;
            node.pages.retain(|page, _| page * PAGE < size);
        }
        Ok(())
    }

    fn read(&self, ino: Ino, offset: u64, size: u64) -> Answer<Vec<u8>> {
        let node = self.node(ino)?;
        let end = node.attr.size.min(offset.saturating_add(size));
        let byte =
            |at: u64| node.pages.get(&(at / PAGE)).map_or(0, |page| page[(at % PAGE) as usize]);
        Ok((offset..end.max(offset)).map(byte).collect())
    }

    fn write(&mut self, ino: Ino, offset: u64, content: &[u8]) -> Answer<()> {
        let node = self.node_mut(ino)?;
        for (at, byte) in (offset..).zip(content) {
            let page = node.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
            page[(at % PAGE) as usize] = *byte;
        }
        node.attr.size = node.attr.size.max(offset + content.len() as u64);
        node.attr.mtime.secs += 1;
        Ok(())
    }

    fn allocate(&mut self, ino: Ino, offset: u64, length: u64, mode: i32) -> Answer<()> {
        let node = self.node_mut(ino)?;
        if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 {
            let whole = offset.div_ceil(PAGE)..(offset + length) / PAGE;
            node.pages.retain(|page, _| !whole.contains(page));
            return Ok(());
        }
        for page in offset / PAGE..(offset + length).div_ceil(PAGE) {
            node.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize]);
        }
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
            node.attr.size = node.attr.size.max(offset + length);
        }
        Ok(())
    }

    fn seek(&self, ino: Ino, offset: u64, whence: i32) -> Answer<u64> {
        let node = self.node(ino)?;
        if offset >= node.attr.size {
            return Err(Errno::NXIO);
        }
        let data = whence == libc::SEEK_DATA;
        let last = node.attr.size.div_ceil(PAGE);
        match (offset / PAGE..last).find(|page| node.pages.contains_key(page) == data) {
            Some(page) => Ok((page * PAGE).max(offset)),
            None if data => Err(Errno::NXIO),
            None => Ok(node.attr.size),
        }
    }

    fn list(&self, ino: Ino, offset: u64, size: u32, plus: bool) -> Answer<Respond> {
        let mut buffer = DirectoryBuffer::new(size);
        let children = &self.node(ino)?.children;
        for (index, (name, child)) in children.iter().enumerate().skip(offset as usize) {
            let (next, entry) = (index as u64 + 1, self.entry_of(*child)?);
            let added = match plus {
                true => buffer.add_entry(&entry, next, name),
                false => buffer.add(*child, next, entry.attr.mode, name),
            };
            if added == Added::Full {
                break;
            }
        }
        respond(move |to| to.directory(&buffer))
    }

    fn conflict(&self, ino: Ino, wanted: &LockRequest) -> Option<LockRange> {
        let (from, to) = (wanted.range.start, wanted.range.end);
        let in_the_way = |(at, held): &&(Ino, LockRequest)| {
            *at == ino
                && held.family == wanted.family
                && held.owner != wanted.owner
                && wanted.range.kind != LockKind::Unlock
                && (held.range.kind == LockKind::Write || wanted.range.kind == LockKind::Write)
                && held.range.start <= to
                && from <= held.range.end
        };
        self.locks.iter().find(in_the_way).map(|(_, held)| held.range)
    }

    /// Ranges are replaced whole: tests lock whole files or the same ranges again.
    fn apply_lock(&mut self, ino: Ino, lock: LockRequest) {
        let key = |(at, lock): &(Ino, LockRequest)| (*at, lock.owner, lock.family);
        self.locks.retain(|held| {
            key(held) != (ino, lock.owner, lock.family)
                || held.1.range.start < lock.range.start
                || held.1.range.end > lock.range.end
        });
        if lock.range.kind != LockKind::Unlock {
            self.locks.push((ino, lock));
        }
    }

    fn grant_waiting(&mut self) {
        let ids: BTreeSet<u64> = self.waiting.keys().copied().collect();
        for id in ids {
            let (ino, lock) = (self.waiting[&id].0, self.waiting[&id].1);
            if self.conflict(ino, &lock).is_none() {
                self.apply_lock(ino, lock);
                if let Some((_, _, responder)) = self.waiting.remove(&id) {
                    responder.ok();
                }
            }
        }
    }
}

fn xattr(value: Vec<u8>, size: u32) -> Answer<Respond> {
    match size as usize {
        0 => respond(move |to| to.xattr_size(value.len() as u32)),
        size if size < value.len() => Err(Errno::RANGE),
        _ => respond(move |to| to.content(&value)),
    }
}
