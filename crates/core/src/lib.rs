//! Every decision of Unum, as pure state machines: no I/O, no clock, no threads, no randomness of
//! its own.

pub mod placement;
pub mod registry;
pub mod time;
