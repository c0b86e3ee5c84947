//! Running, watching and signalling programs on any node.
//!
//! The same methods serve `unum` at its own daemon and daemons among themselves: a daemon that is
//! not on the right node passes the call on. `process.start` begins a program; `process.attach` is
//! the stream that carries its input, output and changes of state, and may be opened again at any
//! time after a break: every byte has an offset, and a byte is kept until it was acknowledged.

use bytes::Bytes;
use prost::{Enumeration, Message};

/// Bytes of input or output in one message, at most.
pub const PIECE_SIZE_MAX: usize = 64 * 1024;

/// Arguments and environment together, at most, in bytes.
pub const ARGUMENTS_SIZE_MAX: usize = 2 * 1024 * 1024;

/// `process.start`: runs a program. The user is the caller; root alone may ask for another.
#[derive(Clone, PartialEq, Message)]
pub struct StartRequest {
    #[prost(message, optional, tag = "1")]
    pub program: Option<Program>,
    /// A name or numeric id; empty: the node with the least load.
    #[prost(string, tag = "2")]
    pub node: String,
    /// Whoever asks for this program sends the same key again when it asks again, so that a lost
    /// reply never starts it twice. 16 random bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub key: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct StartReply {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(string, tag = "3")]
    pub node_name: String,
}

/// A program as its caller wants it run.
#[derive(Clone, PartialEq, Message)]
pub struct Program {
    /// The first one is the command, looked up in the environment's PATH if it has no slash.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub arguments: Vec<Bytes>,
    /// `NAME=value`.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub environment: Vec<Bytes>,
    #[prost(bytes = "bytes", tag = "3")]
    pub directory: Bytes,
    #[prost(uint32, tag = "4")]
    pub umask: u32,
    #[prost(message, repeated, tag = "5")]
    pub limits: Vec<Limit>,
    #[prost(int32, tag = "6")]
    pub nice: i32,
    /// No terminal, no input; the output goes to a log and nothing hangs it up.
    #[prost(bool, tag = "7")]
    pub detached: bool,
    /// Present: stdin, stdout and stderr are one terminal.
    #[prost(message, optional, tag = "8")]
    pub terminal: Option<WindowSize>,
}

/// A resource limit of setrlimit(2); `u64::MAX` is none.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Limit {
    /// RLIMIT_* as this architecture's kernel numbers it.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct WindowSize {
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    #[prost(uint32, tag = "2")]
    pub columns: u32,
}

/// `process.attach`: the stream of a running or just ended program. A new attachment supersedes the
/// old one. If the caller closes it without `Detach`, the program is hung up; if it breaks, the
/// program waits for the next one for as long as `unum-init` was told at its start.
#[derive(Clone, PartialEq, Message)]
pub struct AttachRequest {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// What the caller has of stdout (or of the terminal) and stderr.
    #[prost(uint64, tag = "2")]
    pub stdout_offset: u64,
    #[prost(uint64, tag = "3")]
    pub stderr_offset: u64,
}

/// Ends an attachment's stream.
#[derive(Clone, PartialEq, Message)]
pub struct AttachReply {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum Stream {
    Unspecified = 0,
    Stdin = 1,
    /// Also the output of a terminal.
    Stdout = 2,
    Stderr = 3,
}

/// From the caller to the program.
#[derive(Clone, PartialEq, Message)]
pub struct ToProgram {
    #[prost(oneof = "to_program::Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<to_program::Kind>,
}

pub mod to_program {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        #[prost(message, tag = "1")]
        Input(super::Piece),
        /// The caller has these bytes and does not need them again.
        #[prost(message, tag = "2")]
        Received(super::Position),
        #[prost(message, tag = "3")]
        Resize(super::WindowSize),
        /// A signal for the foreground process group.
        #[prost(int32, tag = "4")]
        Signal(i32),
        /// The caller goes, the program stays.
        #[prost(message, tag = "5")]
        Detach(super::Detach),
        /// Nobody reads this output any more; the program's next write to it shall fail.
        #[prost(enumeration = "super::Stream", tag = "6")]
        Close(i32),
    }
}

/// From the program to the caller.
#[derive(Clone, PartialEq, Message)]
pub struct FromProgram {
    #[prost(oneof = "from_program::Kind", tags = "1, 2, 3, 4, 5")]
    pub kind: Option<from_program::Kind>,
}

pub mod from_program {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        #[prost(message, tag = "1")]
        Output(super::Piece),
        /// Input up to here was taken over and need not be sent again.
        #[prost(message, tag = "2")]
        Accepted(super::Position),
        /// The program was stopped by this signal.
        #[prost(int32, tag = "3")]
        Stopped(i32),
        #[prost(message, tag = "4")]
        Continued(super::Continued),
        /// Comes last, after all output.
        #[prost(message, tag = "5")]
        Ended(super::Ended),
    }
}

