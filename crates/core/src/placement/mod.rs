//! Where things go: chunks on nodes, programs on nodes. Pure functions of what the caller knows.

pub mod chunks;
pub mod programs;
pub mod redundancy;
