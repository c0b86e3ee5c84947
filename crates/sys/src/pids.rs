//! PIDs of a namespace: the allocation cursor, and what /proc says of processes.
//!
//! [`PidCursor`] belongs to PID 1 of the namespace. The readers take the path of any procfs, so a
//! daemon outside sees the world's PIDs through `/proc/<PID 1>/root/proc`.
//!
//! Left out: command lines unless asked for. Reading one takes a lock of the process's memory, which a
//! page fault on a dead file server can hold for long; PID 1 never asks for them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// The highest PID plus one that Linux can give.
pub const PID_LIMIT: u32 = 4_194_304;

/// The allocation cursor of the caller's PID namespace.
pub struct PidCursor {
    last: File,
    limit: Option<File>,
}

impl PidCursor {
    /// `proc` is a procfs of the caller's namespace.
    pub fn open(proc: &Path) -> io::Result<Self> {
        let open = |name| {
            let path = proc.join("sys/kernel").join(name);
            OpenOptions::new().read(true).write(true).open(path)
        };
        let limit = if limit_is_isolated() { Some(open("pid_max")?) } else { None };
        Ok(Self { last: open("ns_last_pid")?, limit })
    }

    /// True when [`PidCursor::set_limit`] has an effect here (Linux 6.14 and later); before that
    /// pid_max is the machine's and is not touched.
    pub fn has_limit(&self) -> bool {
        self.limit.is_some()
    }

    /// The PID given last.
    pub fn last(&self) -> io::Result<u32> {
        let mut text = [0u8; 16];
        let n = self.last.read_at(&mut text, 0)?;
        parse_number(text.get(..n).unwrap_or_default())
            .ok_or_else(|| io::Error::other("ns_last_pid is not a number"))
    }

    /// Makes `next` the first candidate for the next PID.
    pub fn set_next(&self, next: u32) -> io::Result<()> {
        self.last.write_at(next.saturating_sub(1).to_string().as_bytes(), 0).map(drop)
    }

    /// PIDs from `limit` on are not given.
    pub fn set_limit(&self, limit: u32) -> io::Result<()> {
        match &self.limit {
            Some(file) => file.write_at(limit.to_string().as_bytes(), 0).map(drop),
            None => Ok(()),
        }
    }
}

fn parse_number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

fn limit_is_isolated() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    matches!((parts.next(), parts.next()), (Some(Ok(a)), Some(Ok(b))) if (a, b) >= (6, 14))
}

/// A process as /proc shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub ppid: u32,
    pub group: u32,
    pub session: u32,
    /// Effective user.
    pub uid: u32,
    /// The letter of ps(1).
    pub state: char,
    /// Short name; the kernel cuts it at 15 bytes.
    pub name: String,
    /// Arguments joined by spaces; empty when not asked for or none are left (zombies, kernel
    /// threads).
    pub command: String,
    pub threads: u32,
    pub user_ticks: u64,
    pub system_ticks: u64,
    /// Ticks since the machine's boot.
    pub start_ticks: u64,
    pub rss_kib: u64,
    /// Device number of the controlling terminal, 0 without.
    pub terminal: u32,
}

/// Length of a tick of [`Process`], in microseconds.
pub fn tick_us() -> u64 {
    1_000_000 / rustix::param::clock_ticks_per_second().max(1)
}

