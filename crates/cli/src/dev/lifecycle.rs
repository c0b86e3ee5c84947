//! Making, changing and removing a playground.
//!
//! Every command that changes something holds the playground's lock from start to end, and writes
//! down what it is about to make before it makes it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use unum_node::settings::{PORT, Settings};
use unum_sys::fuse::ConnectionId;

use super::args::UpArgs;
use super::birth::{self, Newborn};
use super::cgroup::CpuGroup;
use super::enter::{self, Order};
use super::identity::Identity;
use super::mounts::MountPoints;
use super::place::{Locked, MACHINES_MAX, Machine, Place, State};
use super::{check, network, pid1, trouble};
use crate::failure::{Explain, Failure, Result};
use crate::output::Output;

/// A killed machine's processes are gone within this time, or something holds them in the kernel.
const DEATH_PATIENCE: Duration = Duration::from_secs(20);

/// Voters are chosen within this time after the last join.
const VOTERS_PATIENCE: Duration = Duration::from_secs(20);
const VOTERS_POLL_PERIOD: Duration = Duration::from_millis(50);

/// A booted node is ready within this time, or that is told.
const BOOT_PATIENCE: Duration = Duration::from_secs(20);
/// How long a booted node may look for a majority before it counts as alone.
const QUORUM_PATIENCE: Duration = Duration::from_secs(3);
const BOOT_POLL_PERIOD: Duration = Duration::from_millis(50);

