//! Host trees: each machine's own file system, seen from the others at `/n/NODE`.
//!
//! The *home* performs every call with the rights of the process that made it; the others ask it. A program of
//! this node that calls on `/n` meets `client`; a call of another node on this node's files meets
//! `authority`.
//!
//! - `client`: from each kernel call on `/n` to a call on its home
//! - `table`: what the kernel was shown and what it has open, kept across daemons
//! - `authority`: calls of other nodes, performed here
//! - `objects`: what is done to one file, with whose rights
//! - `places`: what is exported, and finding it again
//! - `grants`: what other nodes keep of this machine's files, and taking it back
//! - `memory`: what this node keeps of theirs
//! - `locks`: what other nodes' programs have locked of this machine's files
//! - `opens`: descriptors and answers that are kept for clients
//! - `seal`: handles and warrants that nobody can forge
//!
//! Invariants: a home follows no symbolic link and no `..`; what is not exported has no handle; a warrant gives
//! no more than what was opened. `/n/OWN` is a link to `/`, so no daemon waits for itself.
//!
//! Leaves out on purpose: device nodes and setuid programs of other machines (the mount is nosuid, nodev),
//! and FIFOs and sockets between machines.

pub mod authority;
pub mod client;
mod grants;
mod locks;
mod memory;
mod objects;
mod opens;
mod places;
mod seal;
mod table;

use unum_proto::host as wire;

pub use authority::Authority;
pub use client::{HostTrees, Parts, mount_options, wishes};
pub use locks::Locks;
pub use places::{Exports, Policy};

/// Under this name unum-init keeps the descriptor of the mount.
pub const KEPT_NAME: &str = "fuse-host";

unum_net::methods! {
    /// A call that changes nothing.
    pub Look = "host.look", Bulk, idempotent, wire::Look => wire::Answer;
    /// A call that changes something.
    pub Change = "host.change", Bulk, wire::Change => wire::Answer;
    pub Read = "host.read", Bulk, idempotent, wire::Read => wire::ReadReply;
    /// Bytes at their place: twice is as good as once.
    pub Write = "host.write", Bulk, idempotent, wire::Write => wire::WriteReply;
    /// Bytes at the end.
    pub Append = "host.append", Bulk, wire::Write => wire::WriteReply;
    pub Sync = "host.sync", Bulk, idempotent, wire::Sync => wire::SyncReply;
    /// Sets a lock, takes it away or asks what is in its way.
    pub Lock = "host.lock", Bulk, idempotent, wire::Lock => wire::Locked;
    pub EndLocks = "host.unlock", Bulk, idempotent, wire::EndLocks => wire::Nothing;
    pub Release = "host.release", Bulk, wire::Release => wire::Nothing;
    /// To the home: a lease on what it grants.
    pub Renew = "host.renew", Control, idempotent, wire::Renew => wire::RenewReply;
    /// From the home: what is not so any more.
    pub Recall = "host.recall", Control, idempotent, wire::Recall => wire::Nothing;
}
