//! Who gets a signal, and whether its sender may send it: the rule of kill(2).
//!
//! A process is held by its descriptor before its owner is looked up, so a number that is reused in
//! between gets nothing.

use std::collections::BTreeSet;
use std::path::Path;

use unum_proto::init::{Failed, Fault};
use unum_sys::pids;
use unum_sys::process::{PidFd, signal_group};

use crate::fault::{failed, no_such_process, system};

const PROC: &str = "/proc";

/// Highest signal number.
const SIGNAL_MAX: u32 = 64;

pub fn check_number(signal: u32) -> Result<(), Failed> {
    if signal <= SIGNAL_MAX {
        return Ok(());
    }
    Err(failed(Fault::BadRequest, 0, format!("{signal} is not a signal")))
}

fn may_signal(uid: u32, pid: u32) -> bool {
    uid == 0
        || pids::owners(Path::new(PROC), pid)
            .is_some_and(|(real, saved)| uid == real || uid == saved)
}

pub fn to_process(pid: u32, signal: u32, uid: u32) -> Result<(), Failed> {
    if pid == 1 {
        return Err(failed(Fault::NotPermitted, 0, "PID 1 of a world takes no signals"));
    }
    let process = PidFd::open(pid).map_err(|_| no_such_process(pid))?;
    if !may_signal(uid, pid) {
        return Err(not_permitted(pid, uid));
    }
    process.signal(signal).map_err(|e| match e.raw_os_error() {
        Some(code) if code == rustix::io::Errno::SRCH.raw_os_error() => no_such_process(pid),
        _ => system("signal a process")(e),
    })
}

fn not_permitted(pid: u32, uid: u32) -> Failed {
    let errno = rustix::io::Errno::PERM.raw_os_error();
    failed(Fault::NotPermitted, errno, format!("process {pid} is not user {uid}'s"))
}

pub fn to_group(group: u32, signal: u32, uid: u32) -> Result<(), Failed> {
    let members = members(|p| p.group == group)?;
    if members.is_empty() || group <= 1 {
        return Err(no_such_process(group));
    }
    if members.iter().all(|pid| may_signal(uid, *pid)) {
        // At once, so that none can slip out by forking.
        return signal_group(group, signal).map_err(system("signal a process group"));
    }
    to_each(&members, signal, uid)
}

/// To the processes of a session but its leader, which is not the user's when there is a terminal.
pub fn to_session(session: u32, leader: Option<u32>, signal: u32, uid: u32) -> Result<(), Failed> {
    let members = members(|p| p.session == session && Some(p.pid) != leader)?;
    if members.is_empty() {
        return Err(no_such_process(session));
    }
    to_each(&members, signal, uid)
}

fn to_each(members: &[u32], signal: u32, uid: u32) -> Result<(), Failed> {
    let mut refusal = None;
    let mut reached = false;
    for pid in members {
        match to_process(*pid, signal, uid) {
            Ok(()) => reached = true,
            Err(e) => refusal = Some(e),
        }
    }
    match refusal {
        Some(e) if !reached => Err(e),
        _ => Ok(()),
    }
}

fn members(chosen: impl Fn(&pids::Process) -> bool) -> Result<Vec<u32>, Failed> {
    let all = pids::processes(Path::new(PROC), false).map_err(system("read /proc"))?;
    Ok(all.iter().filter(|p| chosen(p)).map(|p| p.pid).collect())
}

/// What a terminal's loss does: SIGHUP, and SIGCONT so that stopped ones hear it, to every process
/// group of the session.
pub fn hang_up(session: u32, leader: Option<u32>) {
    let all = pids::processes(Path::new(PROC), false).unwrap_or_default();
    let of_session = all.iter().filter(|p| p.session == session && Some(p.pid) != leader);
    for group in of_session.map(|p| p.group).collect::<BTreeSet<u32>>() {
        for signal in [SIGHUP, SIGCONT] {
            // A group that has ended meanwhile needs no signal.
            let _ = signal_group(group, signal);
        }
    }
}

pub const SIGHUP: u32 = rustix::process::Signal::HUP.as_raw() as u32;
pub const SIGCONT: u32 = rustix::process::Signal::CONT.as_raw() as u32;
pub const SIGTERM: u32 = rustix::process::Signal::TERM.as_raw() as u32;
pub const SIGKILL: u32 = rustix::process::Signal::KILL.as_raw() as u32;
pub const SIGCHLD: u32 = rustix::process::Signal::CHILD.as_raw() as u32;
