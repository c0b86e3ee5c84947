//! Between unumd and unum-init on one node: the messages and their frames.
//!
//! A frame is a 4-byte big-endian length and that many bytes of one message: [`Request`] toward
//! unum-init, [`FromInit`] toward unumd. A descriptor travels as SCM_RIGHTS with the first byte of
//! the frame that announces it (`Keep.descriptor`, `Kept.descriptor`).
//!
//! Invariants: every request with a nonzero `id` gets exactly one reply with that id, in any order;
//! requests with id 0 are one-way. Stream offsets count bytes from the program's start and never go
//! back. Strings that the kernel takes as bytes (paths, arguments) are bytes here.
//!
//! Left out: how the bytes are moved; both ends bring their own loop.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// The version of this protocol that both ends say in `Hello`.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest message in bytes, either way. Arguments and environment must fit.
pub const FRAME_SIZE_MAX: usize = 4 << 20;

/// Bytes of one stream that unum-init holds: output nobody acknowledged, input not yet written.
pub const STREAM_BUFFER_SIZE: usize = 256 << 10;

/// Longest piece of a stream in one `Input` or `Output`, in bytes.
pub const STREAM_PIECE_SIZE_MAX: usize = 64 << 10;

/// Longest note beside a kept descriptor, in bytes.
pub const NOTE_SIZE_MAX: usize = 64 << 10;

/// How many names `Keep` holds at once.
pub const KEPT_MAX: usize = 64;

/// Exit records of programs that unum-init keeps; the oldest is dropped first.
pub const EXIT_RECORDS_MAX: usize = 4096;

/// What unumd asks.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Chosen by the client; 0 asks for no reply.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(
        oneof = "Ask",
        tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20"
    )]
    pub ask: Option<Ask>,
    /// On whose behalf, for what concerns a program's streams: root, or the user who started it,
    /// whoever has its PID by now. None: the daemon's own.
    #[prost(uint32, optional, tag = "100")]
    pub user: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Ask {
    /// First on each connection. Reply: `Hello`.
    #[prost(message, tag = "2")]
    Hello(HelloAsk),
    /// Replaces the set of PID blocks that new processes draw from. Reply: `Done`.
    #[prost(message, tag = "3")]
    SetBlocks(SetBlocks),
    /// Starts a program. Reply: `Spawned`, once the program's exec succeeded.
    #[prost(message, tag = "4")]
    Spawn(Spawn),
    /// Turns on events of one program from the given offsets. Reply: `Attached`.
    #[prost(message, tag = "5")]
    Attach(Attach),
    /// Turns them off. Reply: `Done`.
    #[prost(message, tag = "6")]
    Detach(Detach),
    /// Bytes for the program's standard input. Usually one-way; answered by `InputState` events.
    #[prost(message, tag = "7")]
    Input(Input),
    /// Output up to here is safe elsewhere and may be forgotten. Usually one-way.
    #[prost(message, tag = "8")]
    Ack(Ack),
    /// Sends a signal under the rule of kill(2). Reply: `Done`.
    #[prost(message, tag = "9")]
    Signal(Signal),
    /// Changes the size of the program's terminal. Reply: `Done`.
    #[prost(message, tag = "10")]
    Resize(Resize),
    /// SIGHUP and SIGCONT to all process groups of the program's session, then its streams are
    /// closed. Reply: `Done`.
    #[prost(message, tag = "11")]
    Hangup(Hangup),
    /// Reply: `Exited`, when the program has exited.
    #[prost(message, tag = "12")]
    Wait(Wait),
    /// Reply: `Programs`.
    #[prost(message, tag = "13")]
    List(List),
    /// Holds a note and a descriptor beyond the client's death; replaces an older one of the same
    /// name. Reply: `Done`.
    #[prost(message, tag = "14")]
    Keep(Keep),
    /// Reply: `Kept`, with a copy of the descriptor.
    #[prost(message, tag = "15")]
    Fetch(Fetch),
    /// Forgets what `Keep` holds under the name. Reply: `Done`.
    #[prost(message, tag = "16")]
    Release(Release),
    /// Ends the world: TERM, the grace, KILL. Reply: `Done` at once; then the socket closes.
    #[prost(message, tag = "17")]
    Shutdown(Shutdown),
    /// Reply: `Status`.
    #[prost(message, tag = "18")]
    Status(StatusAsk),
    /// Attaches the mount whose descriptor comes with the frame (open_tree(2), detached) at a path of
    /// the world, for machines whose mounts do not propagate. Reply: `Done`.
    #[prost(message, tag = "19")]
    Graft(Graft),
    /// Closes an output that nobody reads. Usually one-way. Reply: `Done`.
    #[prost(message, tag = "20")]
    CloseOutput(CloseOutput),
}

