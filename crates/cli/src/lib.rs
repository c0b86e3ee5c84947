//! `unum`, the command line: what people type, turned into calls of the local daemon, and replies
//! turned into tables, JSON and exit statuses.
//!
//! No logic of the cluster lives here. Errors say what failed, what was tried and what to do next.

pub mod args;
mod cluster;
mod daemon;
pub mod dev;
mod failure;
mod fsck;
mod lifecycle;
mod manual;
mod output;
mod processes;
mod run;
mod service;
mod values;
mod volume;

use args::{Cli, Verb};
use clap::Parser;
use failure::{EXIT_USAGE, Failure, Result};
use output::Output;

/// The whole program. Returns the exit status.
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let wanted = !error.use_stderr();
            // Nobody reads: nothing to do about it.
            let _ = error.print();
            return if wanted { 0 } else { EXIT_USAGE };
        }
    };
    match run(cli) {
        Ok(exit) => exit,
        Err(failure) => tell(&failure),
    }
}

fn tell(failure: &Failure) -> u8 {
    eprintln!("unum: {failure}");
    failure.exit
}

fn run(cli: Cli) -> Result<u8> {
    let out = Output::new(cli.json);
    let asked = cli.socket;
    let socket = asked.clone().unwrap_or_else(|| daemon::SOCKET.into());
    let done = |()| 0;
    match cli.verb {
        Verb::Up(start) => lifecycle::up(&start, asked.as_deref(), &out).map(done),
        Verb::Join { token, addresses, start } => {
            lifecycle::join(token, addresses, &start, asked.as_deref(), &out).map(done)
        }
        Verb::Down { config } => lifecycle::down(config, &socket, &out).map(done),
        Verb::Leave { force } => cluster::leave(&socket, force, &out).map(done),
        Verb::Remove { node, force } => cluster::remove(&socket, node, force, &out).map(done),
        Verb::Nodes => cluster::nodes(&socket, &out).map(done),
        Verb::Status => cluster::status(&socket, &out).map(done),
        Verb::Fsck { deep, repair } => fsck::run(&socket, deep, repair, &out),
        Verb::Volume(verb) => volume::run(&socket, verb, &out).map(done),
        Verb::Snapshot(verb) => volume::snapshots::run(&socket, verb, &out).map(done),
        Verb::Token(verb) => cluster::token(&socket, verb, &out).map(done),
        Verb::Run { node, detach, time, command } => {
            run::run(&socket, &run::RunOrder { node, detach, time, command }, &out)
        }
        Verb::Ps => processes::list(&socket, &out).map(done),
        Verb::Kill { words } => processes::kill(&socket, &words).map(done),
        Verb::Wait { pid, time } => processes::wait(&socket, pid, time, &out),
        Verb::Logs { pid, follow } => processes::logs(&socket, pid, follow).map(done),
        Verb::Where { pid } => processes::whereabouts(&socket, pid, &out).map(done),
        Verb::Registry(verb) => values::run(&socket, verb, &out).map(done),
        Verb::Dev(args) => dev::run(args, &out),
        Verb::DevMachine(args) => dev::run_machine(args),
        Verb::Completions { shell } => manual::completions(shell).map(done),
        Verb::Man { directory } => manual::pages(&directory).map(done),
    }
}
