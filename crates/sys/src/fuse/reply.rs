//! Answers to the kernel.
//!
//! Invariant: a request that wants an answer gets exactly one. A [`Responder`] is consumed by
//! answering; one that is dropped answers EIO, so no code path leaves a caller waiting.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::abi::opcode;
use super::device::Device;
use super::directory::DirectoryBuffer;
use super::encode::{self, Fields};
use super::inflight::InFlight;
use super::types::{Attr, Entry, LockRange, Opened, StatFs, Statx};

/// Most parts of one answer that the kernel takes in one call, header included.
const PARTS_MAX: usize = 1024;

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Accepted,
    /// Nobody waits for it any more. An inode or handle that it names was not taken: the kernel will
    /// send no FORGET or RELEASE for it.
    Abandoned,
    /// The mount is gone.
    Disconnected,
    /// The kernel finds the answer malformed; the caller got EIO or EINVAL. Our bug.
    Refused(Errno),
}

/// The right and duty to answer one request. May move to any thread.
pub struct Responder {
    device: Device,
    in_flight: Arc<InFlight>,
    raw_unique: u64,
    opcode: u32,
    open: bool,
}

/// Whether the caller of one request got a signal and waits to be let go.
///
/// The request still wants its answer: normally EINTR; a change that was carried out is answered as
/// such.
#[derive(Clone)]
pub struct Interrupts {
    in_flight: Arc<InFlight>,
    raw_unique: u64,
}

impl Interrupts {
    /// Runs `callback` once if the caller gets a signal before the answer: at once, in this thread,
    /// if it already did. A second callback replaces the first. Hold no lock here that the callback
    /// takes.
    pub fn on_interrupt(&self, callback: impl FnOnce() + Send + 'static) {
        self.in_flight.watch(self.raw_unique, Box::new(callback));
    }

    pub fn seen(&self) -> bool {
        self.in_flight.is_interrupted(self.raw_unique)
    }
}

impl Responder {
    /// With `wants_reply` false nothing is ever written.
    pub(super) fn new(
        device: Device,
        in_flight: Arc<InFlight>,
        raw_unique: u64,
        opcode: u32,
        wants_reply: bool,
    ) -> Responder {
        if wants_reply {
            in_flight.begin(raw_unique);
        }
        Responder { device, in_flight, raw_unique, opcode, open: wants_reply }
    }

    /// Tells of signals to the caller; outlives the responder without harm.
    pub fn interrupts(&self) -> Interrupts {
        Interrupts { in_flight: self.in_flight.clone(), raw_unique: self.raw_unique }
    }

    /// [`Interrupts::on_interrupt`] for one who keeps the responder at hand.
    pub fn on_interrupt(&self, callback: impl FnOnce() + Send + 'static) {
        self.interrupts().on_interrupt(callback);
    }

    pub fn error(self, errno: Errno) -> Delivery {
        self.send(errno.raw_os_error(), &[])
    }

    /// Done, with nothing to tell.
    pub fn ok(self) -> Delivery {
        self.send(0, &[])
    }

    /// To LOOKUP, MKDIR, MKNOD, SYMLINK, LINK. Counts as one lookup of the inode.
    pub fn entry(self, entry: &Entry) -> Delivery {
        self.fields(Fields::with_capacity(128).entry(entry))
    }

    /// To LOOKUP: no such name, which the kernel may remember for `ttl`.
    pub fn no_entry(self, ttl: Duration) -> Delivery {
        self.fields(Fields::with_capacity(128).no_entry(ttl))
    }

    /// To GETATTR and SETATTR.
    pub fn attr(self, attr: &Attr, ttl: Duration) -> Delivery {
        self.fields(Fields::with_capacity(104).attr_out(attr, ttl))
    }

    pub fn statx(self, statx: &Statx) -> Delivery {
        self.fields(Fields::with_capacity(288).statx_out(statx))
    }

    /// To OPEN and OPENDIR.
    pub fn opened(self, opened: &Opened) -> Delivery {
        self.fields(Fields::with_capacity(16).opened(opened))
    }

    /// To CREATE and TMPFILE. Counts as one lookup of the inode.
    pub fn created(self, entry: &Entry, opened: &Opened) -> Delivery {
        self.fields(Fields::with_capacity(144).entry(entry).opened(opened))
    }