#[derive(Clone, PartialEq, Message)]
pub struct HelloAsk {
    #[prost(uint32, tag = "1")]
    pub version: u32,
}

/// PIDs lo..hi, hi excluded.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PidBlock {
    #[prost(uint32, tag = "1")]
    pub lo: u32,
    #[prost(uint32, tag = "2")]
    pub hi: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SetBlocks {
    #[prost(message, repeated, tag = "1")]
    pub blocks: Vec<PidBlock>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Spawn {
    /// The client's own name for this run. A second Spawn with the tag of a program that
    /// unum-init knows starts nothing and gets that program's PID. Empty: no such check.
    #[prost(bytes = "vec", tag = "1")]
    pub tag: Vec<u8>,
    /// argv; the first is looked up in the PATH of `env` when it has no slash.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub argv: Vec<Vec<u8>>,
    /// NAME=VALUE, complete.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub env: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "4")]
    pub cwd: Vec<u8>,
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    #[prost(uint32, tag = "6")]
    pub gid: u32,
    #[prost(uint32, repeated, tag = "7")]
    pub groups: Vec<u32>,
    #[prost(uint32, tag = "8")]
    pub umask: u32,
    #[prost(message, repeated, tag = "9")]
    pub rlimits: Vec<Rlimit>,
    #[prost(sint32, tag = "10")]
    pub nice: i32,
    #[prost(oneof = "Stdio", tags = "11, 12, 13, 14")]
    pub stdio: Option<Stdio>,
    /// Hang the program up when nobody was attached to it for so long, in milliseconds. 0: never.
    #[prost(uint64, tag = "15")]
    pub orphan_after_ms: u64,
}

/// A limit of setrlimit(2); `u64::MAX` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Rlimit {
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

/// What the program's descriptors 0, 1 and 2 are.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Stdio {
    /// /dev/null.
    #[prost(message, tag = "11")]
    Null(NullStdio),
    /// Three pipes.
    #[prost(message, tag = "12")]
    Pipes(PipeStdio),
    /// One terminal; its output is the stream `Stdout`.
    #[prost(message, tag = "13")]
    Pty(PtyStdio),
    /// Input from /dev/null, output into a bounded file in unum-init's state directory.
    #[prost(message, tag = "14")]
    Log(LogStdio),
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct NullStdio {}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LogStdio {}

/// A descriptor that is not a pipe is /dev/null.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PipeStdio {
    #[prost(bool, tag = "1")]
    pub stdin: bool,
    #[prost(bool, tag = "2")]
    pub stdout: bool,
    #[prost(bool, tag = "3")]
    pub stderr: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct PtyStdio {
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    #[prost(uint32, tag = "2")]
    pub cols: u32,
    /// Replaces TERM in the environment when not empty.
    #[prost(bytes = "vec", tag = "3")]
    pub term: Vec<u8>,
}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Target {
    /// One process of the world.
    Process = 0,
    /// All processes of the process group `pid`.
    Group = 1,
    /// All processes of the session that the program `pid` was started in.
    Session = 2,
    /// The foreground process group of the terminal of program `pid`; without one, its group.
    Foreground = 3,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Signal {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(enumeration = "Target", tag = "2")]
    pub target: i32,
    /// 0 checks only that the target exists and may be signalled.
    #[prost(uint32, tag = "3")]
    pub signal: u32,
    /// On whose behalf.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
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

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Wait {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// The record, the unread output and the log are dropped with the reply.
    #[prost(bool, tag = "2")]
    pub forget: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct List {}

#[derive(Clone, PartialEq, Message)]
pub struct Keep {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub note: Bytes,
    /// A descriptor comes with this frame.
    #[prost(bool, tag = "3")]
    pub descriptor: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Fetch {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Release {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Shutdown {
    #[prost(uint64, tag = "1")]
    pub grace_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StatusAsk {}

#[derive(Clone, PartialEq, Message)]
pub struct Graft {
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
}

/// What unum-init sends.
#[derive(Clone, PartialEq, Message)]
pub struct FromInit {
    #[prost(oneof = "Said", tags = "1, 2")]
    pub said: Option<Said>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Said {
    #[prost(message, tag = "1")]
    Reply(Reply),
    #[prost(message, tag = "2")]
    Event(Event),
}

#[derive(Clone, PartialEq, Message)]
pub struct Reply {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(oneof = "Answer", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub answer: Option<Answer>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answer {
    #[prost(message, tag = "2")]
    Failed(Failed),
    #[prost(message, tag = "3")]
    Done(Done),
    #[prost(message, tag = "4")]
    Hello(Hello),
    #[prost(message, tag = "5")]
    Spawned(Spawned),
    #[prost(message, tag = "6")]
    Attached(Attached),
    #[prost(message, tag = "7")]
    Exited(Exited),
    #[prost(message, tag = "8")]
    Programs(Programs),
    #[prost(message, tag = "9")]
    Kept(Kept),
    #[prost(message, tag = "10")]
    Status(Status),
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Done {}

#[derive(Clone, PartialEq, Message)]
pub struct Failed {
    #[prost(enumeration = "Fault", tag = "1")]
    pub fault: i32,
    /// The system's error number, 0 when there was none.
    #[prost(int32, tag = "2")]
    pub errno: i32,
    /// For a person: what failed and what to do.
    #[prost(string, tag = "3")]
    pub message: String,
}

/// Why a request failed: a choice for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Fault {
    /// A newer unum-init's fault that this side does not know.
    Unknown = 0,
    /// The request makes no sense (field out of range, nothing asked).
    BadRequest = 1,
    /// The two ends speak different protocol versions.
    Version = 2,
    NoSuchProcess = 3,
    NotPermitted = 4,
    /// Spawn: no PID blocks were set, or no free PID is left in them. Lease another block.
    OutOfPids = 5,
    /// Spawn: fork said EAGAIN or ENOMEM. Try later or elsewhere.
    OutOfResources = 6,
    /// Spawn: the working directory could not be entered.
    Directory = 7,
    /// Spawn: a shell would exit with 127.
    CommandNotFound = 8,
    /// Spawn: a shell would exit with 126.
    NotExecutable = 9,
    /// Spawn: the user, groups, limits or priority could not be set.
    Credentials = 10,
    /// Spawn: pipes, terminal or log could not be made.
    Stdio = 11,
    /// Attach: the bytes before `Failed.message`'s offset were acknowledged and are gone.
    OffsetGone = 12,
    /// Resize: the program has no terminal.
    NoTerminal = 13,
    /// Fetch, Release: nothing is kept under the name.
    NotKept = 14,
    /// A named limit of this module would be passed.
    LimitReached = 15,
    /// The world is ending; nothing new starts.
    ShuttingDown = 16,
    /// Anything else that the system refused.
    System = 17,
}

#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Random, made when the world started: another value is another world.
    #[prost(bytes = "vec", tag = "2")]
    pub world: Vec<u8>,
    /// What this kernel or machine cannot do, a sentence each.
    #[prost(string, repeated, tag = "3")]
    pub missing: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Spawned {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// The tag was known: nothing was started.
    #[prost(bool, tag = "2")]
    pub existed: bool,
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

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Exited {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Exit status, when `signal` is 0.
    #[prost(uint32, tag = "2")]
    pub code: u32,
    /// The signal that killed it, or 0.
    #[prost(uint32, tag = "3")]
    pub signal: u32,
    #[prost(bool, tag = "4")]
    pub core: bool,
    #[prost(uint64, tag = "5")]
    pub user_us: u64,
    #[prost(uint64, tag = "6")]
    pub system_us: u64,
    #[prost(uint64, tag = "7")]
    pub max_rss_kib: u64,
    /// Wall-clock times, milliseconds since 1970.
    #[prost(uint64, tag = "8")]
    pub started_ms: u64,
    #[prost(uint64, tag = "9")]
    pub ended_ms: u64,
    /// How many bytes of output had been written when it ended. Processes that it left behind may
    /// write more; who does not care for those is done when the streams have come this far.
    #[prost(uint64, tag = "10")]
    pub stdout_end: u64,
    #[prost(uint64, tag = "11")]
    pub stderr_end: u64,
}

impl Exited {
    /// What a shell would report in `$?`.
    pub fn shell_status(&self) -> u32 {
        if self.signal == 0 { self.code } else { 128 + self.signal }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct Programs {
    #[prost(message, repeated, tag = "1")]
    pub programs: Vec<Program>,
    /// True when not all fitted into a frame.
    #[prost(bool, tag = "2")]
    pub truncated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum State {
    Unknown = 0,
    Running = 1,
    Stopped = 2,
    Exited = 3,
}

/// A program that was started by `Spawn`.
#[derive(Clone, PartialEq, Message)]
pub struct Program {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub tag: Vec<u8>,
    /// argv joined by spaces, cut at 256 bytes.
    #[prost(string, tag = "3")]
    pub command: String,
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    #[prost(enumeration = "State", tag = "5")]
    pub state: i32,
    #[prost(uint64, tag = "6")]
    pub started_ms: u64,
    #[prost(message, optional, tag = "7")]
    pub exited: Option<Exited>,
    #[prost(bool, tag = "8")]
    pub terminal: bool,
    #[prost(bool, tag = "9")]
    pub attached: bool,
    #[prost(bool, tag = "10")]
    pub hung_up: bool,
    /// Path of the log, empty when there is none. An older half may lie beside it, with `.1` appended.
    #[prost(string, tag = "11")]
    pub log: String,
    /// Output produced so far and acknowledged so far, in bytes.
    #[prost(uint64, tag = "12")]
    pub stdout_end: u64,
    #[prost(uint64, tag = "13")]
    pub stdout_acked: u64,
    #[prost(uint64, tag = "14")]
    pub stderr_end: u64,
    #[prost(uint64, tag = "15")]
    pub stderr_acked: u64,
    #[prost(uint64, tag = "16")]
    pub stdin_accepted: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Kept {
    #[prost(bytes = "bytes", tag = "1")]
    pub note: Bytes,
    /// A descriptor comes with this frame.
    #[prost(bool, tag = "2")]
    pub descriptor: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(message, repeated, tag = "1")]
    pub blocks: Vec<PidBlock>,
    /// Programs that have not exited.
    #[prost(uint32, tag = "2")]
    pub running: u32,
    /// Processes and threads of the world at the last count.
    #[prost(uint32, tag = "3")]
    pub tasks: u32,
    /// Times that the PID cursor was found outside the blocks. Anything but 0 is a fault.
    #[prost(uint64, tag = "4")]
    pub strayed: u64,
    /// Names that `Keep` holds.
    #[prost(string, repeated, tag = "5")]
    pub kept: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    pub missing: Vec<String>,
}

/// What happens to attached programs, in order per program.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    #[prost(oneof = "Happened", tags = "1, 2, 3, 4, 5, 6")]
    pub happened: Option<Happened>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Happened {
    #[prost(message, tag = "1")]
    Output(Output),
    #[prost(message, tag = "2")]
    InputState(InputState),
    #[prost(message, tag = "3")]
    Stopped(Stopped),
    #[prost(message, tag = "4")]
    Continued(Continued),
    #[prost(message, tag = "5")]
    Exited(Exited),
    /// Sent to every client: the blocks are nearly full.
    #[prost(message, tag = "6")]
    PidsLow(PidsLow),
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

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Stopped {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    #[prost(uint32, tag = "2")]
    pub signal: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Continued {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PidsLow {
    /// PIDs of the blocks that are in use.
    #[prost(uint32, tag = "1")]
    pub used: u32,
    #[prost(uint32, tag = "2")]
    pub total: u32,
}

impl From<Ask> for Request {
    /// A one-way request.
    fn from(ask: Ask) -> Self {
        Request { id: 0, ask: Some(ask), user: None }
    }
}

impl FromInit {
    pub fn reply(id: u64, answer: Answer) -> Self {
        FromInit { said: Some(Said::Reply(Reply { id, answer: Some(answer) })) }
    }

    pub fn event(happened: Happened) -> Self {
        FromInit { said: Some(Said::Event(Event { happened: Some(happened) })) }
    }
}

/// Bytes on the socket that are not this protocol. The connection is of no further use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    TooLong { size: usize },
    Malformed { why: String },
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::TooLong { size } => {
                write!(f, "a message of {size} bytes is longer than the limit of {FRAME_SIZE_MAX}")
            }
            FrameError::Malformed { why } => write!(f, "not a message of unum-init: {why}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Appends the frame of `message` to `to`.
pub fn encode(message: &impl Message, to: &mut BytesMut) -> Result<(), FrameError> {
    let size = message.encoded_len();
    if size > FRAME_SIZE_MAX {
        return Err(FrameError::TooLong { size });
    }
    to.reserve(4 + size);
    to.put_u32(size as u32);
    message.encode(to).map_err(|e| FrameError::Malformed { why: e.to_string() })
}

/// Cuts received bytes into messages. Holds at most one frame more than what was pushed.
#[derive(Default)]
pub struct Decoder {
    bytes: BytesMut,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes are pushed.
    pub fn take<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let size = u32::from_be_bytes(*head) as usize;
        if size > FRAME_SIZE_MAX {
            return Err(FrameError::TooLong { size });
        }
        if self.bytes.len() < 4 + size {
            return Ok(None);
        }
        self.bytes.advance(4);
        let frame = self.bytes.split_to(size).freeze();
        M::decode(frame).map(Some).map_err(|e| FrameError::Malformed { why: e.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(decoder: &mut Decoder) -> Result<Vec<Request>, FrameError> {
        let mut all = Vec::new();
        while let Some(request) = decoder.take()? {
            all.push(request);
        }
        Ok(all)
    }

    fn signal(id: u64, pid: u32) -> Request {
        let signal = Signal { pid, target: 2, signal: 15, uid: 1000 };
        Request { id, ask: Some(Ask::Signal(signal)), user: None }
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_read() {
        let mut decoder = Decoder::default();
        decoder.push(&(FRAME_SIZE_MAX as u32 + 1).to_be_bytes());
        let size = FRAME_SIZE_MAX + 1;
        assert_eq!(taken(&mut decoder), Err(FrameError::TooLong { size }));
        let note = Bytes::from(vec![0; size]);
        let keep = Keep { name: String::new(), note, descriptor: false };
        let request = Request::from(Ask::Keep(keep));
        let refused = encode(&request, &mut BytesMut::new());
        assert!(matches!(refused, Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn a_request_of_a_newer_client_is_seen_as_unknown() {
        // Field 99, a message of no bytes, beside id 7.
        let newer = [0, 0, 0, 5, 8, 7, 0x9a, 6, 0];
        let mut decoder = Decoder::default();
        decoder.push(&newer);
        assert_eq!(taken(&mut decoder), Ok(vec![Request { id: 7, ..Request::default() }]));
    }

    proptest! {
        #[test]
        fn any_cut_of_the_bytes_gives_the_same_messages(
            ids in prop::collection::vec((any::<u64>(), any::<u32>()), 0..20),
            cut in 1usize..50,
        ) {
            let requests: Vec<_> = ids.into_iter().map(|(id, pid)| signal(id, pid)).collect();
            let mut bytes = BytesMut::new();
            for request in &requests {
                prop_assert!(encode(request, &mut bytes).is_ok());
            }
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                got.extend(taken(&mut decoder).unwrap_or_default());
            }
            prop_assert_eq!(got, requests);
        }

        #[test]
        fn no_bytes_break_the_decoder(mut bytes in prop::collection::vec(any::<u8>(), 0..200), small: bool) {
            if small && let Some(head) = bytes.first_chunk_mut::<3>() {
                *head = [0; 3];
            }
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            let _ = taken(&mut decoder);
        }

        #[test]
        fn a_damaged_message_is_an_error_or_another_message(
            pid: u32, at in 4usize..20, flip in 1u8..,
        ) {
            let mut bytes = BytesMut::new();
            prop_assert!(encode(&signal(1, pid), &mut bytes).is_ok());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= flip;
            }
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            let _ = taken(&mut decoder);
        }
    }
}
