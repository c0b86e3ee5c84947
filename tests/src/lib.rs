//! The end-to-end harness: real programs in a playground of their own.
//!
//! A test takes a [`Playground`], which is taken down when the test ends, however it ends. The
//! programs under test are those beside the test programs in the target directory.

pub mod actor;
mod census;
mod cluster;
pub mod coherence;

pub use census::Census;
pub use cluster::{cannot_run_daemons, word};

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Machines whose logs are looked at after a failure.
const MACHINES_MAX: u32 = 9;

/// Lines of each machine's log that a failed test prints.
const COMPLAINTS_MAX: usize = 40;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A playground with a name of its own.
#[derive(Debug)]
pub struct Playground {
    name: String,
}

/// Why this machine cannot run playgrounds, if it cannot. Printed in the form that is counted.
pub fn cannot_run() -> bool {
    let reason = match () {
        () if !rustix::process::geteuid().is_root() => "playgrounds need root",
        () if !unum().exists() => "unum is not built (cargo build -p unum-cli)",
        () => return false,
    };
    println!("skipped: {reason}");
    true
}

/// The program under test.
pub fn unum() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_default();
    // target/PROFILE/deps/TEST, or target/PROFILE/PROGRAM
    let beside = path.ancestors().skip(1).find(|path| !path.ends_with("deps"));
    beside.unwrap_or(&path).join("unum")
}

impl Playground {
    /// Starts one with these options of `unum dev up`.
    pub fn up(options: &[&str]) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let playground = Self { name: format!("test-{}-{number}", std::process::id()) };
        let output = playground.dev("up", options);
        assert!(output.status.success(), "unum dev up failed: {}", text(&output.stderr));
        playground
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a machine's daemon keeps, as this computer sees it.
    pub fn disk(&self, machine: &str) -> PathBuf {
        let parent = std::env::var("XDG_STATE_HOME").unwrap_or("/var/tmp".into());
        PathBuf::from(parent).join(format!("unum-dev-{}", self.name)).join(machine).join("data")
    }

    /// A verb of `unum dev` on this playground, with its output.
    pub fn dev(&self, verb: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(verb);
        run(command.args(arguments))
    }

    /// The same, which must succeed; gives what it printed.
    pub fn must(&self, verb: &str, arguments: &[&str]) -> String {
        let output = self.dev(verb, arguments);
        let told = text(&output.stderr);
        assert!(output.status.success(), "unum dev {verb} {arguments:?} failed: {told}");
        text(&output.stdout)
    }

    /// A command on a machine, not yet started.
    pub fn on<I: AsRef<OsStr>>(&self, machine: &str, words: &[I]) -> Command {
        let mut command = self.command("exec");
        command.arg(machine).arg("--").args(words);
        command
    }

    /// Switches a machine on; its node is ready then.
    pub fn boot(&self, machine: &str) {
        let told = self.dev("boot", &[machine]);
        let told = format!("{}{}", text(&told.stdout), text(&told.stderr));
        let seen = self.sh(machine, "grep ' /unum fuse' /proc/mounts && stat /unum");
        let why = format!("{told}{}{}", text(&seen.stdout), text(&seen.stderr));
        assert!(seen.status.success(), "{machine} has no files after boot: {why}");
    }

    /// Runs a shell script on a machine.
    pub fn sh(&self, machine: &str, script: &str) -> Output {
        run(&mut self.on(machine, &["sh", "-c", script]))
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(unum());
        command.args(["dev", "--name", &self.name, verb]).stdin(Stdio::null());
        command
    }
}

impl Playground {
    /// Prints what the machines' daemons complained of: a test that failed leaves nothing else.
    fn print_complaints(&self) {
        for number in 1..=MACHINES_MAX {
            let machine = format!("n{number}");
            let output = self.dev("logs", &[&machine]);
            if !output.status.success() {
                return;
            }
            let log = text(&output.stdout);
            let complaints: Vec<&str> =
                log.lines().filter(|line| !line.contains(" INFO ")).collect();
            let from = complaints.len().saturating_sub(COMPLAINTS_MAX);
            eprintln!("{machine} complained {} times, at last:", complaints.len());
            complaints[from..].iter().for_each(|line| eprintln!("  {line}"));
        }
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_complaints();
        }
        let output = self.dev("down", &[]);
        if !output.status.success() && !std::thread::panicking() {
            panic!("unum dev down failed: {}", text(&output.stderr));
        }
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
