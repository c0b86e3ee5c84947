//! The local API: what `unum` asks of its own node's daemon.

pub mod access;
