//! The loads of `make bench`, one measurement a run, so that a script can let the rivals take turns.
//!
//! Each measurement prints lines `what<TAB>figure<TAB>unit<TAB>value`; `load table` reads such lines
//! and prints the medians of the rounds. All load generators work in a closed loop: a client sends its
//! next request when it has the reply to the one before.

#[path = "../etcd.rs"]
mod etcd;
#[path = "../idle.rs"]
mod idle;
#[path = "../pace.rs"]
mod pace;
#[path = "../spawn.rs"]
mod spawn;
#[path = "../table.rs"]
mod table;
#[path = "../values.rs"]
mod values;

use std::time::Duration;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
load etcd CLIENTS SECONDS URL[,URL...]   puts of 256 bytes to the leader of these etcd servers
load unum CLIENTS SECONDS SOCKET         puts of 256 bytes through the daemon behind a socket
load leader SOCKET                       the name of the node that leads
load spawn NAME COUNT COMMAND [ARG...]   runs a command to its end, one after the other
load idle SECONDS NAME=PID...            memory and processor time of processes
load table                               medians of the lines on standard input";

/// The size of a value in the registry's benchmark, in bytes.
pub const VALUE_SIZE: usize = 256;
/// Keys are drawn from so many.
pub const KEYS: u64 = 10_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["etcd", clients, seconds, urls] => {
            block_on(etcd::run(clients.parse()?, duration(seconds)?, urls))
        }
        ["unum", clients, seconds, socket] => {
            block_on(values::run(clients.parse()?, duration(seconds)?, socket))
        }
        ["leader", socket] => block_on(values::print_leader(socket)),
        ["spawn", name, count, command @ ..] if !command.is_empty() => {
            spawn::run(name, count.parse()?, command)
        }
        ["idle", seconds, processes @ ..] => idle::run(duration(seconds)?, processes),
        ["table"] => table::run(),
        _ => bail!("usage:\n{USAGE}"),
    }
}

fn duration(seconds: &str) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds.parse()?).context("not a time")
}

/// One thread: the generator shall take as little as it can from those that it measures.
fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
