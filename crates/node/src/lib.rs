//! unumd: the daemon of a node. It joins the parts that live in other crates into one process:
//! stores, consensus, gossip, the services and the local API.
//!
//! Everything in here may die at any time: what must outlive the daemon is kept by unum-init, what
//! must outlive the machine is in the stores. Decisions are in `unum_core`; this crate performs
//! them.

pub mod api;
pub mod beats;
mod buffers;
pub mod cluster;
pub mod contents;
pub mod daemon;
pub mod files;
pub mod host;
pub mod membership;
pub mod processes;
pub mod registry;
pub mod services;
pub mod settings;
mod signals;
mod slow;
pub mod store;
pub mod stores;
pub mod system;
pub mod tasks;
pub mod world;
