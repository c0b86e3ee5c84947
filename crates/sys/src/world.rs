//! Starting the node's *world*: a PID and mount namespace whose PID 1 is unum-init.
//!
//! [`start_world`] is called by whoever wants a world (unumd, a test); it runs unum-init as a
//! launcher, which makes the namespaces, forks PID 1 and exits when that one listens. PID 1 is then
//! nobody's child that matters: its session is its own, its parent is the machine's init, and
//! signals to the starter's process group do not reach it.
//!
//! Left out: everything after the start; that is unum-init's protocol on its socket.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What a world is started with.
#[derive(Clone, Debug)]
pub struct World {
    /// The unum-init executable.
    pub program: PathBuf,
    /// Words before unum-init's own arguments, for an executable that is several programs.
    pub prefix: Vec<OsString>,
    /// Where it will listen.
    pub socket: PathBuf,
    /// Where its logs go; a directory on a local file system, made when missing.
    pub state: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A world with this state directory runs; connect to it instead.
    #[error("a world already runs at {socket}")]
    AlreadyRunning { socket: PathBuf },
    #[error("cannot run {program}: {source}")]
    Run { program: PathBuf, source: io::Error },
    #[error("the world could not be started: {message}")]
    Failed { message: String },
}

/// Exit status of the launcher that means "one already runs".
pub const ALREADY_RUNNING_STATUS: i32 = 3;

/// Starts a world and returns when it listens on its socket. Blocks for some milliseconds.
pub fn start_world(world: &World) -> Result<(), StartError> {
    let output = Command::new(&world.program)
        .args(&world.prefix)
        .arg("--socket")
        .arg(&world.socket)
        .arg("--state")
        .arg(&world.state)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|source| StartError::Run { program: world.program.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    if output.status.code() == Some(ALREADY_RUNNING_STATUS) {
        return Err(StartError::AlreadyRunning { socket: world.socket.clone() });
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let message = match said.trim() {
        "" => format!("{} ended with {}", world.program.display(), output.status),
        said => said.to_owned(),
    };
    Err(StartError::Failed { message })
}
