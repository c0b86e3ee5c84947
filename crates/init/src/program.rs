//! A program that was started here: what is known of it, from its start to the end of its record.

use std::ffi::CString;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message;
use unum_proto::init::{self as proto, Exited, Failed, Fault, InputState, Spawn, State};
use unum_sys::process::{Command, Exit, Rlimit, Words};

use crate::ends::Streams;
use crate::fault::failed;
use crate::poll::Watched;

/// Longest command that is shown, in bytes.
const COMMAND_SHOWN_MAX: usize = 256;

/// Longest tag of a Spawn, in bytes.
const TAG_SIZE_MAX: usize = 256;

/// Most limits and supplementary groups of a Spawn.
const RLIMITS_MAX: usize = 64;
const GROUPS_MAX: usize = 65_536;

/// Who waits for a start: the connection's token and its request.
#[derive(Clone, Copy)]
pub struct ReplyTo {
    pub connection: u64,
    pub request: u64,
}

pub struct Starting {
    pub reply_to: ReplyTo,
    pub exec: Watched<Words>,
    /// The program ended before its start was reported.
    pub early_exit: Option<Exit>,
    pub cwd: String,
    pub name: String,
}

pub struct Leader {
    pub pid: u32,
    pub words: Watched<Words>,
}

pub struct Program {
    /// 0 while only its session leader is known.
    pub pid: u32,
    pub tag: Vec<u8>,
    pub command: String,
    pub uid: u32,
    pub session: u32,
    pub started_ms: u64,
    pub starting: Option<Starting>,
    pub leader: Option<Leader>,
    pub streams: Streams,
    pub has_terminal: bool,
    pub stopped_by: Option<u32>,
    pub exited: Option<Exited>,
    pub attached: bool,
    pub unattended_since: Instant,
    pub orphan_after: Option<Duration>,
    pub hung_up: bool,
}

impl Program {
    pub fn state(&self) -> State {
        match (&self.exited, self.stopped_by) {
            (Some(_), _) => State::Exited,
            (None, Some(_)) => State::Stopped,
            (None, None) => State::Running,
        }
    }

    pub fn is_overdue(&self) -> bool {
        let limit = self.orphan_after.filter(|_| !self.attached && !self.hung_up);
        limit.is_some_and(|limit| self.unattended_since.elapsed() > limit)
    }

    pub fn record(&mut self, exit: Exit) -> Exited {
        let (stdout_end, stderr_end) = self.streams.program_ended();
        let exited = Exited {
            pid: self.pid,
            code: exit.code,
            signal: exit.signal,
            core: exit.core,
            user_us: exit.user_us,
            system_us: exit.system_us,
            max_rss_kib: exit.max_rss_kib,
            started_ms: self.started_ms,
            ended_ms: now_ms(),
            stdout_end,
            stderr_end,
        };
        self.exited = Some(exited);
        self.stopped_by = None;
        exited
    }

    pub fn input_state(&self) -> InputState {
        let (accepted, window, closed) = self.streams.input.state();
        InputState { pid: self.pid, accepted, window, closed }
    }

    pub fn describe(&self) -> proto::Program {
        proto::Program {
            pid: self.pid,
            tag: self.tag.clone(),
            command: self.command.clone(),
            uid: self.uid,
            state: self.state() as i32,
            started_ms: self.started_ms,
            exited: self.exited,
            terminal: self.has_terminal,
            attached: self.attached,
            hung_up: self.hung_up,
            log: self.streams.log().unwrap_or_default().to_owned(),
            stdout_end: self.streams.stdout.end(),
            stdout_acked: self.streams.stdout.acked(),
            stderr_end: self.streams.stderr.end(),
            stderr_acked: self.streams.stderr.acked(),
            stdin_accepted: self.streams.input.accepted(),
        }
    }
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// argv in one line for a person, cut at a character's start.
pub fn shown(argv: &[Vec<u8>]) -> String {
    let words: Vec<_> = argv.iter().map(|a| String::from_utf8_lossy(a)).collect();
    let mut line = words.join(" ");
    line.truncate(line.floor_char_boundary(COMMAND_SHOWN_MAX));
    line
}

/// Checks a Spawn and makes the command of it. `descriptors` is the limit for a program whose caller
/// does not say one.
pub fn command(spawn: &Spawn, descriptors: Rlimit) -> Result<Command, Failed> {
    let bad = |what: &str| failed(Fault::BadRequest, 0, what.to_owned());
    if spawn.argv.is_empty() {
        return Err(bad("nothing to run"));
    }
    if spawn.tag.len() > TAG_SIZE_MAX {
        return Err(bad("the tag is longer than 256 bytes"));
    }
    if spawn.rlimits.len() > RLIMITS_MAX || spawn.groups.len() > GROUPS_MAX {
        return Err(bad("too many limits or groups"));
    }
    let strings = |list: &[Vec<u8>]| -> Result<Vec<CString>, Failed> {
        let made = list.iter().map(|s| CString::new(s.clone()));
        made.collect::<Result<_, _>>().map_err(|_| bad("a NUL byte in an argument or a variable"))
    };
    let mut rlimits: Vec<Rlimit> = spawn
        .rlimits
        .iter()
        .map(|l| Rlimit { resource: l.resource, soft: l.soft, hard: l.hard })
        .collect();
    if !rlimits.iter().any(|l| l.resource == descriptors.resource) {
        rlimits.push(descriptors);
    }
    let cwd = if spawn.cwd.is_empty() { b"/".to_vec() } else { spawn.cwd.clone() };
    Ok(Command {
        argv: strings(&spawn.argv)?,
        env: strings(&environment(spawn))?,
        cwd: CString::new(cwd).map_err(|_| bad("a NUL byte in the directory"))?,
        uid: spawn.uid,
        gid: spawn.gid,
        groups: spawn.groups.clone(),
        umask: spawn.umask,
        rlimits,
        nice: spawn.nice,
    })
}

fn environment(spawn: &Spawn) -> Vec<Vec<u8>> {
    let mut env = spawn.env.clone();
    if let Some(proto::Stdio::Pty(pty)) = &spawn.stdio
        && !pty.term.is_empty()
    {
        env.retain(|e| !e.starts_with(b"TERM="));
        env.push([b"TERM=", &pty.term[..]].concat());
    }
    env
}

/// Bytes that a description takes in a reply.
pub fn size_of_description(program: &proto::Program) -> usize {
    program.encoded_len() + 8
}
