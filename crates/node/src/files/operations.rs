//! From each call of the kernel to the method that answers it.
//!
//! Which calls a signal ends, and when: [`crate::signals`].

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rustix::io::Errno;
use unum_proto::ids::Ino;
use unum_sys::fuse::{Operation, Request, Responder};

use super::attributes::is_acl;
use super::errno::FileError;
use super::{Call, Files};
use crate::signals::{Grace, Signal};

impl Files {
    /// Answers one request of the kernel.
    pub async fn answer(self: Arc<Self>, request: Request) {
        let Request { header, operation, responder } = request;
        let call = Call {
            files: &self,
            unique: header.unique.0,
            resent: header.resent,
            step: AtomicU64::new(0),
            uid: header.uid,
            gid: header.gid,
            pid: header.pid,
            ino: Ino(header.ino.0),
            deadline: self.deadline(),
        };
        call.dispatch(operation, responder).await;
    }
}

impl Call<'_> {
    #[rustfmt::skip]
    async fn dispatch(&self, operation: Operation, to: Responder) {
        use Operation as O;
        let signal = Signal::of(&to, self.pid);
        let (read, change, sync) = (Grace::Read, Grace::Change, Grace::Sync);
        match operation {
            O::Lookup { name } => finish(to, signal.or(read, self.lookup(&name)).await, |to, l| l.answer(to)),
            O::Getattr { .. } => finish(to, signal.or(read, self.getattr()).await, |to, (a, ttl)| to.attr(&a, ttl)),
            O::Statx { .. } => finish(to, signal.or(read, self.statx()).await, |to, s| to.statx(&s)),
            O::Setattr(set) => finish(to, signal.or(change, self.setattr(set)).await, |to, a| to.attr(&a, Duration::ZERO)),
            O::Readlink => finish(to, signal.or(read, self.readlink()).await, |to, t| to.content(&t)),
            O::Symlink { name, target } => finish(to, signal.or(change, self.symlink(name, target)).await, |to, e| to.entry(&e)),
            O::Mknod { name, mode, rdev, umask } => finish(to, signal.or(change, self.mknod(name, mode, umask, rdev)).await, |to, e| to.entry(&e)),
            O::Mkdir { name, mode, umask } => finish(to, signal.or(change, self.mkdir(name, mode, umask)).await, |to, e| to.entry(&e)),
            O::Unlink { name } => finish(to, signal.or(change, self.unlink(name)).await, |to, ()| to.ok()),
            O::Rmdir { name } => finish(to, signal.or(change, self.rmdir(name)).await, |to, ()| to.ok()),
            O::Rename { name, new_parent, new_name, flags } => finish(to, signal.or(change, self.rename(name, new_parent, new_name, flags)).await, |to, ()| to.ok()),
            O::Link { ino, name } => finish(to, signal.or(change, self.link(ino, name)).await, |to, e| to.entry(&e)),
            O::Open { flags, .. } => finish(to, signal.or(read, self.open(flags)).await, |to, o| to.opened(&o)),
            O::Create { name, flags, mode, umask, .. } => finish(to, signal.or(change, self.create(name, flags, mode, umask)).await, |to, (e, o)| to.created(&e, &o)),
            O::Tmpfile { flags, mode, umask } => finish(to, signal.or(change, self.tmpfile(flags, mode, umask)).await, |to, (e, o)| to.created(&e, &o)),
            O::Read { offset, size, .. } => finish(to, signal.or(read, self.read(offset, size)).await, |to, b| to.content(&b)),
            O::Write(write) => finish(to, signal.or(change, self.write(write)).await, |to, n| to.written(n)),
            O::Statfs => finish(to, signal.or(read, self.statfs()).await, |to, s| to.statfs(&s)),
            O::Flush { fh, lock_owner } => finish(to, self.flush(fh, lock_owner).await, |to, ()| to.ok()),
            O::Release(release) => finish(to, self.release(release).await, |to, ()| to.ok()),
            O::Releasedir { fh, .. } => finish(to, self.close(fh).await, |to, ()| to.ok()),
            O::Fsync { fh, .. } | O::Fsyncdir { fh, .. } => finish(to, signal.or(sync, self.fsync(fh)).await, |to, ()| to.ok()),
            O::Syncfs => finish(to, signal.or(sync, self.sync()).await, |to, ()| to.ok()),
            O::Setxattr { name, value, flags, acl_kill_sgid } => finish(to, signal.or(change, self.setxattr(name, value, flags, acl_kill_sgid)).await, |to, ()| to.ok()),
            O::Getxattr { name, size } if is_acl(&name) => {
                let (list, trusted) = match signal.or(read, async { Ok(self.getacl(&name, size).await) }).await {
                    Ok(answer) => answer,
                    Err(error) => (Err(error), true),
                };
                finish(to, list, sized(size));
                if !trusted {
                    self.files.caches.drop_attributes(self.ino);
                }
            }
            O::Getxattr { name, size } => finish(to, signal.or(read, self.getxattr(&name, size)).await, sized(size)),
            O::Listxattr { size } => finish(to, signal.or(read, self.listxattr(size)).await, sized(size)),
            O::Removexattr { name } => finish(to, signal.or(change, self.removexattr(name)).await, |to, ()| to.ok()),
            O::Opendir { flags } => finish(to, signal.or(read, self.opendir(flags)).await, |to, o| to.opened(&o)),
            O::Readdir { offset, size, .. } => finish(to, signal.or(read, self.readdir(offset, size)).await, |to, d| to.directory(&d)),
            O::Getlk(lock) => finish(to, signal.or(read, self.getlk(lock)).await, |to, l| to.lock(&l)),
            O::Setlk { lock, wait } => finish(to, self.setlk(lock, wait, &signal).await, |to, ()| to.ok()),
            O::Fallocate { offset, length, mode, .. } => finish(to, signal.or(change, self.fallocate(mode, offset, length)).await, |to, ()| to.ok()),
            O::Lseek { offset, whence, .. } => finish(to, signal.or(read, self.lseek(offset, whence)).await, |to, at| to.position(at)),
            O::CopyFileRange(copy) => finish(to, signal.or(change, self.copy_range(copy)).await, |to, n| to.copied(n)),
            // Nodeids are inode numbers, so there is nothing to forget.
            O::Forget { .. } | O::NotifyReply { .. } => drop(to.ok()),
            // The kernel does these itself.
            O::Readdirplus { .. } | O::Access { .. } | O::Bmap { .. } | O::Ioctl { .. } | O::Poll { .. } => drop(to.error(Errno::NOSYS)),
            O::Interrupt { .. } | O::Init(_) | O::Destroy | O::Unknown { .. } => drop(to.error(Errno::NOSYS)),
        }
    }
}

fn finish<T, D>(
    to: Responder,
    result: Result<T, FileError>,
    reply: impl FnOnce(Responder, T) -> D,
) {
    match result {
        Ok(value) => drop(reply(to, value)),
        Err(error) => {
            if error.errno() == Errno::IO || error.errno() == Errno::TIMEDOUT {
                tracing::warn!(%error, "a file system call failed");
            }
            to.error(error.errno());
        }
    }
}

/// The answer to a getxattr or listxattr that asked for `size` bytes.
fn sized(size: u32) -> impl FnOnce(Responder, Vec<u8>) {
    move |to, bytes| {
        if size == 0 {
            to.xattr_size(bytes.len() as u32);
        } else {
            to.content(&bytes);
        }
    }
}
