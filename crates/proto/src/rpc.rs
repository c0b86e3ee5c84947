//! Headers of the frames that the RPC layer exchanges.
//!
//! The layout around them (length, kind, header length, body) is in `docs/spec/wire.md`. A header
//! is a prost message; the body of a request, reply, cast or piece of a stream follows it as it is.

/// First frame of a dialler and, in answer, of the accepting side.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Hello {
    /// Version of the frame protocol.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// 1 = control, 2 = bulk.
    #[prost(uint32, tag = "2")]
    pub class: u32,
    /// Random number of this run of the sender: a restarted daemon has another one.
    #[prost(fixed64, tag = "3")]
    pub run: u64,
}

/// A call, or the opening of a call with streams.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct RequestHeader {
    /// Identifies the call on this connection; chosen by the dialler, never used twice on it.
    #[prost(uint64, tag = "1")]
    pub call: u64,
    #[prost(string, tag = "2")]
    pub method: ::prost::alloc::string::String,
    /// Identifies the call for at-most-once execution, across connections. `lane` 0: the method is
    /// idempotent, or its caller never repeats it.
    #[prost(fixed64, tag = "3")]
    pub lane: u64,
    #[prost(uint64, tag = "4")]
    pub seq: u64,
    /// Every `seq` of the lane below this one is finished: its reply is not needed any more.
    #[prost(uint64, tag = "5")]
    pub settled: u64,
    /// Time left until the deadline; 0 = none.
    #[prost(uint64, tag = "6")]
    pub timeout_us: u64,
    /// 16 bytes trace id, 8 bytes span id, 1 byte flags; empty = no trace.
    #[prost(bytes = "vec", tag = "7")]
    pub trace: ::prost::alloc::vec::Vec<u8>,
    #[prost(message, optional, tag = "8")]
    pub user: ::core::option::Option<User>,
    /// The call has streams.
    #[prost(bool, tag = "9")]
    pub streams: bool,
}

/// The user on whose behalf a request is made.
#[derive(Clone, PartialEq, Eq, ::prost::Message)]
pub struct User {
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    #[prost(uint32, tag = "2")]
    pub gid: u32,
    #[prost(uint32, repeated, tag = "3")]
    pub groups: ::prost::alloc::vec::Vec<u32>,
}

/// The end of a call: its body is the reply when `code` is 0, else the detail of the status.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct ReplyHeader {
    #[prost(uint64, tag = "1")]
    pub call: u64,
    #[prost(uint32, tag = "2")]
    pub code: u32,
    #[prost(string, tag = "3")]
    pub message: ::prost::alloc::string::String,
    /// Where the name is now, when `code` says that it moved.
    #[prost(message, optional, tag = "4")]
    pub moved: ::core::option::Option<Hint>,
}

/// A place of a name, with the epoch that orders such statements.
#[derive(Clone, Copy, PartialEq, Eq, ::prost::Message)]
pub struct Hint {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
}

/// One-way: no reply, may be lost.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct CastHeader {
    #[prost(string, tag = "1")]
    pub method: ::prost::alloc::string::String,
    #[prost(bytes = "vec", tag = "2")]
    pub trace: ::prost::alloc::vec::Vec<u8>,
    #[prost(message, optional, tag = "3")]
    pub user: ::core::option::Option<User>,
}

/// Header of stream data, of the end of one direction, and of a cancellation.
#[derive(Clone, Copy, PartialEq, Eq, ::prost::Message)]
pub struct CallHeader {
    #[prost(uint64, tag = "1")]
    pub call: u64,
}

/// The receiver of a stream has room for so much more.
#[derive(Clone, Copy, PartialEq, Eq, ::prost::Message)]
pub struct CreditHeader {
    #[prost(uint64, tag = "1")]
    pub call: u64,
    #[prost(uint32, tag = "2")]
    pub credit: u32,
}

/// Ping and pong.
#[derive(Clone, Copy, PartialEq, Eq, ::prost::Message)]
pub struct PingHeader {
    #[prost(uint64, tag = "1")]
    pub nonce: u64,
}

/// The sender takes no more requests on this connection; running ones go on.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct GoAwayHeader {
    #[prost(string, tag = "1")]
    pub reason: ::prost::alloc::string::String,
}
