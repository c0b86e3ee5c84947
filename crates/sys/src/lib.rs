//! unum-sys

pub mod fds;
pub mod namespace;
pub mod pids;
pub mod process;
pub mod pty;
pub mod world;
