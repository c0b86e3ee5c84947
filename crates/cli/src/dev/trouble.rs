//! What is known about a playground's machines when making it failed: the ends of the daemons' logs,
//! and of a daemon that has not ended what each of its threads is doing in the kernel, since a
//! daemon that a disk holds up writes no log either.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::pid1;
use super::place::{Machine, Place};

/// Of each machine.
const LINES_MAX: usize = 5;
const DAEMON: &str = "unumd";

/// Lines to put below the failure.
pub fn tell(place: &Place) -> String {
    let Ok(state) = place.load() else { return String::new() };
    let mut text = String::new();
    for machine in &state.machines {
        for line in log_end(place, machine).into_iter().chain(threads(machine)) {
            text.push_str(&format!("\n  {}: {line}", machine.name));
        }
    }
    text
}

fn log_end(place: &Place, machine: &Machine) -> Vec<String> {
    let log = place.machine_dir(&machine.name).join(pid1::DAEMON_LOG);
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(LINES_MAX)).map(ToString::to_string).collect()
}

/// A line for each state and system call that threads of the machine's daemon are in.
fn threads(machine: &Machine) -> Vec<String> {
    let Some(init) = machine.init.filter(|init| init.is_alive()) else { return Vec::new() };
    let daemon = children(init.pid).into_iter().find(|pid| name(*pid).as_deref() == Some(DAEMON));
    let Some(daemon) = daemon else { return Vec::new() };
    let tasks = std::fs::read_dir(format!("/proc/{daemon}/task")).into_iter().flatten().flatten();
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for task in tasks {
        *counts.entry(doing(&task.path())).or_default() += 1;
    }
    counts.into_iter().map(|(what, count)| format!("{count} threads of {DAEMON} {what}")).collect()
}

/// For instance "in state D, system call 74"; proc(5) explains the letters.
fn doing(task: &Path) -> String {
    let read = |name: &str| std::fs::read_to_string(task.join(name)).unwrap_or_default();
    let stat = read("stat");
    let state = stat.rsplit_once(") ").map_or("?", |(_, rest)| rest.get(..1).unwrap_or("?"));
    let call = read("syscall");
    match call.split_whitespace().next() {
        Some("running") | None => format!("in state {state}"),
        Some(number) => format!("in state {state}, system call {number}"),
    }
}

fn children(pid: i32) -> Vec<i32> {
    let path = PathBuf::from(format!("/proc/{pid}/task/{pid}/children"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn name(pid: i32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_thread_is_told_with_its_system_call() {
        let mut child = std::process::Command::new("sleep").arg("20").spawn().expect("sleep runs");
        let pid = child.id();
        let task = PathBuf::from(format!("/proc/{pid}/task/{pid}"));
        let sleeping = |told: &str| told.starts_with("in state S, system call ");
        let told = (0..500).map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            doing(&task)
        });
        let told = told.into_iter().find(|told| sleeping(told));
        let known = name(pid.try_into().expect("a PID"));
        child.kill().expect("it is ours");
        child.wait().expect("it ends");
        assert!(told.is_some());
        assert_eq!(known.as_deref(), Some("sleep"));
    }
}
