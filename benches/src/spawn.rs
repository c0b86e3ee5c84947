//! What it takes to run a command to its end, as a shell sees it.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::pace;

/// Runs before the clock starts.
const WARM_UP: usize = 5;

pub fn run(name: &str, count: usize, command: &[&str]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    let mut times = Vec::with_capacity(count);
    let started = Instant::now();
    for turn in 0..count + WARM_UP {
        let before = Instant::now();
        let status = Command::new(program).args(arguments).stdin(Stdio::null()).status()?;
        ensure!(status.success(), "{program} ended with {status}");
        if turn >= WARM_UP {
            times.push(before.elapsed());
        }
    }
    let figures = pace::figures(times, started.elapsed())?;
    println!("{name}\tp50\tms\t{:.2}", figures.p50.as_secs_f64() * 1e3);
    println!("{name}\tp99\tms\t{:.2}", figures.p99.as_secs_f64() * 1e3);
    Ok(())
}
