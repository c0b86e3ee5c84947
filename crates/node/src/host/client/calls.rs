//! One call of the kernel: what it asks for, about which file of which home, and asking that home.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::time::Instant;
use unum_net::{CallOptions, Caller};
use unum_proto::host as wire;
use unum_proto::host::{change, look};
use unum_sys::fuse::{Fh, Header, Ino, Operation, Responder};

use super::messages::{accepted, groups_of};
use super::names::make;
use super::{HOME_TTL, HostTrees};
use crate::host::memory::{Known, Ticket};
use crate::host::table::{OWN_LINK, OpenFile, ROOT, Target};
use crate::host::{Change, Look};
use crate::signals::{Grace, Signal};

/// One call of the kernel.
pub(super) struct Call<'a> {
    pub trees: &'a Arc<HostTrees>,
    pub header: Header,
    pub deadline: Instant,
}

/// What a call is about.
pub(super) enum About {
    Root,
    OwnLink,
    Home(Target),
}

impl Call<'_> {
    #[rustfmt::skip]
    pub(super) async fn dispatch(&self, operation: Operation, to: Responder) {
        use Operation as O;
        let signal = Signal::of(&to, self.header.pid);
        let (read, change, sync) = (Grace::Read, Grace::Change, Grace::Sync);
        match operation {
            O::Lookup { name } => self.show(to, signal.or(read, self.lookup(name)).await),
            O::Forget { nodes } => { self.forget(nodes); let _ = to.ok(); }
            O::Getattr { fh } => finish(to, signal.or(read, self.getattr(fh)).await, |to, (a, ttl)| to.attr(&a, ttl)),
            O::Statx { fh, .. } => finish(to, signal.or(read, self.statx(fh)).await, |to, s| to.statx(&s)),
            O::Setattr(set) => finish(to, signal.or(change, self.setattr(set)).await, |to, a| to.attr(&a, HOME_TTL)),
            O::Readlink => finish(to, signal.or(read, self.readlink()).await, |to, t| to.content(&t)),
            O::Symlink { name, target } => self.show(to, signal.or(change, self.symlink(name, target)).await),
            O::Mknod { name, mode, rdev, umask } => self.show(to, signal.or(change, self.make(change::Call::MakeNode(make(name, mode, umask, rdev, 0)))).await),
            O::Mkdir { name, mode, umask } => self.show(to, signal.or(change, self.make(change::Call::MakeDirectory(make(name, mode, umask, 0, 0)))).await),
            O::Create { name, flags, mode, umask, .. } => self.show(to, signal.or(change, self.make(change::Call::Create(make(name, mode, umask, 0, flags)))).await),
            O::Tmpfile { flags, mode, umask } => self.show(to, signal.or(change, self.make(change::Call::MakeUnnamed(make(Vec::new(), mode, umask, 0, flags)))).await),
            O::Link { ino, name } => self.show(to, signal.or(change, self.link(ino, name)).await),
            O::Unlink { name } => finish(to, signal.or(change, self.name_change(name, change::Call::Unlink)).await, |to, ()| to.ok()),
            O::Rmdir { name } => finish(to, signal.or(change, self.name_change(name, change::Call::RemoveDirectory)).await, |to, ()| to.ok()),
            O::Rename { name, new_parent, new_name, flags } => finish(to, signal.or(change, self.rename(name, new_parent, new_name, flags)).await, |to, ()| to.ok()),
            O::Open { flags, .. } => self.opened(to, signal.or(read, self.open(flags)).await),
            O::Opendir { flags } => self.opened(to, signal.or(read, self.open(flags | libc::O_DIRECTORY as u32)).await),
            O::Read { fh, offset, size, .. } => finish(to, signal.or(read, self.read(fh, offset, size)).await, |to, b| to.content(&b)),
            O::Write(write) => finish(to, signal.or(change, self.write(write)).await, |to, n| to.written(n)),
            O::Readdir { fh, offset, size } => finish(to, signal.or(read, self.readdir(fh, offset, size)).await, |to, d| to.directory(&d)),
            O::Statfs => finish(to, signal.or(read, self.statfs()).await, |to, s| to.statfs(&s)),
            O::Release(release) => { self.end_locks_through(release.fh).await; self.release(release.fh); let _ = to.ok(); }
            O::Releasedir { fh, .. } => { self.release(fh); let _ = to.ok(); }
            O::Fsync { fh, datasync } | O::Fsyncdir { fh, datasync } => finish(to, signal.or(sync, self.fsync(fh, datasync)).await, |to, ()| to.ok()),
            O::Setxattr { name, value, flags, .. } => finish(to, signal.or(change, self.setxattr(name, value, flags)).await, |to, ()| to.ok()),
            O::Getxattr { name, size } => finish(to, signal.or(read, self.getxattr(name, size)).await, sized(size)),
            O::Listxattr { size } => finish(to, signal.or(read, self.listxattr(size)).await, sized(size)),
            O::Removexattr { name } => finish(to, signal.or(change, self.name_change(name, change::Call::RemoveXattr)).await, |to, ()| to.ok()),
            O::Fallocate { fh, offset, length, mode } => finish(to, signal.or(change, self.fallocate(fh, offset, length, mode)).await, |to, ()| to.ok()),
            O::Lseek { fh, offset, whence } => finish(to, signal.or(read, self.lseek(fh, offset, whence)).await, |to, at| to.position(at)),
            // A write is at its home before it returns.
            O::Flush { lock_owner, .. } => { self.flush(lock_owner).await; let _ = to.ok(); }
            O::Getlk(request) => finish(to, signal.or(read, self.getlk(request)).await, |to, range| to.lock(&range)),
            O::Setlk { lock, wait } => finish(to, self.setlk(lock, wait, &signal).await, |to, ()| to.ok()),
            O::NotifyReply { .. } => drop(to.ok()),
            // The kernel does these itself, or copies through read and write.
            O::Syncfs | O::Readdirplus { .. } | O::Access { .. } | O::CopyFileRange(_)
            | O::Bmap { .. } | O::Ioctl { .. } | O::Poll { .. } => drop(to.error(Errno::NOSYS)),
            O::Interrupt { .. } | O::Init(_) | O::Destroy | O::Unknown { .. } => drop(to.error(Errno::NOSYS)),
        }
    }

    pub(super) fn about(&self, ino: Ino) -> Result<About, Errno> {
        match ino.0 {
            ROOT => Ok(About::Root),
            OWN_LINK => Ok(About::OwnLink),
            number => {
                self.trees.table().target(number).cloned().map(About::Home).ok_or(Errno::STALE)
            }
        }
    }

    /// What a call is about that makes no sense on the root.
    pub(super) fn target(&self, ino: Ino) -> Result<Target, Errno> {
        match self.about(ino)? {
            About::Home(target) => Ok(target),
            About::Root | About::OwnLink => Err(Errno::PERM),
        }
    }

    pub(super) fn own_target(&self) -> Result<Target, Errno> {
        self.target(self.header.ino)
    }

    pub(super) fn open_file(&self, fh: Fh) -> Result<OpenFile, Errno> {
        self.trees.table().opened(fh.0).cloned().ok_or(Errno::STALE)
    }

    /// With whose rights the home acts.
    pub(super) fn options(&self) -> CallOptions {
        let Header { uid, gid, pid, .. } = self.header;
        let groups = if uid == 0 { Vec::new() } else { groups_of(pid) };
        let caller = Caller { node: None, uid, gid, groups };
        CallOptions::until(self.deadline).caller(caller)
    }

    /// For calls whose right is in the warrant.
    pub(super) fn options_of_none(&self) -> CallOptions {
        let Header { uid, gid, .. } = self.header;
        let caller = Caller { node: None, uid, gid, groups: Vec::new() };
        CallOptions::until(self.deadline).caller(caller)
    }

    /// An answer that is not kept.
    pub(super) async fn look(
        &self,
        target: &Target,
        call: look::Call,
    ) -> Result<wire::Answer, Errno> {
        accepted(self.ask(target, call, Ticket::NONE).await?)
    }

    /// The home's answer, which may be a refusal and is to be kept if the ticket allows it.
    pub(super) async fn ask(
        &self,
        target: &Target,
        call: look::Call,
        ticket: Ticket,
    ) -> Result<wire::Answer, Errno> {
        let request =
            wire::Look { handle: target.handle.clone(), call: Some(call), lease: ticket.lease };
        self.trees.ask::<Look>(target.node, request, &self.options()).await
    }

    /// To be taken before the question. The first one begins a lease.
    pub(super) fn ticket(&self, target: &Target) -> Ticket {
        let (ticket, begins) = self.trees.memory.ticket(target, self.header.uid);
        if begins {
            drop(tokio::spawn(self.trees.clone().keep_lease(target.node)));
        }
        ticket
    }

    pub(super) fn recollect<T>(
        &self,
        of: &Target,
        look: impl FnOnce(&Known, Duration) -> Option<T>,
    ) -> Option<T> {
        self.trees.memory.look(of, self.header.uid, look)
    }

    pub(super) async fn change(
        &self,
        target: &Target,
        call: change::Call,
    ) -> Result<wire::Answer, Errno> {
        self.trees.memory.changed(target);
        let request = wire::Change {
            handle: target.handle.clone(),
            lane: self.trees.parts.lane.0,
            number: self.header.unique.0,
            call: Some(call),
        };
        accepted(self.trees.ask::<Change>(target.node, request, &self.options()).await?)
    }
}

pub(super) fn finish<T, D>(
    to: Responder,
    result: Result<T, Errno>,
    reply: impl FnOnce(Responder, T) -> D,
) {
    match result {
        Ok(value) => drop(reply(to, value)),
        Err(errno) => drop(to.error(errno)),
    }
}

/// The answer to a getxattr or listxattr that asked for `size` bytes.
pub(super) fn sized(size: u32) -> impl FnOnce(Responder, Bytes) {
    move |to, bytes| {
        if size == 0 {
            to.xattr_size(bytes.len() as u32);
        } else {
            to.content(&bytes);
        }
    }
}
