//! Starting the long-lived processes of a playground: the switch and each machine's PID 1.
//!
//! A process is started in two steps. It reports its PID and waits; whoever started it writes that
//! PID down and only then says go. If the starter dies in between, the process reads the end of its
//! input and goes away: nothing ever runs that the bookkeeping does not know.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use unum_sys::namespace::{self, Kind};

use super::identity::Identity;
use super::place::{Machine, Place};
use crate::failure::{Explain, Failure, Result};

const GO: &str = "go";
const READY: &str = "ready";
pub const CONSOLE_LOG: &str = "console.log";

/// A process that has reported itself and waits to be let go.
pub struct Newborn {
    pub identity: Identity,
    child: Child,
    console: PathBuf,
}

/// Starts the keeper of the playground's network.
pub fn start_switch(place: &Place) -> Result<Newborn> {
    let mut command = Command::new(own_program()?);
    command.args(["dev-machine", "switch", "--dir"]).arg(&place.dir);
    start(&mut command, &place.dir)
}

/// Processes of a playground found by their command line rather than in its state.
pub fn unrecorded(place: &Place) -> Vec<Identity> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| is_part_of(*pid, place)).filter_map(Identity::of).collect()
}

fn is_part_of(pid: i32, place: &Place) -> bool {
    // The command line of a process that is stuck in the kernel may not be readable; the name is.
    let own_name = |path: String| std::fs::read_to_string(path).is_ok_and(|name| name == "unum\n");
    if !own_name(format!("/proc/{pid}/comm")) {
        return false;
    }
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    words.get(1) == Some(&b"dev-machine".as_slice())
        && words.windows(2).any(|pair| {
            pair[0] == b"--dir" && Path::new(OsStr::from_bytes(pair[1])).starts_with(&place.dir)
        })
}

/// Starts a machine as far as its namespaces. `Newborn::go` brings it up.
pub fn start_machine(place: &Place, machine: &Machine) -> Result<Newborn> {
    let dir = place.machine_dir(&machine.name);
    let mut command = Command::new(own_program()?);
    command.args(["dev-machine", "boot", "--name", &machine.name]).arg("--dir").arg(&dir);
    if let Some(group) = &machine.group {
        command.arg("--group").arg(&group.path);
    }
    start(&mut command, &dir)
}

fn start(command: &mut Command, dir: &Path) -> Result<Newborn> {
    let console = dir.join(CONSOLE_LOG);
    let log = append_to(&console)?;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .explain(|| "cannot start a part of the playground".into())?;
    let line = read_line(&mut child);
    let identity = line.as_deref().ok().and_then(|line| Identity::of(line.trim().parse().ok()?));
    match identity {
        Some(identity) => Ok(Newborn { identity, child, console }),
        None => {
            let _ = child.kill();
            let _ = child.wait();
            Err(told_on_console(&console))
        }
    }
}

impl Newborn {
    /// Lets the process continue and waits until it is set up.
    pub fn go(mut self) -> Result<()> {
        let told = match self.child.stdin.take() {
            Some(mut stdin) => writeln!(stdin, "{GO}"),
            None => Ok(()),
        };
        let line = told.and_then(|()| read_line(&mut self.child));
        // The process that reported may be an intermediate one; it ends by itself.
        reap_if_ended(&mut self.child);
        match line {
            Ok(line) if line.trim() == READY => Ok(()),
            _ => Err(told_on_console(&self.console)),
        }
    }
}

fn reap_if_ended(child: &mut Child) {
    let _ = child.try_wait();
}

/// Reads one line byte by byte: what follows belongs to the next reader of this pipe.
fn read_line(child: &mut Child) -> std::io::Result<String> {
    let Some(stdout) = child.stdout.as_mut() else { return Ok(String::new()) };
    let mut line = String::new();
    BufReader::with_capacity(1, stdout).read_line(&mut line)?;
    Ok(line)
}

fn told_on_console(console: &Path) -> Failure {
    let text = std::fs::read_to_string(console).unwrap_or_default();
    match text.lines().last() {
        Some(line) => Failure::new(line.trim_start_matches("unum: ")),
        None => Failure::new("a part of the playground died at birth")
            .next("Look at the kernel's log: dmesg | tail"),
    }
}

pub fn append_to(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .explain(|| format!("cannot write {}", path.display()))
}

pub fn own_program() -> Result<PathBuf> {
    std::env::current_exe().explain(|| "cannot find the running program".into())
}

/// The other side: says "here I am" and waits to be let go.
pub fn report(pid: u32) {
    println!("{pid}");
    let _ = std::io::stdout().flush();
}

pub fn wait_for_go() -> Result<()> {
    let mut line = String::new();
    let read = BufReader::with_capacity(1, std::io::stdin()).read_line(&mut line);
    match read {
        Ok(_) if line.trim() == GO => Ok(()),
        _ => Err(Failure::new("the command that started this machine ended too early")),
    }
}

/// Says that all is set up, and lets go of the starter's pipes.
pub fn report_ready(log: &File) -> Result<()> {
    println!("{READY}");
    let let_go = std::io::stdout().flush().and_then(|()| {
        let null = File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(log)?;
        rustix::stdio::dup2_stderr(log)?;
        Ok(())
    });
    let_go.explain(|| "cannot leave the terminal".into())
}

/// `unum dev-machine switch`: holds a network namespace until it is killed.
pub fn run_switch() -> Result<()> {
    leave_terminal()?;
    enter_new(&[Kind::Network])?;
    report(std::process::id());
    wait_for_go()?;
    let null = File::options().write(true).open("/dev/null");
    report_ready(&null.explain(|| "cannot open /dev/null".into())?)?;
    loop {
        std::thread::park();
    }
}

/// `unum dev-machine boot`: makes the namespaces and starts PID 1 in them.
pub fn run_boot(name: &str, dir: &Path, group: Option<&Path>) -> Result<()> {
    leave_terminal()?;
    if let Some(group) = group {
        let group = super::cgroup::CpuGroup { path: group.into() };
        group.enter().explain(|| format!("cannot enter {}", group.path.display()))?;
    }
    let program = own_program()?;
    enter_new(&[Kind::Mount, Kind::Uts, Kind::Ipc, Kind::Network, Kind::Pid])?;
    let init = Command::new(program)
        .args(["dev-machine", "init", "--name", name, "--dir"])
        .arg(dir)
        .env_clear()
        .envs(std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("LC_")))
        .env("HOME", "/root")
        .env("TERM", "linux")
        .env("RUST_BACKTRACE", "1")
        .spawn()
        .explain(|| "cannot start a machine's first process".into())?;
    report(init.id());
    Ok(())
}

fn leave_terminal() -> Result<()> {
    rustix::process::setsid().map(drop).explain(|| "cannot start a session".into())
}

fn enter_new(kinds: &[Kind]) -> Result<()> {
    namespace::unshare(kinds).map_err(|error| {
        Failure::new(format!("this machine does not let us make namespaces: {error}"))
            .next("A playground needs root with CAP_SYS_ADMIN; in a container: --privileged.")
    })
}