    /// To WRITE: how many bytes were taken.
    pub fn written(self, count: u32) -> Delivery {
        self.fields(Fields::with_capacity(8).u32(count).u32(0))
    }

    /// To READ, READLINK, GETXATTR, LISTXATTR.
    pub fn content(self, bytes: &[u8]) -> Delivery {
        self.send(0, &[IoSlice::new(bytes)])
    }

    /// The same, gathered from several places without a copy.
    pub fn content_parts(self, parts: &[IoSlice<'_>]) -> Delivery {
        self.send(0, parts)
    }

    /// To READDIR and READDIRPLUS. An empty one means the end.
    pub fn directory(self, records: &DirectoryBuffer) -> Delivery {
        self.send(0, &[IoSlice::new(records.as_slice())])
    }

    /// To GETXATTR and LISTXATTR that asked with size 0.
    pub fn xattr_size(self, size: u32) -> Delivery {
        self.fields(Fields::with_capacity(8).u32(size).u32(0))
    }

    pub fn statfs(self, statfs: &StatFs) -> Delivery {
        self.fields(Fields::with_capacity(80).statfs(statfs))
    }

    /// To GETLK: the lock in the way, or a range of kind Unlock.
    pub fn lock(self, range: &LockRange) -> Delivery {
        self.fields(Fields::with_capacity(24).lock(range))
    }

    /// To COPY_FILE_RANGE: how many bytes were copied. An older kernel sees at most 2^32 - 1 of them
    /// and asks for the rest.
    pub fn copied(self, count: u64) -> Delivery {
        match self.opcode {
            opcode::COPY_FILE_RANGE_64 => self.position(count),
            _ => self.written(u32::try_from(count).unwrap_or(u32::MAX)),
        }
    }

    /// To LSEEK and BMAP.
    pub fn position(self, value: u64) -> Delivery {
        self.fields(Fields::with_capacity(8).u64(value))
    }

    pub fn poll(self, events: u32) -> Delivery {
        self.fields(Fields::with_capacity(8).u32(events).u32(0))
    }

    pub fn ioctl(self, result: i32, output: &[u8]) -> Delivery {
        self.fields(Fields::with_capacity(16).i32(result).zeros(12).bytes(output))
    }

    pub(super) fn fields(self, body: &Fields) -> Delivery {
        self.send(0, &[IoSlice::new(body.as_slice())])
    }

    fn send(mut self, errno: i32, body: &[IoSlice<'_>]) -> Delivery {
        self.write(errno, body)
    }

    fn write(&mut self, errno: i32, body: &[IoSlice<'_>]) -> Delivery {
        if !std::mem::take(&mut self.open) {
            return Delivery::Abandoned;
        }
        // Forgotten before the write: after it the kernel may give the number's record away.
        self.in_flight.end(self.raw_unique);
        write_message(&self.device, errno, self.raw_unique, body)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.open {
            self.write(Errno::IO.raw_os_error(), &[]);
        }
    }
}

/// Writes one message to the kernel. `errno` is positive.
pub(super) fn write_message(
    device: &Device,
    errno: i32,
    raw_unique: u64,
    body: &[IoSlice<'_>],
) -> Delivery {
    let len = body.iter().map(|part| part.len()).sum();
    let header = encode::out_header(len, -errno, raw_unique);
    match body {
        [] => delivery(device.write(&[IoSlice::new(&header)])),
        [one] => delivery(device.write(&[IoSlice::new(&header), IoSlice::new(one)])),
        many if many.len() < PARTS_MAX => {
            let mut parts = Vec::with_capacity(many.len() + 1);
            parts.push(IoSlice::new(&header));
            parts.extend(many.iter().map(|part| IoSlice::new(part)));
            delivery(device.write(&parts))
        }
        too_many => {
            let joined: Vec<u8> = too_many.iter().flat_map(|part| part.iter().copied()).collect();
            delivery(device.write(&[IoSlice::new(&header), IoSlice::new(&joined)]))
        }
    }
}

fn delivery(result: io::Result<()>) -> Delivery {
    let Err(error) = result else { return Delivery::Accepted };
    match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
        Errno::NOENT => Delivery::Abandoned,
        Errno::NODEV | Errno::CONNABORTED | Errno::PERM => Delivery::Disconnected,
        errno => Delivery::Refused(errno),
    }
}
