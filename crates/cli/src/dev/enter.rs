//! Running a command as on a machine of the playground: `unum dev exec`.
//!
//! The command inherits standard input, output and error, the terminal and the process group, so
//! job control and Ctrl-C work as if it were a child of the shell. It lives in the machine's PID
//! namespace and dies with the machine's power.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::signal::unix::{SignalKind, signal};
use unum_sys::namespace::{self, Kind};

use super::cgroup::CpuGroup;
use super::place::Machine;
use super::{birth, mounts, pid1, users};
use crate::failure::{
    EXIT_FAILURE, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_OWN_FAILURE, EXIT_SIGNAL_BASE, Explain,
    Failure, Result,
};

/// A command to be run on a machine.
pub struct Order {
    pub user: Option<String>,
    pub command: Vec<OsString>,
}

/// A descriptor of the machine's PID 1, through which its namespaces are entered.
pub fn open(machine: &Machine) -> Result<OwnedFd> {
    machine.init.and_then(|init| init.open()).ok_or_else(|| {
        Failure::new(format!("the machine {} has no power", machine.name))
            .next(format!("Switch it on: unum dev boot {}", machine.name))
    })
}

/// The first half of the entry, outside: `unum dev-machine enter` is the second.
fn inner_command(machine: &Machine, order: &Order) -> Result<Command> {
    let mut command = Command::new(birth::own_program()?);
    command.args(["dev-machine", "enter"]);
    if let Some(user) = &order.user {
        command.arg("--user").arg(user);
    }
    if let Some(group) = &machine.group {
        command.arg("--group").arg(&group.path);
    }
    if let Ok(directory) = std::env::current_dir() {
        command.arg("--cwd").arg(directory);
    }
    command.arg("--").args(&order.command);
    Ok(command)
}

/// Replaces this process's surroundings by the machine's and runs the command to its end. Must be
/// called while the process has one thread.
pub fn run_in_foreground(machine: &Machine, order: &Order) -> Result<u8> {
    let pidfd = open(machine).map_err(|failure| failure.exit(EXIT_OWN_FAILURE))?;
    let command = inner_command(machine, order)?;
    namespace::enter(pidfd.as_fd(), &[Kind::Mount, Kind::Uts, Kind::Ipc, Kind::Network, Kind::Pid])
        .map_err(|error| {
            Failure::new(format!("cannot enter the machine {}: {error}", machine.name))
                .next("A playground needs root with CAP_SYS_ADMIN.")
                .exit(EXIT_OWN_FAILURE)
        })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.explain(|| "cannot start the event loop".into())?;
    let status = runtime.block_on(attend(command));
    Ok(exit_code(status.explain(|| "cannot run a command on the machine".into())?))
}

