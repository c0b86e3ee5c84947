//! The command line of `unum`. Command names and options are an interface: scripts use them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::dev::args::{DevArgs, MachineArgs};
use crate::volume::{Property, parse_inodes, parse_property, parse_quota, parse_replicas};

#[derive(Debug, Parser)]
#[command(name = "unum", version, about = "One computer out of several Linux machines")]
#[command(max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// The daemon's socket (default: /run/unum/unumd.sock)
    #[arg(long, global = true, env = "UNUM_SOCKET", value_name = "PATH", hide_env_values = true)]
    pub socket: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start this machine's daemon; on its first start, make a new cluster
    Up(StartArgs),
    /// Start this machine's daemon and join a cluster
    Join {
        /// As printed by `unum token create`
        token: String,
        /// Any member's HOST:PORT
        #[arg(required = true)]
        addresses: Vec<String>,
        #[command(flatten)]
        start: StartArgs,
    },
    /// Take this node out of its cluster for good
    Leave {
        /// Leave even if data or the majority is lost by it
        #[arg(long)]
        force: bool,
    },
    /// Declare another node gone for good
    Remove {
        /// Name or id
        node: String,
        /// Remove it even if it is alive, or if data or the majority is lost by it
        #[arg(long)]
        force: bool,
    },
    /// Stop this machine's daemon and its programs; the node stays a member
    Down {
        /// The settings file that the daemon was started with
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// List the nodes of the cluster
    Nodes,
    /// Show how this node and the cluster are
    Status,
    /// Check the file tree and the contents of all files on all nodes
    ///
    /// The exit status is the sum of 1 (something was mended), 4 (something is left that is wrong)
    /// and 8 (not everything could be checked).
    Fsck {
        /// Read all contents and compare them with their hashes
        #[arg(long)]
        deep: bool,
        /// Mend what is wrong where another node has a good copy
        #[arg(long)]
        repair: bool,
    },
    /// Parts of the file tree with replicas and limits of their own; and when changes of files are durable
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Keep what a volume has now, readable in .snapshot of its root
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Make, list and revoke join tokens
    #[command(subcommand)]
    Token(TokenVerb),
    /// Run a program on another node as if it ran here
    Run {
        /// Where: a node's name or id (default: the least loaded node)
        #[arg(long, short)]
        node: Option<String>,
        /// Print the process ID and return; see `unum logs` and `unum wait`
        #[arg(long, short)]
        detach: bool,
        /// Say at the end how long it ran, its CPU time and its peak memory
        #[arg(long, short, conflicts_with = "detach")]
        time: bool,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        #[arg(value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// List the processes of all nodes
    Ps,
    /// Send a signal to processes on any node: kill [-SIGNAL] PID...
    Kill {
        #[arg(required = true, allow_hyphen_values = true, value_name = "[-SIGNAL] PID")]
        words: Vec<String>,
    },
    /// Wait until a program has ended; the exit status is the program's
    Wait {
        pid: u32,
        /// Say how long it ran, its CPU time and its peak memory
        #[arg(long, short)]
        time: bool,
    },
    /// Print what a detached program wrote
    Logs {
        pid: u32,
        /// Go on until the program has ended
        #[arg(long, short)]
        follow: bool,
    },
    /// Print the node that a process runs on (default: this one)
    Where { pid: Option<u32> },
    /// Read and write named values of the registry
    #[command(subcommand)]
    Registry(ValueVerb),
    /// Make and break small clusters on this computer
    Dev(DevArgs),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Write manual pages into a directory
    Man { directory: PathBuf },
    #[command(hide = true)]
    DevMachine(MachineArgs),
}

#[derive(Debug, Default, Args)]
pub struct StartArgs {
    /// The settings file; written with its defaults when there is none
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What must survive: the registry's log, file contents, credentials
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Sockets and what may be lost at a reboot
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// The address and port to listen on
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// The node's name (default: the host name)
    #[arg(long)]
    pub name: Option<String>,
    /// Where the cluster's file tree is mounted
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a token and print the command that joins a machine with it
    Create {
        /// How long it may be used, such as 10m, 1h or 2d
        #[arg(long, default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
        /// What the new node will be for
        #[arg(long, value_enum, default_value_t = Role::Node)]
        role: Role,
    },
    /// List tokens that can still be used
    List,
    /// Make a token useless
    Revoke {
        /// As shown by `unum token list`
        id: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    Node,
    Witness,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Take a snapshot of the volume that a directory is in
    ///
    /// It has every change that was acknowledged on any node before, and is read as .snapshot/NAME in the root of the
    /// volume, on every node. Nothing lists that directory. What only snapshots need does not count for quotas.
    Create {
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// 1 to 255 bytes without a slash (default: the time, such as 2026-11-23T20-15-00Z)
        #[arg(value_name = "NAME")]
        name: Option<OsString>,
    },
    /// List the snapshots of the volume that a directory is in (default: of all volumes)
    ///
    /// ALONE is what would be freed by deleting this one snapshot, before replication.
    List {
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Delete a snapshot of the volume that a directory is in
    Delete {
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        #[arg(value_name = "NAME")]
        name: OsString,
    },
}

#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Make a directory that is the root of a new volume
    ///
    /// Files and directories do not go from one volume to another by rename(2) or link(2); mv copies them.
    Create {
        /// The new directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Copies of each piece of file content, 1 to 7 (default: the cluster's setting)
        #[arg(long, value_name = "COUNT", value_parser = parse_replicas)]
        replicas: Option<u32>,
        /// Bytes that its files may take, such as 10G, before replication (default: no limit)
        #[arg(long, value_name = "SIZE", value_parser = parse_quota)]
        quota: Option<u64>,
        /// Files and directories that it may have, itself included (default: no limit)
        #[arg(long, value_name = "COUNT", value_parser = parse_inodes)]
        inodes: Option<u64>,
    },
    /// List all volumes
    List,
    /// Show what is in use in the volume of a directory (default: the root of the file tree)
    Usage {
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Remove a volume that is empty
    Delete {
        /// Its root
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Set what holds for a volume, or when changes are durable for any directory and all that is in it
    ///
    /// For a volume, by its root: replicas=COUNT, quota=SIZE, inodes=COUNT, as with `create`; replicas=default,
    /// quota=none and inodes=none undo that. For any directory, for everything below it and for what is made there
    /// later: class=posix, as it is by default: a change is durable once a later fsync(2) has returned, and without
    /// that after about a second. class=strict: a change is durable before its call returns, which takes longer.
    Set {
        /// A directory of the file tree
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// replicas=2, quota=10G, inodes=100000, class=strict, ...
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse_property)]
        properties: Vec<Property>,
        /// Leave what is in the directory as it is; what is made there from now on gets the class
        #[arg(long)]
        only: bool,
    },
    /// Show the class of directories (default: the root of the file tree)
    Show {
        #[arg(value_name = "DIR")]
        directories: Vec<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum ValueVerb {
    /// Print a value
    Get { name: String },
    /// Set a value
    Put {
        name: String,
        /// The value; - reads standard input
        value: OsString,
        /// Only if this is the current version (0: only if the name is new)
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
    /// List names
    List {
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Remove a value
    Delete {
        name: String,
        /// Only if this is the current version
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    unum_node::settings::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_playground_is_named_anywhere_after_dev() {
        let name = |words: &[&str]| {
            let cli = Cli::try_parse_from(words).expect("it parses");
            match cli.verb {
                Verb::Dev(dev) => dev.name,
                other => panic!("not dev: {other:?}"),
            }
        };
        assert_eq!(name(&["unum", "dev", "--name", "x", "down"]), "x");
        assert_eq!(name(&["unum", "dev", "down", "--name", "x"]), "x");
        assert_eq!(name(&["unum", "dev", "exec", "n1", "--", "sh", "--name", "x"]), "default");
        assert_eq!(name(&["unum", "dev", "partition", "n1", "n2", "--", "n3"]), "default");
    }
}
