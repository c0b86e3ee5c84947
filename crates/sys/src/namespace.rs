//! Leaving and entering Linux namespaces.
//!
//! Both act on the calling thread. Mount namespaces can only be changed while the process has a
//! single thread, and a new PID namespace holds the children made afterwards, not the caller.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

/// The namespaces that together make a machine of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Mount,
    Network,
    Pid,
    Uts,
    Ipc,
}

impl Kind {
    fn to_unshare(self) -> UnshareFlags {
        match self {
            Self::Mount => UnshareFlags::NEWNS,
            Self::Network => UnshareFlags::NEWNET,
            Self::Pid => UnshareFlags::NEWPID,
            Self::Uts => UnshareFlags::NEWUTS,
            Self::Ipc => UnshareFlags::NEWIPC,
        }
    }

    fn to_enter(self) -> ThreadNameSpaceType {
        match self {
            Self::Mount => ThreadNameSpaceType::MOUNT,
            Self::Network => ThreadNameSpaceType::NETWORK,
            Self::Pid => ThreadNameSpaceType::PROCESS_ID,
            Self::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
            Self::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
        }
    }
}

/// Moves the calling thread (for `Kind::Pid`: its children to come) into new namespaces.
pub fn unshare(kinds: &[Kind]) -> io::Result<()> {
    let flags = kinds.iter().fold(UnshareFlags::empty(), |all, kind| all | kind.to_unshare());
    // SAFETY: the call is unsafe only for CLONE_FILES, which would give this thread a descriptor
    // table of its own while other code takes descriptors for process-wide; `Kind` cannot express
    // it. There is no safe way to call unshare(2).
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Moves the calling thread (for `Kind::Pid`: its children to come) into the namespaces of the
/// process that `pidfd` refers to, all of them or none.
pub fn enter(pidfd: BorrowedFd<'_>, kinds: &[Kind]) -> io::Result<()> {
    let all = kinds.iter().fold(ThreadNameSpaceType::empty(), |all, kind| all | kind.to_enter());
    rustix::thread::move_into_thread_name_spaces(pidfd, all).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

    fn network_of_thread() -> std::path::PathBuf {
        std::fs::read_link("/proc/thread-self/ns/net").expect("a thread has a network namespace")
    }

    #[test]
    fn a_thread_leaves_and_comes_back_alone() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: namespaces need root");
            return;
        }
        let here = network_of_thread();
        let this_process: Pid = getpid();
        std::thread::spawn(move || {
            unshare(&[Kind::Network]).expect("root may unshare");
            assert_ne!(network_of_thread(), here);
            let pidfd = pidfd_open(this_process, PidfdFlags::empty()).expect("own pidfd");
            enter(std::os::fd::AsFd::as_fd(&pidfd), &[Kind::Network]).expect("root may enter");
            assert_eq!(network_of_thread(), here);
        })
        .join()
        .expect("the thread's checks hold");
    }
}
