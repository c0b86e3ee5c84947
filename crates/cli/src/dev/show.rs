//! Listing playgrounds and machines, and showing logs.

use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

use serde::Serialize;

use super::network;
use super::pid1::DAEMON_LOG;
use super::place::Place;
use crate::failure::{Explain, Result};
use crate::output::{Output, Table};

const FOLLOW_PERIOD: Duration = Duration::from_millis(200);

#[derive(Serialize)]
struct MachineRow {
    name: String,
    state: &'static str,
    address: String,
    side: u32,
    pid: Option<i32>,
    cpus: Option<f64>,
}

#[derive(Serialize)]
struct PlaygroundRow {
    name: String,
    machines: usize,
    running: usize,
    complete: bool,
    directory: String,
}

pub fn machines(place: &Place, out: &Output) -> Result<()> {
    let state = place.load()?;
    let rows: Vec<MachineRow> = state
        .machines
        .iter()
        .map(|machine| {
            let init = machine.running();
            MachineRow {
                name: machine.name.clone(),
                state: if init.is_some() { "running" } else { "off" },
                address: network::address(machine.number).to_string(),
                side: machine.side,
                pid: init.map(|init| init.pid),
                cpus: state.cpus,
            }
        })
        .collect();
    out.list(&rows, || {
        let mut table = Table::new(&["NAME", "STATE", "ADDRESS", "SIDE", "PID", "CPUS"]);
        for row in &rows {
            table.row([
                row.name.clone(),
                row.state.into(),
                row.address.clone(),
                row.side.to_string(),
                row.pid.map_or("-".into(), |pid| pid.to_string()),
                row.cpus.map_or("all".into(), |cpus| cpus.to_string()),
            ]);
        }
        table
    })
}

pub fn playgrounds(out: &Output) -> Result<()> {
    let mut rows = Vec::new();
    for place in Place::all() {
        // One that is being removed right now is not worth an error.
        let Ok(state) = place.load() else { continue };
        rows.push(PlaygroundRow {
            name: place.name.clone(),
            machines: state.machines.len(),
            running: state.machines.iter().filter(|m| m.running().is_some()).count(),
            complete: state.complete,
            directory: place.dir.display().to_string(),
        });
    }
    out.list(&rows, || {
        let mut table = Table::new(&["NAME", "MACHINES", "RUNNING", "DIRECTORY"]);
        for row in &rows {
            let (machines, running) = (row.machines.to_string(), row.running.to_string());
            table.row([row.name.clone(), machines, running, row.directory.clone()]);
        }
        table
    })
}

/// Prints the daemon's log and, when asked, what is added to it until interrupted.
pub fn logs(place: &Place, machine: &str, follow: bool) -> Result<()> {
    let state = place.load()?;
    let path = place.machine_dir(&state.machine(machine)?.name).join(DAEMON_LOG);
    let mut position = 0;
    loop {
        let printed = print_from(&path, &mut position);
        printed.explain(|| format!("cannot show {}", path.display()))?;
        if !follow {
            return Ok(());
        }
        std::thread::sleep(FOLLOW_PERIOD);
    }
}

fn print_from(path: &std::path::Path, position: &mut u64) -> std::io::Result<()> {
    let mut file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    file.seek(SeekFrom::Start(*position))?;
    let mut text = Vec::new();
    *position += file.read_to_end(&mut text)? as u64;
    std::io::stdout().write_all(&text)
}
