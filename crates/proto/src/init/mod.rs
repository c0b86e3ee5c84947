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
//! - here: the envelopes, which name every question, answer and event
//! - `programs`: starting, watching, signalling and waiting
//! - `streams`: standard input and output, terminals
//! - `world`: the world itself, its PIDs and what it keeps for the daemon
//! - `frame`: from messages to bytes and back
//!
//! Left out: how the bytes are moved; both ends bring their own loop.

mod frame;
mod programs;
mod streams;
mod world;

use prost::Message;

pub use frame::{Decoder, FRAME_SIZE_MAX, FrameError, encode};
pub use programs::*;
pub use streams::*;
pub use world::*;

/// The version of this protocol that both ends say in `Hello`.
pub const PROTOCOL_VERSION: u32 = 1;

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
