//! Refusals, as the client gets them.

use std::io;

use unum_proto::init::{Failed, Fault};
use unum_sys::process::{StartFailure, Step};

pub fn failed(fault: Fault, errno: i32, message: impl Into<String>) -> Failed {
    Failed { fault: fault as i32, errno, message: message.into() }
}

pub fn system(what: &str) -> impl Fn(io::Error) -> Failed + '_ {
    move |e| failed(Fault::System, e.raw_os_error().unwrap_or(0), format!("cannot {what}: {e}"))
}

pub fn no_such_process(pid: u32) -> Failed {
    failed(Fault::NoSuchProcess, libc_esrch(), format!("no process {pid} here"))
}

fn libc_esrch() -> i32 {
    rustix::io::Errno::SRCH.raw_os_error()
}

/// A failed step of a start, in the words a shell would use.
pub fn start_failed(failure: StartFailure, command: &str, cwd: &str) -> Failed {
    let error = io::Error::from_raw_os_error(failure.errno);
    let kind = error.kind();
    let (fault, message) = match failure.step {
        Step::Fork => (Fault::OutOfResources, format!("cannot fork: {error}")),
        Step::Session | Step::Terminal | Step::Stdio => {
            (Fault::Stdio, format!("cannot set up the program's terminal or pipes: {error}"))
        }
        Step::Limits => (Fault::Credentials, format!("cannot set the limits: {error}")),
        Step::Priority => (Fault::Credentials, format!("cannot set the priority: {error}")),
        Step::Credentials => (Fault::Credentials, format!("cannot become the user: {error}")),
        Step::Directory => (Fault::Directory, format!("cannot enter {cwd}: {error}")),
        Step::Exec if kind == io::ErrorKind::NotFound && !command.contains('/') => {
            (Fault::CommandNotFound, format!("{command}: command not found"))
        }
        Step::Exec if kind == io::ErrorKind::NotFound => (
            Fault::CommandNotFound,
            format!("{command}: no such file, or the interpreter it names is missing"),
        ),
        Step::Exec => (Fault::NotExecutable, format!("{command}: cannot execute: {error}")),
    };
    failed(fault, failure.errno, message)
}

pub fn fork_failed(e: &io::Error) -> Failed {
    let why = format!("cannot start a process: {e}; the machine is short of memory or processes");
    failed(Fault::OutOfResources, e.raw_os_error().unwrap_or(0), why)
}
