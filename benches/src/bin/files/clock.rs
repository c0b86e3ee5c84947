//! How long a command takes, with a limit after which it and all it started are ended.
//!
//! Prints one word: the seconds, `>LIMIT`, or `failed` (its exit status was not 0).

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// What was killed and is still there after this waits in the kernel, perhaps for ever.
const KILLED_WAIT_MAX: Duration = Duration::from_secs(20);

/// `start_ms` is a Unix time to begin at, so that several begin together.
pub fn run(start_ms: Option<u64>, limit_s: f64, command: &[&str]) -> Result<()> {
    let limit = Duration::try_from_secs_f64(limit_s)?;
    if let Some(start) = start_ms {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        thread::sleep(Duration::from_millis(start).saturating_sub(now));
    }
    let start = Instant::now();
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", command[0]))?;
    let group = Pid::from_child(&child);
    let (tell_ended, ended) = mpsc::channel::<()>();
    let watch = thread::spawn(move || end_at(limit, group, ended));
    let status = child.wait()?;
    let elapsed = start.elapsed();
    drop(tell_ended);
    let was_cut = watch.join().unwrap_or(false);
    match (was_cut, status.success()) {
        (true, _) => println!(">{limit_s}"),
        (false, true) => println!("{:.6}", elapsed.as_secs_f64()),
        (false, false) => println!("failed"),
    }
    Ok(())
}

/// Whether the limit came before the end.
fn end_at(limit: Duration, group: Pid, ended: mpsc::Receiver<()>) -> bool {
    if ended.recv_timeout(limit) != Err(RecvTimeoutError::Timeout) {
        return false;
    }
    let _ = kill_process_group(group, Signal::KILL);
    if ended.recv_timeout(KILLED_WAIT_MAX) == Err(RecvTimeoutError::Timeout) {
        eprintln!("files: what was killed does not end");
        println!(">{}", limit.as_secs_f64());
        std::process::exit(0);
    }
    true
}
