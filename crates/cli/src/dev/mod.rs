//! The playground: several machines on one computer, with honest power cuts and partitions.
//!
//! A machine is a set of namespaces with a PID 1 of its own. Its programs are the computer's; its
//! network, host name, processes, /run, /tmp, settings and data are its own. `dev` knows nothing of
//! how Unum works inside: it only uses `unum` and `unumd` there, as a person would.

pub mod args;
mod birth;
mod cgroup;
mod check;
mod enter;
mod identity;
mod lifecycle;
mod mounts;
mod network;
pub mod pid1;
mod place;
mod service;
mod show;
mod trouble;
mod users;

use args::{DevArgs, DevVerb, MachineArgs, MachineVerb};
use enter::Order;
use place::Place;

use crate::failure::{Failure, Result};
use crate::output::Output;

/// `unum dev ...`. Must be called while the process has one thread.
pub fn run(args: DevArgs, out: &Output) -> Result<u8> {
    let place = Place::of(&args.name)?;
    match args.verb {
        DevVerb::Up(up) => lifecycle::up(&place, &up, out).map(done),
        DevVerb::Down => lifecycle::down(&place, out).map(done),
        DevVerb::Exec { machine, user, command } => {
            let state = place.load()?;
            enter::run_in_foreground(state.machine(&machine)?, &Order { user, command })
        }
        DevVerb::Cut { machines } => lifecycle::cut(&place, &machines).map(done),
        DevVerb::Boot { machines } => lifecycle::boot(&place, &machines, out).map(done),
        DevVerb::Partition { these, others } => {
            lifecycle::partition(&place, &these, &others).map(done)
        }
        DevVerb::Heal => lifecycle::heal(&place).map(done),
        DevVerb::KillDaemon { machine } => ask_pid1(&place, &machine, "kill").map(done),
        DevVerb::Nodes => show::machines(&place, out).map(done),
        DevVerb::List => show::playgrounds(out).map(done),
        DevVerb::Logs { machine, follow } => show::logs(&place, &machine, follow).map(done),
    }
}

fn done((): ()) -> u8 {
    0
}

fn ask_pid1(place: &Place, machine: &str, word: &str) -> Result<()> {
    let state = place.load()?;
    pid1::ask(&enter::control_socket(state.machine(machine)?)?, word)
}

/// `unum dev-machine ...`: the long-lived and inner processes of a playground.
pub fn run_machine(args: MachineArgs) -> Result<u8, Failure> {
    match args.verb {
        // The directory only tells whose process it is.
        MachineVerb::Switch { dir: _ } => birth::run_switch().map(done),
        MachineVerb::Boot { name, dir, group } => {
            birth::run_boot(&name, &dir, group.as_deref()).map(done)
        }
        MachineVerb::Init { name, dir } => pid1::run(&name, &dir).map(done),
        MachineVerb::Enter { user, group, cwd, command } => {
            Err(enter::run_inside(user.as_deref(), group.as_deref(), cwd.as_deref(), &command))
        }
    }
}

/// The name that this computer gives a user; the number where it has none.
pub fn user_name(uid: u32) -> String {
    users::find(&uid.to_string()).map_or_else(|_| uid.to_string(), |user| user.name)
}
