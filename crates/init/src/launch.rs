//! From a command line to a running world.
//!
//! The launcher makes the namespaces, forks PID 1, waits until that one listens and exits. PID 1 has
//! its own session and no descriptor of the starter's, so neither the starter's death nor a signal to
//! its process group reaches it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::process::Resource;
use unum_sys::process::{Fork, Rlimit, SignalFd, fork};
use unum_sys::world::ALREADY_RUNNING_STATUS;
use unum_sys::{mounts, process};

use crate::signals::{SIGCHLD, SIGTERM};
use crate::world::{Setup, World};

/// The log of unum-init itself begins anew at a start when it is longer, in bytes.
const OWN_LOG_SIZE_MAX: u64 = 1 << 20;

/// PID 1 wakes before the programs it serves.
const PRIORITY: i32 = -10;

/// The kernel should kill something else first.
const OOM_SCORE: &str = "-900";

pub struct Options {
    pub socket: PathBuf,
    pub state: PathBuf,
}

/// The words that stand for [`Options`] on a command line.
pub const USAGE: &str = "usage: unum-init --socket PATH --state DIRECTORY";

impl Options {
    pub fn parse(args: impl Iterator<Item = std::ffi::OsString>) -> Option<Self> {
        let (mut socket, mut state) = (None, None);
        let mut args = args;
        while let Some(word) = args.next() {
            match word.to_str() {
                Some("--socket") => socket = args.next(),
                Some("--state") => state = args.next(),
                _ => return None,
            }
        }
        let path = |word: Option<std::ffi::OsString>| std::path::absolute(word?).ok();
        Some(Options { socket: path(socket)?, state: path(state)? })
    }
}

enum LaunchError {
    AlreadyRunning,
    Step(&'static str, io::Error),
    Said(String),
}

fn step(what: &'static str) -> impl Fn(io::Error) -> LaunchError {
    move |e| LaunchError::Step(what, e)
}

/// Starts a world; returns the launcher's exit status when it runs, or could not be started.
pub fn launch(options: &Options) -> i32 {
    match try_launch(options) {
        Ok(()) => 0,
        Err(LaunchError::AlreadyRunning) => ALREADY_RUNNING_STATUS,
        Err(LaunchError::Step(what, e)) => {
            let hint = match e.kind() {
                io::ErrorKind::PermissionDenied => " (a world needs root and its own namespaces)",
                _ => "",
            };
            eprintln!("unum-init: cannot {what}: {e}{hint}");
            1
        }
        Err(LaunchError::Said(why)) => {
            eprintln!("unum-init: {why}");
            1
        }
    }
}

fn try_launch(options: &Options) -> Result<(), LaunchError> {
    let lock = lock_state(&options.state)?;
    let shared = mounts::root_is_shared();
    mounts::unshare_world().map_err(step("make the world's namespaces"))?;
    let (ready, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| step("make a pipe")(e.into()))?;
    match fork().map_err(step("fork"))? {
        Fork::Parent(_) => {
            drop(tell);
            drop(lock);
            await_word(ready)
        }
        Fork::Child(never) => never.run(|| {
            drop(ready);
            let tell = File::from(tell);
            let status = match become_init(options, shared) {
                Ok(world) => run(world, tell),
                Err(LaunchError::Step(what, e)) => refuse(tell, &format!("cannot {what}: {e}")),
                Err(LaunchError::Said(why)) => refuse(tell, &why),
                Err(LaunchError::AlreadyRunning) => refuse(tell, "one already runs"),
            };
            drop(lock);
            process::exit_now(status);
        }),
    }
}

fn run(mut world: World, mut tell: File) -> i32 {
    if tell.write_all(&[READY]).is_err() {
        return 1;
    }
    drop(tell);
    match world.run() {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("unum-init: the world ends: {e}");
            1
        }
    }
}

const READY: u8 = 1;

fn refuse(mut tell: File, why: &str) -> i32 {
    // The launcher passes it on; without it nobody is there to be told.
    let _ = tell.write_all(why.as_bytes());
    1
}

fn await_word(ready: OwnedFd) -> Result<(), LaunchError> {
    let mut said = Vec::new();
    File::from(ready).read_to_end(&mut said).map_err(step("hear from the world's PID 1"))?;
    match said.as_slice() {
        [READY] => Ok(()),
        [] => Err(LaunchError::Said("the world's PID 1 died at its start".to_owned())),
        why => Err(LaunchError::Said(String::from_utf8_lossy(why).into_owned())),
    }
}

/// The lock lives as long as the world: PID 1 holds it.
fn lock_state(state: &Path) -> Result<File, LaunchError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(state)
        .map_err(step("make the state directory"))?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(state.join("init.lock"))
        .map_err(step("open the lock file"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LaunchError::AlreadyRunning),
        Err(e) => Err(step("lock the state directory")(e.into())),
    }
}

/// Runs as PID 1 of the new namespace.
fn become_init(options: &Options, shared: bool) -> Result<World, LaunchError> {
    rustix::process::setsid().map_err(|e| step("leave the session")(e.into()))?;
    rustix::process::chdir("/").map_err(|e| step("enter /")(e.into()))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    mounts::mount_proc().map_err(step("mount the world's /proc"))?;
    let signals = SignalFd::new(&[SIGCHLD as i32, SIGTERM as i32]).map_err(step("take signals"))?;
    protect();
    let descriptors = raise_descriptor_limit();
    let listener = listen(&options.socket)?;
    leave_starters_output(&options.state)?;
    let mut missing = Vec::new();
    if !shared {
        missing.push(
            "the machine's / is not a shared mount: mounts made later must be grafted into the world"
                .to_owned(),
        );
    }
    let setup = Setup {
        listener,
        signals,
        socket: options.socket.clone(),
        state: options.state.clone(),
        missing,
        descriptors,
    };
    World::new(setup).map_err(step("start"))
}

/// Best effort: without these it only dies or wakes later than it could.
fn protect() {
    let _ = rustix::process::setpriority_process(None, PRIORITY);
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let _ = rustix::thread::set_name(c"unum-init");
}

/// Returns the limit as it was.
fn raise_descriptor_limit() -> Rlimit {
    let old = rustix::process::getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: old.maximum, maximum: old.maximum };
    // Fewer descriptors only mean fewer programs.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    Rlimit {
        resource: Resource::Nofile as u32,
        soft: old.current.unwrap_or(u64::MAX),
        hard: old.maximum.unwrap_or(u64::MAX),
    }
}

fn listen(socket: &Path) -> Result<UnixListener, LaunchError> {
    // The lock is ours: whoever made this socket is gone.
    let _ = std::fs::remove_file(socket);
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket).map_err(step("listen on the socket"));
    rustix::process::umask(old);
    let listener = listener?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .map_err(step("close the socket to others"))?;
    listener.set_nonblocking(true).map_err(step("listen without blocking"))?;
    Ok(listener)
}

/// Standard input becomes /dev/null, output the log: the starter reads ours to its end.
fn leave_starters_output(state: &Path) -> Result<(), LaunchError> {
    let path = state.join("init.log");
    let long = std::fs::metadata(&path).is_ok_and(|m| m.len() > OWN_LOG_SIZE_MAX);
    if long {
        let _ = std::fs::remove_file(&path);
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let log = log.map_err(step("open the log"))?;
    let null = File::open("/dev/null").map_err(step("open /dev/null"))?;
    let moved = rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&log))
        .and_then(|()| rustix::stdio::dup2_stderr(&log));
    moved.map_err(|e| step("redirect the output")(e.into()))
}