pub fn up(place: &Place, args: &UpArgs, out: &Output) -> Result<()> {
    check::prerequisites(args.bare)?;
    let started = Instant::now();
    let locked = place.lock_or_create()?;
    if place.exists() {
        return Err(already_there(&locked.load()?));
    }
    let result = build(&locked, args, out);
    if let Err(failure) = result {
        let known = trouble::tell(place);
        if let Err(leftover) = tear_down(locked) {
            out.note(&leftover.to_string());
        }
        return Err(Failure { what: format!("{}{known}", failure.what), ..failure });
    }
    let what = if args.bare { "machines" } else { "nodes" };
    out.say(&format!(
        "{} {what} are up after {:.1} s",
        args.nodes,
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn already_there(state: &State) -> Failure {
    let name = name_option(&state.name);
    match state.complete {
        true => Failure::new(format!("the playground {} is already up", state.name)).next(format!(
            "Use it (unum dev{name} nodes), remove it (unum dev{name} down), or choose another \
             with --name."
        )),
        false => Failure::new(format!("the playground {} is half made", state.name))
            .next(format!("Remove it: unum dev{name} down")),
    }
}

fn name_option(name: &str) -> String {
    if name == "default" { String::new() } else { format!(" --name {name}") }
}

fn build(locked: &Locked, args: &UpArgs, out: &Output) -> Result<()> {
    let mut state = plan(locked, args)?;
    let _mount_points = MountPoints::make()?;
    start_switch(locked, &mut state)?;
    for number in 1..=args.nodes {
        power_on(locked, &mut state, number)?;
    }
    if !args.bare {
        form_cluster(&locked.place, &state, out)?;
    }
    state.complete = true;
    locked.save(&state)
}

fn plan(locked: &Locked, args: &UpArgs) -> Result<State> {
    let name = &locked.place.name;
    let count = args.nodes.min(MACHINES_MAX);
    let mut state = State {
        name: name.clone(),
        cpus: args.cpus,
        switch: None,
        bare: args.bare,
        complete: false,
        machines: (1..=count).map(plan_machine).collect(),
    };
    locked.save(&state)?;
    for machine in &mut state.machines {
        prepare_directory(&locked.place, machine, count, &args.settings)?;
        machine.group =
            args.cpus.map(|cpus| CpuGroup::create(name, &machine.name, cpus)).transpose()?;
    }
    locked.save(&state)?;
    Ok(state)
}

fn plan_machine(number: u32) -> Machine {
    Machine { number, name: format!("n{number}"), init: None, side: 0, group: None }
}

fn prepare_directory(
    place: &Place,
    machine: &Machine,
    machines: u32,
    changes: &[String],
) -> Result<()> {
    let dir = place.machine_dir(&machine.name);
    let settings = settings_of(machine, changes)?;
    let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for number in 1..=machines {
        hosts.push_str(&format!("{} n{number}\n", network::address(number)));
    }
    let made = ["etc", "data"]
        .iter()
        .try_for_each(|name| std::fs::create_dir_all(dir.join(name)))
        .and_then(|()| std::fs::write(dir.join("hosts"), hosts))
        .and_then(|()| std::fs::write(enter::settings_path(&dir), settings.to_toml()));
    made.explain(|| format!("cannot write {}", dir.display()))
}

fn settings_of(machine: &Machine, changes: &[String]) -> Result<Settings> {
    let mut settings = Settings {
        name: machine.name.clone(),
        listen: (network::address(machine.number), PORT).into(),
        volatile_writes: true,
        ..Settings::default()
    };
    for change in changes {
        let (key, value) = change
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("--set needs KEY=VALUE, not {change}")))?;
        settings.set(key, value).map_err(|error| Failure::usage(error.to_string()))?;
    }
    Ok(settings)
}

fn start_switch(locked: &Locked, state: &mut State) -> Result<()> {
    let newborn = birth::start_switch(&locked.place)?;
    let identity = newborn.identity;
    state.switch = Some(identity);
    locked.save(state)?;
    newborn.go()?;
    network::create_switch(identity)
}

fn switch_of(state: &State) -> Result<Identity> {
    state.switch.filter(|switch| switch.is_alive()).ok_or_else(|| {
        Failure::new("the playground's network is gone").next(format!(
            "Remove the playground and make a new one: unum dev{} down",
            name_option(&state.name)
        ))
    })
}

/// Gives a machine power: its init runs and it is on the network when this returns.
fn power_on(locked: &Locked, state: &mut State, number: u32) -> Result<()> {
    let switch = switch_of(state)?;
    let count = u32::try_from(state.machines.len()).unwrap_or(MACHINES_MAX);
    let Some(machine) = state.machines.iter_mut().find(|machine| machine.number == number) else {
        return Err(Failure::new(format!("there is no machine n{number}")));
    };
    let newborn: Newborn = birth::start_machine(&locked.place, machine)?;
    let init = newborn.identity;
    machine.init = Some(init);
    let machine = machine.clone();
    locked.save(state)?;
    network::connect(switch, &machine, init, count)?;
    newborn.go()
}

/// `unum up` on the first machine, `unum join` on the others, as a person would.
fn form_cluster(place: &Place, state: &State, out: &Output) -> Result<()> {
    let Some((first, others)) = state.machines.split_first() else { return Ok(()) };
    out.progress("starting n1");
    unum_on(place, first, &["up"])?;
    let address = format!("{}:{PORT}", network::address(first.number));
    out.progress("joining the others");
    // One after the other, so that n2 is node 2.
    others.iter().try_for_each(|machine| join(place, first, machine, &address))?;
    out.progress("waiting until the cluster has its voters");
    wait_for_voters(place, first, state.machines.len() as u64)
}

/// One voter for up to two nodes, three for up to four, then five: only with them does the cluster
/// survive what it can.
fn wait_for_voters(place: &Place, first: &Machine, nodes: u64) -> Result<()> {
    let wanted = match nodes {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    };
    let deadline = Instant::now() + VOTERS_PATIENCE;
    loop {
        let status = unum_on(place, first, &["status", "--json"])?;
        let status: serde_json::Value =
            serde_json::from_str(&status).explain(|| "cannot understand the status".into())?;
        let count = |field: &str| status[field].as_u64().unwrap_or(0);
        let settled = count("losses_survivable") >= wanted / 2;
        if settled && count("voters_alive") >= wanted && count("nodes_alive") >= nodes {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::new(format!(
                "the cluster has {} of {wanted} voters and {} of {nodes} nodes alive after {} s",
                count("voters_alive"),
                count("nodes_alive"),
                VOTERS_PATIENCE.as_secs()
            )));
        }
        std::thread::sleep(VOTERS_POLL_PERIOD);
    }
}

