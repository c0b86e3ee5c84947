//! The processes of this node's world, read from its /proc.
//!
//! Leaves out on purpose: threads and kernel threads. A process that ends while it is read is left
//! out; nothing here fails as a whole.

use std::path::Path;

use unum_proto::process::Process;

/// Bytes of a command line that are shown.
const COMMAND_SIZE_MAX: usize = 4096;

const PAGE_SIZE: u64 = 4096;

/// Clock ticks in a second, as Linux shows them to programs on every architecture (USER_HZ).
const TICKS_PER_SECOND: u64 = 100;

/// The small processes of unum-init's that hold a terminal's session for its program.
const SESSION_NAME: &str = "unum-session";

/// Every process of the world but unum-init's own.
pub(super) fn read(proc_path: &Path) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir(proc_path) else { return Vec::new() };
    let boot_ms = boot_time_ms(proc_path);
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != 1).filter_map(|pid| read_one(proc_path, pid, boot_ms)).collect()
}

fn read_one(proc_path: &Path, pid: u32, boot_ms: u64) -> Option<Process> {
    let own = proc_path.join(pid.to_string());
    let stat = std::fs::read(own.join("stat")).ok()?;
    let stat = Stat::parse(&String::from_utf8_lossy(&stat))?;
    let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&own).ok()?);
    if stat.name == SESSION_NAME && stat.parent == 1 && uid == 0 {
        return None;
    }
    let command = std::fs::read(own.join("cmdline")).unwrap_or_default();
    Some(Process {
        pid,
        parent: stat.parent,
        node: 0,
        node_name: String::new(),
        uid,
        state: stat.state,
        cpu_us: stat.cpu_ticks * (1_000_000 / TICKS_PER_SECOND),
        resident_bytes: stat.resident_pages * PAGE_SIZE,
        started_ms: boot_ms + stat.start_ticks * (1000 / TICKS_PER_SECOND),
        command: shown_command(&command, &stat.name),
        root: false,
        detached: false,
    })
}

/// The fields of proc_pid_stat(5) that are used here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: String,
    parent: u32,
    cpu_ticks: u64,
    start_ticks: u64,
    resident_pages: u64,
}

impl Stat {
    /// The name is in parentheses and may itself contain them and blanks: the last one counts.
    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        // Field 3 of the manual, the state, is the first one here.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            name,
            state: (*fields.first()?).to_owned(),
            parent: number(4)? as u32,
            cpu_ticks: number(14)? + number(15)?,
            start_ticks: number(22)?,
            resident_pages: number(24)?,
        })
    }
}

fn shown_command(arguments: &[u8], name: &str) -> String {
    let shown = &arguments[..arguments.len().min(COMMAND_SIZE_MAX)];
    let shown = shown.strip_suffix(b"\0").unwrap_or(shown);
    if shown.is_empty() {
        return format!("[{name}]");
    }
    String::from_utf8_lossy(shown).replace('\0', " ")
}

fn boot_time_ms(proc_path: &Path) -> u64 {
    let stat = std::fs::read_to_string(proc_path.join("stat")).unwrap_or_default();
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<u64>().ok());
    seconds.unwrap_or(0) * 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "77 (a) b (c) S 5 77 77 0 -1 4194304 1 0 0 0 30 12 0 0 20 0 1 0 900 8192 25 18";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.state.as_str(), stat.parent), ("a) b (c", "S", 5));
        assert_eq!((stat.cpu_ticks, stat.start_ticks, stat.resident_pages), (42, 900, 25));
        assert_eq!(Stat::parse("77 (x) S 5"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn commands_are_shown_as_typed() {
        assert_eq!(shown_command(b"sh\0-c\0exit 7\0", "sh"), "sh -c exit 7");
        assert_eq!(shown_command(b"", "kthreadd"), "[kthreadd]");
    }

    #[test]
    fn this_process_is_listed() {
        let own = read_one(Path::new("/proc"), std::process::id(), 0).unwrap();
        assert_eq!(own.pid, std::process::id());
        assert!(own.resident_bytes > 0 && !own.command.is_empty());
    }
}
