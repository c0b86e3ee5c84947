//! unum-sys

pub mod fds;
pub mod world;
