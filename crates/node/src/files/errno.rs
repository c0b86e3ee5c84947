//! From the reasons why something failed to the errno that a program sees: in one place, once.
//!
//! The map of the tree's refusals is also in `docs/spec/tree.md`.

use rustix::io::Errno;
use unum_core::tree::TreeError;

use super::replicas::ContentError;
use crate::registry::RegistryError;
use crate::signals::Interrupted;

/// Why a file system call failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("interrupted by a signal")]
    Interrupted,
    #[error("{0}")]
    Errno(Errno),
    #[error("the registry answered with what was not asked for")]
    Strange,
}

impl From<Interrupted> for FileError {
    fn from(_: Interrupted) -> Self {
        Self::Interrupted
    }
}

impl From<Errno> for FileError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl FileError {
    pub fn errno(&self) -> Errno {
        match self {
            Self::Tree(error) => tree_errno(*error),
            Self::Registry(error) => registry_errno(error),
            Self::Content(error) => content_errno(error),
            Self::Strange => Errno::IO,
            Self::Interrupted => Errno::INTR,
            Self::Errno(errno) => *errno,
        }
    }
}

fn tree_errno(error: TreeError) -> Errno {
    match error {
        TreeError::NotFound => Errno::NOENT,
        TreeError::Exists => Errno::EXIST,
        TreeError::NotDirectory => Errno::NOTDIR,
        TreeError::IsDirectory => Errno::ISDIR,
        TreeError::NotEmpty => Errno::NOTEMPTY,
        TreeError::NameTooLong => Errno::NAMETOOLONG,
        TreeError::TooManyLinks => Errno::MLINK,
        TreeError::Invalid | TreeError::CrossesItself => Errno::INVAL,
        TreeError::Unsupported => Errno::OPNOTSUPP,
        TreeError::NoAttribute => Errno::NODATA,
        TreeError::FileTooBig => Errno::FBIG,
        TreeError::NoSpace | TreeError::AttributeTooBig => Errno::NOSPC,
        TreeError::Stale => Errno::STALE,
        TreeError::Deadlock => Errno::DEADLK,
        TreeError::TooManyLocks => Errno::NOLCK,
        TreeError::NotPermitted => Errno::PERM,
        TreeError::BeyondEnd => Errno::NXIO,
        TreeError::QuotaExceeded => Errno::DQUOT,
        TreeError::CrossesVolumes => Errno::XDEV,
        // Asking the holder took longer than the call may.
        TreeError::Held => Errno::TIMEDOUT,
        TreeError::ReadOnly => Errno::ROFS,
        TreeError::HasSnapshots => Errno::BUSY,
        TreeError::TooManySnapshots => Errno::NOSPC,
    }
}

/// Nodes that are away are a time-out, as a missing majority is.
fn content_errno(error: &ContentError) -> Errno {
    match error {
        ContentError::NoSpace { .. } => Errno::NOSPC,
        ContentError::TooFewReplicas { .. } | ContentError::Unreached { .. } => Errno::TIMEDOUT,
        ContentError::Unreadable { .. } => Errno::IO,
    }
}

/// Without a majority, or while this node is held for dead, a call times out: the same word that
/// NFS has for a server that is away.
fn registry_errno(error: &RegistryError) -> Errno {
    match error {
        RegistryError::NoQuorum { .. }
        | RegistryError::Deadline { .. }
        | RegistryError::Fenced { .. } => Errno::TIMEDOUT,
        RegistryError::DiskFull => Errno::NOSPC,
        _ => Errno::IO,
    }
}
