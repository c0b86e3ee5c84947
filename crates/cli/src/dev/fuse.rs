//! The end of a machine's FUSE connections, which a real machine's loss of power takes with it.
//!
//! Killing every process does not always end one: a thread of the daemon that tells the kernel to drop
//! a page waits, beyond the reach of any signal, for a program that waits for the daemon's answer. To
//! abort the connection frees both (linux Documentation/filesystems/fuse, "Control filesystem").

use std::io;

use unum_sys::fuse::ConnectionId;

use super::identity::Identity;

/// The connections that a machine had mounted when this was made.
#[derive(Debug)]
pub struct Connections(Vec<ConnectionId>);

impl Connections {
    pub fn of(init: Identity) -> Self {
        let path = format!("/proc/{}/mountinfo", init.pid);
        let numbers = numbers(&std::fs::read_to_string(path).unwrap_or_default());
        Self(numbers.into_iter().map(ConnectionId).collect())
    }

    /// Those that are gone already are as good.
    pub fn abort(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|connection| match connection.abort() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        })
    }
}

/// A connection is named after the minor number of its mounts' device (proc_pid_mountinfo(5)).
fn numbers(mountinfo: &str) -> Vec<u32> {
    let number = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let kind = kind.split(' ').next()?;
        let device = mount.split(' ').nth(2)?;
        let (_, minor) = device.split_once(':')?;
        (kind == "fuse" || kind.starts_with("fuse.")).then(|| minor.parse().ok())?
    };
    let mut numbers: Vec<u32> = mountinfo.lines().filter_map(number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fuse_mounts_name_connections() {
        let text = "35 28 0:61 / /unum rw,nosuid shared:9 - fuse.unum unum rw,user_id=0\n\
                    36 28 0:61 / /view rw - fuse.unum unum rw\n\
                    37 28 0:62 / /other rw - fuse other rw\n\
                    38 28 0:63 / /sys/fs/fuse/connections rw - fusectl none rw\n\
                    39 28 254:0 / / rw - ext4 /dev/vda rw\n";
        assert_eq!(numbers(text), [61, 62]);
    }
}