/// PIDs of all processes.
pub fn all(proc: &Path) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir(proc)? {
        let name = entry?.file_name();
        if let Some(pid) = name.to_str().and_then(|n| n.parse().ok()) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// All processes. `with_command` reads command lines too, which may block; see the module's head.
pub fn processes(proc: &Path, with_command: bool) -> io::Result<Vec<Process>> {
    let page_kib = (rustix::param::page_size() / 1024) as u64;
    let mut list = Vec::new();
    for pid in all(proc)? {
        // One that ended meanwhile is not missed.
        let Some(mut process) = read_stat(proc, pid, page_kib) else { continue };
        if with_command {
            process.command = command_line(proc, pid);
        }
        list.push(process);
    }
    Ok(list)
}

/// One process, without its command line.
pub fn process(proc: &Path, pid: u32) -> Option<Process> {
    read_stat(proc, pid, (rustix::param::page_size() / 1024) as u64)
}

fn read_stat(proc: &Path, pid: u32, page_kib: u64) -> Option<Process> {
    let directory = proc.join(pid.to_string());
    let text = fs::read(directory.join("stat")).ok()?;
    let uid = fs::metadata(&directory).ok()?.uid();
    let mut process = parse_stat(&String::from_utf8_lossy(&text), page_kib)?;
    process.uid = uid;
    Some(process)
}

/// `PID (name) state ppid ...`, where the name may hold anything, `)` included.
fn parse_stat(text: &str, page_kib: u64) -> Option<Process> {
    let (head, rest) = text.rsplit_once(')')?;
    let (pid, name) = head.split_once(" (")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Numbered as in proc(5), where the state is field 3.
    let field = |n: usize| fields.get(n.checked_sub(3)?).copied();
    let number = |n: usize| field(n)?.parse::<i64>().ok();
    Some(Process {
        pid: pid.trim().parse().ok()?,
        name: name.to_owned(),
        state: field(3)?.chars().next()?,
        ppid: number(4)? as u32,
        group: number(5)? as u32,
        session: number(6)? as u32,
        terminal: number(7)? as u32,
        user_ticks: number(14)? as u64,
        system_ticks: number(15)? as u64,
        threads: number(20)? as u32,
        start_ticks: number(22)? as u64,
        rss_kib: (number(24)?.max(0) as u64) * page_kib,
        ..Process::default()
    })
}

fn command_line(proc: &Path, pid: u32) -> String {
    let bytes = fs::read(proc.join(pid.to_string()).join("cmdline")).unwrap_or_default();
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    let words = bytes.get(..end).unwrap_or_default().split(|b| *b == 0);
    words.map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ")
}

/// Real and saved user of a process: who may signal it.
pub fn owners(proc: &Path, pid: u32) -> Option<(u32, u32)> {
    let text = fs::read(proc.join(pid.to_string()).join("status")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find_map(|l| l.strip_prefix("Uid:"))?;
    let mut ids = line.split_ascii_whitespace().map(|w| w.parse().ok());
    let real = ids.next()??;
    let saved = ids.nth(1)??;
    Some((real, saved))
}

/// Processes and threads: the PIDs in use.
pub fn count_tasks(proc: &Path) -> io::Result<u32> {
    let mut count = 0u32;
    for pid in all(proc)? {
        let links = fs::metadata(proc.join(pid.to_string()).join("task")).map(|m| m.nlink());
        count = count.saturating_add(links.map_or(0, |n| n.saturating_sub(2) as u32));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_may_hold_anything() {
        let rest = "S 7 8 9 34816 8 0 0 0 0 0 11 12 0 0 20 0 3 0 555 4096 25 0 0";
        let process = parse_stat(&format!("42 (a) b (c)) {rest}"), 4);
        let Some(process) = process else { panic!("not parsed") };
        assert_eq!(process.name, "a) b (c)");
        assert_eq!((process.pid, process.ppid, process.group, process.session), (42, 7, 8, 9));
        assert_eq!((process.user_ticks, process.system_ticks, process.threads), (11, 12, 3));
        assert_eq!((process.start_ticks, process.rss_kib), (555, 100));
    }

    #[test]
    fn this_process_is_found_with_its_command() {
        let me = std::process::id();
        let list = processes(Path::new("/proc"), true).unwrap_or_default();
        let found = list.iter().find(|p| p.pid == me).map(|p| (p.state, p.command.clone()));
        let Some((state, command)) = found else { panic!("not in the list") };
        assert!("RSD".contains(state), "state {state}");
        assert!(command.contains("unum_sys"), "command {command}");
        assert!(owners(Path::new("/proc"), me).is_some());
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in ".{0,200}") {
            let _ = parse_stat(&text, 4);
        }
    }
}
