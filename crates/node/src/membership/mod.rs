//! Who is alive, by gossip (SWIM): suspicion, load and hints, spread without a leader.
//!
//! `gossip` is the state machine, `codec` its packets, `loads` what nodes report of themselves,
//! `service` the loop that drives it over the network. Nothing in here decides: the leader reads
//! the view and commits what it makes of it.

pub mod codec;
pub mod gossip;
pub mod loads;
pub mod service;

pub use codec::{Identity, RUN_STRIDE};
pub use gossip::{MemberState, MemberView, Timings, View};
pub use service::{Membership, ServiceLoad};

#[cfg(test)]
mod tests;
