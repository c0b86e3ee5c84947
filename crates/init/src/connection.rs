//! The one connection of the controlling daemon: frames in, frames out, descriptors with them.
//!
//! Invariant: what waits to be sent is bounded. Stream pieces are added only while the queue is short
//! ([`Connection::wants_pieces`]), and no request is read while it is long ([`Connection::is_full`]).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use bytes::{Buf, BytesMut};
use unum_proto::init::{Decoder, FrameError, FromInit, Request, encode};
use unum_sys::fds;

use crate::poll::{EventFlags, Watched};

/// Pieces of streams are added to the queue up to here, in bytes.
const QUEUE_LOW: usize = 256 << 10;

/// Requests are not read while more than this waits to be sent, in bytes.
const QUEUE_HIGH: usize = 1 << 20;

/// Descriptors received and not yet claimed by a request.
const UNCLAIMED_MAX: usize = 8;

/// One read from the socket, in bytes.
const READ_SIZE: usize = 64 << 10;

struct Outgoing {
    bytes: BytesMut,
    descriptor: Option<OwnedFd>,
}

pub struct Connection {
    socket: Watched<UnixStream>,
    decoder: Decoder,
    received: VecDeque<OwnedFd>,
    queue: VecDeque<Outgoing>,
    queued: usize,
    pub greeted: bool,
    /// Requests to be answered when a program exits: request, PID, forget.
    pub waits: Vec<(u64, u32, bool)>,
}

/// Why a connection is over.
#[derive(Debug)]
pub enum Lost {
    Closed,
    Socket(io::Error),
    Frame(FrameError),
    TooManyDescriptors,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lost::Closed => f.write_str("closed by the daemon"),
            Lost::Socket(e) => write!(f, "{e}"),
            Lost::Frame(e) => write!(f, "{e}"),
            Lost::TooManyDescriptors => f.write_str("descriptors that no request announced"),
        }
    }
}

impl Connection {
    pub fn new(socket: Watched<UnixStream>) -> Self {
        Self {
            socket,
            decoder: Decoder::default(),
            received: VecDeque::new(),
            queue: VecDeque::new(),
            queued: 0,
            greeted: false,
            waits: Vec::new(),
        }
    }

    pub fn token(&self) -> u64 {
        self.socket.token()
    }

    pub fn is_full(&self) -> bool {
        self.queued > QUEUE_HIGH
    }

    pub fn wants_pieces(&self) -> bool {
        self.queued < QUEUE_LOW
    }

    /// Reads once from the socket, if there is something.
    pub fn fill(&mut self) -> Result<(), Lost> {
        let mut bytes = [0u8; READ_SIZE];
        let mut descriptors = Vec::new();
        match fds::receive_with(self.socket.as_fd(), &mut bytes, &mut descriptors) {
            Ok(0) => return Err(Lost::Closed),
            Ok(n) => self.decoder.push(bytes.get(..n).unwrap_or_default()),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(Lost::Socket(e)),
        }
        self.received.extend(descriptors);
        if self.received.len() > UNCLAIMED_MAX {
            return Err(Lost::TooManyDescriptors);
        }
        Ok(())
    }

    /// The next whole request, unless too much waits to be sent.
    pub fn take_request(&mut self) -> Result<Option<Request>, Lost> {
        if self.is_full() {
            return Ok(None);
        }
        self.decoder.take().map_err(Lost::Frame)
    }

    /// The descriptor that came with the request at hand.
    pub fn claim_descriptor(&mut self) -> Option<OwnedFd> {
        self.received.pop_front()
    }

    pub fn send(&mut self, message: &FromInit, descriptor: Option<OwnedFd>) {
        let mut bytes = BytesMut::new();
        // Every answer is bounded below the frame's limit by whoever makes it.
        if encode(message, &mut bytes).is_ok() {
            self.queued += bytes.len();
            self.queue.push_back(Outgoing { bytes, descriptor });
        }
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) -> Result<(), Lost> {
        while let Some(first) = self.queue.front_mut() {
            let descriptor = first.descriptor.as_ref().map(AsFd::as_fd);
            match fds::send_with(self.socket.as_fd(), &first.bytes, descriptor) {
                Ok(n) => {
                    first.descriptor = None;
                    first.bytes.advance(n);
                    self.queued -= n;
                    if first.bytes.is_empty() {
                        self.queue.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Lost::Socket(e)),
            }
        }
        Ok(())
    }

    /// Waits for what can be done next.
    pub fn rearm(&mut self) -> Result<(), Lost> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !self.is_full());
        flags.set(EventFlags::OUT, !self.queue.is_empty());
        self.socket.want(Some(flags)).map_err(Lost::Socket)
    }
}
