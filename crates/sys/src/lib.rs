//! What Linux does for us: the only crate with `unsafe`. It knows nothing of Unum; it gives safe
//! names to system calls that no other crate gives whole.

pub mod fds;
pub mod namespace;
pub mod world;
//! unum-sys: the one crate that may use `unsafe`, for what Linux offers and safe crates do not.

pub mod fuse;