/// Bytes of a stream at an absolute offset. `end`: nothing comes after them.
#[derive(Clone, PartialEq, Message)]
pub struct Piece {
    #[prost(enumeration = "Stream", tag = "1")]
    pub stream: i32,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub bytes: Bytes,
    #[prost(bool, tag = "4")]
    pub end: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Position {
    #[prost(enumeration = "Stream", tag = "1")]
    pub stream: i32,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// With `Accepted`: there is room up to this offset. Input beyond it is dropped, so it must not
    /// be sent before a later `Accepted` makes room.
    #[prost(uint64, tag = "3")]
    pub window: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Detach {}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Continued {}

/// How a program ended and what it used.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Ended {
    #[prost(oneof = "ended::How", tags = "1, 2, 3")]
    pub how: Option<ended::How>,
    #[prost(bool, tag = "4")]
    pub core_dumped: bool,
    #[prost(uint64, tag = "5")]
    pub user_cpu_us: u64,
    #[prost(uint64, tag = "6")]
    pub system_cpu_us: u64,
    #[prost(uint64, tag = "7")]
    pub peak_memory_bytes: u64,
    #[prost(uint64, tag = "8")]
    pub elapsed_us: u64,
}

pub mod ended {
    #[derive(Clone, Copy, PartialEq, Eq, prost::Oneof)]
    pub enum How {
        #[prost(int32, tag = "1")]
        Exited(i32),
        #[prost(int32, tag = "2")]
        Signalled(i32),
        /// Its node was lost; the number is the node's.
        #[prost(uint64, tag = "3")]
        Lost(u64),
    }
}

/// `process.list`: the processes of every node's world.
#[derive(Clone, PartialEq, Message)]
pub struct ListRequest {
    /// Only those of the node that answers; daemons ask each other so.
    #[prost(bool, tag = "1")]
    pub local: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct ListReply {
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<Process>,
    /// Nodes that did not answer in time, or are down.
    #[prost(uint64, repeated, tag = "2")]
    pub silent: Vec<u64>,
    /// Their names, in the same order.
    #[prost(string, repeated, tag = "3")]
    pub silent_names: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Process {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(uint32, tag = "2")]
    pub parent: u32,
    #[prost(uint64, tag = "3")]
    pub node: u64,
    #[prost(string, tag = "4")]
    pub node_name: String,
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    /// The letter of proc_pid_stat(5): R, S, D, T, Z, ...
    #[prost(string, tag = "6")]
    pub state: String,
    #[prost(uint64, tag = "7")]
    pub cpu_us: u64,
    #[prost(uint64, tag = "8")]
    pub resident_bytes: u64,
    #[prost(uint64, tag = "9")]
    pub started_ms: u64,
    /// The command line; the name in brackets where there is none.
    #[prost(string, tag = "10")]
    pub command: String,
    /// It was started by `unum run`, and is no descendant of such a program.
    #[prost(bool, tag = "11")]
    pub root: bool,
    #[prost(bool, tag = "12")]
    pub detached: bool,
}

/// `process.signal`: sends a signal, as kill(2) by the caller would.
#[derive(Clone, PartialEq, Message)]
pub struct SignalRequest {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// 0 only asks whether it exists and may be signalled.
    #[prost(int32, tag = "2")]
    pub signal: i32,
    #[prost(enumeration = "SignalScope", tag = "3")]
    pub scope: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum SignalScope {
    Process = 0,
    Group = 1,
    /// Hang-up: SIGHUP and SIGCONT to all of the program's session.
    Session = 2,
}

#[derive(Clone, PartialEq, Message)]
pub struct SignalReply {}

/// `process.wait`: returns when a program that `unum run` started has ended, or at the deadline.
#[derive(Clone, PartialEq, Message)]
pub struct WaitRequest {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct WaitReply {
    #[prost(message, optional, tag = "1")]
    pub ended: Option<Ended>,
}

/// `process.logs`: what a detached program wrote, a piece at a time.
#[derive(Clone, PartialEq, Message)]
pub struct LogsRequest {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct LogsReply {
    /// Where `bytes` begin: later than asked where the log's beginning was dropped.
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub bytes: Bytes,
    /// The program has ended and this was the last piece.
    #[prost(bool, tag = "3")]
    pub complete: bool,
}

/// `process.where`: the node that a process runs on; 0 asks for the node that answers.
#[derive(Clone, PartialEq, Message)]
pub struct WhereRequest {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct WhereReply {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(string, tag = "2")]
    pub node_name: String,
}

/// What a failed call says in its status' detail, so that a shell's exit code can be chosen.
#[derive(Clone, PartialEq, Message)]
pub struct StartFailure {
    #[prost(enumeration = "StartStep", tag = "1")]
    pub step: i32,
    #[prost(int32, tag = "2")]
    pub errno: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum StartStep {
    Unspecified = 0,
    /// No such node, or none that may run programs.
    Place = 1,
    /// The directory does not exist there, or may not be entered.
    Directory = 2,
    /// The command does not exist there: 127.
    Find = 3,
    /// It exists and cannot be executed: 126.
    Execute = 4,
    /// Processes, PIDs, memory or terminals have run out there.
    Resources = 5,
}
