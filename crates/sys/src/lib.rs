//! What Linux does for us: the only crate with `unsafe`. It knows nothing of Unum; it gives safe
//! names to system calls that no other crate gives whole.

pub mod credentials;
pub mod fanotify;
pub mod fds;
pub mod file_handles;
pub mod fuse;
pub mod locks;
pub mod mounts;
pub mod namespace;
pub mod pids;
pub mod process;
pub mod pty;
pub mod world;
