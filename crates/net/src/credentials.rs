//! Who is at the other end of a local socket, from the kernel.
//!
//! uid and gid are those of `connect`. Supplementary groups are read from /proc, guarded by a
//! descriptor of the peer's process: when that process is still there after reading, its number was
//! not taken over by another in between. A peer that is gone already has no groups.

use std::{
    fs::File,
    io::{self, Read},
};

use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::UnixStream;

use crate::{Caller, limits::CALLER_GROUPS_MAX};

/// A status file with the most groups that are taken over, in bytes.
const STATUS_SIZE_MAX: u64 = 64 << 10;

pub(crate) fn caller_of(socket: &UnixStream) -> io::Result<Caller> {
    let credentials = socket.peer_cred()?;
    let groups = credentials.pid().and_then(|pid| groups_of(socket, pid)).unwrap_or_default();
    Ok(Caller { node: None, uid: credentials.uid(), gid: credentials.gid(), groups })
}

fn groups_of(socket: &UnixStream, pid: i32) -> Option<Vec<u32>> {
    // Kernels before 6.5 have no such descriptor: then nobody can say whose groups these are.
    let process = getsockopt(socket, PeerPidfd).ok()?;
    let mut text = String::new();
    let status = File::open(format!("/proc/{pid}/status")).ok()?;
    status.take(STATUS_SIZE_MAX).read_to_string(&mut text).ok()?;
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let alive = poll(&mut ended, Some(&now)).ok()? == 0;
    alive.then(|| parse_groups(&text))
}

fn parse_groups(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|id| id.parse().ok()).take(CALLER_GROUPS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_a_status_file() {
        assert_eq!(parse_groups("Name:\tsh\nGroups:\t4 24 1000 \nVmPeak: 1\n"), [4, 24, 1000]);
        assert_eq!(parse_groups("Groups:\t\n"), [0u32; 0]);
        assert_eq!(parse_groups(""), [0u32; 0]);
    }

    #[tokio::test]
    async fn this_process_is_recognised() {
        let (a, _b) = UnixStream::pair().unwrap();
        let caller = caller_of(&a).unwrap();
        assert_eq!(caller.uid, rustix::process::getuid().as_raw());
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert_eq!(caller.groups, parse_groups(&own));
    }
}
