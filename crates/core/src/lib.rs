//! Every decision of Unum as a pure state machine: no I/O, no clock, no threads, no randomness of
//! its own. Time and outcomes come in as arguments; what shall happen goes out as values.

pub mod lease;
pub mod limits;
pub mod packed;
pub mod placement;
pub mod progress;
pub mod registry;
pub mod throttle;
pub mod time;
pub mod tree;