fn join(place: &Place, first: &Machine, machine: &Machine, address: &str) -> Result<()> {
    let token = unum_on(place, first, &["token", "create", "--json"])?;
    let token: serde_json::Value =
        serde_json::from_str(&token).explain(|| "cannot understand the token's JSON".into())?;
    let token = token["token"].as_str().unwrap_or_default();
    unum_on(place, machine, &["join", token, address]).map(drop)
}

fn unum_on(place: &Place, machine: &Machine, words: &[&str]) -> Result<String> {
    let command = std::iter::once("unum").chain(words.iter().copied()).map(Into::into).collect();
    let output = enter::run_collected(machine, &place.name, &Order { user: None, command })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let verb = words.first().copied().unwrap_or_default();
    let why = why.trim().trim_start_matches("unum: ");
    Err(Failure::new(format!("`unum {verb}` failed on {}: {why}", machine.name)))
}

/// Removes everything, whatever state it is in. Nothing there is as good.
pub fn down(place: &Place, out: &Output) -> Result<()> {
    match place.lock()? {
        Some(locked) => tear_down(locked),
        None => {
            out.note(&format!("there is no playground {}: nothing to do", place.name));
            Ok(())
        }
    }
}

fn tear_down(locked: Locked) -> Result<()> {
    if !locked.place.exists() {
        return locked.remove();
    }
    let state = locked.load()?;
    for init in state.machines.iter().filter_map(|machine| machine.init) {
        take_power(init)?;
    }
    if let Some(switch) = state.switch {
        kill(switch)?;
    }
    // Born, but not yet written down when their starter was killed: they end by themselves, and
    // nothing may be left when we return.
    for newborn in birth::unrecorded(&locked.place) {
        kill(newborn)?;
    }
    for group in state.machines.iter().filter_map(|machine| machine.group.as_ref()) {
        group.remove().explain(|| format!("cannot remove {}", group.path.display()))?;
    }
    locked.remove()?;
    MountPoints::remove_unused();
    Ok(())
}

/// Ends all of a machine's processes at once, and its FUSE connections, as a loss of power does.
///
/// Killing alone does not always end them: a thread of the daemon that tells the kernel to drop a page
/// waits, beyond the reach of any signal, for a program that waits for the daemon's answer. The end
/// of the connection frees both.
fn take_power(init: Identity) -> Result<()> {
    let connections = own_connections(init)?;
    init.kill().explain(|| format!("cannot kill process {}", init.pid))?;
    for connection in connections {
        connection.abort().explain(|| "cannot abort the machine's FUSE connections".into())?;
    }
    kill(init)
}

/// The connections that were mounted inside of the machine. It sees the computer's as well, since its
/// root is the computer's own; those live on.
fn own_connections(init: Identity) -> Result<BTreeSet<ConnectionId>> {
    // Of one whose processes are gone, nothing is mounted any more.
    let seen = ConnectionId::all_of(init.pid).unwrap_or_default();
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let outside = ConnectionId::all_of(own).explain(|| "cannot read the mount table".into())?;
    Ok(&seen - &outside)
}

fn kill(process: Identity) -> Result<()> {
    process.kill_and_wait(DEATH_PATIENCE).map_err(|error| {
        Failure::new(format!("process {} does not die: {error}", process.pid))
            .next("Something holds it in the kernel; look at /proc/PID/stack and try again.")
    })
}

fn lock_existing(place: &Place) -> Result<Locked> {
    match place.lock()? {
        Some(locked) => Ok(locked),
        None => Err(place.load().err().unwrap_or_else(|| Failure::new("try again"))),
    }
}

pub fn cut(place: &Place, names: &[String]) -> Result<()> {
    let locked = lock_existing(place)?;
    let mut state = locked.load()?;
    let switch = switch_of(&state)?;
    for name in names {
        state.machine(name)?;
    }
    // First the wires of all of them, so that no dying process of one is heard by anybody.
    for name in names {
        let machine = state.machine(name)?;
        if machine.running().is_some() {
            network::silence(switch, machine.number)?;
        }
    }
    for name in names {
        let machine = state.machine_mut(name)?;
        if let Some(init) = machine.init {
            take_power(init)?;
        }
        network::disconnect(switch, machine.number);
        machine.init = None;
        locked.save(&state)?;
    }
    Ok(())
}

