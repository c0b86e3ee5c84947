//! The network between the machines: a switch in a network namespace of its own, and one cable per
//! machine.
//!
//! Nothing of it touches the computer's own interfaces, routes or firewall, so every playground may
//! use the same addresses. A partition is several bridges in the switch, one per side: frames for
//! the other side vanish, as on a cut wire. Each machine knows the hardware addresses of the others
//! for good, so a partition never shows as an immediate "no route to host".

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use unum_sys::namespace::{self, Kind};

use super::identity::Identity;
use super::place::Machine;
use crate::failure::{Explain, Failure, Result};

const PREFIX_LENGTH: u8 = 24;

pub fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 117, 0, u8::try_from(number).unwrap_or(u8::MAX))
}

fn hardware_address(number: u32) -> String {
    format!("02:75:6d:00:00:{number:02x}")
}

fn port(number: u32) -> String {
    format!("port{number}")
}

fn bridge(side: u32) -> String {
    format!("side{side}")
}

/// Runs `ip` on the commands, one a line, inside the network namespace of a process.
fn ip_inside(process: Identity, commands: &str) -> Result<()> {
    let pidfd =
        process.open().ok_or_else(|| Failure::new("a part of the playground's network is gone"))?;
    // Only the thread moves; it ends with the scope.
    let output = std::thread::scope(|scope| {
        let run = || {
            namespace::enter(std::os::fd::AsFd::as_fd(&pidfd), &[Kind::Network])?;
            let mut ip = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(mut stdin) = ip.stdin.take() {
                stdin.write_all(commands.as_bytes())?;
            }
            ip.wait_with_output()
        };
        scope.spawn(run).join().unwrap_or_else(|_| Err(std::io::Error::other("a thread failed")))
    });
    let output = output.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new("the program `ip` is not installed").next("apt-get install iproute2")
        }
        _ => Failure::new(format!("cannot run `ip` in the playground's network: {error}")),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("cannot set up the playground's network: {}", why.trim())))
}

/// Prepares a fresh switch.
pub fn create_switch(switch: Identity) -> Result<()> {
    ip_inside(switch, &bridge_commands(0))
}

fn bridge_commands(side: u32) -> String {
    let name = bridge(side);
    format!(
        "link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
         link set {name} up\n"
    )
}

/// Plugs a machine in and gives it its address.
pub fn connect(switch: Identity, machine: &Machine, init: Identity, machines: u32) -> Result<()> {
    let (port, number) = (port(machine.number), machine.number);
    ip_inside(
        switch,
        &format!(
            "link add {port} type veth peer name eth0 address {} netns {}\n\
             link set {port} master {}\n\
             link set {port} up\n",
            hardware_address(number),
            init.pid,
            bridge(machine.side),
        ),
    )?;
    let mut inside = format!(
        "link set lo up\n\
         addr add {}/{PREFIX_LENGTH} dev eth0\n\
         link set eth0 up\n",
        address(number)
    );
    for other in (1..=machines).filter(|other| *other != number) {
        let (address, hardware) = (address(other), hardware_address(other));
        let _ =
            writeln!(inside, "neigh replace {address} lladdr {hardware} nud permanent dev eth0");
    }
    ip_inside(init, &inside)
}

/// Pulls the plug: from now on no frame leaves the machine or reaches it.
pub fn silence(switch: Identity, number: u32) -> Result<()> {
    ip_inside(switch, &format!("link set {} down\n", port(number)))
}

/// Removes the cable. The kernel may have removed it with the machine already.
pub fn disconnect(switch: Identity, number: u32) {
    let _ = ip_inside(switch, &format!("link del {}\n", port(number)));
}

/// Wires the machines that have power by their `side`. Bridges of sides that nobody is on any more
/// go away.
pub fn rewire(switch: Identity, machines: &[Machine], sides_before: u32) -> Result<()> {
    let sides = machines.iter().map(|machine| machine.side).max().unwrap_or(0) + 1;
    let mut commands: String = (sides_before..sides).map(bridge_commands).collect();
    for machine in machines.iter().filter(|machine| machine.running().is_some()) {
        let (port, bridge) = (port(machine.number), bridge(machine.side));
        let _ = writeln!(commands, "link set {port} master {bridge}");
    }
    for side in sides..sides_before {
        let _ = writeln!(commands, "link del {}", bridge(side));
    }
    ip_inside(switch, &commands)
}

/// Whether this machine lets us make such a network at all.
pub fn check() -> Result<()> {
    let tried = Command::new("ip").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.map(drop).explain(|| "the program `ip` is needed (apt-get install iproute2)".into())
}
