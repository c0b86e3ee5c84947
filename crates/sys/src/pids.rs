//! PIDs of a namespace: the allocation cursor, and what /proc says of processes.
//!
//! [`PidCursor`] belongs to PID 1 of the namespace. The readers take the path of any procfs, so a
//! daemon outside sees the world's PIDs through `/proc/<PID 1>/root/proc`.
//!
//! What does not block: `status`, on which all is built. Reading `stat` of a process that hangs in a
//! file server's call was seen to block as long as that call does, and a command line takes a lock of
//! the process's memory: both are read only when asked for ([`Detail::All`]), and not of a process in
//! that state.

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

/// How much to read of each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What never blocks: no command line, CPU time, start or terminal.
    Safe,
    /// Everything, but of processes in uninterruptible sleep, which get what is safe. Still not for a
    /// thread that must not wait: a process may fall into that sleep in between.
    All,
}

/// All processes.
pub fn processes(proc: &Path, detail: Detail) -> io::Result<Vec<Process>> {
    // One that ended meanwhile is not missed.
    Ok(all(proc)?.into_iter().filter_map(|pid| process(proc, pid, detail)).collect())
}

/// One process.
pub fn process(proc: &Path, pid: u32, detail: Detail) -> Option<Process> {
    let directory = proc.join(pid.to_string());
    let mut process = parse_status(&read_text(&directory.join("status"))?)?;
    if detail == Detail::All && process.state != 'D' {
        add_stat(&mut process, &read_text(&directory.join("stat")).unwrap_or_default());
        process.command = command_line(&directory);
    }
    Some(process)
}

/// What /proc says of one process or thread of the caller's namespace (proc_pid_status(5)).
pub struct Status(String);

impl Status {
    /// None: there is none of this number, which is also how FUSE names who is of no namespace below.
    pub fn of(id: u32) -> Option<Self> {
        let path = format!("/proc/{id}/status");
        (id != 0).then(|| read_text(Path::new(&path)))?.map(Self)
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        let of = |line: &'_ str| line.split_once(':').is_some_and(|(start, _)| start == name);
        let line = self.0.lines().find(|line| of(line))?;
        line.split_once(':').map(|(_, value)| value.trim())
    }
}

impl From<String> for Status {
    fn from(text: String) -> Self {
        Self(text)
    }
}

fn read_text(path: &Path) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned())
}

/// Lines of `Name:\tvalue ...`. Of the numbers per namespace the first is the procfs's own.
fn parse_status(text: &str) -> Option<Process> {
    let mut process = Process::default();
    for line in text.lines() {
        let Some((name, values)) = line.split_once(':') else { continue };
        let mut words = values.split_ascii_whitespace();
        let mut number = || words.next().and_then(|w| w.parse::<u32>().ok());
        match name {
            "Name" => process.name = values.trim_start_matches('\t').to_owned(),
            "State" => process.state = values.trim_start().chars().next()?,
            "Pid" => process.pid = number()?,
            "PPid" => process.ppid = number()?,
            "Uid" => process.uid = number().and_then(|_real| number())?,
            "NSpgid" => process.group = number()?,
            "NSsid" => process.session = number()?,
            "Threads" => process.threads = number()?,
            "VmRSS" => process.rss_kib = u64::from(number()?),
            _ => {}
        }
    }
    (process.pid != 0 && process.state != char::default()).then_some(process)
}

/// `PID (name) state ppid ...`, where the name may hold anything, `)` included. Adds what it can.
fn add_stat(process: &mut Process, text: &str) {
    let Some((_, rest)) = text.rsplit_once(')') else { return };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Numbered as in proc(5), where the state is field 3.
    let number = |n: usize| -> u64 {
        let field = n.checked_sub(3).and_then(|at| fields.get(at));
        field.and_then(|f| f.parse().ok()).unwrap_or(0)
    };
    process.terminal = number(7) as u32;
    process.user_ticks = number(14);
    process.system_ticks = number(15);
    process.start_ticks = number(22);
}

fn command_line(directory: &Path) -> String {
    let bytes = fs::read(directory.join("cmdline")).unwrap_or_default();
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    let words = bytes.get(..end).unwrap_or_default().split(|b| *b == 0);
    words.map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ")
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
        let status = "Name:\ta) b: (c)\nState:\tS (sleeping)\nPid:\t42\nPPid:\t7\n\
                      Uid:\t1\t2\t3\t4\nNSpgid:\t8\t1\nNSsid:\t9\t1\nVmRSS:\t 100 kB\nThreads:\t3\n";
        let Some(mut process) = parse_status(status) else { panic!("not parsed") };
        let rest = "S 7 8 9 34816 8 0 0 0 0 0 11 12 0 0 20 0 3 0 555 4096 25 0 0";
        add_stat(&mut process, &format!("42 (a) b: (c)) {rest}"));
        let expected = Process {
            pid: 42,
            ppid: 7,
            group: 8,
            session: 9,
            uid: 2,
            state: 'S',
            name: "a) b: (c)".to_owned(),
            command: String::new(),
            threads: 3,
            user_ticks: 11,
            system_ticks: 12,
            start_ticks: 555,
            rss_kib: 100,
            terminal: 34816,
        };
        assert_eq!(process, expected);
    }

    #[test]
    fn this_process_is_found_with_its_command() {
        let me = std::process::id();
        let Some(process) = process(Path::new("/proc"), me, Detail::All) else {
            panic!("not found")
        };
        assert!("RSD".contains(process.state), "state {}", process.state);
        assert!(process.command.contains("unum_sys"), "command {}", process.command);
        let all = processes(Path::new("/proc"), Detail::Safe).unwrap_or_default();
        let found = all.iter().find(|p| p.pid == me).map(|p| (p.session, p.group, p.ppid));
        assert_eq!(found, Some((process.session, process.group, process.ppid)));
        assert!(process.start_ticks > 0 && process.rss_kib > 0);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parsers(text in ".{0,200}", line in "(Uid|State|Pid|VmRSS):.{0,20}") {
            let _ = parse_status(&text);
            let _ = parse_status(&line);
            add_stat(&mut Process::default(), &text);
        }
    }
}