/// Returns when the nodes of the machines are ready, or says why one is not.
pub fn boot(place: &Place, names: &[String], out: &Output) -> Result<()> {
    let machines = switch_on(place, names, out)?;
    out.progress("waiting until the nodes are ready");
    machines.iter().for_each(|machine| wait_until_ready(place, machine, out));
    Ok(())
}

/// Gives back the machines that have a daemon.
fn switch_on(place: &Place, names: &[String], out: &Output) -> Result<Vec<Machine>> {
    let locked = lock_existing(place)?;
    let mut state = locked.load()?;
    let _mount_points = MountPoints::make()?;
    for name in names {
        let machine = state.machine(name)?;
        if machine.running().is_some() {
            out.note(&format!("{name} has power already"));
            continue;
        }
        let number = machine.number;
        network::disconnect(switch_of(&state)?, number);
        power_on(&locked, &mut state, number)?;
    }
    let has_daemon = |machine: &&Machine| {
        let dir = locked.place.machine_dir(&machine.name);
        names.contains(&machine.name) && pid1::starts_daemon(&dir)
    };
    Ok(state.machines.iter().filter(has_daemon).cloned().collect())
}

/// A node without a majority serves, but changes nothing: that is as ready as it becomes when too
/// many others are off.
fn wait_until_ready(place: &Place, machine: &Machine, out: &Output) {
    let started = Instant::now();
    let mut alone_since = None;
    while started.elapsed() < BOOT_PATIENCE {
        match daemon_state(place, machine).as_deref() {
            Some("ready" | "solitary") => return,
            Some("no-quorum") => {
                let since = *alone_since.get_or_insert_with(Instant::now);
                if since.elapsed() > QUORUM_PATIENCE {
                    out.note(&format!("{} is up, but reaches no majority yet", machine.name));
                    return;
                }
            }
            _ => alone_since = None,
        }
        std::thread::sleep(BOOT_POLL_PERIOD);
    }
    out.note(&format!(
        "{} has power, but its daemon is not ready after {} s; see: unum dev{} logs {}",
        machine.name,
        BOOT_PATIENCE.as_secs(),
        name_option(&place.name),
        machine.name
    ));
}

/// None while it does not answer.
fn daemon_state(place: &Place, machine: &Machine) -> Option<String> {
    let status = unum_on(place, machine, &["status", "--json"]).ok()?;
    let status: serde_json::Value = serde_json::from_str(&status).ok()?;
    status["state"].as_str().map(str::to_owned)
}

pub fn partition(place: &Place, these: &[String], others: &[String]) -> Result<()> {
    let locked = lock_existing(place)?;
    let mut state = locked.load()?;
    let sides: Vec<u32> =
        state.machines.iter().map(|machine| u32::from(!these.contains(&machine.name))).collect();
    for name in these.iter().chain(others) {
        state.machine(name)?;
        if these.contains(name) && others.contains(name) {
            return Err(Failure::usage(format!("{name} cannot be on both sides")));
        }
    }
    let left_out = state
        .machines
        .iter()
        .find(|m| !others.is_empty() && !these.contains(&m.name) && !others.contains(&m.name));
    if let Some(machine) = left_out {
        return Err(Failure::usage(format!("{} is on neither side", machine.name))
            .next("Name every machine, or leave out -- and what follows it."));
    }
    set_sides(&locked, &mut state, &sides)
}

pub fn heal(place: &Place) -> Result<()> {
    let locked = lock_existing(place)?;
    let mut state = locked.load()?;
    let sides = vec![0; state.machines.len()];
    set_sides(&locked, &mut state, &sides)
}

fn set_sides(locked: &Locked, state: &mut State, sides: &[u32]) -> Result<()> {
    let switch = switch_of(state)?;
    let before = state.machines.iter().map(|machine| machine.side).max().unwrap_or(0) + 1;
    for (machine, side) in state.machines.iter_mut().zip(sides) {
        machine.side = *side;
    }
    network::rewire(switch, &state.machines, before)?;
    locked.save(state)
}
