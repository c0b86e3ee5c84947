//! unum-sys: the one crate that may use `unsafe`, for what Linux offers and safe crates do not.

pub mod fuse;
