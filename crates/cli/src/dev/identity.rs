//! A process named so that it cannot be confused with a later one of the same number.
//!
//! A PID alone is reused; with its start time it is not. Every signal goes through a pidfd whose
//! process was checked after the descriptor was opened, so a wrong process is never hit.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process on this machine: its PID and the time it was started, in ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    pub start_ticks: u64,
}

impl Identity {
    /// The process that has this PID now; `None` when there is none.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, start_ticks: start_ticks(&stat)? })
    }

    pub fn is_alive(self) -> bool {
        self.open().is_some()
    }

    /// A descriptor of exactly this process, unless it is gone.
    pub fn open(self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The process was alive when the descriptor was made, so what /proc says of this number
        // either is about it or shows another start time.
        (Self::of(self.pid) == Some(self) && !has_ended(&pidfd)).then_some(pidfd)
    }

    /// Kills the process and does not wait. Gone already is as good.
    pub fn kill(self) -> io::Result<()> {
        self.open().map_or(Ok(()), |pidfd| send_kill(&pidfd))
    }

    /// Kills the process and waits for its end. Gone already is as good.
    pub fn kill_and_wait(self, patience: Duration) -> io::Result<()> {
        let Some(pidfd) = self.open() else { return Ok(()) };
        send_kill(&pidfd)?;
        wait_for_end(&pidfd, patience)
    }
}

fn send_kill(pidfd: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    wait_for_end(pidfd, Duration::ZERO).is_ok()
}

pub fn wait_for_end(pidfd: &OwnedFd, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut poll = [PollFd::new(pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut poll, Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Field 22 of /proc/PID/stat. The command's name may hold spaces and parentheses, so fields count
/// from the last parenthesis.
fn start_ticks(stat: &str) -> Option<u64> {
    const FIELDS_AFTER_NAME: usize = 19;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(FIELDS_AFTER_NAME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(start_ticks(stat), Some(4242));
        assert_eq!(start_ticks("7 (a"), None);
        assert_eq!(start_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn a_reused_number_is_not_the_same_process() {
        let here = Identity::of(std::process::id().try_into().expect("PIDs fit")).expect("alive");
        assert!(here.is_alive());
        let earlier = Identity { start_ticks: here.start_ticks - 1, ..here };
        assert!(!earlier.is_alive());
        earlier
            .kill_and_wait(Duration::from_secs(1))
            .expect("a process that is gone needs nothing");
    }

    #[test]
    fn a_process_is_killed_and_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep runs");
        let identity = Identity::of(child.id().try_into().expect("PIDs fit")).expect("alive");
        identity.kill_and_wait(Duration::from_secs(5)).expect("it dies");
        assert!(!identity.is_alive());
        child.wait().expect("reaped");
    }
}
