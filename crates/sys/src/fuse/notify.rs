//! What the daemon tells the kernel unasked: drop this from your caches, send that again.
//!
//! An invalidation waits for locks and pages that a request in flight may hold: never send one for
//! an inode from the thread that is answering for that inode, nor while holding what such an answer
//! needs.

use std::io::IoSlice;

use rustix::io::Errno;
use thiserror::Error;

use super::abi::notify;
use super::device::Device;
use super::encode::Fields;
use super::reply::{self, Delivery};
use super::types::Ino;

/// How an entry shall leave the kernel's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    Now,
    /// Its time-out ends now; it is looked up again at next use. Mounts below it stay.
    Expire,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotifyError {
    #[error("the FUSE mount is gone; there is nothing left to tell the kernel")]
    Disconnected,
    #[error("the kernel refused a FUSE notification: {0}")]
    Refused(Errno),
}

/// Whether the kernel had what it was told to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    Yes,
    No,
}

#[derive(Clone, Debug)]
pub struct Notifier {
    device: Device,
}

impl Notifier {
    pub(super) fn new(device: Device) -> Notifier {
        Notifier { device }
    }

    /// Drops an inode's attributes, and its pages from `offset` on (`len` 0: to the end; a negative
    /// `offset`: none). Dirty pages are written back first.
    pub fn inval_inode(&self, ino: Ino, offset: i64, len: i64) -> Result<Cached, NotifyError> {
        let mut body = Fields::with_capacity(24);
        body.u64(ino.0).i64(offset).i64(len);
        self.send(notify::INVAL_INODE, &body)
    }

    /// Drops a name.
    pub fn inval_entry(
        &self,
        parent: Ino,
        name: &[u8],
        how: Discard,
    ) -> Result<Cached, NotifyError> {
        let flags = match how {
            Discard::Now => 0,
            Discard::Expire => notify::EXPIRE_ONLY,
        };
        let mut body = Fields::with_capacity(17 + name.len());
        body.u64(parent.0).u32(name.len() as u32).u32(flags).bytes(name).zeros(1);
        self.send(notify::INVAL_ENTRY, &body)
    }

    /// The name was removed elsewhere: like `inval_entry`, but watchers (inotify) see a deletion.
    pub fn delete(&self, parent: Ino, child: Ino, name: &[u8]) -> Result<Cached, NotifyError> {
        let mut body = Fields::with_capacity(25 + name.len());
        body.u64(parent.0).u64(child.0).u32(name.len() as u32).u32(0).bytes(name).zeros(1);
        self.send(notify::DELETE, &body)
    }

    /// Puts content into the kernel's cache of an inode that it knows.
    pub fn store(&self, ino: Ino, offset: u64, content: &[u8]) -> Result<Cached, NotifyError> {
        let mut head = Fields::with_capacity(24);
        head.u64(ino.0).u64(offset).u32(content.len() as u32).u32(0);
        let parts = [IoSlice::new(head.as_slice()), IoSlice::new(content)];
        outcome(reply::write_message(&self.device, -notify::STORE, 0, &parts))
    }

    /// Wakes those who poll the file whose POLL request had this `kh`.
    pub fn poll_wakeup(&self, kh: u64) -> Result<Cached, NotifyError> {
        let mut body = Fields::with_capacity(8);
        body.u64(kh);
        self.send(notify::POLL, &body)
    }

    /// All requests that were read and not answered are queued again, marked as resent. To be used
    /// when whoever read them is dead.
    pub fn resend(&self) -> Result<(), NotifyError> {
        self.send(notify::RESEND, &Fields::default()).map(|_| ())
    }

    /// All names in the kernel's cache are looked up again at next use.
    pub fn expire_all_entries(&self) -> Result<(), NotifyError> {
        self.send(notify::INC_EPOCH, &Fields::default()).map(|_| ())
    }

    /// A notification is a message to number 0 with its code in the place of an error.
    fn send(&self, code: i32, body: &Fields) -> Result<Cached, NotifyError> {
        let part = [IoSlice::new(body.as_slice())];
        outcome(reply::write_message(&self.device, -code, 0, &part))
    }
}

fn outcome(delivery: Delivery) -> Result<Cached, NotifyError> {
    match delivery {
        Delivery::Accepted => Ok(Cached::Yes),
        Delivery::Abandoned => Ok(Cached::No),
        Delivery::Disconnected => Err(NotifyError::Disconnected),
        // The parent of an entry is no directory, or is not known: nothing was cached.
        Delivery::Refused(Errno::NOTDIR) => Ok(Cached::No),
        Delivery::Refused(errno) => Err(NotifyError::Refused(errno)),
    }
}
