//! unum-init: PID 1 of a node's world.
//!
//! It holds what must outlive the daemon: the programs, their terminals and pipes with the bytes that
//! nobody has acknowledged, exit records, and descriptors and notes for the daemon's next life. It is
//! mechanism only; every decision is unumd's, which speaks to it over a Unix socket
//! ([`unum_proto::init`]).
//!
//! Invariants: one thread, one epoll loop, no wait elsewhere; nothing is opened on a mount that a
//! daemon serves; every process of the world but PID 1 has a PID of the blocks that were set.
//!
//! Left out: choosing where things run, user policy, names, the network.

mod blocks;
pub mod client;
mod connection;
mod ends;
mod fault;
mod kept;
mod launch;
mod logfile;
mod poll;
mod program;
mod signals;
mod stream;
mod world;

/// The program `unum-init`, given its arguments without its name. Returns its exit status.
pub fn main(args: impl Iterator<Item = std::ffi::OsString>) -> i32 {
    match launch::Options::parse(args) {
        Some(options) => launch::launch(&options),
        None => {
            eprintln!("{}", launch::USAGE);
            2
        }
    }
}
