//! The life of a cluster and of a node in it: founding, joining, voting, renewing, leaving.
//!
//! `credentials` and `authority` hold keys, `lifecycle` is what each node does for itself, `leader`
//! what the leader does for all, `service` the calls between them, `observe` their judgement.

pub mod authority;
pub mod consensus;
pub mod credentials;
pub mod departure;
pub mod facts;
pub mod founding;
pub mod handover;
pub mod joining;
pub mod leader;
pub mod lifecycle;
pub mod observe;
pub mod proposer;
pub mod running;
pub mod service;
