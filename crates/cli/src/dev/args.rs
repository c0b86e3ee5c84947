//! The command line of `unum dev`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct DevArgs {
    /// Which playground, when there are several
    #[arg(long, global = true, default_value = "default", value_name = "NAME")]
    pub name: String,
    #[command(subcommand)]
    pub verb: DevVerb,
}

#[derive(Debug, Subcommand)]
pub enum DevVerb {
    /// Start machines n1, n2, ... that form a cluster; returns when all are ready
    Up(UpArgs),
    /// Remove the playground and all that belongs to it
    Down,
    /// Run a command as on a machine
    Exec {
        machine: String,
        /// Run as this user (default: as you)
        #[arg(long, short)]
        user: Option<String>,
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Cut machines' power: everything on them dies at once, unsynced writes are lost
    Cut {
        #[arg(required = true, value_name = "MACHINE")]
        machines: Vec<String>,
    },
    /// Switch machines on again
    Boot {
        #[arg(required = true, value_name = "MACHINE")]
        machines: Vec<String>,
    },
    /// Cut the network between two sides: partition n1 n2 -- n3
    Partition {
        /// One side
        #[arg(required = true, value_name = "MACHINE")]
        these: Vec<String>,
        /// The other side (default: all that are not named)
        #[arg(last = true, value_name = "MACHINE")]
        others: Vec<String>,
    },
    /// Undo every partition
    Heal,
    /// Kill a machine's unumd with SIGKILL; the machine starts it again
    KillDaemon { machine: String },
    /// List the machines of a playground
    Nodes,
    /// List the playgrounds on this computer
    List,
    /// Show what a machine's daemon logged
    Logs {
        machine: String,
        /// Go on showing what is logged from now on
        #[arg(long, short)]
        follow: bool,
    },
}

#[derive(Debug, Args)]
pub struct UpArgs {
    /// How many machines
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub nodes: u32,
    /// How many cores each machine may use, such as 0.5
    #[arg(long, value_parser = parse_cpus)]
    pub cpus: Option<f64>,
    /// A setting for every machine's unum.toml, such as gossip_period=100ms
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Start the machines alone, without unumd
    #[arg(long, hide = true)]
    pub bare: bool,
}

fn parse_cpus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if cpus.is_finite() && (0.01..=1024.0).contains(&cpus) => Ok(cpus),
        _ => Err("it must be a number between 0.01 and 1024".into()),
    }
}

#[derive(Debug, Args)]
pub struct MachineArgs {
    #[command(subcommand)]
    pub verb: MachineVerb,
}

/// What a playground's own processes are started with; not for people.
#[derive(Debug, Subcommand)]
pub enum MachineVerb {
    Switch {
        #[arg(long)]
        dir: PathBuf,
    },
    Boot {
        #[arg(long)]
        name: String,
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        group: Option<PathBuf>,
    },
    Init {
        #[arg(long)]
        name: String,
        #[arg(long)]
        dir: PathBuf,
    },
    Enter {
        #[arg(long)]
        user: Option<String>,
        #[arg(long)]
        group: Option<PathBuf>,
        #[arg(long)]
        cwd: Option<PathBuf>,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}
