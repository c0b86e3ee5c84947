//! Every message that crosses a wire or lands on a disk, and the identifiers they carry.
//!
//! Messages only: no logic beyond conversion, no I/O. Field numbers are never reused, so nodes of
//! neighbouring versions understand each other during a rolling upgrade. The formats are described
//! in `docs/spec/`.

pub mod admin;
pub mod cluster;
pub mod file;
pub mod host;
pub mod ids;
pub mod init;
pub mod process;
pub mod registry;
pub mod rpc;
pub mod tree;
