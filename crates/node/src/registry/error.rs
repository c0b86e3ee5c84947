//! Why the registry did not do or tell what was asked.

use std::time::Duration;

use unum_core::registry::Refused;
use unum_proto::ids::Epoch;

use super::log::ReplayError;
use super::snapshots::SnapshotError;
use super::types::Malformed;
use crate::store::disk::DiskError;
use crate::store::journal::JournalError;

/// What a caller of the registry can do about it differs from variant to variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Nobody leads, as far as this node can see. Whether a change was done is not known; asking
    /// again with the same request id is safe.
    #[error(
        "no majority of the voters can be reached from this node (tried for {}): changes and \
         reads wait until it is back; see `unum status`",
        show(.waited)
    )]
    NoQuorum { waited: Duration },
    /// There is a leader, but it did not answer in time. Whether a change was done is not known.
    #[error(
        "the registry did not answer within {}; whether the change was made is not known",
        show(.waited)
    )]
    Deadline { waited: Duration },
    #[error(
        "the leader's disk is full: changes are refused until there is room; \
         free some space there"
    )]
    DiskFull,
    /// The state refused the command; nothing has changed.
    #[error(transparent)]
    Refused(Refused),
    /// This node's epoch is over: it was held for dead or has left. It must come up anew.
    #[error("this node's epoch is over, the present one is {current}; it must come up anew")]
    Fenced { current: Epoch },
    /// The command is larger than the log takes.
    #[error("the command has {bytes} bytes, more than the {max} that the registry takes")]
    TooLarge { bytes: usize, max: usize },
    /// Consensus has stopped on this node.
    #[error("the registry has stopped on this node; see the daemon's log")]
    Stopped,
}

fn show(waited: &Duration) -> String {
    format!("{:.1} s", waited.as_secs_f64())
}

impl From<Refused> for RegistryError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Fenced { current } => RegistryError::Fenced { current },
            other => RegistryError::Refused(other),
        }
    }
}

/// Why consensus could not be started on this node.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("consensus could not be started: {0}")]
    Consensus(String),
}

impl StartError {
    /// Whether it is for want of room: the same start succeeds when there is some.
    pub fn is_full(&self) -> bool {
        match self {
            StartError::Disk(error) | StartError::Snapshot(SnapshotError::Disk(error)) => {
                error.is_full()
            }
            StartError::Journal(error) => matches!(error, JournalError::Full(_)),
            _ => false,
        }
    }
}
