//! Commands and replies of the replicated registry, its log entries and snapshots, and the calls
//! between the daemons' consensus shells.
//!
//! A command travels as encoded bytes from its issuer to the log: `Batch.proposals` has the same
//! encoding whether it is read as messages or as opaque byte strings, so the leader builds a log
//! entry without decoding what it received.

mod commands;
mod consensus;
mod leases;
mod log;
mod nodes;
mod replies;
mod shell;
mod snapshots;

pub use commands::*;
pub use consensus::*;
pub use leases::*;
pub use log::*;
pub use nodes::*;
pub use replies::*;
pub use shell::*;
pub use snapshots::*;
