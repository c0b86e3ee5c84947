//! Who gets a signal, and whether its sender may send it.
//!
//! Root's signals to a process or group go out at once. All else is an *errand*: a forked child becomes
//! the user and calls kill(2), so the kernel judges; and what must look through /proc does so there too,
//! out of the way of the loop.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use unum_proto::init::{Failed, Fault};
use unum_sys::pids::{self, Detail};
use unum_sys::process::{self, InChild, PidFd, signal_group};

use crate::fault::{failed, no_such_process, system};

const PROC: &str = "/proc";

/// Highest signal number.
const SIGNAL_MAX: u32 = 64;

/// Who is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    Process(u32),
    Group(u32),
    /// All of a session but its leader, which is not the user's when there is a terminal.
    Session {
        session: u32,
        leader: Option<u32>,
    },
}

impl Whom {
    pub fn number(self) -> u32 {
        match self {
            Whom::Process(n) | Whom::Group(n) | Whom::Session { session: n, .. } => n,
        }
    }

    /// Whether the loop itself may send the signal.
    pub fn is_direct(self, uid: u32) -> bool {
        uid == 0 && !matches!(self, Whom::Session { .. })
    }
}

pub fn check(whom: Whom, signal: u32) -> Result<(), Failed> {
    if signal > SIGNAL_MAX {
        return Err(failed(Fault::BadRequest, 0, format!("{signal} is not a signal")));
    }
    match whom {
        Whom::Process(1) => {
            Err(failed(Fault::NotPermitted, 0, "PID 1 of a world takes no signals"))
        }
        _ => Ok(()),
    }
}

/// Says a refusal of the kernel in the protocol's words.
pub fn refusal(errno: i32, number: u32, uid: u32) -> Failed {
    match Errno::from_raw_os_error(errno) {
        Errno::SRCH => no_such_process(number),
        Errno::PERM => {
            let why = format!("process {number} is not user {uid}'s");
            failed(Fault::NotPermitted, errno, why)
        }
        _ => system("send a signal")(io::Error::from_raw_os_error(errno)),
    }
}

pub fn send(whom: Whom, signal: u32) -> io::Result<()> {
    match whom {
        Whom::Process(pid) => PidFd::open(pid)?.signal(signal),
        Whom::Group(group) => signal_group(group, signal),
        Whom::Session { session, leader } => to_each(&members(session, leader)?, signal),
    }
}

/// The errand: sends as the user, then ends with the error number as its status.
pub fn run_errand(child: &InChild, whom: Whom, signal: u32, uid: u32) {
    let sent = match whom {
        // The members are looked for with all rights, but signalled without.
        Whom::Session { session, leader } => members(session, leader).and_then(|members| {
            process::become_user(child, uid)?;
            to_each(&members, signal)
        }),
        _ => process::become_user(child, uid).and_then(|()| send(whom, signal)),
    };
    exit_with(sent);
}

/// Ends a forked child with the error number, which fits into an exit status, or 0.
pub fn exit_with(outcome: io::Result<()>) -> ! {
    let errno = |e: io::Error| e.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
    process::exit_now(outcome.map_or_else(errno, |()| 0))
}

/// Reaches whom it may; an error if that is nobody.
fn to_each(members: &[u32], signal: u32) -> io::Result<()> {
    let mut refused = Errno::SRCH.into();
    let mut reached = false;
    for pid in members {
        match send(Whom::Process(*pid), signal) {
            Ok(()) => reached = true,
            Err(e) => refused = e,
        }
    }
    if reached { Ok(()) } else { Err(refused) }
}

fn members(session: u32, leader: Option<u32>) -> io::Result<Vec<u32>> {
    let all = pids::processes(Path::new(PROC), Detail::Safe)?;
    let chosen = all.iter().filter(|p| p.session == session && Some(p.pid) != leader);
    Ok(chosen.map(|p| p.pid).collect())
}

/// The errand of a terminal's loss: SIGHUP, and SIGCONT so that stopped ones hear it, to every process
/// group of the session.
pub fn hang_up(session: u32, leader: Option<u32>) -> io::Result<()> {
    let all = pids::processes(Path::new(PROC), Detail::Safe)?;
    let of_session = all.iter().filter(|p| p.session == session && Some(p.pid) != leader);
    for group in of_session.map(|p| p.group).collect::<BTreeSet<u32>>() {
        hang_up_group(group);
    }
    Ok(())
}

pub fn hang_up_group(group: u32) {
    for signal in [SIGHUP, SIGCONT] {
        // A group that has ended meanwhile needs no signal.
        let _ = signal_group(group, signal);
    }
}

pub const SIGHUP: u32 = rustix::process::Signal::HUP.as_raw() as u32;
pub const SIGCONT: u32 = rustix::process::Signal::CONT.as_raw() as u32;
pub const SIGTERM: u32 = rustix::process::Signal::TERM.as_raw() as u32;
pub const SIGKILL: u32 = rustix::process::Signal::KILL.as_raw() as u32;
pub const SIGCHLD: u32 = rustix::process::Signal::CHILD.as_raw() as u32;
