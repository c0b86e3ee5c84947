//! What processes cost that have nothing to do: resident memory and processor time, from /proc.

use std::time::Duration;

use anyhow::{Context, Result};

const TICKS_PER_SECOND: f64 = 100.0;

struct Process<'a> {
    name: &'a str,
    pid: u32,
}

pub fn run(time: Duration, processes: &[&str]) -> Result<()> {
    let processes: Vec<Process<'_>> =
        processes.iter().map(|text| parse(text)).collect::<Result<_>>()?;
    let before: Vec<f64> = processes.iter().map(cpu_seconds).collect::<Result<_>>()?;
    std::thread::sleep(time);
    for (process, before) in processes.iter().zip(before) {
        let used = cpu_seconds(process)? - before;
        let name = process.name;
        println!("{name}, idle\tRSS\tMiB\t{:.1}", resident_mib(process)?);
        println!("{name}, idle\tCPU of a core\t%\t{:.2}", 100.0 * used / time.as_secs_f64());
    }
    Ok(())
}

fn parse(text: &str) -> Result<Process<'_>> {
    let (name, pid) = text.split_once('=').context("NAME=PID is wanted")?;
    Ok(Process { name, pid: pid.parse()? })
}

/// User and system time.
fn cpu_seconds(process: &Process<'_>) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid))?;
    // The program's name may hold anything, so the fields are counted from its end.
    let (_, fields) = stat.rsplit_once(')').context("an unreadable stat file")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks =
        |index: usize| -> Result<f64> { Ok(fields.get(index).context("short stat")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

fn resident_mib(process: &Process<'_>) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
