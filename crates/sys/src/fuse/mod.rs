//! The kernel's FUSE protocol, spoken directly.
//!
//! [`mount()`] gives a [`Device`]; [`Session::start`] agrees with the kernel, or [`Session::adopt`]
//! takes over what a dead daemon had agreed; [`Session::run`] hands each [`Request`] to the file
//! system, which answers through the request's [`Responder`] from any thread.
//!
//! Invariants: no bytes from the kernel panic; every request that wants an answer gets exactly one;
//! an interrupt reaches its request or comes too late, it is never lost.
//!
//! Left out on purpose: any file system, inode tables, caches and policy; DAX, CUSE, splice,
//! io_uring (its place is [`Device`]); Linux before 5.17.

mod abi;
mod buffer;
mod decode;
mod device;
mod directory;
mod encode;
mod inflight;
mod ledger;
mod mount;
mod notify;
mod operation;
mod reply;
mod serve;
mod session;
mod types;

pub use decode::{DecodeError, Decoded, Dialect, decode};
pub use device::Device;
pub use directory::{Added, DirectoryBuffer};
pub use ledger::{Ledger, Outline, Trusted};
pub use mount::{ConnectionId, MountOptions, Unmount, mount, unescape, unmount};
pub use notify::{Cached, Discard, Notifier, NotifyError};
pub use operation::{
    CopyFileRange, Forgotten, Header, InitOffer, Operation, Release, SetAttr, SetTime, Write,
};
pub use reply::{Delivery, Interrupts, Responder};
pub use rustix::io::Errno;
pub use rustix::mount::MountFlags;
pub use serve::{Ended, READERS_MAX, Readers, Request, Serving};
pub use session::{Negotiated, Session, StartError, Takeover, WRITE_MAX_BYTES, Wishes};
pub use types::{
    Attr, AttrFlags, BackingId, Capabilities, Entry, Fh, Ino, LockFamily, LockKind, LockOwner,
    LockRange, LockRequest, OpenFlags, Opened, StatFs, Statx, Timestamp, Unique,
};
