//! unum-node

pub mod store;
