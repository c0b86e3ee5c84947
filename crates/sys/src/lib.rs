//! unum-sys

pub mod namespace;
