//! The streams of a program and its terminal. Offsets count bytes from the program's start.

use bytes::Bytes;
use prost::Message;

/// Bytes of one stream that unum-init holds: output nobody acknowledged, input not yet written.
pub const STREAM_BUFFER_SIZE: usize = 256 << 10;

/// Longest piece of a stream in one `Input` or `Output`, in bytes.
pub const STREAM_PIECE_SIZE_MAX: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Stream {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Attach {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// First byte of each output that the client wants. Not below what was acknowledged.
    #[prost(uint64, tag = "2")]
    pub stdout: u64,
    #[prost(uint64, tag = "3")]
    pub stderr: u64,
    /// Ignore the two offsets and begin with the oldest byte held.
    #[prost(bool, tag = "4")]
    pub from_oldest: bool,
}

/// Nobody reads the stream any more: the program's next write to it fails as into a closed pipe.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CloseOutput {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(enumeration = "Stream", tag = "2")]
    pub stream: i32,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Detach {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// Bytes below the accepted offset are dropped as known, those beyond the window or after a gap as
/// too early; `InputState` says where to go on.
#[derive(Clone, PartialEq, Message)]
pub struct Input {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub bytes: Bytes,
    /// Nothing follows these bytes.
    #[prost(bool, tag = "4")]
    pub eof: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Ack {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(enumeration = "Stream", tag = "2")]
    pub stream: i32,
    /// Every byte below is acknowledged.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Resize {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(uint32, tag = "2")]
    pub rows: u32,
    #[prost(uint32, tag = "3")]
    pub cols: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Hangup {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// Where the streams stand as the attachment begins.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Attached {
    /// Where output starts to be sent.
    #[prost(uint64, tag = "1")]
    pub stdout: u64,
    #[prost(uint64, tag = "2")]
    pub stderr: u64,
    #[prost(message, optional, tag = "3")]
    pub input: Option<InputState>,
}

/// State of the input stream: the client goes on at `accepted`, up to `window` excluded.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct InputState {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Bytes that unum-init has taken over for good.
    #[prost(uint64, tag = "2")]
    pub accepted: u64,
    #[prost(uint64, tag = "3")]
    pub window: u64,
    /// The program's end is closed (a write would raise EPIPE), or end-of-file was passed on:
    /// nothing more is taken.
    #[prost(bool, tag = "4")]
    pub closed: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Output {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(enumeration = "Stream", tag = "2")]
    pub stream: i32,
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub bytes: Bytes,
    /// Nothing follows these bytes.
    #[prost(bool, tag = "5")]
    pub eof: bool,
}
