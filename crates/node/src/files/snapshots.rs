//! Snapshots of volumes: taking and deleting them for root, and what programs may do with what is in them.
//!
//! Reading needs nothing of its own: the tree answers for inodes of snapshots as for others. They never change, so
//! they are shown without asking anybody, also while nobody leads. A node that has not heard yet that a snapshot is
//! deleted may show it a little longer, but never anything else by its numbers.
//!
//! Taking one needs all that was acknowledged anywhere: every write lease that covers anything in the volume is
//! given back first, and what its holder had not drained with it. Pages that a program changed by mmap and that no
//! kernel has written back are not part of it.

use rustix::io::Errno;
use tokio::time::Instant;
use unum_core::tree::{Tree, TreeError, is_past};
use unum_proto::ids::{Ino, SnapshotId, VolumeId};
use unum_proto::tree::tree_command::Command;
use unum_proto::tree::tree_reply::Outcome;
use unum_proto::tree::{CreateSnapshot, DeleteSnapshot};
use unum_sys::fuse::LockKind;

use super::errno::FileError;
use super::{Call, Files};

impl Files {
    /// Keeps what the volume has now. All nodes show it when this returns.
    pub async fn create_snapshot(
        &self,
        volume: VolumeId,
        name: Vec<u8>,
    ) -> Result<SnapshotId, FileError> {
        let create = CreateSnapshot { volume: volume.0, name: name.into() };
        let create = Command::CreateSnapshot(create);
        let deadline = self.deadline();
        loop {
            match self.change_heard_by_all(&create, deadline).await {
                Err(FileError::Tree(TreeError::Held)) if Instant::now() < deadline => {
                    self.log.clear(volume, deadline).await?;
                }
                Ok(Outcome::Snapshot(taken)) => return Ok(SnapshotId(taken.snapshot)),
                Ok(_) => return Err(FileError::Strange),
                Err(error) => return Err(error),
            }
        }
    }

    /// No node finds it any more when this returns. Who has a file of it open gets ESTALE.
    pub async fn delete_snapshot(&self, volume: VolumeId, name: Vec<u8>) -> Result<(), FileError> {
        let delete = DeleteSnapshot { volume: volume.0, name: name.into() };
        let deadline = self.deadline();
        self.change_heard_by_all(&Command::DeleteSnapshot(delete), deadline).await.map(drop)
    }
}

impl Call<'_> {
    /// A file of a snapshot is opened for reading alone.
    pub(super) fn check_flags(&self, flags: u32) -> Result<(), FileError> {
        let reads = flags as i32 & libc::O_ACCMODE == libc::O_RDONLY;
        match is_past(self.ino) && (!reads || flags as i32 & libc::O_TRUNC != 0) {
            true => Err(Errno::ROFS.into()),
            false => Ok(()),
        }
    }

    /// Nobody changes what is in a snapshot: who reads it needs no lock, and there is none of another kind.
    /// None: it is no snapshot's.
    pub(super) fn lock_past(&self, kind: LockKind) -> Option<Result<(), FileError>> {
        is_past(self.ino).then(|| match kind {
            LockKind::Write => Err(Errno::ROFS.into()),
            LockKind::Read | LockKind::Unlock => Ok(()),
        })
    }
}

/// Whether what these inodes are is settled for ever.
pub(super) fn are_frozen(tree: &Tree, inodes: [Ino; 2]) -> bool {
    inodes.iter().all(|ino| is_past(*ino) && tree.is_frozen(*ino))
}
