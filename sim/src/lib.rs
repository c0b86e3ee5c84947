//! The control plane of a whole cluster in one process, under one seed and virtual time.
//!
//! The registry that runs here is the daemon's own (`unum_node::registry`): consensus, journal,
//! snapshots, proposals, barriers and the choice of voters. Only the clock, the network and the
//! disks are made of memory, and these lose, delay, repeat, reorder, partition, cut power and run
//! full as the seed says. Same seed, same run.
//!
//! What must hold is checked at each step (`monitor`) and over whole histories (`linear`,
//! `values`, `registers`). Leaves out what memory cannot show: the kernel, TLS, real disks.

pub mod clients;
pub mod coverage;
pub mod disaster;
pub mod disk;
pub mod faults;
pub mod gossip;
pub mod kernel;
pub mod linear;
pub mod monitor;
pub mod net;
pub mod registers;
pub mod run;
pub mod tree;
pub mod turnover;
pub mod values;
pub mod world;

pub use run::{Failure, Flaw, Plan, Report, run};
