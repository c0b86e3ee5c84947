//! Names: looking them up, making, moving and removing them, listing directories; and the opening
//! and closing of what they name.

use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use unum_core::tree::{Tree, TreeError};
use unum_proto::ids::{Ino, NodeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{
    Attributes, Create, CreateUnnamed, FileKind, InodeReply, Link, Release as ReleaseInodes,
    Rename, Rmdir, Unlink,
};
use unum_sys::fuse::{
    Added, Delivery, DirectoryBuffer, Entry, Fh, Ino as Nodeid, OpenFlags, Opened, Release,
    Responder,
};

use super::Call;
use super::attributes::{attr, kind_bits, kind_of};
use super::errno::FileError;
use super::handles::{Handle, HandleId};

impl Call<'_> {
    pub(super) async fn lookup(&self, name: &[u8]) -> Result<Looked, FileError> {
        let about = |tree: &Tree| [self.ino, tree.lookup(self.ino, name).unwrap_or(self.ino)];
        let (found, trusted, generation) = self
            .files
            .see(self.deadline, about, |tree, trust| {
                let ino = tree.lookup(self.ino, name);
                let found = ino.and_then(|ino| tree.attributes(ino));
                let trusted = match found {
                    Ok(_) | Err(TreeError::NotFound) => {
                        self.files.caches.trust_name(trust, self.ino, name, ino.ok())
                    }
                    Err(_) => UNTRUSTED,
                };
                (found, trusted, tree.generation(ino.unwrap_or(self.ino)))
            })
            .await?;
        match found {
            Ok(attributes) => {
                Ok(Looked::Found(Entry { generation, ..entry(&attributes, trusted) }))
            }
            Err(TreeError::NotFound) => Ok(Looked::Nothing(trusted.0)),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn mkdir(
        &self,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
    ) -> Result<Entry, FileError> {
        self.make(Create { umask, ..self.new_inode(name, FileKind::Directory, mode) }).await
    }

    pub(super) async fn mknod(
        &self,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> Result<Entry, FileError> {
        let kind = kind_of(mode).ok_or(Errno::INVAL)?;
        self.make(Create { rdev, umask, ..self.new_inode(name, kind, mode) }).await
    }

    pub(super) async fn symlink(&self, name: Vec<u8>, target: Vec<u8>) -> Result<Entry, FileError> {
        let target = Bytes::from(target);
        self.make(Create { target, ..self.new_inode(name, FileKind::Symlink, 0o777) }).await
    }

    pub(super) async fn link(&self, ino: Nodeid, name: Vec<u8>) -> Result<Entry, FileError> {
        let link = Link { ino: ino.0, parent: self.ino.0, name: name.into() };
        let both = [ino.0, self.ino.0].map(Ino);
        Ok(entry(&inode_of(self.change_seen(Command::Link(link), both).await?)?, UNTRUSTED))
    }

    pub(super) async fn unlink(&self, name: Vec<u8>) -> Result<(), FileError> {
        let unlink = Unlink { parent: self.ino.0, name: name.clone().into() };
        self.with_name(&name, self.change_seen(Command::Unlink(unlink), [self.ino; 2])).await?;
        Ok(())
    }

    pub(super) async fn rmdir(&self, name: Vec<u8>) -> Result<(), FileError> {
        let rmdir = Rmdir { parent: self.ino.0, name: name.clone().into() };
        self.with_name(&name, self.change_seen(Command::Rmdir(rmdir), [self.ino; 2])).await?;
        Ok(())
    }

    /// After a successful change of what a name in this directory leads to, the kernel does not
    /// trust what it knew of it.
    async fn with_name<T>(
        &self,
        name: &[u8],
        change: impl Future<Output = Result<T, FileError>>,
    ) -> Result<T, FileError> {
        let answered = self.files.caches.answered(self.ino, name);
        let changed = change.await?;
        self.files.caches.forget_name(self.ino, name, answered);
        Ok(changed)
    }

    pub(super) async fn rename(
        &self,
        name: Vec<u8>,
        new_parent: Nodeid,
        new_name: Vec<u8>,
        flags: u32,
    ) -> Result<(), FileError> {
        let rename = Rename {
            parent: self.ino.0,
            name: name.clone().into(),
            new_parent: new_parent.0,
            new_name: new_name.into(),
            flags,
        };
        let both = [self.ino, Ino(new_parent.0)];
        let (old, new) = ((self.ino, &*rename.name), (both[1], &*rename.new_name));
        self.files.caches.follow_name(old, new);
        if flags & RENAME_EXCHANGE != 0 {
            self.files.caches.follow_name(new, old);
            return self.change_seen(Command::Rename(rename), both).await.map(drop);
        }
        self.with_name(&name, self.change_seen(Command::Rename(rename), both)).await.map(drop)
    }

    pub(super) async fn readlink(&self) -> Result<Vec<u8>, FileError> {
        Ok(self.see_own(|tree, _| tree.read_link(self.ino).map(<[u8]>::to_vec)).await??)
    }

    /// The open is written down before the tree is looked at: see the contract in
    /// `unum_core::tree` on files that lose their last name while open.
    pub(super) async fn open(&self, flags: u32) -> Result<Opened, FileError> {
        self.check_flags(flags)?;
        let was_open = self.files.handles().is_open(self.ino);
        let opened = self.opened(self.ino, flags)?;
        match self.check_open(was_open).await {
            Ok(true) => Ok(Opened { flags: opened.flags | OpenFlags::KEEP_CACHE, ..opened }),
            Ok(false) => Ok(opened),
            Err(error) => {
                self.close(opened.fh).await?;
                Err(error)
            }
        }
    }

    /// Tells whether the kernel's pages are of the present content.
    async fn check_open(&self, was_open: bool) -> Result<bool, FileError> {
        let checked = self.see_own(|tree, trust| {
            tree.inode(self.ino)?;
            if tree.is_orphan(self.ino) && !was_open {
                return Err(TreeError::Stale);
            }
            Ok(self.files.caches.keep_pages(trust, tree, self.ino))
        });
        Ok(checked.await??)
    }

    pub(super) async fn create(
        &self,
        name: Vec<u8>,
        flags: u32,
        mode: u32,
        umask: u32,
    ) -> Result<(Entry, Opened), FileError> {
        let exclusive = flags & libc::O_EXCL as u32 != 0;
        let create = Create { exclusive, umask, ..self.new_inode(name, FileKind::Regular, mode) };
        let (reply, trusted) = self.make_trusted(create).await?;
        let mut attributes = reply.attributes.ok_or(FileError::Strange)?;
        // Somebody else made it since the kernel looked: what O_TRUNC asks for is still to be done.
        if !reply.created && flags & libc::O_TRUNC as u32 != 0 {
            attributes = self.truncate(Ino(attributes.ino)).await?;
        }
        let opened = self.opened(Ino(attributes.ino), flags)?;
        Ok((entry(&attributes, trusted), opened))
    }

    pub(super) async fn tmpfile(
        &self,
        flags: u32,
        mode: u32,
        umask: u32,
    ) -> Result<(Entry, Opened), FileError> {
        let unnamed = CreateUnnamed {
            parent: self.ino.0,
            mode: mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            linkable: flags & libc::O_EXCL as u32 == 0,
            umask,
        };
        let unnamed = Command::CreateUnnamed(unnamed);
        self.look(|tree| tree.refuse_past(&unnamed))?;
        // Nobody else can see it.
        let made = Box::pin(self.change_heard(unnamed, None)).await?;
        let attributes = inode_of(made)?;
        let opened = self.opened(Ino(attributes.ino), flags)?;
        Ok((entry(&attributes, UNTRUSTED), opened))
    }

    pub(super) async fn opendir(&self, flags: u32) -> Result<Opened, FileError> {
        let opened = self.open(flags).await?;
        Ok(Opened { flags: opened.flags | OpenFlags::CACHE_DIR, ..opened })
    }

    pub(super) async fn readdir(
        &self,
        offset: u64,
        size: u32,
    ) -> Result<DirectoryBuffer, FileError> {
        let listed = self.see_own(|tree, _| {
            let mut buffer = DirectoryBuffer::new(size);
            for listed in tree.read_directory(self.ino, offset)? {
                let kind = kind_bits(listed.kind.to_proto());
                let added = buffer.add(Nodeid(listed.ino.0), listed.cookie, kind, &listed.name);
                if added == Added::Full {
                    break;
                }
            }
            Ok::<_, TreeError>(buffer)
        });
        Ok(listed.await??)
    }

    pub(super) async fn release(&self, release: Release) -> Result<(), FileError> {
        // What cannot be released now is released by the upkeep once the file is closed.
        let flock = match release.flock_unlock {
            true => self.release_flock(release.lock_owner).await,
            false => Ok(()),
        };
        let records = self.release_open_file(release.fh).await;
        self.close(release.fh).await.and(flock).and(records)
    }

    pub(super) async fn close(&self, fh: Fh) -> Result<(), FileError> {
        let closed = self.files.handles().close(HandleId(fh.0)).map_err(io_errno)?;
        let Some((handle, true)) = closed else { return Ok(()) };
        let node = self.files.parts.node;
        let holds = |nodes: &[NodeId]| nodes.contains(&node);
        if self.look(|tree| holds(tree.holders(handle.ino))) {
            // What was written through it comes first.
            self.sync().await?;
            let release = ReleaseInodes { inos: vec![handle.ino.0] };
            self.files.change(Command::Release(release), self.deadline).await?;
        }
        Ok(())
    }

    fn opened(&self, ino: Ino, flags: u32) -> Result<Opened, FileError> {
        let id = self.files.handles().open(Handle { ino, flags }).map_err(io_errno)?;
        Ok(Opened { fh: Fh(id.0), flags: open_flags(flags), backing: None })
    }

    fn new_inode(&self, name: Vec<u8>, kind: FileKind, mode: u32) -> Create {
        Create {
            parent: self.ino.0,
            name: name.into(),
            kind: kind as i32,
            mode: mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            target: Bytes::new(),
            exclusive: true,
            ino: 0,
            umask: 0,
        }
    }

    async fn make(&self, create: Create) -> Result<Entry, FileError> {
        let (reply, trusted) = self.make_trusted(create).await?;
        Ok(entry(&reply.attributes.ok_or(FileError::Strange)?, trusted))
    }

    /// Makes an inode, and tells how long the kernel may keep its name and its attributes.
    async fn make_trusted(
        &self,
        create: Create,
    ) -> Result<(InodeReply, (Duration, Duration)), FileError> {
        let (caches, registry) = (&self.files.caches, &self.files.parts.registry);
        let name = create.name.clone();
        let answered = caches.answered(self.ino, &name);
        let promise = caches.promise(self.ino, &name);
        let made = self.change_seen(Command::Create(create), [self.ino; 2]).await?;
        let Outcome::Inode(reply) = made else { return Err(FileError::Strange) };
        let trusted = self.look(|tree| {
            let fresh = reply.created && registry.ungranted() == 0 && registry.holds_lease();
            let attributes = reply.attributes.as_ref().filter(|_| fresh)?;
            Some(caches.keep_promise(promise?, tree, (self.ino, &name), attributes))
        });
        if promise.is_none() {
            caches.forget_name(self.ino, &name, answered);
        }
        Ok((reply, trusted.unwrap_or(UNTRUSTED)))
    }

    /// A change of one inode that programs see.
    pub(super) async fn inode_change(
        &self,
        command: Command,
        ino: Ino,
    ) -> Result<Attributes, FileError> {
        inode_of(self.change_seen(command, [ino; 2]).await?)
    }
}

/// What a lookup found.
pub(super) enum Looked {
    Found(Entry),
    /// The kernel may remember for this long that there is no such name.
    Nothing(Duration),
}

impl Looked {
    pub fn answer(&self, to: Responder) -> Delivery {
        match self {
            Self::Found(entry) => to.entry(entry),
            Self::Nothing(Duration::ZERO) => to.error(Errno::NOENT),
            Self::Nothing(ttl) => to.no_entry(*ttl),
        }
    }
}

fn inode_of(outcome: Outcome) -> Result<Attributes, FileError> {
    match outcome {
        Outcome::Inode(reply) => reply.attributes.ok_or(FileError::Strange),
        _ => Err(FileError::Strange),
    }
}

/// Of renameat2(2).
const RENAME_EXCHANGE: u32 = 2;

/// The kernel cuts a write into pieces at the borders of pages it caches. Two programs that append
/// would find their pieces mixed, so such writes pass its cache by and arrive whole.
fn open_flags(flags: u32) -> OpenFlags {
    if flags & libc::O_APPEND as u32 != 0 { OpenFlags::DIRECT_IO } else { OpenFlags::NONE }
}

/// The kernel is to forget a name and attributes once they are used.
const UNTRUSTED: (Duration, Duration) = (Duration::ZERO, Duration::ZERO);

fn entry(attributes: &Attributes, (entry_ttl, attr_ttl): (Duration, Duration)) -> Entry {
    let (ino, attr) = (Nodeid(attributes.ino), attr(attributes));
    Entry { ino, generation: 0, attr, entry_ttl, attr_ttl }
}

fn io_errno(error: std::io::Error) -> FileError {
    FileError::Errno(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
