//! What a playground must not leave behind, counted before and after.

use std::collections::BTreeSet;
use std::path::Path;

/// Everything of one playground that can be seen on this computer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Processes that hold the playground's name in their command line.
    pub processes: BTreeSet<String>,
    pub mounts: BTreeSet<String>,
    pub interfaces: BTreeSet<String>,
    pub groups: BTreeSet<String>,
    pub directories: BTreeSet<String>,
    /// Namespaces that those processes live in and this one does not.
    pub namespaces: BTreeSet<String>,
}

impl Census {
    pub fn of(playground: &str) -> Self {
        let directory = format!("unum-dev-{playground}");
        let mut census = Self {
            mounts: lines_with("/proc/self/mountinfo", &directory),
            interfaces: names_in("/sys/class/net"),
            ..Self::default()
        };
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"] {
            let path = Path::new(root).join(&directory);
            if path.exists() {
                census.groups.insert(path.display().to_string());
            }
        }
        let parent = std::env::var("XDG_STATE_HOME").unwrap_or("/var/tmp".into());
        let path = Path::new(&parent).join(&directory);
        if path.exists() {
            census.directories.insert(path.display().to_string());
        }
        for process in names_in("/proc").iter().filter(|name| name.parse::<u32>().is_ok()) {
            census.look_at(process, &directory);
        }
        census
    }

    /// A machine's processes share its namespaces, so PID 1's name suffices to find them all.
    fn look_at(&mut self, process: &str, directory: &str) {
        let proc = Path::new("/proc").join(process);
        // Opening the environment or command line may wait for a process that is stuck in the
        // kernel; the name does not.
        let name = std::fs::read_to_string(proc.join("comm")).unwrap_or_default();
        if !name.starts_with("unum") {
            return;
        }
        let words = std::fs::read_to_string(proc.join("cmdline")).unwrap_or_default();
        if !words.contains(&format!("{directory}/")) {
            return;
        }
        self.processes.insert(process.into());
        for kind in ["mnt", "net", "pid_for_children", "uts", "ipc"] {
            let ours = std::fs::read_link(Path::new("/proc/self/ns").join(kind)).ok();
            let theirs = std::fs::read_link(proc.join("ns").join(kind)).ok();
            if let Some(theirs) = theirs.filter(|theirs| Some(theirs) != ours.as_ref()) {
                self.namespaces.insert(theirs.display().to_string());
            }
        }
    }
}

fn names_in(directory: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn lines_with(file: &str, word: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.contains(word)).map(String::from).collect()
}