/// Waits for the command while this process shares its terminal: Ctrl-C and Ctrl-\ reach the
/// command by themselves, what is sent to this process alone is handed on.
async fn attend(mut command: Command) -> std::io::Result<ExitStatus> {
    let mut children = signal(SignalKind::child())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut child = command.spawn()?;
    let pid = Pid::from_child(&child);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let forwarded = tokio::select! {
            _ = children.recv() => None,
            _ = interrupt.recv() => None,
            _ = quit.recv() => None,
            _ = terminate.recv() => Some(Signal::TERM),
            _ = hangup.recv() => Some(Signal::HUP),
        };
        if let Some(signal) = forwarded {
            // Not reaped yet, so the number is still the command's.
            let _ = kill_process(pid, signal);
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let by_signal = |signal: i32| u8::try_from(signal).map(|signal| EXIT_SIGNAL_BASE + signal).ok();
    let by_itself = status.code().and_then(|code| u8::try_from(code).ok());
    by_itself.or_else(|| status.signal().and_then(by_signal)).unwrap_or(EXIT_FAILURE)
}

/// Runs a command on a machine with its output collected, from a process of any number of threads.
pub fn run_collected(machine: &Machine, name: &str, order: &Order) -> Result<std::process::Output> {
    let mut command = Command::new(birth::own_program()?);
    command.args(["dev", "--name", name, "exec", &machine.name]);
    if let Some(user) = &order.user {
        command.arg("--user").arg(user);
    }
    command.arg("--").args(&order.command).stdin(std::process::Stdio::null());
    command.output().explain(|| format!("cannot run a command on {}", machine.name))
}

/// The second half, inside: `unum dev-machine enter`. Returns only when it fails.
pub fn run_inside(
    user: Option<&str>,
    group: Option<&Path>,
    directory: Option<&Path>,
    words: &[OsString],
) -> Failure {
    match prepare(user, group, directory, words) {
        Ok(mut command) => exec_failure(words, command.exec()),
        Err(failure) => failure.exit(EXIT_OWN_FAILURE),
    }
}

fn prepare(
    user: Option<&str>,
    group: Option<&Path>,
    directory: Option<&Path>,
    words: &[OsString],
) -> Result<Command> {
    let (program, arguments) =
        words.split_first().ok_or_else(|| Failure::usage("there is no command to run"))?;
    let program_dir = birth::own_program()?.parent().map(PathBuf::from).unwrap_or_default();
    let path = pid1::path_with(&program_dir);
    let mut command = Command::new(find_program(program, &path));
    command.arg0(program).args(arguments).env("PATH", path).env_remove("UNUM_SOCKET");
    if let Some(group) = group {
        let group = CpuGroup { path: group.into() };
        group.enter().explain(|| format!("cannot enter {}", group.path.display()))?;
    }
    if let Some(user) = user {
        become_user(user, &mut command)?;
    }
    let fallback = Path::new("/");
    let moved = std::env::set_current_dir(directory.unwrap_or(fallback));
    if moved.is_err() {
        std::env::set_current_dir(fallback).explain(|| "cannot change to /".into())?;
    }
    Ok(command)
}

/// `exec` searches the caller's path; what is wanted is the machine's.
fn find_program(program: &OsString, path: &OsString) -> PathBuf {
    let bare = !program.to_string_lossy().contains('/');
    let found = bare.then(|| {
        std::env::split_paths(path).map(|dir| dir.join(program)).find(|file| file.is_file())
    });
    found.flatten().unwrap_or_else(|| PathBuf::from(program))
}

fn become_user(name: &str, command: &mut Command) -> Result<()> {
    let user = users::find(name)?;
    let gid = rustix::process::Gid::from_raw(user.gid);
    let uid = rustix::process::Uid::from_raw(user.uid);
    let groups: Vec<_> = user.groups.iter().map(|g| rustix::process::Gid::from_raw(*g)).collect();
    // This process has one thread, so the thread's identity is the process's. The user comes last:
    // afterwards nothing may be changed any more.
    set_thread_groups(&groups)
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .explain(|| format!("cannot become the user {name}"))?;
    command.env("HOME", &user.home).env("SHELL", &user.shell);
    command.env("USER", &user.name).env("LOGNAME", &user.name);
    Ok(())
}

fn exec_failure(words: &[OsString], error: std::io::Error) -> Failure {
    let program = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new(format!("{program}: no such program")).exit(EXIT_NOT_FOUND)
        }
        _ => Failure::new(format!("{program}: cannot be executed: {error}"))
            .exit(EXIT_NOT_EXECUTABLE),
    }
}

/// Where the machine's PID 1 listens, as seen from this computer.
pub fn control_socket(machine: &Machine) -> Result<PathBuf> {
    // The descriptor is closed again; the check matters: a PID alone might be somebody else's.
    open(machine)?;
    let pid = machine.init.map(|init| init.pid).unwrap_or_default();
    Ok(PathBuf::from(format!("/proc/{pid}/root{}", pid1::CONTROL_SOCKET)))
}

/// Where a machine's settings lie on this computer.
pub fn settings_path(dir: &Path) -> PathBuf {
    let name = Path::new(crate::service::SETTINGS_FILE).file_name().unwrap_or_default();
    debug_assert!(crate::service::SETTINGS_FILE.starts_with(mounts::SETTINGS_DIR));
    dir.join("etc").join(name)
}
