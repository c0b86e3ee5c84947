//! Programs: what starts one, what is told of it, how it ends.

use prost::Message;

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
pub struct Wait {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// The record, the unread output and the log are dropped with the reply.
    #[prost(bool, tag = "2")]
    pub forget: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct List {}

/// Exit records of programs that unum-init keeps; the oldest is dropped first.
pub const EXIT_RECORDS_MAX: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Spawned {
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// The tag was known: nothing was started.
    #[prost(bool, tag = "2")]
    pub existed: bool,
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
