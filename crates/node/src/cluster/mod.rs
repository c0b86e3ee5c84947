//! The life of a cluster and of a node in it: founding, joining, voting, renewing, leaving.

pub mod credentials;
pub mod facts;
pub mod observe;
